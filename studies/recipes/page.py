"""The page of the study, and its picture: every sentence of result is made from the runs."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from studies.common.paired import paired

__all__ = ["curves", "page"]

TITLES = {"gpt": "GPT", "mixer": "Mixer", "head": "head on a frozen encoder", "gpt_narrow": "GPT, weights of 0.02"}
NAMES = {"dense": "dense", "cp": "CP", "tr": "tensor ring"}
COLOURS = {"dense": "#777777", "cp": "#1f77b4", "tr": "#d95f02"}

MISLED = (
    "- *Weights of 0.02* is a record of what misled: GPT-2's own start, which is meant for 768 features. At 128 the",
    "  dense form learns slowly from it, while experts have a start of their own. The recipe scales it with the width.",
)


def page(
    runs: Sequence[Mapping[str, Any]], speeds: Sequence[Mapping[str, Any]], sizes: Mapping[str, Mapping[str, Any]]
) -> str:
    """The page in Markdown.

    Args:
        runs: The finished runs.
        speeds: The measured throughputs.
        sizes: The options of each problem's dense form.
    """
    found = _by_problem(runs)
    seconds = sum(entry["seconds"] for entry in [*runs, *speeds])
    return "\n".join(
        [
            "# The recipes, dense and with experts",
            "",
            "The [recipes](../how-to/train-at-scale.md) train small models in a dense form, with CP and with tensor",
            "rings, at equal parameters, the gate counted. Forms of one seed see the same batches and have the same",
            "learning rate. Lower loss is better; `±` is the standard error of paired differences, and within two of",
            "them is a tie. Three seeds call differences real too easily: a test at 5% would ask for 4.3.",
            "",
            *(_verdict(problem, forms) for problem, forms in found.items()),
            "",
            "![Held-out loss over steps: the mean of three seeds, and their spread](recipes.svg)",
            "",
            *_losses(found),
            "",
            *_tried(runs, found),
            "## Throughput",
            "",
            "Steps of all forms in turns, in one process of one thread, on the same batches; the ratio is the median",
            "of the steps' own, with the middle half of them.",
            "",
            *_throughput(speeds),
            "",
            "## Two processes",
            "",
            "The GPT by its own log, processes of one thread on one machine joined by gloo, the same global batch.",
            "",
            *_processes(speeds),
            "",
            "## What was run",
            "",
            *(f"- {TITLES[name]}: {_size(name, size)}" for name, size in sizes.items()),
            "- The GPT reads Python's standard library in tokens of a vocabulary of 2,048 trained on it, the Mixer",
            "  Fashion-MNIST; the head sorts WordNet's noun glosses by the concept above them, on the first two",
            "  layers of all-MiniLM-L6-v2, frozen.",
            "- Experts in use at the last step: " + _in_use(found) + ".",
            *(MISLED if "gpt_narrow" in found else ()),
            "",
            "These models are small, undertrained, and each has one learning rate for all its forms. Nothing above",
            "these sizes was run, and nothing on a GPU.",
            "",
            f"Command: `python -m studies recipes`; its runs took {seconds / 60:.0f} minutes, one thread each, on a",
            "machine that did other work too. A stopped command goes on where it was. Runs:",
            "[recipes.jsonl](recipes.jsonl), [recipes-throughput.jsonl](recipes-throughput.jsonl).",
            "",
        ]
    )


def _by_problem(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[int, Mapping[str, Any]]]]:
    found: dict[str, dict[str, dict[int, Mapping[str, Any]]]] = {}
    for entry in runs:
        settings = entry["settings"]
        if "tried" in settings:
            continue
        found.setdefault(settings["problem"], {}).setdefault(settings["form"], {})[settings["seed"]] = entry["result"]
    return {problem: found[problem] for problem in sorted(found, key=list(TITLES).index)}


def _difference(forms: Mapping[str, Mapping[int, Mapping[str, Any]]], form: str) -> Any:
    seeds = sorted(forms[form].keys() & forms["dense"].keys())
    return paired([forms[form][s]["loss"] for s in seeds], [forms["dense"][s]["loss"] for s in seeds])


def _verdict(problem: str, forms: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    parts = []
    for form in (form for form in forms if form != "dense"):
        difference = _difference(forms, form)
        word = "within two standard errors of the dense form"
        if not difference.is_tie:
            word = "better than the dense form" if difference.mean < 0 else "worse than the dense form"
        parts.append(f"{NAMES[form]} is {word} ({difference})")
    return f"- {TITLES[problem]}: {'; '.join(parts)}."


def _losses(found: Mapping[str, Mapping[str, Mapping[int, Mapping[str, Any]]]]) -> list[str]:
    lines = ["| | form | parameters | held-out loss, mean ± sd | per seed | minus dense |", "|---|---|--:|---|---|---|"]
    for problem, forms in found.items():
        for form, seeds in forms.items():
            losses = [seeds[seed]["loss"] for seed in sorted(seeds)]
            spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
            against = "" if form == "dense" else str(_difference(forms, form))
            size, each = next(iter(seeds.values()))["parameters"], ", ".join(f"{loss:.3f}" for loss in losses)
            mean = f"{statistics.fmean(losses):.3f} ± {spread:.3f}"
            lines.append(f"| {TITLES[problem]} | {NAMES[form]} | {size:,} | {mean} | {each} | {against} |")
    return lines


def _tried(
    runs: Sequence[Mapping[str, Any]], found: Mapping[str, Mapping[str, Mapping[int, Mapping[str, Any]]]]
) -> list[str]:
    """What CP did with one thing changed, against the dense form that nothing was changed of."""
    changed: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for entry in runs:
        settings = entry["settings"]
        if "tried" in settings:
            key = settings["problem"], settings["tried"]
            changed.setdefault(key, {})[settings["seed"]] = entry["result"]
    if not changed:
        return []
    lines = ["Tried with CP, one thing changed, against the dense form as it is:", "", "| | changed | minus dense |"]
    lines.append("|---|---|---|")
    for (problem, change), seeds in changed.items():
        against = _difference({"dense": found[problem]["dense"], "cp": seeds}, "cp")
        lines.append(f"| {TITLES[problem]} | {change} | {against} |")
    return [*lines, ""]


def _throughput(speeds: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| | form | per second | times the dense form's |", "|---|---|--:|---|"]
    for entry in (entry for entry in speeds if "problem" in entry["settings"]):
        result = entry["result"]
        for form, speed in result["per_second"].items():
            ratio = ""
            if form in result["ratios"]:
                values = result["ratios"][form]
                low, high = values[len(values) // 4], values[-1 - len(values) // 4]
                ratio = f"{statistics.median(values):.2f} ({low:.2f} to {high:.2f})"
            name = TITLES[entry["settings"]["problem"]]
            lines.append(f"| {name} | {NAMES[form]} | {speed:,.0f} {result['unit']} | {ratio} |")
    return lines


def _processes(speeds: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| form | one process | two | ratio |", "|---|--:|--:|--:|"]
    found = {
        (entry["settings"]["form"], entry["settings"]["processes"]): entry["result"]["tokens_per_second"]
        for entry in speeds
        if "processes" in entry["settings"]
    }
    for form in dict.fromkeys(form for form, _ in found):
        one, two = found[form, 1], found[form, 2]
        lines.append(f"| {NAMES[form]} | {one:,.0f} tokens per second | {two:,.0f} | {two / one:.2f} |")
    return lines


def _size(name: str, size: Mapping[str, Any]) -> str:
    experts = " x ".join(map(str, size["experts"]))
    model = f"{size['depth']} layers of {64 * size['depth']} features, " if name != "head" else ""
    return f"{model}{experts} experts, {size['steps']} steps of {size['batch']} samples, {size['held_out']} held out."


def _in_use(found: Mapping[str, Mapping[str, Mapping[int, Mapping[str, Any]]]]) -> str:
    """How many of all layers and seeds, for each form; in short if it is all of them."""
    totals = {
        f"{TITLES[problem]}, {NAMES[form]}": [sum(column) for column in zip(*modes, strict=True)]
        for problem, forms in found.items()
        for form, seeds in forms.items()
        if (modes := [mode for result in seeds.values() for mode in result["experts"]])
    }
    if all(used == there for used, there in totals.values()):
        return "all, in every form, layer and seed"
    return "; ".join(f"{name}, {used} of {there}" for name, (used, there) in totals.items())


def curves(runs: Sequence[Mapping[str, Any]]) -> bytes:
    """The picture: for each problem the mean curve of each form, and from the least to the largest of its seeds."""
    from matplotlib.figure import Figure

    found = _by_problem(runs)
    figure = Figure(figsize=(4.2 * max(1, len(found)), 3.4), layout="constrained")
    for number, (problem, forms) in enumerate(found.items(), 1):
        axes = figure.add_subplot(1, len(found), number)
        for form, seeds in forms.items():
            rows = [result["curve"] for result in seeds.values()]
            steps = next(iter(seeds.values()))["steps"]
            columns = list(zip(*rows, strict=True))
            axes.plot(steps, [statistics.fmean(c) for c in columns], color=COLOURS[form], label=NAMES[form])
            axes.fill_between(steps, list(map(min, columns)), list(map(max, columns)), color=COLOURS[form], alpha=0.2)
        axes.set(title=TITLES[problem], xlabel="step", ylabel="held-out loss")
        axes.legend(frameon=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()
