"""The page of the study: every figure and every sentence of result is made from the runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from recipes.options import Options
from studies.pretraining.beyond import experts_verdicts
from studies.pretraining.doing import experts_section
from studies.pretraining.parity import CLAIM, NAMES, TITLES, Found, Parity, by_problem, gathered, parities
from studies.pretraining.settings import settings_table

__all__ = ["page"]

POINTS = 100.0
"""Accuracies are printed in percent."""
UNITS = {"gpt": "nats per token", "mixer": "nats per image"}


def page(
    runs: Sequence[Mapping[str, Any]],
    shorter: Sequence[Mapping[str, Any]],
    looks: Sequence[Mapping[str, Any]],
    options: Mapping[str, Options],
) -> str:
    """The page in Markdown.

    Args:
        runs: The finished runs of this study.
        shorter: Those of the study ``recipes``.
        looks: What was found of the experts.
        options: Those of each problem's dense form.
    """
    found, earlier = by_problem(runs), by_problem(shorter)
    seconds = sum(entry["seconds"] for entry in [*runs, *looks])
    return "\n".join(
        [
            "# Pre-training at equal parameters",
            "",
            "The uMoE paper (Oldfield et al. 2024, arXiv 2402.12550) claims that models with blocks of factorised",
            "experts in place of MLPs are as accurate at equal parameters, and that their early layers divide patches",
            "by look, late ones by class. Here a small GPT on Python text and a small MLP-Mixer on Fashion-MNIST are",
            "trained from scratch in three *forms*; forms of one seed see the same batches.",
            "",
            "- *Dense*: with MLPs. *CP*, *tensor ring*: in place of an MLP a block of 16 experts, whose weights are",
            "  one tensor kept as a sum of outer products, or as a ring of small tensors.",
            "- *Gate*: a linear map of the block's input, normalised, then *entmax*, a softmax that gives exact zeros.",
            "  It gives the experts' *coefficients*, which add up to 1; it is *sharper* if it divides a token among",
            "  fewer experts. A *random gate* has weights that were drawn and not trained, on the same inputs. *Bits*",
            "  say how much an expert tells about a label; *look* is brightness and contrast",
            "  ([below](#what-the-experts-come-to-do)).",
            "- `a [b, c]`: a mean difference paired by seed, and its 95% interval by Student's t. Verdicts in bold go",
            "  by the interval alone. It leaves zero out, on the claim's side (*reproduced*) or on the other (*not",
            "  reproduced*), or has zero in it (*not told apart*), which does not prove that nothing is there.",
            "- *Parity*, here and on other pages: the mean difference is within two standard errors. Where nothing",
            "  differs, three seeds are beyond them in 18% of cases, so what only this rule finds is called",
            "  *suggestive*. Intervals are not corrected for their number; differences are taken before rounding.",
            "",
            "## What was found",
            "",
            *_verdicts(found),
            *experts_verdicts(looks),
            "",
            "## Loss and accuracy",
            "",
            "In parentheses the standard deviation over seeds. Accuracy of the next token or of the class is in",
            "percent, its differences in points; loss is in nats per token or image.",
            "",
            *_table(found),
            "",
            "![Held-out loss and accuracy over steps](pretraining.svg)",
            "",
            "*The mean of the seeds, and shaded from the least to the largest.*",
            "",
            "The runs of [the recipes' page](recipes.md), which has their losses, are shorter and of two layers; their",
            "accuracies:",
            "",
            *_shorter(earlier),
            "",
            *experts_section(looks),
            "## What was run",
            "",
            *settings_table(options),
            "",
            "- Parameters are matched block by block: the rank is the largest with which a block, its gate counted,",
            "  has no more parameters than the MLP. All else is the library's default.",
            "- *In use* is an expert whose coefficient varies with the input and is on average above a tenth of an",
            f"  equal share. At the last step: {_in_use(found)}.",
            "- These models are small and trained for minutes, and all forms have the recipe's one learning rate.",
            "  ImageNet, OpenWebText and the paper's sizes were not run, nor anything on a GPU: what is found here",
            "  need not hold there. CP with another learning rate or norm in the gate is on",
            "  [the recipes' page](recipes.md).",
            "",
            f"Command: `python -m studies pretraining`. Its runs took {seconds / 60:.0f} minutes, measured by the",
            "clock on a machine that did much other work. A stopped command goes on where it was. Runs:",
            "[pretraining.jsonl](pretraining.jsonl), [pretraining-experts.jsonl](pretraining-experts.jsonl).",
            "",
        ]
    )


def _verdicts(found: Found) -> list[str]:
    lines = []
    for problem, forms in found.items():
        measured = {"accuracy": parities(forms, "accuracy"), "loss": parities(forms, "loss")}
        if not measured["loss"]:
            continue
        words = {
            measure: gathered({NAMES[form]: CLAIM[parity.verdict] for form, parity in by_form.items()})
            for measure, by_form in measured.items()
        }
        points = _each(measured["accuracy"], POINTS, 2, " points")
        losses = _each(measured["loss"], 1.0, 3, f" {UNITS[problem]}", perplexity=problem == "gpt")
        lines.append(
            f"- **{TITLES[problem]}, as good at equal parameters: in accuracy {words['accuracy']}; in loss "
            f"{words['loss']}.** Accuracy minus dense's: {points}. Loss minus dense's: {losses}."
        )
    return lines


def _each(parities: Mapping[str, Parity], scale: float, digits: int, unit: str, perplexity: bool = False) -> str:
    parts = []
    for form, parity in parities.items():
        grown = f"perplexity {math.expm1(parity.difference.mean):+.1%}" if perplexity else ""
        remarks = "; ".join(filter(None, [grown, parity.remark(scale, digits)]))
        parts.append(f"{NAMES[form]} {parity.text(scale, digits)}{unit}{f' ({remarks})' if remarks else ''}")
    return ", ".join(parts)


def _judged(parity: Parity, scale: float = 1.0, digits: int = 3) -> str:
    """A cell: the difference with its interval, and the verdict."""
    word = f"suggestive: {parity.suggestive}" if parity.suggestive else parity.verdict
    return f"{parity.text(scale, digits)} {word}"


def _table(found: Found) -> list[str]:
    lines = [
        "| | form | parameters | loss (sd) | minus dense | accuracy (sd) | minus dense | seeds |",
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
                _judged(losses[form]) if form in losses else "",
                _mean([POINTS * result["accuracy"] for result in results], 2),
                _judged(accuracies[form], POINTS, 2) if form in accuracies else "",
                str(len(results)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _shorter(found: Found) -> list[str]:
    lines = ["| | form | steps | accuracy (sd) | minus dense | seeds |", "|---|---|--:|---|---|--:|"]
    for problem, forms in found.items():
        accuracies = parities(forms, "accuracy")
        for form, seeds in forms.items():
            results = list(seeds.values())
            cells = [
                TITLES[problem],
                NAMES[form],
                str(results[0]["steps"][-1]),
                _mean([POINTS * result["accuracy"] for result in results], 2),
                _judged(accuracies[form], POINTS, 2) if form in accuracies else "",
                str(len(results)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _mean(values: Sequence[float], digits: int = 3) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ({spread:.{digits}f})"


def _in_use(found: Found) -> str:
    modes = [
        mode for forms in found.values() for seeds in forms.values() for r in seeds.values() for mode in r["experts"]
    ]
    used, there = (sum(column) for column in zip(*modes, strict=True)) if modes else (0, 0)
    return "all, in every layer, form and seed" if used == there else f"{used} of {there} over layers, forms and seeds"
