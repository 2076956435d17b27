"""The part of the page that says what the experts of the trained models do."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from factorized_moe.interpret.report.plots import shade_tokens
from studies.common.paired import paired
from studies.pretraining.beyond import beyond_table, by_form
from studies.pretraining.experts import GATES, PERMUTATIONS
from studies.pretraining.parity import NAMES, TITLES, Parity

__all__ = ["experts_section"]

Looks = Sequence[Mapping[str, Any]]
SHARING = ("trained", "random_gate")
LARGEST = 0.5
"""The coefficient from which on a token has the full shade."""
SHADED = 40
"""Tokens of the text that are shown."""


def experts_section(looks: Looks) -> list[str]:
    """The section with its tables, pictures and shaded text.

    Args:
        looks: The table of experts.
    """
    if not looks:
        return []
    shown = {entry["settings"]["problem"]: entry["result"]["shown"] for entry in looks if "shown" in entry["result"]}
    return [
        "## What the experts come to do",
        "",
        "Bits about a label are its mutual information with an expert that is drawn by the coefficients of a held-out",
        "token or patch (of the Mixer, by the gates of the blocks that mix channels, not patches). The labels:",
        "",
        "- *Kind* of a token, the first that fits: only spaces; has a new line; has a letter; digits; signs; other.",
        "- *Look* of a patch: in which quarter of all held-out patches its brightness is (the mean of its pixels), and",
        "  in which its contrast (their standard deviation).",
        "- *Position* in the sequence or the image. *Class* of the whole image. *Token*, *next token*: which it is.",
        "",
        "Random gates are the control because like tokens have like inputs: any division of them says something.",
        f"Their weights are normal; figures are the mean of {GATES} draws, whose own spread was not kept. Their logits",
        "have mean 0 and deviation 1 over the held-out tokens, a trained gate's over its training batches; temperature",
        "and entmax are the same.",
        "",
        "### Beyond a random gate",
        "",
        "Differences in bits; a change is the last layer minus the first. *More*, *less*, *rise* and *fall* stand",
        "where zero is outside the interval.",
        "",
        *beyond_table(looks),
        "",
        "A limit: a sharper gate (*shared by* below) may say more by that alone; how much was not measured. Trained",
        f"gates are sharper than random ones {_sharper(looks)}.",
        "",
        "### Bits by layer",
        "",
        "Trained gate / random gate, each the mean with the standard deviation over seeds in parentheses. *Shared by*:",
        "among how many experts a gate divides a token (exp of the mean entropy). Labels exchanged between whole",
        f"sequences or images (positions: within them; the mean of {PERMUTATIONS} draws), which keeps what comes of "
        f"place, have {_permuted(looks)} bits.",
        "",
        *_bits(looks),
        "",
        "![Bits by layer, of trained and of random gates](pretraining-bits.svg)",
        "",
        "*The mean of the seeds, and shaded from the least to the largest; dashed in the same colour: random gates.*",
        "",
        *(_tokens(shown["gpt"]) if "gpt" in shown else []),
        *(_patches(shown["mixer"]) if "mixer" in shown else []),
    ]


def _sharper(looks: Looks) -> str:
    """Where trained gates divide a token among fewer experts than random ones, by the interval."""
    found = []
    for (problem, form), results in by_form(looks).items():
        sharing = [[result["layers"][k]["sharing"] for result in results] for k in range(len(results[0]["layers"]))]
        against = [Parity(paired(*([one[g] for one in layer] for g in SHARING)), True).verdict for layer in sharing]
        layers = [str(number) for number, word in enumerate(against, 1) if word == "better"]
        if layers:
            found.append(f"{', '.join(layers)} ({TITLES[problem]}, {NAMES[form]})")
    return f"in layers {'; '.join(found)}" if found else "in no layer"


def _bits(looks: Looks) -> list[str]:
    lines, heading = [], ""
    for (problem, form), results in by_form(looks).items():
        labels = list(results[0]["layers"][0]["labels"])
        if problem != heading:
            heading = problem
            names = " | ".join([*labels, "shared by"])
            lines += ["", f"| {TITLES[problem]} | layer | {names} |", f"|---|--:|{'---|' * (len(labels) + 1)}"]
        for number in range(len(results[0]["layers"])):
            layers = [result["layers"][number] for result in results]
            cells = [_cell([layer["labels"][label] for layer in layers]) for label in labels]
            shared = " / ".join(_mean([layer["sharing"][gate] for layer in layers], 1) for gate in SHARING)
            lines.append(f"| {NAMES[form]} | {number + 1} | {' | '.join([*cells, shared])} |")
    return lines[1:]


def _cell(found: Sequence[Mapping[str, float]]) -> str:
    return " / ".join(_mean([one[name] for one in found], 2) for name in ("bits", "random_gate"))


def _permuted(looks: Looks) -> str:
    """The most bits of each label when labels are permuted: of any layer, form and seed."""
    most: dict[str, float] = {}
    for entry in looks:
        for layer in entry["result"]["layers"]:
            for label, measured in layer["labels"].items():
                most[label] = max(most.get(label, 0.0), measured["permuted"])
    return ", ".join(f"{label} at most {value:.2f}" for label, value in most.items())


def _mean(values: Sequence[float], digits: int) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ({spread:.{digits}f})"


def _tokens(shown: Mapping[str, Any]) -> list[str]:
    tokens = [re.sub(r"\n\s*\n", "\n", token) for token in shown["tokens"][:SHADED]]  # a blank line would end the HTML
    lines = [
        "### Tokens of the GPT, shaded by expert",
        "",
        "Chosen, not typical: CP, seed 0, and in the first and in the last layer the two experts that say most about",
        "the kind of the token. Each has the tokens that it says most about, and the start of the held-out sequence",
        f"with most different tokens, shaded by its coefficients: none is 0, the darkest {LARGEST} or more. (The text:",
        "Python's standard library, Python Software Foundation Licence.)",
        "",
    ]
    for number in dict.fromkeys((0, len(shown["layers"]) - 1)):
        for found in shown["layers"][number]["experts"]:
            words = " ".join(f"`{_visible(word)}`" for word in found["words"])
            lines += [
                f"Layer {number + 1}, expert {found['expert']} ({found['share']:.0%} of coefficients): {words}",
                "",
            ]
            lines += [shade_tokens(tokens, torch.tensor(found["coefficients"][:SHADED]), largest=LARGEST), ""]
    return lines


def _visible(word: str) -> str:
    """A token with its spaces and line ends to be seen, and nothing in it that ends code."""
    return word.replace("\n", "⏎").replace(" ", "␣").replace("`", "'")


def _patches(shown: Mapping[str, Any]) -> list[str]:
    first, last = (int(layer["layer"].split(".")[1]) + 1 for layer in (shown["layers"][0], shown["layers"][-1]))
    return [
        "### Patches of the Mixer, in their images",
        "",
        f"Chosen, not typical: CP, seed 0, layers {first} and {last}, the five experts with the largest coefficients",
        "on average, each with the patches, of different held-out images, that have its largest coefficients (below",
        "each image; the frame is the patch).",
        "",
        f"![Top patches of five experts in layer {first} and in layer {last}](pretraining-patches.png)",
        "",
    ]
