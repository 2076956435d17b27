"""What the experts of a trained model do: what they say about tokens or patches, and examples of both.

Legend: ``S`` sequences or images, ``T`` tokens or patches of each, ``N`` experts, ``P`` pixels of a patch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe.interpret import LabelInformation, Recording, find_layers, find_top_samples, record
from recipes.gpt.language import kind_of
from recipes.gpt.tokens import read_tokenizer
from recipes.options import Options
from recipes.recipe import Recipe
from studies.pretraining.information import mutual_information, permuted, perplexity, random_gates, shares
from studies.pretraining.training import Settings, trained

__all__ = ["Seen", "look", "see"]

PERMUTATIONS, GATES = 20, 5
SHOWN_EXPERTS = {"gpt": 2, "mixer": 5}
WORDS, PATCHES = 8, 6
QUANTILES = torch.tensor([0.25, 0.5, 0.75])


@dataclass(frozen=True, eq=False)
class Seen:
    """The coefficients of a model's layers on its held-out samples, and what they may tell of.

    Attributes:
        coefficients: By layer, ``(S, T, N)``.
        inputs: By layer, what its gate sees, ``(S, T, D)``.
        gates: The gates by layer.
        labels: By name, ``(S, T)``.
        recording: The coefficients as the library's measures take them.
    """

    coefficients: dict[str, Tensor]
    inputs: dict[str, Tensor]
    gates: dict[str, nn.Module]
    labels: dict[str, Tensor]
    recording: Recording


def look(settings: Settings, quick: bool, shown: bool) -> dict[str, Any]:
    """What the experts of one trained model say, in bits, beside permuted labels and gates drawn at random.

    Args:
        settings: The problem, the form and the seed.
        quick: Whether for tests.
        shown: Whether examples are wanted too.
    """
    model, recipe, options = trained(settings, quick)
    seen = see(settings["problem"], model, recipe, options)
    layers = [{"layer": layer, **_measured(seen, layer)} for layer in seen.coefficients]
    examples = {"gpt": _tokens, "mixer": _patches}[settings["problem"]]
    return {"layers": layers, **({"shown": examples(seen, recipe, options)} if shown else {})}


@torch.no_grad()
def see(problem: str, model: nn.Module, recipe: Recipe, options: Options) -> Seen:
    """Run a model on its held-out samples.

    Args:
        problem: ``"gpt"`` or ``"mixer"``.
        model: The model, in evaluation mode.
        recipe: Its recipe.
        options: Its options.
    """
    drawn = [recipe.held_out(k) for k in range(recipe.num_held_out)]
    x, y = torch.utils.data.default_collate(drawn)
    pattern, labels_of = {"gpt": ("*", _labels_of_tokens), "mixer": ("blocks.*.channels", _labels_of_patches)}[problem]
    with record(model, pattern) as log:
        gates = {name: layer.gate for name, layer in find_layers(model, pattern).items()}
        inputs: dict[str, list[Tensor]] = {name: [] for name in gates}
        handles = [
            gate.register_forward_pre_hook(lambda _, given, name=name: inputs[name].append(given[0]))
            for name, gate in gates.items()
        ]
        for part in x.split(64):
            model(part)
        for handle in handles:
            handle.remove()
    seen = {name: torch.cat(parts) for name, parts in inputs.items()}
    shapes = {name: rows.shape[:2] for name, rows in seen.items()}
    coefficients = {name: log.recording.coefficients(name).reshape(*shapes[name], -1) for name in seen}
    return Seen(coefficients, seen, gates, labels_of(x, y, options), log.recording)


def _measured(seen: Seen, layer: str) -> dict[str, Any]:
    """For each label the bits, those of permuted labels and of random gates; how many experts share a token."""
    rows, gate = seen.coefficients[layer], seen.gates[layer]
    drawn = list(random_gates(seen.inputs[layer], rows.shape[-1], gate.activation, gate.temperature, GATES))
    found = {}
    for name, labels in seen.labels.items():
        null = [mutual_information(rows, other) for other in permuted(labels, name == "position", PERMUTATIONS)]
        measured = LabelInformation.of(rows, labels, draws=1)
        found[name] = {
            "bits": measured.mutual_information.value,
            "permuted": fmean(null),
            "permuted_most": max(null),
            "random_gate": fmean(mutual_information(other, labels) for other in drawn),
            "entropy": measured.label_entropy,
        }
    sharing = {"trained": perplexity(rows), "random_gate": fmean(map(perplexity, drawn))}
    return {"labels": found, "sharing": sharing}


def _labels_of_tokens(x: Tensor, y: Tensor, options: Any) -> dict[str, Tensor]:
    tokenizer = read_tokenizer(options.data)
    kinds = torch.tensor([kind_of(tokenizer.decode([number])) for number in range(tokenizer.vocabulary)])
    return {"kind": kinds[x], "token": x, "next token": y, "position": torch.arange(x.shape[1]).expand_as(x)}


def _labels_of_patches(x: Tensor, y: Tensor, options: Any) -> dict[str, Tensor]:
    patches = nn.functional.unfold(x, options.patch, stride=options.patch).transpose(1, 2)  # (S, T, P)
    look = torch.zeros(patches.shape[:2], dtype=torch.int64)
    for measure in (patches.mean(dim=2), patches.std(dim=2)):
        look = 4 * look + torch.bucketize(measure, measure.flatten().quantile(QUANTILES))
    position = torch.arange(patches.shape[1]).expand_as(look)
    return {"look": look, "position": position, "class": y[:, None].expand_as(look)}


def _tokens(seen: Seen, recipe: Recipe, options: Any) -> dict[str, Any]:
    """The sequence with most different tokens, and in each layer the experts that say most about the kind of token."""
    tokenizer, tokens = read_tokenizer(options.data), seen.labels["token"]
    chosen = max(range(len(tokens)), key=lambda k: len(tokens[k].unique()))
    layers = []
    for layer, rows in seen.coefficients.items():
        by_kind, by_token = (shares(rows, labels) for labels in (seen.labels["kind"], tokens))
        use = rows.mean(dim=(0, 1))
        best = by_kind.sum(dim=1).argsort(descending=True)[: SHOWN_EXPERTS["gpt"]].tolist()
        layers.append(
            {
                "layer": layer,
                "experts": [
                    {
                        "expert": expert,
                        "share": float(use[expert]),
                        "bits": float(by_kind[expert].sum()),
                        "words": _words(by_token[expert], tokenizer.decode),
                        "coefficients": [round(value, 3) for value in rows[chosen, :, expert].tolist()],
                    }
                    for expert in best
                ],
            }
        )
    return {"tokens": [tokenizer.decode([number]) for number in tokens[chosen].tolist()], "layers": layers}


def _words(gains: Tensor, decode: Callable[[list[int]], str]) -> list[str]:
    best = gains.argsort(descending=True)[:WORDS].tolist()
    return [decode([number]) for number in best if gains[number] > 0]


def _patches(seen: Seen, recipe: Recipe, options: Any) -> dict[str, Any]:
    """In the first and the last block the busiest experts, with the patches of different images that they take most."""
    per_image, layers = (options.side // options.patch) ** 2, []
    names = list(seen.coefficients)
    for layer in (names[0], names[-1]):
        rows = seen.coefficients[layer]
        top = find_top_samples(seen.recording, 10 * PATCHES, layer=layer)
        busiest = rows.mean(dim=(0, 1)).argsort(descending=True)[: SHOWN_EXPERTS["mixer"]].tolist()
        experts = []
        for expert in busiest:
            chosen: dict[int, tuple[int, float]] = {}
            for sample, value in zip(top.samples[expert].tolist(), top.values[expert].tolist(), strict=True):
                if sample >= 0 and len(chosen) < PATCHES:
                    chosen.setdefault(sample // per_image, (sample % per_image, round(value, 3)))
            patches = [[image, place, value] for image, (place, value) in chosen.items()]
            experts.append({"expert": expert, "share": float(rows[..., expert].mean()), "patches": patches})
        layers.append({"layer": layer, "experts": experts})
    return {"layers": layers, "images": recipe.num_held_out}
