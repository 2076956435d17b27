"""The page of the study: every figure and every sentence of result is made from the runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from studies.pretraining.doing import experts_section, experts_verdicts
from studies.pretraining.parity import NAMES, TITLES, Found, Parity, by_problem, parities

__all__ = ["page"]

POINTS = 100.0
"""Accuracies are printed in percent."""


def page(
    runs: Sequence[Mapping[str, Any]],
    shorter: Sequence[Mapping[str, Any]],
    looks: Sequence[Mapping[str, Any]],
    sizes: Mapping[str, Mapping[str, Any]],
) -> str:
    """The page in Markdown.

    Args:
        runs: The finished runs of this study.
        shorter: Those of the study ``recipes``.
        looks: What was found of the experts.
        sizes: The options of each problem's dense form.
    """
    found, earlier = by_problem(runs), by_problem(shorter)
    seconds = sum(entry["seconds"] for entry in [*runs, *looks])
    return "\n".join(
        [
            "# Pre-training at equal parameters",
            "",
            "The main claim of the uMoE paper for whole models: with blocks of factorised experts in place of MLPs,",
            "they reach a comparable accuracy at equal parameters. Here a small GPT and a small Mixer are trained from",
            "scratch by the [recipes](recipes.md), with MLPs (*dense*), with CP and with tensor rings, the gate",
            "counted; deeper and longer than on that page. Forms of one seed see the same batches.",
            "",
            *_verdicts(found),
            *experts_verdicts(looks),
            "",
            "## Loss and accuracy",
            "",
            "`±` is the standard error of differences paired by seed, and within two of them is a tie. That rule calls",
            "differences of three seeds real too easily, so in brackets is the 95% interval by Student's t: with three",
            "seeds 4.3 standard errors on each side. Accuracy is of the next token, or of the class, in percent.",
            "",
            *_table(found),
            "",
            "![Held-out loss and accuracy over steps: the mean of the seeds, and their spread](pretraining.svg)",
            "",
            "The runs of [the recipes' page](recipes.md), which has their losses, are shorter and of two layers; their",
            "accuracies:",
            "",
            *_shorter(earlier),
            "",
            *experts_section(looks),
            "## What was run",
            "",
            *(f"- {TITLES[name]}: {_size(size)}" for name, size in sizes.items()),
            "- The GPT reads Python's standard library in tokens of a vocabulary of 2,048 trained on it, the Mixer",
            "  Fashion-MNIST in 16 patches. The gate has batch norm and entmax; all else is the library's default.",
            "- Experts in use at the last step: " + _in_use(found) + ".",
            "",
            "These models have under a million parameters, have trained for minutes, and have one learning rate for",
            "all forms, the recipe's. ImageNet, OpenWebText and the paper's sizes were not run, nor anything on a GPU:",
            "what is a tie or a difference here need not be one there. CP with another learning rate and another",
            "norm in the gate is on [the recipes' page](recipes.md).",
            "",
            "Command: `python -m studies pretraining`, about three quarters of an hour of one thread; on a machine",
            f"that did much other work its runs took {seconds / 60:.0f} minutes by the clock. A stopped command",
            "goes on where it was. Runs: [pretraining.jsonl](pretraining.jsonl),",
            "[pretraining-experts.jsonl](pretraining-experts.jsonl).",
            "",
        ]
    )


def _verdicts(found: Found) -> list[str]:
    lines = []
    for problem, forms in found.items():
        accuracies, losses = parities(forms, "accuracy"), parities(forms, "loss")
        unknown = any(parity.word == "unknown" for parity in accuracies.values())
        behind = [NAMES[form] for form, parity in accuracies.items() if parity.word == "worse"]
        if not accuracies:
            continue
        parts = []
        for form in accuracies:
            told = (
                f"{NAMES[form]} is {accuracies[form].word} in accuracy ({_brief(accuracies[form], POINTS, 2)} points)"
            )
            share = losses[form].difference.mean / statistics.fmean(r["loss"] for r in forms["dense"].values())
            parts.append(f"{told} and {losses[form].word} in loss ({_brief(losses[form])}, {share:+.1%} of dense's)")
        verdict = "reproduced in part" if behind else "reproduced"
        if unknown or len(behind) == len(accuracies):
            verdict = "one seed cannot tell" if unknown else "not reproduced"
        lines.append(f"- **{TITLES[problem]}, accuracy at equal parameters: {verdict}.** {'; '.join(parts)}.")
    beyond = [
        f"{TITLES[problem]}, {NAMES[form]}, {measure}"
        for problem, forms in found.items()
        for measure in ("accuracy", "loss")
        for form, parity in parities(forms, measure).items()
        if parity.beyond_t
    ]
    total = sum(2 * len(parities(forms, "loss")) for forms in found.values())
    named = f": {'; '.join(beyond)}" if beyond else ""
    lines.append(f"- By Student's t at 5%, {len(beyond)} of the {total} differences are other than zero{named}.")
    return lines


def _brief(parity: Parity, scale: float = 1.0, digits: int = 3) -> str:
    return parity.text(scale, digits).partition(" [")[0]


def _table(found: Found) -> list[str]:
    lines = [
        "| | form | parameters | loss, mean ± sd | minus dense | accuracy, mean ± sd | minus dense, points | n |",
        "|---|---|--:|---|---|---|---|--:|",
    ]
    for problem, forms in found.items():
        losses, accuracies = parities(forms, "loss"), parities(forms, "accuracy")
        for form, seeds in forms.items():
            results = list(seeds.values())
            cells = [
                TITLES[problem],
                NAMES[form],
                f"{results[0]['parameters']:,}",
                _mean([result["loss"] for result in results]),
                losses[form].text() if form in losses else "",
                _mean([POINTS * result["accuracy"] for result in results], 2),
                accuracies[form].text(POINTS, 2) if form in accuracies else "",
                str(len(results)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _shorter(found: Found) -> list[str]:
    lines = ["| | form | accuracy, mean ± sd | minus dense, points | | n |", "|---|---|---|---|---|--:|"]
    for problem, forms in found.items():
        accuracies = parities(forms, "accuracy")
        for form, seeds in forms.items():
            mean = _mean([POINTS * result["accuracy"] for result in seeds.values()], 2)
            against, word = "", ""
            if form in accuracies:
                against, word = accuracies[form].text(POINTS, 2), accuracies[form].word
            lines.append(f"| {TITLES[problem]} | {NAMES[form]} | {mean} | {against} | {word} | {len(seeds)} |")
    return lines


def _mean(values: Sequence[float], digits: int = 3) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ± {spread:.{digits}f}"


def _size(size: Mapping[str, Any]) -> str:
    experts = " x ".join(map(str, size["experts"]))
    return (
        f"{size['depth']} layers of {size['width']} features, {experts} experts, {size['steps']} steps of "
        f"{size['batch']} samples, {size['held_out']} held out."
    )


def _in_use(found: Found) -> str:
    modes = [
        mode for forms in found.values() for seeds in forms.values() for r in seeds.values() for mode in r["experts"]
    ]
    used, there = (sum(column) for column in zip(*modes, strict=True)) if modes else (0, 0)
    return "all, in every layer, form and seed" if used == there else f"{used} of {there} over layers, forms and seeds"
