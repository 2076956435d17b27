"""The page of the study: every sentence of result is made from the runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import fill

from factorized_moe._writing import write_files
from studies.common.runs import read
from studies.specialisation import sections, verdicts
from studies.specialisation.figures import TITLES, draw_all
from studies.specialisation.plan import LINEAR, TWO_MAPS
from studies.specialisation.plan import runs as runs_of_the_plan
from studies.specialisation.table import Runs, Values, known
from studies.specialisation.wording import CAPTIONS, DONE, LIMITS, OPENING, RULES_OF, WORDS

__all__ = ["page", "write"]

NAME = "specialisation"

QUESTIONS: dict[str, tuple[str, Callable[[Runs], list[str]], str]] = {
    "Does polysemanticity fall as experts are added?": ("polysemanticity", sections.polysemanticity, ""),
    "Are experts more special beyond their nulls?": ("beyond_nulls", sections.beyond_nulls, "measures.svg"),
    "Entmax or softmax?": ("entmax", sections.entmax, "gates.svg"),
    "How accurate beside linear heads?": ("accuracy", sections.accuracy, "accuracy.svg"),
    "Polysemanticity in other forms and at equal parameters": ("forms", sections.forms, ""),
}
"""What each section asks: its rule, what answers it, and its figure."""


def page(runs: Runs, drawn: list[str]) -> str:
    """The page in Markdown.

    Args:
        runs: The runs.
        drawn: The figures that there are.
    """
    lines = ["# Specialisation and the number of experts", "", OPENING + WORDS + "## In short", ""]
    lines += [*(f"- {line}" for line in verdicts.in_short(runs)), ""]
    for name in ("polysemanticity.svg", "glyphs.png", "glosses.svg"):
        lines += _picture(name, drawn)
    for title, (rule, answer, figure) in QUESTIONS.items():
        found = answer(runs)
        if found:
            spans = sections.spans_of(runs) if rule == "polysemanticity" else []
            lines += [f"## {title}", "", RULES_OF[rule], "", *spans, *found, *_picture(figure, drawn)]
    lines += ["## All figures", ""]
    lines += [line for data in TITLES for line in _table(runs, data)]
    lines += [
        "Means over seeds.",
        "",
        DONE + fill(f"{sections.rates(runs)}.", 118, initial_indent="  ", subsequent_indent="  "),
        "",
        LIMITS + _command(runs),
    ]
    return "\n".join(lines)


def _command(runs: Runs) -> str:
    planned, done = len(runs_of_the_plan()), len(runs.kept)
    searched = len(runs.all) - done
    minutes = sum(entry.get("seconds", 0.0) for entry in runs.all) / 60
    return (
        f"Command: `python -m studies specialisation`. Of {planned:,} planned heads, {done:,} are done; with the\n"
        f"{searched:,} runs that chose learning rates this took {minutes:.0f} minutes in total, on one thread of a\n"
        "machine that did much other work. A stopped command goes on where it was. Runs:\n"
        "`docs/studies/specialisation/*.jsonl`; every verdict and table is made from them.\n"
    )


def _picture(name: str, drawn: list[str]) -> list[str]:
    if name not in drawn:
        return []
    short = CAPTIONS[name].split(":")[0].split(";")[0]
    return [f"![{short}]({NAME}/{name})", "", f"*{CAPTIONS[name]}*", ""]


def _table(runs: Runs, data: str) -> list[str]:
    rows = []
    for name, like in sections.HEADS.items():
        for size in runs.sizes(data, like):
            value = {
                measure: [runs.values(data, like, size, measure, part) for part in (0, 1)]
                for measure in ("mean", "mean_dead_one", "mean_dead_zero", "concentration", "effective_classes")
            }
            told = [runs.values(data, like, size, "mutual_information", part) for part in (0, 1)]
            one = [runs.values(data, like, size, m) for m in ("accuracy", "with_effect", "lost")]
            cells = [
                f"{size:,}",
                str(len(one[0])),
                _short(runs.values(data, like, size, "parameters"), 0),
                _short(one[0], 3),
                f"{_short(value['mean'][0], 3)} ({_short(value['mean'][1], 3)}){_fewer(value['mean'][0])}",
                f"{_short(value['mean_dead_one'][0], 2)} / {_short(value['mean_dead_zero'][0], 2)}",
                f"{_short(value['concentration'][0], 2)} ({_short(value['concentration'][1], 2)})",
                f"{_short(value['effective_classes'][0], 1)} ({_short(value['effective_classes'][1], 1)})",
                f"{_short(told[0], 2)} ({_short(told[1], 2)})",
                _short(one[1], 0),
                _short(one[2], 1),
            ]
            rows.append(f"| {name} | {' | '.join(cells)} |")
    for name, like in (("linear", LINEAR), ("two linear maps", TWO_MAPS)):
        for size in runs.sizes(data, like):
            found = runs.values(data, like, size, "accuracy")
            size_of = _short(runs.values(data, like, size, "parameters"), 0)
            rows.append(f"| {name} | | {len(found)} | {size_of} | {_short(found, 3)} |" + " |" * 7)
    if not rows:
        return []
    return [
        f"### {TITLES[data][0].upper()}{TITLES[data][1:]}",
        "",
        "| head | N | n | parameters | accuracy | p (null) | counted 1 / 0 | concentration (null) | classes (null) "
        "| bits (null) | with effect | lost by expert |",
        "|---|---:|---:|---:|---:|---|---|---|---|---|---:|---:|",
        *rows,
        "",
    ]


def _fewer(values: Values) -> str:
    """How many seeds have a figure, where some have none."""
    return f" (n {len(known(values))})" if len(known(values)) < len(values) else ""


def _short(values: Values, digits: int) -> str:
    found = known(values)
    return f"{sum(found) / len(found):,.{digits}f}" if found else "none"


def write(out: Path, cache: Path) -> None:
    """Draw the figures and write the page from the runs that are there.

    Args:
        out: The folder of the page.
        cache: Where downloads and outcomes are kept; pictures of samples are drawn where it has what they need.
    """
    from studies.specialisation.samples import draw_samples

    folder = out / NAME
    runs = Runs([entry for file in sorted(folder.glob("*.jsonl")) for entry in read(file)])
    draw_all(runs, folder)
    draw_samples(runs, folder, cache)
    drawn = [name for name in CAPTIONS if (folder / name).exists()]
    write_files(out, {f"{NAME}.md": page(runs, drawn).encode()})
