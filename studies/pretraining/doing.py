"""The part of the page that says what the experts of the trained models do."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from factorized_moe.interpret.report.plots import shade_tokens
from studies.common.paired import paired
from studies.pretraining.parity import NAMES, TITLES, Parity

__all__ = ["experts_section", "experts_verdicts"]

Looks = Sequence[Mapping[str, Any]]
FOLLOWED = {"gpt": ("kind", "next token"), "mixer": ("look", "class")}
"""The labels whose bits are compared between the first and the last layer."""
MEANT = {
    "kind": "the kind of the token",
    "next token": "the next token",
    "look": "the look of the patch",
    "class": "the class of the image",
}


def experts_verdicts(looks: Looks) -> list[str]:
    """A sentence of result for each model and form, and one for the paper's claim about a Mixer's blocks.

    Args:
        looks: The table of experts.
    """
    lines, changes = [], []
    for (problem, form), results in _by_form(looks).items():
        parts = [_trend(results, label) for label in FOLLOWED[problem]]
        if problem == "mixer":
            changes.append(tuple(_change(results, label).word for label in FOLLOWED[problem]))
        lines.append(f"- **What experts do, {TITLES[problem]}, {NAMES[form]}**: {'; '.join(parts)}.")
    if changes:
        found = sum(words == ("worse", "better") for words in changes)
        word = "reproduced" if found == len(changes) else "reproduced in part" if found else "not reproduced"
        if any("unknown" in words for words in changes):
            word = "one seed cannot tell"
        rule = "less about look and more about class in the last block than in the first, beyond two standard errors"
        lines.append(
            f"- **Early blocks divide patches by look, late ones by class: {word}** in the Mixer: experts tell {rule}, "
            f"in {found} of {len(changes)} forms."
        )
    return lines


def _ends(results: Sequence[Mapping[str, Any]], label: str) -> tuple[list[Any], list[Any]]:
    """What was measured in the first and in the last layer, of each seed."""
    first, last = ([result["layers"][k]["labels"][label] for result in results] for k in (0, -1))
    return first, last


def _change(results: Sequence[Mapping[str, Any]], label: str) -> Parity:
    """The bits of the last layer less those of the first; more is better."""
    first, last = _ends(results, label)
    return Parity(paired([one["bits"] for one in last], [one["bits"] for one in first]), lower_is_better=False)


def _trend(results: Sequence[Mapping[str, Any]], label: str) -> str:
    first, last = (
        f"{statistics.fmean(one['bits'] for one in end):.2f} in the {name} layer, {_beside(end)}"
        for name, end in zip(("first", "last"), _ends(results, label), strict=True)
    )
    told = {"a tie": "no change", "better": "a rise", "worse": "a fall", "unknown": "one seed cannot tell"}
    return f"bits about {MEANT[label]}: {first}, and {last}: {told[_change(results, label).word]}"


def _beside(found: Sequence[Mapping[str, float]]) -> str:
    """How the bits of some seeds are beside a random gate's, and whether they are above every permutation."""
    ratio = statistics.fmean(one["bits"] for one in found) / statistics.fmean(one["random_gate"] for one in found)
    against = Parity(paired([one["bits"] for one in found], [one["random_gate"] for one in found]), False)
    told = {"a tie": "a tie with", "better": "more than", "worse": "less than", "unknown": "beside"}
    null = "" if all(one["bits"] > one["permuted_most"] for one in found) else ", not above permuted labels"
    return f"{told[against.word]} a random gate ({ratio:.1f} times{null})"


def experts_section(looks: Looks) -> list[str]:
    """The section with its tables, pictures and shaded text.

    Args:
        looks: The table of experts.
    """
    if not looks:
        return []
    shown = {entry["settings"]["problem"]: entry["result"]["shown"] for entry in looks if "shown" in entry["result"]}
    sharing = [layer["sharing"] for entry in looks for layer in entry["result"]["layers"]]
    trained, drawn = (statistics.fmean(one[name] for one in sharing) for name in ("trained", "random_gate"))
    return [
        "## What the experts come to do",
        "",
        "How many bits an expert, drawn by the coefficients of a held-out token or patch, says about it (mutual",
        "information): mean ± sd over seeds. In parentheses first the null, labels exchanged between whole sequences",
        "or images (positions: within them), then the same for gates whose weights are drawn at random, on what the",
        "trained gates see: like tokens have like inputs, so any division of them says something. A trained",
        f"gate divides a token among {trained:.1f} experts (exp of the entropy), a random one among {drawn:.1f}.",
        "",
        *_bits(looks),
        "",
        "*Kind*: letters, digits, space, new line, signs. *Look*: the quarters of all patches that a patch's",
        "brightness and its contrast fall in. Labels with many values have a higher null.",
        "",
        "![Bits by layer, beside gates drawn at random](pretraining-bits.svg)",
        "",
        *(_tokens(shown["gpt"]) if "gpt" in shown else []),
        *(_patches(shown["mixer"]) if "mixer" in shown else []),
    ]


def _by_form(looks: Looks) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in looks:
        found.setdefault((entry["settings"]["problem"], entry["settings"]["form"]), []).append(entry["result"])
    return found


def _bits(looks: Looks) -> list[str]:
    lines, heading = [], ""
    for (problem, form), results in _by_form(looks).items():
        labels = list(results[0]["layers"][0]["labels"])
        if problem != heading:
            heading = problem
            lines += ["", f"| {TITLES[problem]} | layer | {' | '.join(labels)} |", f"|---|--:|{'---|' * len(labels)}"]
        for number in range(len(results[0]["layers"])):
            cells = [_cell([result["layers"][number]["labels"][label] for result in results]) for label in labels]
            lines.append(f"| {NAMES[form]} | {number + 1} | {' | '.join(cells)} |")
    return lines[1:]


def _cell(found: Sequence[Mapping[str, float]]) -> str:
    values = [one["bits"] for one in found]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    null, drawn = (statistics.fmean(one[name] for one in found) for name in ("permuted", "random_gate"))
    return f"{statistics.fmean(values):.2f} ± {spread:.2f} ({null:.2f}; {drawn:.2f})"


def _tokens(shown: Mapping[str, Any]) -> list[str]:
    tokens = [re.sub(r"\n\s*\n", "\n", token) for token in shown["tokens"]]  # a blank line would end the HTML
    lines = [
        "### Tokens of the GPT, shaded by expert",
        "",
        "CP, seed 0. In each layer the two experts that say most about the kind of the token, with the tokens that",
        "they say most about, and a held-out text, the one with most different tokens, shaded by their coefficients.",
        "(The text: Python's standard library, Python Software Foundation Licence.)",
        "",
    ]
    for number, layer in enumerate(shown["layers"], 1):
        for found in layer["experts"]:
            words = " ".join(f"`{_visible(word)}`" for word in found["words"])
            lines += [
                f"Layer {number}, expert {found['expert']} ({found['share']:.0%} of coefficients): {words}",
                "",
            ]
            lines += [shade_tokens(tokens, torch.tensor(found["coefficients"]), largest=0.5), ""]
    return lines


def _visible(word: str) -> str:
    """A token with its spaces and line ends to be seen, and nothing in it that ends code."""
    return word.replace("\n", "⏎").replace(" ", "␣").replace("`", "'")


def _patches(shown: Mapping[str, Any]) -> list[str]:
    first, last = (int(layer["layer"].split(".")[1]) + 1 for layer in (shown["layers"][0], shown["layers"][-1]))
    return [
        "### Patches of the Mixer, in their images",
        "",
        f"CP, seed 0, blocks {first} and {last}: the five experts with the largest coefficients on average, each",
        "with the patches, of different held-out images, that have its largest coefficients (below each image).",
        "",
        f"![Top patches of five experts in block {first} and in block {last}](pretraining-patches.png)",
        "",
    ]
