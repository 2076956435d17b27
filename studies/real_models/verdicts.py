"""What is found, in sentences that follow from the runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from studies.common.paired import Difference
from studies.real_models.curves import FAIR, Curve
from studies.real_models.forms import CONTROLS, NAMES
from studies.real_models.plan import FRACTION, FULL, LANGUAGE, LAST, MIDDLE, cells, missing

__all__ = [
    "COMPARED",
    "LOW_RANK",
    "SHORT",
    "between",
    "compared",
    "difference",
    "find",
    "half",
    "name_of",
    "points",
    "tokens_of",
    "verdicts",
]

CP, WEIGHTS, RING = ("cp", "whitened"), ("cp", "weights"), ("tr", "whitened")
LOW_RANK, NARROW, DENSE = ("low-rank", "whitened"), ("narrow", "whitened"), ("dense", "whitened")

SHORT = {MIDDLE: "encoder", LAST: "encoder's last three layers", LANGUAGE: "language model"}
"""What sentences and tables call the places."""

COMPARED = ((CP, LOW_RANK), (RING, LOW_RANK), (CP, NARROW), (CP, WEIGHTS), (WEIGHTS, DENSE))
"""What is subtracted from what, by kind and start."""


def verdicts(entries: Sequence[Mapping[str, Any]], found: Sequence[Curve]) -> list[str]:
    """What is found, what is missing first.

    Args:
        entries: The finished runs.
        found: Their curves.
    """
    same_start = (
        " At 0 tokens CP is by construction the control but for the parameters that the gate and the experts take: "
        "only the change from there can be the experts' doing."
    )
    return [
        *_not_run(entries),
        *_fair(found),
        *_shares(found),
        *_open(found),
        *_against(found, CP, LOW_RANK, same_start),
        *_against(found, CP, NARROW),
        *_against(found, CP, WEIGHTS, _rises(found, WEIGHTS)),
        *_whole(found),
    ]


def name_of(kind: str, start: str = "whitened", loss: str = "layers") -> str:
    """What the page calls a form; controls are said to be controls."""
    weights = " from the weights alone" if start == "weights" else ""
    whole = ", trained through the whole model" if loss == "model" else ""
    return f"{NAMES[kind]}{weights}{whole}{' (control)' if kind in CONTROLS else ''}"


def tokens_of(tokens: float) -> str:
    """A number of tokens in words."""
    return f"{tokens:,.0f} tokens"


def half(found: Sequence[Curve], place: str | None = None) -> list[Curve]:
    """The curves at the share that is distilled for longest, of one place or of all."""
    return [curve for curve in found if curve.form.fraction == FRACTION and place in (None, curve.place)]


def find(found: Sequence[Curve], place: str, which: tuple[str, str], loss: str = "layers") -> Curve | None:
    """A place's curve of a kind and a start, at the share that is distilled for longest."""
    for curve in half(found, place):
        if (curve.form.kind, curve.form.start) == which and curve.loss == loss:
            return curve
    return None


def points(share: float) -> str:
    """A change in points, with its sign; zero has a plus."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def difference(one: Difference) -> str:
    """In points, with its standard error if there is one."""
    error = "" if one.pairs == 1 else f" ± {100 * one.error:.2f}"
    return f"{100 * one.mean:+.2f}{error}"


def compared(one: Difference) -> str:
    """What a difference amounts to."""
    return "cannot tell" if one.is_tie else "ahead" if one.mean > 0 else "behind"


def between(found: Sequence[Curve], place: str, one: tuple[str, str], other: tuple[str, str]) -> dict[int, Difference]:
    """The difference of two forms by steps; empty if one was not run."""
    first, second = find(found, place, one), find(found, place, other)
    return {} if first is None or second is None else first.minus(second)


def _places(found: Sequence[Curve]) -> list[str]:
    return list(dict.fromkeys(curve.place for curve in found))


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _name(curve: Curve) -> str:
    return name_of(curve.form.kind, curve.form.start, curve.loss)


def _by_place(curves: Sequence[Curve], sentence: Callable[[Curve], str]) -> str:
    """Curves with what is said of each, place by place."""
    return "; ".join(
        f"{SHORT[place]}: {', '.join(sentence(curve) for curve in curves if curve.place == place)}"
        for place in _places(curves)
    )


def _not_run(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    counts = missing(entries)
    lacking, planned = (sum(pair[k] for pair in counts.values()) for k in (0, 1))
    if not lacking:
        return [f"**All {planned} planned runs were made.** The tables say on how many seeds a figure rests."]
    parts = [f"{SHORT[place]} {lacks} of {of}" for place, (lacks, of) in counts.items() if lacks]
    return [
        f"**Not all was run**: {lacking} of {planned} planned runs are missing ({'; '.join(parts)}). Nothing is said "
        "of what they would show."
    ]


def _fair(found: Sequence[Curve]) -> list[str]:
    """Which forms with experts were fair, and which controls."""
    curves = half(found)
    experts = [curve for curve in curves if curve.form.kind not in CONTROLS]
    if not experts:
        return []
    fair = [curve for curve in experts if curve.fair_from is not None]
    controls = [curve for curve in curves if curve.form.kind in CONTROLS]
    fair_controls = [curve for curve in controls if curve.fair_from is not None]
    best = [
        max((curve for curve in some if curve.place == place), key=lambda curve: curve.last.mean)
        for some in (experts, controls)
        for place in _places(some)
    ]
    most = max(curve.last.tokens for curve in experts)
    parts = [
        f"**{len(fair) or 'None'} of {len(experts)} forms with experts {'were' if len(fair) > 1 else 'was'} fair at "
        f"{FRACTION:.0%} of the MLPs' parameters**, before training or after up to {tokens_of(most)} (a form counts "
        f"once in each place){': ' if fair else ''}{_by_place(fair, _from)}."
    ]
    if controls:
        said = f": {_by_place(fair_controls, _from)}" if fair_controls else ""
        were = "were" if len(fair_controls) > 1 else "was"
        parts.append(f"Of {len(controls)} controls {len(fair_controls) or 'none'} {were}{said}.")
    parts.append(f"Best with experts and best control, each at its most tokens: {_by_place(best, _last)}.")
    return [" ".join(parts)]


def _from(curve: Curve) -> str:
    point = next(point for point in curve.points if point.tokens == curve.fair_from)
    seeds = min(len(p.made_good) for p in curve.points if p.tokens >= point.tokens)
    return (
        f"{_name(curve)} from {tokens_of(point.tokens)} on ({_percent(point.mean)}; fewest seeds of a length: {seeds})"
    )


def _last(curve: Curve) -> str:
    return f"{_name(curve)} {_percent(curve.last.mean)}"


def _shares(found: Sequence[Curve]) -> list[str]:
    """What is fair before any training, by the share of the parameters, where several were fitted."""
    starts = [c for c in found if c.place == MIDDLE and c.form.start == "whitened" and c.loss == "layers"]
    starts = [c for c in starts if c.form.kind != "dense" and c.at(0) is not None]
    fractions = sorted({curve.form.fraction for curve in starts}, reverse=True)
    if len(fractions) < 2:
        return []
    parts = []
    for fraction in fractions:
        at = [c for c in starts if c.form.fraction == fraction]
        fair = [_name(c) for c in at if c.points[0].is_fair]
        parts.append(f"{fraction:.0%}: {', '.join(fair) or 'none'} ({len(fair)} of {len(at)})")
    return [f"**Fair before any training**, {SHORT[MIDDLE]}, by share of the parameters: {'; '.join(parts)}."]


def _open(found: Sequence[Curve]) -> list[str]:
    """What more tokens would do where nothing was fair."""
    never = [curve for curve in half(found) if curve.fair_from is None]
    rising = [curve for curve in never if curve.change == "rises"]
    slow = [curve for curve in never if curve.change == "slow"]
    unknown = [curve for curve in never if curve.change == "unknown"]
    parts = []
    if rising:
        parts.append(f"{len(rising)} still *rise* (points of the last fourfold): {_by_place(rising, _gained)}.")
    if slow:
        nearest = max(slow, key=lambda curve: curve.last.mean)
        gains = [curve.gain for curve in slow if curve.gain is not None]
        parts.append(
            f"{len(slow)} are *slow*: the last fourfold of tokens added {points(min(gains))} to "
            f"{points(max(gains))} points. That does not exclude {FAIR:.0%} after more tokens or on more text; the "
            f"nearest, {SHORT[nearest.place]}: {_name(nearest)}, lacks {100 * (FAIR - nearest.last.mean):.1f} points."
        )
    if unknown:
        parts.append(f"Too few lengths were run of {_by_place(unknown, _last)}.")
    return [f"**Open**, of the {len(never)} that are not fair: {' '.join(parts)}"] if parts else []


def _gained(curve: Curve) -> str:
    return f"{_last(curve)} ({points(curve.gain or 0.0)})"


def _against(found: Sequence[Curve], one: tuple[str, str], other: tuple[str, str], more: str = "") -> list[str]:
    """One form less another in each place, at the most tokens for which two seeds have both, or else one."""
    parts, words = [], Counter[str]()
    for place in _places(half(found)):
        every = between(found, place, one, other)
        steps = max((k for k in every if k), key=lambda k: (every[k].pairs > 1, k), default=None)
        if steps is None:
            parts.append(f"{SHORT[place]}: {_absent(place, one, other)}")
            continue
        words[compared(every[steps])] += 1
        beside = [f"{100 * every[k].mean:+.2f} at {k * FULL.batch_size:,}" for k in every if not k or k > steps]
        at = "; ".join([tokens_of(steps * FULL.batch_size), *([", ".join(beside)] if beside else [])])
        parts.append(f"{SHORT[place]}: {compared(every[steps])}, {_judged(every[steps], at)}")
    if not words:
        return []
    counts = [f"{word} in {words[word]}" for word in ("ahead", "behind", "cannot tell") if words[word]]
    said = f"**{name_of(*one)} minus {name_of(*other)}: {', '.join(counts)} of {words.total()} places.**"
    return [f"{said} Points: {'; '.join(parts)}.{more}"]


def _judged(one: Difference, where: str) -> str:
    return f"{difference(one)} (n={one.pairs}, {where})"


def _absent(place: str, *which: tuple[str, str]) -> str:
    """Why there is no difference."""
    planned = {(form.kind, form.start) for at, form, loss in cells() if at == place and form.fraction == FRACTION}
    return "not run yet" if set(which) <= planned else "not planned"


def _rises(found: Sequence[Curve], which: tuple[str, str]) -> str:
    """Where a form still rises, so that nothing is known of more tokens."""
    curves = [find(found, place, which) for place in _places(half(found))]
    rising = [SHORT[curve.place] for curve in curves if curve is not None and curve.change == "rises"]
    return f" {name_of(*which)} still rises ({' and '.join(rising)}): its end is open." if rising else ""


def _whole(found: Sequence[Curve]) -> list[str]:
    """Training through the whole model beside layer by layer: after as many steps, and on more tokens."""
    sentences = []
    trained = [curve.form.kind for curve in half(found) if curve.loss == "model" and curve.form.kind in CONTROLS]
    controls = "" if trained else " No control was trained so."
    for curve in half(found):
        alone = find(found, curve.place, (curve.form.kind, curve.form.start))
        if curve.loss != "model" or alone is None:
            continue
        for point in curve.points:
            same = curve.minus(alone).get(point.steps)
            if same is None:
                continue
            others = [alone.at(point.steps), next((p for p in alone.points if p.tokens > point.tokens), None)]
            said = [f"{_percent(p.mean)} on {tokens_of(p.tokens)}" for p in others if p is not None]
            sentences.append(
                f"**{_name(curve)}, minus layer by layer: {compared(same)}.** Points: {SHORT[curve.place]}: "
                f"{_judged(same, f'{point.steps} steps of both')}. It made good {_percent(point.mean)} on "
                f"{tokens_of(point.tokens)}, layer by layer {', '.join(said)}.{controls}"
            )
    return sentences
