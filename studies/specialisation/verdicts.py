"""The verdicts of "In short": sentences that are made from the runs alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from studies.common.paired import Difference
from studies.specialisation.figures import SHORT
from studies.specialisation.findings import (
    EXCESSES,
    FEWEST_LOST,
    KINDS,
    RULES,
    Gates,
    fall,
    gates,
    matched,
    special,
    with_classes,
)
from studies.specialisation.plan import DEFAULT, MATCHED_CP
from studies.specialisation.spans import FEW, MANY, TURN, WHOLE, grows_from, move, span, way
from studies.specialisation.table import Runs

__all__ = ["in_short", "listing", "names"]

SAME_GLOSSES = ("wn252", "wn50", "wn10")
LARGE = 64
"""Experts from which entmax was expected to be lower, by runs of other heads before this study."""
IN_SHORT = {
    "bits": "bits",
    "concentration": "concentration",
    "classes, as a share of the null": "classes by expert",
}
"""The kinds of excess that the verdict counts."""
SPANS = {WHOLE: "over the whole range", FEW: "up to half of the classes", MANY: "from as many experts as classes on"}


def names(datas: Iterable[str]) -> str:
    """Data in words: ``glosses 252, glyphs 256``."""
    return ", ".join(SHORT[data] for data in datas)


def listing(words: Mapping[str, str]) -> str:
    """What happens on which data: ``rises on 2 of 3 data (glosses 252, glyphs 256), falls on 1 (glosses 50)``.

    Args:
        words: A verb for each of the data.

    Examples:
        >>> listing({"wn252": "rises", "gl": "falls"}), listing({"wn252": "ties", "gl": "ties"})
        ('rises on 1 of 2 data (glosses 252), falls on 1 (glyphs 256)', 'ties on 2 of 2 data')
    """
    groups = {word: [data for data in words if words[data] == word] for word in ("rises", "falls", "ties", "unknown")}
    groups = {word: datas for word, datas in groups.items() if datas}
    if len(groups) == 1:
        return f"{next(iter(groups))} on {len(words)} of {len(words)} data"
    parts = [f"{word} on {len(datas)} ({names(datas)})" for word, datas in groups.items()]
    return ", ".join([parts[0].replace(" (", f" of {len(words)} data (", 1), *parts[1:]])


def in_short(runs: Runs) -> list[str]:
    """The verdicts, one for each claim on which there are runs.

    Args:
        runs: The runs.
    """
    lines = [_few(runs), _many(runs), _special(runs), _gates(gates(runs)), _accuracy(runs)]
    return [line for line in lines if line]


def _few(runs: Runs) -> str:
    tested = with_classes(runs, FEW)
    if not tested:
        return ""
    good = [data for data, ends in tested.items() if fall(runs, data, ends)]
    bad = [data for data in tested if data not in good]
    word = "not reproduced" if not good else "reproduced in part" if bad else "reproduced"
    where = "; ".join(part for part in (names(good), f"not {names(bad)}" if good and bad else "") if part)
    line = (
        "**More experts are less polysemantic while there are at most half as many as classes**, as in the paper: "
        f"{word}: on {len(good)} of {len(tested)} data{f' ({where})' if where else ''} polysemanticity falls, "
        "and beyond its null's own fall, under every rule for experts without effect"
    )
    equal = [(data, span(runs, data, FEW, MATCHED_CP)) for data in tested]
    alike = [fall(runs, data, ends, MATCHED_CP) for data, ends in equal if ends]
    if alike:
        line += f"; with a linear head's parameters at every number of experts on {sum(alike)} of {len(alike)}"
    same = [data for data in SAME_GLOSSES if runs.sizes(data, DEFAULT)]
    return f"{line}.{f' {_capital(names(same))} are the same texts, so not independent.' if len(same) > 1 else ''}"


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"


def _many(runs: Runs) -> str:
    tested = with_classes(runs, MANY)
    if not tested:
        return ""
    words = {rule: {data: way(move(runs, data, ends, rule)) for data, ends in tested.items()} for rule in RULES}
    excess = {data: way(move(runs, data, ends, "mean", "excess")) for data, ends in tested.items()}
    starts = {data: grows_from(runs, data, "mean") for data in tested}
    steady = [f"{size:,} ({SHORT[data]})" for data, size in starts.items() if size is not None]
    line = (
        "**With as many experts as classes or more**, up to the largest number, polysemanticity "
        f"{_by_rule({rule: listing(found) for rule, found in words.items()})}. With them left out, this page's rule, "
        f"the excess over the null {listing(excess)}"
    )
    line += f", and polysemanticity rises at every step from {', '.join(steady)} experts on." if steady else "."
    if between := with_classes(runs, TURN):
        found = {data: way(move(runs, data, ends, "mean")) for data, ends in between.items()}
        line += f" From half to all of the classes it {listing(found)}."
    return line


def _by_rule(told: Mapping[str, str]) -> str:
    """What holds under each rule for experts without effect, said once where it is the same."""
    groups: dict[str, list[str]] = {}
    for rule, words in told.items():
        groups.setdefault(words, []).append(RULES[rule])
    first, *others = [f"{words} with experts without effect {' or '.join(rules)}" for words, rules in groups.items()]
    return "; ".join([first, *(each.replace("with experts without effect ", "with them ") for each in others)])


def _special(runs: Runs) -> str:
    shown = [kind for kind in KINDS if kind.name in IN_SHORT]
    whole = with_classes(runs, WHOLE)
    if not whole:
        return ""
    counts = {}
    for name in (WHOLE, FEW, MANY):
        tested = with_classes(runs, name)
        for kind in shown:
            words = [way(special(runs, data, ends, kind)) for data, ends in tested.items()]
            counts[name, kind] = tuple(words.count(word) for word in ("rises", "ties", "falls"))
    grown = [IN_SHORT[kind.name] for kind in shown if counts[WHOLE, kind][0] == len(whole)]
    alone = "every measure" if len(grown) == len(shown) else f"{' and '.join(grown)} alone" if grown else "none"
    parts = []
    for name in (FEW, MANY, WHOLE):
        if with_classes(runs, name):
            told = ", ".join(f"{IN_SHORT[kind.name]} {'/'.join(map(str, counts[name, kind]))}" for kind in shown)
            parts.append(f"{SPANS[name]} by {told}")
    line = (
        f"**More special beyond chance**, from the fewest experts to the most: by {alone} on all data. The data on "
        f"which the excess over the null (of classes by expert, as a share of the null) is more/a tie/less: "
        f"{'; '.join(parts)}."
    )
    if many := with_classes(runs, MANY):
        moves = {data: special(runs, data, ends, KINDS[0]) for data, ends in many.items()}
        told = ", ".join(f"{each.mean:+.2f} ({SHORT[data]})" for data, each in moves.items() if each)
        line += (
            " Bits, the mutual information of expert and class, are at most log2 of the experts and of the classes; "
            f"from as many experts as classes on they change by {told} beyond the null."
        )
    return line


def _gates(found: list[Gates]) -> str:
    large = [each for each in found if each.size >= LARGE]
    if not large:
        return ""
    vacuous, told = [each for each in large if each.is_vacuous], [each for each in large if not each.is_vacuous]
    words = {rule: [way(each.values[rule]) for each in told] for rule in RULES}
    excess = {name: [way(each.excess[name]) for each in told] for name in EXCESSES}
    every = [word == "falls" for group in (*words.values(), *excess.values()) for word in group]
    verdict = "not testable" if not told else "reproduced" if all(every) else "reproduced in part"
    verdict = verdict if not told or any(every) else "not reproduced"
    line = (
        f"**Entmax against softmax, from {LARGE} experts on** (a border from earlier runs on the same data): {verdict}"
    )
    if told:
        counts = _by_rule({rule: _counted(found) for rule, found in words.items()})
        line += (
            f", of {len(told)} comparisons that can tell{_others(vacuous)}: entmax's polysemanticity is {counts}; its "
            f"excess over the null is {_excess(excess, [each.excess['mean'] for each in told])}"
        )
    line += "."
    if vacuous:
        zero = _counted([way(each.values["mean_dead_zero"]) for each in vacuous])
        sizes = {data: [f"{each.size:,}" for each in vacuous if each.data == data] for data in SHORT}
        where = ", ".join(f"{SHORT[data]} with {' and '.join(those)}" for data, those in sizes.items() if those)
        line += (
            f" Vacuous are {len(vacuous)} ({where} experts): an expert with an effect loses fewer than "
            f"{FEWEST_LOST:.0f} samples under a gate; counted 0, entmax's is {zero} there."
        )
    small = [each for each in found if each.size < LARGE]
    if small:
        line += f" Below {LARGE} experts: {'; '.join(map(_small, small))}."
    return line


def _others(vacuous: Sequence[Gates]) -> str:
    return f" (of another {len(vacuous)} nothing can be said)" if vacuous else ""


def _excess(words: Mapping[str, list[str]], apart: list[Difference | None]) -> str:
    """What the excess does over experts with an effect and over all, and between which differences."""
    said = {name: _counted(found) for name, found in words.items()}
    means = sorted(each.mean for each in apart if each)
    ends = f"{means[0]:+.3f} to {means[-1]:+.3f}" if len(means) > 1 else "".join(f"{value:+.3f}" for value in means)
    if len(set(said.values())) == 1:
        return f"{next(iter(said.values()))} ({ends}), over experts with an effect and over all"
    return "; ".join(f"{found} over {EXCESSES[name]}" for name, found in said.items())


def _counted(words: list[str]) -> str:
    """``lower in 2, a tie in 1``."""
    said = {"falls": "lower", "rises": "higher", "ties": "a tie", "unknown": "unknown"}
    return ", ".join(f"{told} in {words.count(word)}" for word, told in said.items() if word in words)


def _small(found: Gates) -> str:
    said = {"falls": "lower", "rises": "higher", "ties": "a tie", "unknown": "unknown"}
    where = f"{SHORT[found.data]} with {found.size:,}"
    if found.is_vacuous:
        return f"{where} vacuous"
    return f"{where} {said[way(found.values['mean'])]}, its excess {said[way(found.excess['mean'])]}"


def _accuracy(runs: Runs) -> str:
    apart = [found for data in ("wn252", "gl", "wn252 all") for _, found in matched(runs, data) if found.pairs > 1]
    if not apart:
        return ""
    ties, means = sum(found.is_tie for found in apart), [found.mean for found in apart]
    worse = sum(not found.is_tie and found.mean < 0 for found in apart)
    return (
        f"**As accurate as a linear head of as many parameters**: {'not reproduced' if worse else 'reproduced'}, "
        f"worse in {worse} of {len(apart)} comparisons, a tie in {ties}; accuracy less the linear head's "
        f"{min(means):+.3f} to {max(means):+.3f}."
    )
