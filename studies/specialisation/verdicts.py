"""What the runs say of the paper's claims, in sentences made from them; each against its null or its control."""

from __future__ import annotations

from collections.abc import Mapping

from studies.common.paired import Difference
from studies.specialisation.figures import CLASSES, PAPER_WINDOW, TITLES, contenders
from studies.specialisation.plan import DEFAULT, LINEAR, MATCHED_CP, PAPER, RING, SOFTMAX, TWO_MAPS
from studies.specialisation.table import Runs, difference, less, mean

__all__ = ["RULES", "accuracy", "entmax", "falls", "in_short", "other_measures", "rises", "variants"]

RULES = {"mean": "left out", "mean_dead_one": "counted 1", "mean_dead_zero": "counted 0"}
"""What becomes of experts without effect."""
TURN = 0.52
"""Experts by class up to which polysemanticity is expected to fall: the upper end of the paper's range, rounded up."""


def _clear(found: Difference | None, sign: int) -> bool:
    """Whether a difference is of a sign, by more than two standard errors."""
    return found is not None and not found.is_tie and found.mean * sign > 0


def _moves(runs: Runs, data: str, few: int, many: int, measure: str) -> tuple[Difference | None, Difference | None]:
    """How far a figure, and its distance from its null, go from few to many experts."""
    values = [runs.values(data, DEFAULT, size, measure) for size in (few, many)]
    nulls = [runs.values(data, DEFAULT, size, measure, 1) for size in (few, many)]
    above = [less(value, null) for value, null in zip(values, nulls, strict=True)]
    return difference(values[1], values[0]), difference(above[1], above[0])


def _merged(parts: dict[str, tuple[str, str]]) -> str:
    """Verdicts under each rule for experts without effect, said once where they agree."""
    words = {word for word, _ in parts.values()}
    if len(words) == 1:
        first = next(iter(parts.values()))[1]
        rest = "" if len({figures for _, figures in parts.values()}) == 1 else ", experts without effect left out"
        return f"{words.pop()} under each rule for experts without effect ({first}{rest})"
    return "; ".join(
        f"{word} with experts without effect {RULES[rule]} ({told})" for rule, (word, told) in parts.items()
    )


def _few(runs: Runs, data: str) -> list[int]:
    return [size for size in runs.sizes(data, DEFAULT) if size / CLASSES[data] <= TURN]


def _many(runs: Runs, data: str) -> list[int]:
    return [size for size in runs.sizes(data, DEFAULT) if size / CLASSES[data] >= PAPER_WINDOW[1]]


def _fall(runs: Runs, data: str) -> dict[str, tuple[str, str]]:
    sizes, parts = _few(runs, data), {}
    for measure in RULES:
        moved, above = _moves(runs, data, sizes[0], sizes[-1], measure)
        verdict = "reproduced" if _clear(moved, -1) and _clear(above, -1) else "not reproduced"
        if moved is not None and moved.pairs < 2:
            verdict = "not testable with one seed"
        parts[measure] = verdict, f"{moved}; against the null {above}"
    return parts


def _rise(runs: Runs, data: str) -> dict[str, tuple[str, str]]:
    sizes, parts = _many(runs, data), {}
    for measure in RULES:
        moved, _ = _moves(runs, data, sizes[0], sizes[-1], measure)
        word = "rises" if _clear(moved, 1) else "falls" if _clear(moved, -1) else "is a tie"
        if moved is not None and moved.pairs < 2:
            word = "not testable with one seed"
        parts[measure] = word, str(moved)
    return parts


def falls(runs: Runs) -> list[str]:
    """Whether polysemanticity falls with the number of experts while there are fewer experts than classes."""
    lines = []
    for data, title in TITLES.items():
        sizes = _few(runs, data)
        if not sizes:
            continue
        if len(sizes) < 2:
            lines.append(f"{title}: not testable, only one number of experts is below half of the classes.")
            continue
        few, many = (runs.values(data, DEFAULT, size, "mean") for size in (sizes[0], sizes[-1]))
        lines.append(
            f"{title}, from {sizes[0]} to {sizes[-1]} experts, {mean(few):.3f} to {mean(many):.3f}, "
            f"n {min(len(few), len(many))}: {_merged(_fall(runs, data))}."
        )
    return lines


def rises(runs: Runs) -> list[str]:
    """What polysemanticity does where there are more experts than half of the classes."""
    lines = []
    for data, title in TITLES.items():
        sizes = _many(runs, data)
        if len(sizes) < 2:
            continue
        few, many = (runs.values(data, DEFAULT, size, "mean") for size in (sizes[0], sizes[-1]))
        lines.append(
            f"{title}, from {sizes[0]} to {sizes[-1]:,} experts, {mean(few):.3f} to {mean(many):.3f}, "
            f"n {min(len(few), len(many))}: {_merged(_rise(runs, data))}."
        )
    return lines


def other_measures(runs: Runs) -> list[str]:
    """Whether the measures that do not depend on the size of an effect say the same, beside their nulls."""
    lines = []
    wanted = {"mutual_information": ("mutual information", 1), "effective_classes": ("classes by expert", -1)}
    wanted |= {"concentration": ("concentration", 1)}
    for data, title in TITLES.items():
        sizes = runs.sizes(data, DEFAULT)
        if len(sizes) < 2:
            continue
        parts = []
        for measure, (name, sign) in wanted.items():
            few, many = (runs.values(data, DEFAULT, size, measure) for size in (sizes[0], sizes[-1]))
            null = runs.values(data, DEFAULT, sizes[-1], measure, 1)
            moved = difference(many, few)
            beyond = _clear(moved, sign) and _clear(difference(many, null), sign)
            verdict = "yes" if beyond else "no"
            if moved is not None and moved.pairs < 2:
                verdict = "not testable with one seed"
            parts.append(f"{name} {verdict} ({mean(few):.2f} to {mean(many):.2f}, null there {mean(null):.2f})")
        lines.append(f"{title}, from {sizes[0]} to {sizes[-1]:,} experts: {'; '.join(parts)}.")
    return lines


def _gates(runs: Runs, data: str, size: int) -> dict[str, tuple[str, str]]:
    parts = {}
    for measure in RULES:
        ours, theirs = (runs.values(data, like, size, measure) for like in (DEFAULT, SOFTMAX))
        found = difference(ours, theirs)
        if found is None:
            parts[measure] = "not testable", "no softmax expert has an effect"
            continue
        word = "lower" if _clear(found, -1) else "higher" if _clear(found, 1) else "a tie"
        parts[measure] = word, f"{found}, n {found.pairs}"
    return parts


def entmax(runs: Runs) -> list[str]:
    """Whether entmax gives lower polysemanticity than softmax, at each number of experts."""
    lines = []
    for data, title in TITLES.items():
        for size in runs.sizes(data, SOFTMAX):
            told = [
                mean(less(*(runs.values(data, like, size, "mutual_information", k) for k in (0, 1))))
                for like in (DEFAULT, SOFTMAX)
            ]
            effect = [mean(runs.values(data, like, size, "with_effect")) for like in (DEFAULT, SOFTMAX)]
            lines.append(
                f"{title}, {size} experts: entmax's is {_merged(_gates(runs, data, size))}. Experts with an effect: "
                f"{effect[0]:.0f} against {effect[1]:.0f}; bits beyond the null: {told[0]:.2f} against {told[1]:.2f}."
            )
    return lines


def _matched(runs: Runs, data: str) -> list[tuple[str, Difference]]:
    linear = runs.values(data, LINEAR, 0, "accuracy")
    found = []
    for name, like, size in contenders(runs, data):
        if "equal parameters" in name:
            apart = difference(runs.values(data, like, size, "accuracy"), linear)
            found += [] if apart is None else [(name, apart)]
    return found


def in_short(runs: Runs) -> list[str]:
    """The verdicts, counted."""
    lines = []
    with_both = [data for data in TITLES if len(_few(runs, data)) > 1]
    verdicts = {data: _fall(runs, data) for data in with_both}
    tested = {data: found for data, found in verdicts.items() if found["mean"][0] != "not testable with one seed"}
    if tested:
        good = [
            TITLES[data] for data, found in tested.items() if {word for word, _ in found.values()} == {"reproduced"}
        ]
        word = "reproduced" if len(good) == len(tested) else "reproduced in part" if good else "not reproduced"
        lines.append(
            "**More experts are less polysemantic while there are at most half as many as classes**, as in the paper: "
            f"{word}, under every rule for experts without effect, on {len(good)} of {len(tested)} data"
            f"{': ' if good else ''}{'; '.join(good)}."
        )
    rising = [_rise(runs, data)["mean"][0] for data in TITLES if len(_many(runs, data)) > 1]
    rising = [word for word in rising if word != "not testable with one seed"]
    falling = [_rise(runs, data)["mean_dead_zero"][0] for data in TITLES if len(_many(runs, data)) > 1].count("falls")
    if rising:
        lines.append(
            f"**Beyond that it turns round**: polysemanticity rises again on {rising.count('rises')} of {len(rising)} "
            f"data with experts without effect left out; counted 0 it still falls "
            f"on {falling} of them. So the claim is one of few experts for many classes, not of all numbers."
        )
    moves = [_information(runs, data) for data in TITLES if len(runs.sizes(data, DEFAULT)) > 1]
    moves = [found for found in moves if found is not None]
    if moves:
        lines.append(
            f"**What an expert tells of the class grows beyond its null** up to the largest number on {sum(moves)} of "
            f"{len(moves)} data: experts do become more special, whichever way polysemanticity goes."
        )
    cells = [(size, _gates(runs, data, size)) for data in TITLES for size in runs.sizes(data, SOFTMAX)]
    if cells:
        large = [found for size, found in cells if size >= 64]
        counts = [f"{sum(f[m][0] == 'lower' for f in large)} with them {rule}" for m, rule in RULES.items()]
        small = [
            f"{found['mean'][0]} on {TITLES[data].split(',')[0]}"
            for data in TITLES
            for size in runs.sizes(data, SOFTMAX)
            if size < 64
            for found in [_gates(runs, data, size)]
        ]
        lower = [found[measure][0] == "lower" for found in large for measure in RULES]
        verdict = "reproduced" if all(lower) else "reproduced in part" if any(lower) else "not reproduced"
        lines.append(
            f"**Entmax against softmax, from 64 experts on**: {verdict}; of {len(large)} comparisons entmax's is "
            f"lower in {', '.join(counts)} (*them*: experts without effect); with 16 experts it is "
            f"{', '.join(small) or 'unknown'}."
        )
    apart = [found for data in ("wn252", "gl", "wn252 all") for _, found in _matched(runs, data) if found.pairs > 1]
    if apart:
        ties, means = sum(found.is_tie for found in apart), [found.mean for found in apart]
        worse = sum(not found.is_tie and found.mean < 0 for found in apart)
        lines.append(
            f"**As accurate as a linear head of as many parameters**: {'not reproduced' if worse else 'reproduced'}, "
            f"worse in {worse} of {len(apart)} comparisons, a tie in {ties}; accuracy less the linear head's "
            f"{min(means):+.3f} to {max(means):+.3f}."
        )
    return lines


def _information(runs: Runs, data: str) -> bool | None:
    """Whether mutual information less its null grows from the fewest to the most experts; unknown with one seed."""
    sizes = runs.sizes(data, DEFAULT)
    few, many = (
        less(*(runs.values(data, DEFAULT, size, "mutual_information", k) for k in (0, 1)))
        for size in (sizes[0], sizes[-1])
    )
    found = difference(many, few)
    return None if found is None or found.pairs < 2 else _clear(found, 1)


def accuracy(runs: Runs) -> list[str]:
    """The accuracy of heads of experts less that of linear heads of as many parameters."""
    lines = []
    titles: Mapping[str, str] = {**TITLES, "wn252 all": "glosses, 252 classes, every gloss for training"}
    for data, title in titles.items():
        linear = runs.values(data, LINEAR, 0, "accuracy")
        matched = [f"{name} {_told(found)}" for name, found in _matched(runs, data)]
        if matched:
            lines.append(f"{title}, less a linear head ({mean(linear):.3f}): {'; '.join(matched)}.")
        for size in runs.sizes(data, TWO_MAPS):
            found = difference(*(runs.values(data, like, size, "accuracy") for like in (DEFAULT, TWO_MAPS)))
            if found is not None:
                lines.append(
                    f"{title}, CP of rank 128 with {size} experts less two linear maps of as many parameters: "
                    f"{_told(found)}."
                )
    return lines


def _told(found: Difference) -> str:
    word = "a tie" if found.is_tie else "better" if found.mean > 0 else "worse"
    return f"{found} ({word}, n {found.pairs})"


def variants(runs: Runs) -> list[str]:
    """The same with the paper's initialisation, in tensor-ring form, and with a linear head's parameters."""
    lines = []
    for like, name in ((PAPER, "the paper's initialisation"), (RING, "TR"), (MATCHED_CP, "CP, equal parameters")):
        for data, title in TITLES.items():
            sizes = runs.sizes(data, like)
            if len(sizes) < 2:
                continue
            few, many = (runs.values(data, like, size, "mean") for size in (sizes[0], sizes[-1]))
            nulls = [mean(runs.values(data, like, size, "mean", 1)) for size in (sizes[0], sizes[-1])]
            found = difference(many, few)
            if found is None:
                continue
            word = "falls" if _clear(found, -1) else "does not fall"
            lines.append(
                f"{name}, {title}, {sizes[0]} to {sizes[-1]} experts: {word}, {mean(few):.3f} to {mean(many):.3f} "
                f"(null {nulls[0]:.3f} and {nulls[1]:.3f}), {found}, n {found.pairs}."
            )
    return lines
