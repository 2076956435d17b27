"""What the runs say of the paper's claims, in sentences made from them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

from studies.common.paired import Difference, paired
from studies.hierarchy.contenders import CONTENDERS, DENSE, SMALL, Contender

__all__ = [
    "DENSE_NAMES",
    "MARGIN",
    "RATE_SEED",
    "TITLES",
    "Found",
    "against_fewest",
    "claims",
    "comparisons",
    "four_less_one",
    "grids",
    "idle_losses",
    "less",
    "name",
    "outcome",
    "rate",
    "rate_search",
    "sort",
    "verdict",
]

TITLES = {"head": "Head on glosses", "mixer": "Mixer on Fashion-MNIST"}
DENSE_NAMES = {"head": "linear head", "mixer": "dense MLPs"}
FORMS = {"cp": "CP", "tr": "tensor ring"}
RATE_SEED = 100
MARGIN = 0.01
"""Of accuracy: a loss that does not count."""
FEWEST_SEEDS = 2
"""Of a difference that says anything."""
WORDS = ("no worse", "worse", "undecided")

Found = Mapping[str, Mapping[Contender, Mapping[int, Mapping[str, Any]]]]
"""By problem and contender: what each seed gave."""


def sort(runs: Sequence[Mapping[str, Any]]) -> Found:
    """The runs that are reported, contenders in their order.

    Args:
        runs: What `studies.common.runs.read` gives, of both problems.
    """
    found: dict[str, dict[Contender, dict[int, Mapping[str, Any]]]] = {}
    for entry in runs:
        settings = entry["settings"]
        if settings["seed"] != RATE_SEED:
            seeds = found.setdefault(settings["problem"], {}).setdefault(Contender.of(settings), {})
            seeds[settings["seed"]] = {**entry["result"], "learning_rate": settings["learning_rate"]}
    order = {problem: {c: k for k, c in enumerate(CONTENDERS[problem])} for problem in CONTENDERS}
    return {
        problem: dict(sorted(found[problem].items(), key=lambda item: order[problem][item[0]]))
        for problem in TITLES
        if problem in found
    }


def name(contender: Contender) -> str:
    """As the page calls a grid."""
    return f"{FORMS[contender.form]} {' x '.join(map(str, contender.expert_dims))}"


def grids(found: Found, problem: str) -> list[Contender]:
    """The grids of a problem whose gates all learn."""
    return [contender for contender in found[problem] if contender.expert_dims and not contender.frozen]


def less(found: Found, problem: str, one: Contender, other: Contender) -> Difference | None:
    """The accuracy of one contender less that of another, over the seeds that both have; None for fewer than two."""
    return _mean_less(found, problem, [(one, other)])


def _mean_less(found: Found, problem: str, pairs: Iterable[tuple[Contender, Contender]]) -> Difference | None:
    """The mean over pairs of contenders of such differences, over the seeds that all have."""
    sides = [[found[problem].get(contender, {}) for contender in pair] for pair in pairs]
    seeds = sorted(set.intersection(*(set(side) for pair in sides for side in pair))) if sides else []
    if len(seeds) < FEWEST_SEEDS:
        return None
    means = [[statistics.fmean(pair[k][s]["accuracy"] for pair in sides) for s in seeds] for k in (0, 1)]
    return paired(means[0], means[1])


def against_fewest(found: Found, problem: str) -> list[tuple[Contender, Contender, Difference]]:
    """Each grid at equal parameters with the one of as many experts and the fewest modes."""
    compared = []
    for contender in grids(found, problem):
        alike = [
            other
            for other in grids(found, problem)
            if (other.form, other.budget) == (contender.form, contender.budget)
            and prod(other.expert_dims) == prod(contender.expert_dims)
        ]
        fewest = min(alike, key=lambda other: len(other.expert_dims))
        difference = less(found, problem, contender, fewest) if contender.budget and fewest != contender else None
        if difference is not None:
            compared.append((contender, fewest, difference))
    return compared


def idle_losses(results: Mapping[int, Mapping[str, Any]]) -> list[Difference]:
    """For each mode the accuracy lost without it, over seeds."""
    seeds = [results[seed] for seed in sorted(results)]
    full = [result["accuracy"] for result in seeds]
    return [paired(full, [r["modes"][k]["without"] for r in seeds]) for k in range(len(seeds[0]["modes"]))]


def outcome(difference: Difference, margin: float = MARGIN) -> str:
    """``"worse"`` if the 95% interval lies below ``-margin``, ``"no worse"`` if above, else ``"undecided"``.

    Examples:
        >>> [outcome(Difference(mean, 0.001, 3)) for mean in (-0.02, -0.01, 0.0)]
        ['worse', 'undecided', 'no worse']
    """
    return {True: "worse", False: "no worse", None: "undecided"}[difference.falls(margin)]


def _by_two(difference: Difference) -> str:
    """The same, with two standard errors for half the interval."""
    low, high = (difference.mean + sign * 2.0 * difference.error for sign in (-1, 1))
    return "no worse" if low >= -MARGIN else "worse" if high < -MARGIN else "undecided"


def verdict(words: Sequence[str]) -> str:
    """What becomes of a claim.

    Args:
        words: An outcome for each comparison.

    Examples:
        >>> verdict(["no worse"]), verdict(["no worse", "undecided"])
        ('reproduced', 'reproduced in part')
        >>> verdict(["worse", "undecided"]), verdict(["undecided"])
        ('not reproduced', 'cannot tell')
    """
    fine, worse = words.count("no worse"), words.count("worse")
    if not fine:
        return "not reproduced" if worse else "cannot tell"
    return "reproduced" if fine == len(words) else "reproduced in part"


def rate_search(runs: Sequence[Mapping[str, Any]]) -> dict[Contender, dict[float, Mapping[str, Any]]]:
    """What the search for the head's learning rates found, by contender and rate.

    Args:
        runs: What `studies.common.runs.read` gives.
    """
    found: dict[Contender, dict[float, Mapping[str, Any]]] = {}
    for entry in runs:
        settings = entry["settings"]
        if settings["seed"] == RATE_SEED and settings["problem"] == "head":
            found.setdefault(Contender.of(settings), {})[settings["learning_rate"]] = entry["result"]
    return found


def four_less_one(searched: Mapping[Contender, Mapping[float, Mapping[str, Any]]]) -> dict[str, dict[float, float]]:
    """By form and learning rate, the accuracy of 64 experts in four modes less that in one; of what was tried.

    Args:
        searched: What `rate_search` gives.
    """
    falls = {}
    for form in FORMS:
        one, four = (searched.get(Contender(form, dims), {}) for dims in (SMALL[0], SMALL[-1]))
        falls[form] = {
            rate: four[rate]["accuracy"] - one[rate]["accuracy"] for rate in sorted(one.keys() & four.keys())
        }
    return {form: by_rate for form, by_rate in falls.items() if by_rate}


def claims(found: Found, searched: Mapping[Contender, Mapping[float, Mapping[str, Any]]]) -> list[str]:
    """What becomes of the paper's claims: whether modes cost accuracy, whether grids do, whether modes are used.

    Args:
        found: The runs that are reported.
        searched: What `rate_search` gives.
    """
    compared = {problem: against_fewest(found, problem) for problem in found}
    averages = [
        f"{TITLES[problem].split()[0]} {average}"
        for problem, pairs in compared.items()
        if (average := _mean_less(found, problem, [(one, other) for one, other, _ in pairs])) is not None
    ]
    lines = [_judged("More modes cost no accuracy", [d for pairs in compared.values() for *_, d in pairs], averages)]
    if any(max(falls.values()) - min(falls.values()) > MARGIN for falls in four_less_one(searched).values()):
        lines[0] += " What modes cost the head depends on the learning rate."
    for problem in found:
        equal = [grid for grid in grids(found, problem) if grid.budget]
        against = [d for grid in equal if (d := less(found, problem, grid, DENSE)) is not None]
        averages = []
        for of, only_one in (("", False), ("with one mode ", True)):
            pairs = [(grid, DENSE) for grid in equal if not only_one or len(grid.expert_dims) == 1]
            if (average := _mean_less(found, problem, pairs)) is not None:
                averages.append(f"{of}{average}")
        claim = f"Grids are as accurate as the {DENSE_NAMES[problem]}"
        lines.append(_judged(claim, against, averages))
    return [*lines, _used(found), *_learned(found)]


def _judged(what: str, differences: Sequence[Difference], averages: Sequence[str]) -> str:
    """A claim of parity, with how its comparisons come out and their mean."""
    if not differences:
        return f"- {what}: **cannot tell**; not run."
    word = verdict([outcome(difference) for difference in differences])
    strict, lax = ([judge(d) for d in differences] for judge in (outcome, _by_two))
    counts = ", ".join(f"{strict.count(word)} {word}" for word in WORDS)
    return (
        f"- {what}: **{word}**; of {len(differences)} comparisons {counts} (margin {MARGIN:g}; at two errors "
        f"{', '.join(str(lax.count(word)) for word in WORDS)}); on average {', '.join(averages)}."
    )


def _used(found: Found) -> str:
    """Whether each mode of the grids of several is needed by the trained model."""
    modes = [
        loss
        for problem in found
        for grid in grids(found, problem)
        if len(grid.expert_dims) > 1
        for loss in idle_losses(found[problem][grid])
        if loss.pairs >= FEWEST_SEEDS
    ]
    if not modes:
        return "- Every mode is used: **cannot tell**; not run."
    words = [_needed(loss) for loss in modes]
    least = min(modes, key=lambda loss: loss.mean)
    two = sum(loss.mean > 2.0 * loss.error for loss in modes)
    return (
        f"- Every mode is used: **{verdict(words)}**; made idle, {words.count('no worse')} of {len(modes)} modes of "
        f"grids with several cost accuracy (at two errors {two}), {words.count('worse')} do not, "
        f"{words.count('undecided')} undecided; the least loss is {least}."
    )


def _needed(loss: Difference) -> str:
    """``"no worse"`` for the claim: the interval of the loss lies above 0; ``"worse"`` if below."""
    if loss.mean > 0 and loss.falls(0.0) is False:
        return "no worse"
    return "worse" if loss.mean + loss.half_width <= 0 else "undecided"


def _learned(found: Found) -> list[str]:
    """Each grid less the same whose last mode never learnt: whether a mode that is used is of use."""
    apart, said = 0, []
    for problem in found:
        parts = []
        for contender in found[problem]:
            learned = Contender(contender.form, contender.expert_dims)
            if contender.frozen and (difference := less(found, problem, learned, contender)) is not None:
                apart += difference.mean > difference.half_width
                parts.append(f"{name(learned)} {difference}")
        if parts:
            said.append(f"{TITLES[problem]}: {', '.join(parts)}")
    if not said:
        return []
    number = sum(part.count("±") for part in said)
    useful = "not shown to be useful" if not apart else "useful in part" if apart < number else "useful"
    return [
        f"- Used is {useful}: trained with the last mode's gate kept uniform instead, the same grid is less accurate "
        f"in {apart} of {number} comparisons (the learned less the uniform: {'; '.join(said)}). No claim of the paper."
    ]


def comparisons(found: Found) -> str:
    """How many comparisons of modes lie on one side of zero, and how those between grids of one rate come out."""
    compared = [(problem, *entry) for problem in found for entry in against_fewest(found, problem)]
    below, above = (sum(sign * d.mean > d.half_width for *_, d in compared) for sign in (-1, 1))
    alike = [
        outcome(d) for problem, one, other, d in compared if rate(found, problem, one) == rate(found, problem, other)
    ]
    counts = ", ".join(f"{alike.count(word)} {word}" for word in WORDS)
    return (
        f"{below} of {len(compared)} intervals lie below 0 altogether, {above} above. Of the {len(alike)} comparisons "
        f"between grids of one learning rate: {counts}."
    )


def rate(found: Found, problem: str, contender: Contender) -> float:
    """The learning rate of a contender."""
    return float(next(iter(found[problem][contender].values()))["learning_rate"])
