"""The measurements' file and the page that is made from it: a section run again replaces itself alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType

from benchmarks import processors
from benchmarks.headlines import headlines
from benchmarks.measuring import Ratio
from benchmarks.rows import Row
from benchmarks.sections import Section, read

__all__ = ["PAGE", "circumstances", "load", "markdown", "table", "text"]

PAGE = "benchmarks.md"

RULES = """\
## How to read it

Written by `make bench` from the measurements in [benchmarks.json](benchmarks.json): do not edit.

- A time is a ratio to the first row of its case, which shows its own time instead. The two contenders of a
  comparison take turns in one process, round after round, and each round gives one ratio. The table has the median of
  the rounds and, in brackets, the first and the third quartile. Below 1 is faster than the first row.
- *Forward* is a call without gradients; *training* a forward pass and the gradients of all parameters and inputs.
- *Memory* is the parameters and the most bytes of tensors alive at a time during the call, from the records of
  torch's allocator: it does not vary. *Held* is parameters, gradients and all that is alive between the forward and the
  backward pass, with its ratio to the first row's. *Process* is by how much the peak of a process of its own grows when
  it trains the contender for three steps, after three steps of a tiny one.
- Ranks are the largest with at most as many parameters as the first row, gate and LayerNorm counted, in steps that
  make the widths of the matrix products multiples of 16. *The paper's* are those of models in the uMoE paper, and take
  more: for the block its GPT-2's, where the rank is a fixed share of the width, for the layer its CLIP head's, which
  has 1,000 outputs.
- glibc's malloc keeps freed memory (`M_TRIM_THRESHOLD`, `M_MMAP_THRESHOLD`), for all contenders: by default it gives
  pages back and takes fresh ones in the next call, more or fewer of them by chance.
- Everything is float32. *Compiled* rows compare `torch.compile`d contenders with the `torch.compile`d first row.
"""

COPIES = """\
## Plans at other prices of a copied element

Random networks of 4 to 9 operands, planned at other prices of an element of a parameter that a step has to copy into
another order. Where the order differs from that at the price in use: its FLOPs and its time over the other's, forward,
one thread; the geometric mean and, in brackets, the smallest and the largest.

"""

MEASURED = """\
## The default plan beside the fastest that was timed

Random networks of 4 to 13 operands: the time of the plan that a layer has from its description over that of the fastest
candidate of `optimize="measure"`, forward, one thread. Where both are the same plan the ratio is 1.

"""

HEADER = (
    "case",
    "contender",
    "forward",
    "training",
    "parameters",
    "memory, forward",
    "memory, training",
    "held",
    "process",
)

MIB = 2**20


def load(path: Path) -> dict[str, Section]:
    """The sections of a file by name, none if there is no file."""
    if not path.exists():
        return {}
    return read(json.loads(path.read_text(encoding="utf-8")))


def text(sections: Mapping[str, Section]) -> str:
    """All sections as what `load` reads."""
    stored = {name: asdict(section) for name, section in sections.items()}
    return json.dumps(stored, indent=1) + "\n"


def markdown(
    sections: Mapping[str, Section],
    others: processors.Others = MappingProxyType({}),
    elsewhere: Mapping[str, Section] = MappingProxyType({}),
    link: str = "",
) -> str:
    """The page: the results in short, the tables, and last the rules, machines and commands.

    Args:
        sections: What was measured last.
        others: What was measured on other processors.
        elsewhere: Sections that have another page, of which this one has the results in short.
        link: The paragraph that names that page.
    """
    parts = ["# Benchmarks\n", _in_short({**sections, **elsewhere}), link]
    parts.append("## The table\n")
    parts.append(table(section for section in sections.values() if section.rows))
    if "contraction" in sections:
        parts.append(_slower(sections["contraction"]))
    if "cost_model" in sections:
        parts.append(_constants(sections["cost_model"]))
    if "copies" in sections:
        parts.append(COPIES + str(sections["copies"].extra["table"]))
    if "measured_plans" in sections:
        parts.append(MEASURED + str(sections["measured_plans"].extra["table"]))
    parts += [processors.LINK if processors.markdown(sections, others) else "", RULES, circumstances(sections)]
    return "\n".join(part for part in parts if part)


def _in_short(sections: Mapping[str, Section]) -> str:
    """What it costs beside what one would use instead."""
    opening = (
        "What a layer costs beside what one would use in its place: times as shares of it, below 1 is faster ([how to "
        "read them](#how-to-read-it)). CP where nothing else is said.\n"
    )
    return "\n".join([opening, *headlines({name: section.rows for name, section in sections.items()}), ""])


def circumstances(sections: Mapping[str, Section]) -> str:
    """One paragraph for each machine and command."""
    together: dict[str, list[str]] = {}
    for name, section in sections.items():
        machine = ", ".join(f"{key} {value}" for key, value in section.machine.items())
        machine += f", {section.date}" if section.date else ""
        together.setdefault(f"{machine}. Command: `{section.command}`.", []).append(name)
    if len(together) == 1:
        return f"Measured on: {next(iter(together))}\n"
    return "".join(f"- Measured on ({', '.join(names)}): {text}\n" for text, names in together.items())


def table(sections: Iterable[Section]) -> str:
    """The rows of some sections under one head."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * 2 + "---:|" * (len(HEADER) - 2)]
    for section in sections:
        lines.append(f"| **{section.title}** |" + " |" * (len(HEADER) - 1))
        previous, first = "", None
        for row in section.rows:
            if row.baseline:
                first = row
            if row.baseline and not section.show_baselines:
                continue
            cells = _cells(row, first, section.show_baselines)
            shown = "" if row.case == previous else row.case
            previous = row.case
            lines.append("| " + " | ".join((shown, *cells)) + " |")
    return "\n".join(lines) + "\n"


def _cells(row: Row, baseline: Row | None, baselines_shown: bool) -> tuple[str, ...]:
    name = row.contender
    if not baselines_shown and baseline is not None:
        name += f" / {baseline.contender}"
    if row.absent is not None:
        return (f"{name}: not measured, {row.absent}", *("",) * (len(HEADER) - 2))
    held = _mebibytes(row.held_bytes)
    if row.held_bytes is not None and baseline is not None and baseline.held_bytes:
        held += f" ({row.held_bytes / baseline.held_bytes:.2f})"
    return (
        name,
        _time(row.forward, row.baseline),
        _time(row.training, row.baseline),
        "" if row.parameters is None else f"{row.parameters:,}",
        _mebibytes(row.forward_bytes),
        _mebibytes(row.training_bytes),
        held,
        _mebibytes(row.process_bytes),
    )


def _time(ratio: Ratio | None, alone: bool) -> str:
    if ratio is None:
        return ""
    if not alone:
        return str(ratio)
    if ratio.seconds >= 1:
        return f"{ratio.seconds:.3g} s"
    return f"{ratio.seconds * 1e3:.3g} ms" if ratio.seconds >= 1e-3 else f"{ratio.seconds * 1e6:.3g} µs"


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / MIB:.1f} MiB"


def _slower(section: Section) -> str:
    """The cases in which the generated contraction takes longer in three rounds of four."""
    lines, baseline = [], ""
    for row in section.rows:
        if row.baseline:
            baseline = row.contender
            continue
        for name, ratio in (("forward", row.forward), ("training", row.training)):
            if ratio is not None and ratio.lower > 1:
                lines.append(f"- {row.case}, {name}: {ratio} of {baseline}")
    heading = "## Where hand-written code is faster\n"
    if not lines:
        return f"{heading}\nNowhere in the table: no first quartile is above 1.\n"
    return f"{heading}\nThe first quartile is above 1 in these cases:\n\n" + "\n".join(lines) + "\n"


def _constants(section: Section) -> str:
    lines = [
        "## The planner's constants\n",
        "FLOPs in the time in which one element is moved, or copied into another order, or one coefficient is found",
        "to be zero or not; `contraction/search.py` uses the ones in the last column.\n",
        "| constant | fitted on this machine | in use |",
        "|---|---:|---:|",
    ]
    lines += [f"| `{name}` | {value['fitted']:.1f} | {value['used']} |" for name, value in section.extra.items()]
    return "\n".join(lines) + "\n"
