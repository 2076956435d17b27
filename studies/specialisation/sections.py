"""The sections under the verdicts: what was tested, in tables and lines that are made from the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studies.common.paired import Difference
from studies.specialisation.figures import SHORT, TITLES, contenders
from studies.specialisation.findings import EXCESSES, KINDS, RULES, Kind, gates, special, with_classes
from studies.specialisation.plan import (
    DEFAULT,
    LEARNING_RATES,
    LINEAR,
    MATCHED_CP,
    MATCHED_TR,
    PAPER,
    RING,
    SOFTMAX,
    TWO_MAPS,
)
from studies.specialisation.spans import FEW, MANY, TURN, WHOLE, Span, move
from studies.specialisation.table import Runs, difference, mean, told

__all__ = ["HEADS", "accuracy", "beyond_nulls", "cell", "entmax", "forms", "polysemanticity", "rates", "spans_of"]

HEADS: dict[str, dict[str, Any]] = {
    "CP entmax": DEFAULT,
    "CP softmax": SOFTMAX,
    "CP paper's init": PAPER,
    "TR": RING,
    "CP equal parameters": MATCHED_CP,
    "TR equal parameters": MATCHED_TR,
}


def cell(found: Difference | None) -> str:
    """A difference for a table: bold where it is beyond two standard errors."""
    if found is None:
        return "none"
    return told(found) if found.is_tie else f"**{told(found)}**"


def _by_data(runs: Runs, rows: Sequence[tuple[str, str, Any]]) -> list[str]:
    """A table with a column for each of the data; a row is a title, a span and what gives the cell."""
    datas = [data for data in TITLES if any(data in with_classes(runs, name) for _, name, _ in rows)]
    if not datas:
        return []
    lines = [f"| | span | {' | '.join(SHORT[data] for data in datas)} |", "|---|---|" + "---:|" * len(datas)]
    for title, name, found in rows:
        tested = with_classes(runs, name)
        if tested:
            cells = [cell(found(data, tested[data])) if data in tested else "" for data in datas]
            lines.append(f"| {title} | {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def spans_of(runs: Runs) -> list[str]:
    """The numbers of experts at the ends of the spans, by data, as one line; none without runs."""
    ends: dict[str, list[str]] = {}
    for data in TITLES:
        found = [with_classes(runs, name).get(data) for name in (FEW, TURN, MANY)]
        sizes = sorted({size for each in found if each for size in each})
        if sizes:
            ends.setdefault(", ".join(f"{size:,}" for size in sizes), []).append(SHORT[data])
    if not ends:
        return []
    told_ends = [f"{sizes} experts ({', '.join(datas)})" for sizes, datas in ends.items()]
    return [f"The spans end at {'; '.join(told_ends)}.", ""]


def polysemanticity(runs: Runs) -> list[str]:
    """How far polysemanticity, and its excess over the null, go in each span."""
    rows = []
    for form, rules in (("value", RULES), ("excess", EXCESSES)):
        for rule, name in rules.items():
            title = f"`p`, {name}" if form == "value" else f"excess, {name}"
            for part in (FEW, TURN, MANY) if rule == "mean" else (FEW, MANY):

                def found(data: str, ends: Span, rule: str = rule, form: str = form) -> Difference | None:
                    return move(runs, data, ends, rule, form)

                rows.append((title, part, found))
    return _by_data(runs, rows)


def beyond_nulls(runs: Runs) -> list[str]:
    """How far the other measures' excess goes in each span, positive where experts become more special."""
    rows = []
    for kind in KINDS:
        for part in (FEW, WHOLE) if kind.form == "bound" else (FEW, MANY, WHOLE):

            def found(data: str, ends: Span, kind: Kind = kind) -> Difference | None:
                return special(runs, data, ends, kind)

            rows.append((kind.name, part, found))
    return _by_data(runs, rows)


def entmax(runs: Runs) -> list[str]:
    """Entmax's polysemanticity less softmax's, and what else tells the two apart."""
    found = gates(runs)
    if not found:
        return []
    lines = [
        f"| | N | {' | '.join(RULES.values())} | excess | with an effect | lost by each | bits beyond null |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for each in found:
        cells = [*(cell(each.values[rule]) for rule in RULES), cell(each.excess["mean"])]
        if each.is_vacuous:
            cells = [text.replace("**", "") for text in cells]
        pairs = {one.pairs for one in each.values.values() if one}
        fewer = f" (n {min(pairs)})" if len(pairs) > 1 else ""
        cells[0] += fewer
        cells[3] += fewer
        both = [
            " : ".join(f"{value:.{digits}f}" for value in pair)
            for pair, digits in ((each.with_effect, 0), (each.lost, 1), (each.bits, 2))
        ]
        mark = ", vacuous" if each.is_vacuous else ""
        lines.append(f"| {SHORT[each.data]}{mark} | {each.size} | {' | '.join([*cells, *both])} |")
    return [*lines, ""]


def accuracy(runs: Runs) -> list[str]:
    """The accuracy of heads of experts less that of linear heads of as many parameters."""
    lines = []
    titles: Mapping[str, str] = {**SHORT, "wn252 all": "glosses 252 with every gloss for training"}
    for data, title in titles.items():
        linear = runs.values(data, LINEAR, 0, "accuracy")
        parts = []
        for name, like in (("CP", MATCHED_CP), ("TR", MATCHED_TR)):
            apart = {
                size: difference(runs.values(data, like, size, "accuracy"), linear) for size in runs.sizes(data, like)
            }
            parts += _compared(f"{name} of as many parameters", {k: each for k, each in apart.items() if each})
        if parts:
            lines.append(f"- Less a linear head on {title} ({mean(linear):.3f}), {'; '.join(parts)}.")
        for size in runs.sizes(data, TWO_MAPS):
            found = difference(*(runs.values(data, like, size, "accuracy") for like in (DEFAULT, TWO_MAPS)))
            if found is not None:
                (part,) = _compared("CP of rank 128", {size: found})
                lines.append(f"- Less two linear maps of as many parameters on {title}, {part}.")
    ties = []
    for data in ("wn252", "wn252 all", "gl"):
        linear = runs.values(data, LINEAR, 0, "accuracy")
        for name, like, size in contenders(runs, data):
            found = difference(runs.values(data, like, size, "accuracy"), linear)
            if found is not None and found.pairs > 1 and found.is_tie:
                size_of = _parameters(runs, data, like, [size])
                ties.append(f"{name} on {titles[data]} ({told(found)}, {size_of} parameters)")
    if ties:
        lines.append(f"- Grey in the figure, a tie with the linear head: {'; '.join(ties)}.")
    return [*lines, ""] if lines else []


def _compared(name: str, apart: Mapping[int, Difference]) -> list[str]:
    """One form's differences over its numbers of experts; none without any."""
    if not apart:
        return []
    sizes, figures = ", ".join(f"{size:,}" for size in apart), ", ".join(told(each) for each in apart.values())
    words = ["a tie" if each.is_tie else "better" if each.mean > 0 else "worse" for each in apart.values()]
    counts = ", ".join(f"{words.count(word)} {word}" for word in ("better", "a tie", "worse") if word in words)
    counts = words[0] if len(words) == 1 else f"all {words[0]}" if len(set(words)) == 1 else counts
    return [f"{name}, N = {sizes}: {figures} ({counts}, n {min(each.pairs for each in apart.values())})"]


def _parameters(runs: Runs, data: str, like: Mapping[str, Any], sizes: Sequence[int]) -> str:
    """The least and the largest number of parameters."""
    found = [mean(runs.values(data, like, size, "parameters")) for size in sizes]
    known = sorted({round(value) for value in found if value == value})
    return " to ".join(f"{value:,}" for value in known[:1] + known[1:][-1:])


def forms(runs: Runs) -> list[str]:
    """How far polysemanticity goes in other forms, with their parameters."""
    rows = []
    for name, like in HEADS.items():
        if like == SOFTMAX:
            continue
        for data in ("wn252", "gl"):
            sizes = runs.sizes(data, like)
            ends = [(sizes[0], sizes[-1])] if len(sizes) > 1 else []
            for few, many in [(16, 256)] if like == DEFAULT and {16, 256} <= set(sizes) else ends:
                both = [cell(move(runs, data, (few, many), "mean", form, like)) for form in ("value", "excess")]
                rows.append(
                    f"| {name} | {SHORT[data]} | {few:,} to {many:,} | {_parameters(runs, data, like, [few, many])} "
                    f"| {' | '.join(both)} |"
                )
    if not rows:
        return []
    head = "| form | data | N | parameters | `p` moves by | beyond its null's own move |"
    return [head, "|---|---|---|---|---:|---:|", *rows, ""]


def rates(runs: Runs) -> str:
    """The learning rates that were chosen, an asterisk at those at the edge of what was tried."""
    parts = []
    for data, title in (("wn252", "glosses"), ("gl", "glyphs"), ("fm", "Fashion-MNIST")):
        chosen: dict[float, list[str]] = {}
        for name, like in {**HEADS, "linear": LINEAR, "two linear maps": TWO_MAPS}.items():
            sizes = runs.sizes(data, like)
            if sizes:
                chosen.setdefault(runs.learning_rate(data, like, sizes[0]), []).append(name)
        if chosen:
            edge = {min(LEARNING_RATES), max(LEARNING_RATES)}
            marks = {rate: "*" if rate in edge else "" for rate in chosen}
            listed = [f"{rate:g}{marks[rate]} {', '.join(chosen[rate])}" for rate in sorted(chosen)]
            parts.append(f"{title} {'; '.join(listed)}")
    return ". ".join(f"{part[0].upper()}{part[1:]}" for part in parts)
