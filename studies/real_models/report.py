"""The page and the picture, from the file of results; every sentence that judges follows from its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from factorized_moe._writing import write_files
from studies.real_models.curves import FAIR, STILL, Curve, Reference, curves, harm, references
from studies.real_models.forms import NAMES
from studies.real_models.plan import (
    EXPERTS,
    FRACTION,
    FULL,
    LANGUAGE,
    LAST,
    MIDDLE,
    RATE_SEED,
    RATE_STEPS,
    RATES,
    chosen_rates,
    plan,
    rate_runs,
)

__all__ = ["FIGURE", "page", "write"]

FIGURE = "real-models.svg"

RATED = [(settings["kind"], settings["start"]) for settings in rate_runs()]

INTRODUCTION = f"""\
# Real models

MLPs of a pretrained model become blocks of {EXPERTS} experts, or something else of as many parameters; the rest of the
model stays as it is. How much is lost, and what does distillation on how many tokens give back? A form is called *fair*
if it makes good {FAIR:.0%} of what leaving the MLPs out costs, in every seed.

"""

MEASURES = {
    MIDDLE: "`1 - cosine` of a sentence's embedding and its embedding by the unchanged model, a mean over sentences",
    LAST: "as for the middle layer, with the MLPs of three of the six layers replaced at once",
    LANGUAGE: "the Kullback-Leibler divergence of predictions from the unchanged model's, in nats a token",
}


def write(entries: Sequence[Mapping[str, Any]], out: Path, command: str) -> None:
    """Write the page and the picture.

    Args:
        entries: The finished runs.
        out: The folder to write to.
        command: What made the runs.
    """
    from studies.real_models.picture import draw

    write_files(out, {"real-models.md": page(entries, command).encode()})
    draw(curves(entries), out / FIGURE)


def page(entries: Sequence[Mapping[str, Any]], command: str) -> str:
    """The page.

    Args:
        entries: The finished runs.
        command: What made the runs.
    """
    found, known = curves(entries), references(entries)
    missing = sum(1 for _ in plan(dict.fromkeys(RATED, 0.0))) + len(list(rate_runs())) - len(entries)
    places = [place for place in known if any(curve.place == place for curve in found)]
    verdicts = [f"- {sentence}" for place in places for sentence in _verdicts(place, known[place], found)]
    sections = [line for place in places for line in _section(place, known[place], found)]
    if missing > 0:
        verdicts.append(
            f"- **Not all was run**: {missing} of {missing + len(entries)} planned runs are missing; the command goes "
            "on with them. Nothing is said of what they would show."
        )
    picture = f"![Quality against tokens, for each place and form]({FIGURE})"
    return INTRODUCTION + "\n".join(
        [*verdicts, "", picture, "", *sections, *_budgets(known, found), *_how(entries, command)]
    )


def _name(curve: Curve) -> str:
    start = " from the weights alone" if curve.form.start == "weights" else ""
    whole = ", trained through the whole model" if curve.loss == "model" else ""
    return f"{NAMES[curve.form.kind]}{start}{whole}"


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _listed(names: Sequence[str]) -> str:
    return "; ".join(names) if names else "none"


def _half(place: str, found: Sequence[Curve]) -> list[Curve]:
    """The curves of a place at the share that is distilled for longest."""
    return [curve for curve in found if curve.place == place and curve.form.fraction == FRACTION]


def _verdicts(place: str, reference: Reference, found: Sequence[Curve]) -> list[str]:
    """What is found in a place, most telling first."""
    half = [curve for curve in _half(place, found) if curve.loss == "layers"]
    whitened = [curve for curve in half if curve.form.start == "whitened"]
    started = [curve for curve in whitened if curve.at(0) is not None]
    at_once = [curve for curve in started if curve.at(0).is_fair]  # type: ignore[union-attr]  # it has that point
    parts = [f"**{place}**, {FRACTION:.0%} of the parameters. Fair before any training, whitened: "]
    parts.append(f"{_listed([_name(c) for c in at_once])} ({len(at_once)} of {len(started)} forms).")
    later = [(curve, curve.fair_from) for curve in half if curve not in at_once]
    gained = [f"{_name(curve)} from {tokens:,.0f} tokens" for curve, tokens in later if tokens is not None]
    if gained:
        parts.append(f" Fair with distillation: {_listed(gained)}.")
    never = [f"{_name(c)} ({c.points[-1].tokens:,.0f}, {_percent(c.points[-1].mean)})" for c, at in later if at is None]
    if never:
        parts.append(f" Not fair at the most tokens tried (tokens, made good): {_listed(never)}.")
    unknown = [_name(curve) for curve, tokens in later if tokens is None and curve.change == "unknown"]
    if unknown:
        parts.append(f" Whether more tokens would do cannot be said, for too few lengths were run: {_listed(unknown)}.")
    rising = [_name(curve) for curve in half if curve.change == "rises"]
    open_ = [name for name in rising if any(name == _name(c) for c, at in later if at is None)]
    sentences = ["".join(parts)]
    if rising:
        ends = f" Of those that are not fair yet, this leaves open: {_listed(open_)}." if open_ else ""
        sentences.append(f"{place}: still improving with the last four times as many tokens: {_listed(rising)}.{ends}")
    return [*sentences, *_against_controls(place, half), *_whitening(place, half), *_whole(place, found)]


def _find(half: Sequence[Curve], kind: str, start: str = "whitened") -> Curve | None:
    return next((c for c in half if (c.form.kind, c.form.start) == (kind, start)), None)


def _against_controls(place: str, half: Sequence[Curve]) -> list[str]:
    """CP beside each control, at the most tokens that both have and in the seeds that both have."""
    experts = _find(half, "cp")
    sentences = []
    for kind in ("low-rank", "narrow"):
        control = _find(half, kind)
        shared = experts.shared(control) if experts is not None and control is not None else []
        if not shared:
            continue
        tokens, pairs = shared[-1]
        ahead = sum(a > b for a, b in pairs)
        word = "closer to" if 2 * ahead > len(pairs) else "no closer to"
        values = ", ".join(f"{_percent(a)} against {_percent(b)}" for a, b in pairs)
        sentences.append(
            f"{place}: experts (CP) are {word} the original than the control *{NAMES[kind]}* after {tokens:,.0f} "
            f"tokens, in {ahead} of {len(pairs)} seeds: {values} made good."
        )
    return sentences


def _whitening(place: str, half: Sequence[Curve]) -> list[str]:
    """The two starts of CP, before training and at the most tokens that both have."""
    one, other = _find(half, "cp"), _find(half, "cp", "weights")
    if one is None or other is None:
        return []
    shared = one.shared(other)
    parts = []
    for tokens, pairs in dict(shared[:1] + shared[-1:]).items():
        values = [f"{_percent(a)} against {_percent(b)}" for a, b in pairs]
        parts.append(f"{', '.join(values)} after {tokens:,.0f} tokens")
    return (
        [f"{place}: CP whitened on both sides against CP from the weights alone: {', '.join(parts)}."] if parts else []
    )


def _whole(place: str, found: Sequence[Curve]) -> list[str]:
    """Training through the whole model beside layer by layer, at the same number of steps."""
    sentences = []
    for curve in _half(place, found):
        alone = next((c for c in _half(place, found) if (c.form, c.loss) == (curve.form, "layers")), None)
        if curve.loss != "model" or alone is None:
            continue
        for point in curve.points:
            other = alone.at(point.steps)
            if other is not None:
                sentences.append(
                    f"{place}: {NAMES[curve.form.kind]} trained through the whole model, all below and between frozen, "
                    f"makes good {_percent(point.mean)} after {point.steps} steps, layer by layer "
                    f"{_percent(other.mean)}."
                )
    return sentences


def _section(place: str, reference: Reference, found: Sequence[Curve]) -> list[str]:
    mine = [c for c in found if c.place == place and (len(c.points) > 1 or c.form.fraction == FRACTION)]
    tokens = sorted({point.steps for curve in mine for point in curve.points})
    per_step = FULL.batch_size
    heads = " | ".join(f"{steps * per_step:,}" for steps in tokens)
    lines = [
        f"## {place[0].upper()}{place[1:]}",
        "",
        "Made good, by tokens seen in distillation:",
        "",
        f"| form | parameters | {heads} | fair from | at the end |",
        "|---|---:|" + "---:|" * len(tokens) + "---:|---|",
    ]
    for curve in mine:
        cells = " | ".join(_cell(curve, steps) for steps in tokens)
        fair = "not yet" if curve.fair_from is None else f"{curve.fair_from:,.0f}"
        lines.append(f"| {_name(curve)} | {curve.share:.1%} | {cells} | {fair} | {curve.change} |")
    costs = {kind: harm(measured) for kind, measured in reference.measured.items()}
    return [
        *lines,
        "",
        f"Harm is {MEASURES[place]}. The mean output in place of the MLPs costs {costs['mean']:.4f}, zeros "
        f"{costs['zeros']:.4f}; compared is with {'zeros' if reference.ablation == 'zeros' else 'the mean output'}, "
        "which costs less.",
        "",
    ]


def _cell(curve: Curve, steps: int) -> str:
    point = curve.at(steps)
    if point is None:
        return ""
    values = point.made_good.values()
    spread = f" [{min(values):.1%}, {max(values):.1%}]" if len(values) > 1 else ""
    return f"{point.mean:.1%}{spread}"


def _budgets(known: Mapping[str, Reference], found: Sequence[Curve]) -> list[str]:
    """What is made good before any training, for each share of the parameters."""
    starts = {
        (curve.form.kind, curve.form.fraction): curve
        for curve in found
        if curve.place == MIDDLE
        and curve.form.start == "whitened"
        and curve.at(0) is not None
        and curve.loss == "layers"
    }
    fractions = sorted({fraction for kind, fraction in starts if kind != "dense"}, reverse=True)
    kinds = [kind for kind in NAMES if any(one == kind for one, _ in starts) and kind != "dense"]
    if len(fractions) < 2:
        return []
    lines = [
        "## Before any training, by parameters",
        "",
        f"Made good in the {MIDDLE}, whitened, seed 0:",
        "",
        f"| form | {' | '.join(f'{fraction:.0%}' for fraction in fractions)} |",
        "|---|" + "---:|" * len(fractions),
    ]
    for kind in kinds:
        cells = []
        for fraction in fractions:
            curve = starts.get((kind, fraction))
            point = None if curve is None else curve.at(0)
            cells.append("" if point is None else f"{point.made_good[0]:.1%}")
        lines.append(f"| {NAMES[kind]} | {' | '.join(cells)} |")
    return [*lines, ""]


def _how(entries: Sequence[Mapping[str, Any]], command: str) -> list[str]:
    rates = "; ".join(f"{NAMES[kind]}, {start}: {rate:g}" for (kind, start), rate in chosen_rates(entries).items())
    machines = {", ".join(f"{k} {v}" for k, v in entry["result"]["machine"].items()) for entry in entries}
    minutes = sum(entry["seconds"] for entry in entries) / 60
    seeds = {entry["settings"]["seed"] for entry in entries}
    return [
        "## How it was measured",
        "",
        f"Written by `{command}` from [real-models.jsonl](real-models.jsonl): do not edit. {len(entries)} runs, "
        f"{minutes:.0f} minutes of one thread on a machine that did other work beside; a stopped command goes on where "
        "it was.",
        "",
        f"- *Made good*: the share of the harm of an ablation that is undone. Fair is {FAIR:.0%} or more in every "
        "seed and "
        "at every greater length. Brackets hold the smallest and the largest of the seeds; without them there is one "
        f"seed. Seeds: {', '.join(map(str, sorted(seeds)))}.",
        "- *Fair from* is the shortest length that was run; shorter ones that were not may be fair too.",
        f"- *At the end*: a curve *rises* if the last four times as many tokens leave at most {STILL:.0%} of what was "
        "missing to 100%: what more would do is then unknown, and nothing is claimed of it. *Falls* is the same "
        "backwards, *level* is between, *unknown* where two lengths of training are not there.",
        f"- Forms: {EXPERTS} experts of CP, tensor ring or Tucker, gate counted; *low rank*, every matrix a "
        "product of two, a truncated singular value decomposition; *narrower MLP*, the hidden features that contribute "
        "most, with the last matrix fitted anew; *dense MLP from random weights*, of as many parameters: what training "
        "alone does.",
        "- *Whitened*: matrices are brought to the rank that the experts' mean can have with the second moments of the "
        "layer's inputs and of the MLP's sensitivity to its outputs, then upcycled. The controls are fitted to "
        "the same "
        "moments. *From the weights alone* is what `upcycle` does without moments.",
        f"- Each length is a run of its own, whose learning rate falls to zero at its end: AdamW, "
        f"{FULL.batch_size} tokens a "
        f"step, `factorized_moe.surgery.distill`, layer by layer. Learning rates, of "
        f"{', '.join(f'{r:g}' for r in RATES)}: "
        f"the best after {RATE_STEPS} steps by the error on validation text, in the encoder's middle layer with a "
        "seed of its "
        f"own, {RATE_SEED}, whose best run counts as a seed ({rates}). Tensor rings and Tucker take CP's; other places "
        "and lengths take the same, which may be too "
        "fast or slow for them.",
        f"- The encoder is all-MiniLM-L6-v2 (Apache-2.0): distilled on {FULL.train_sentences:,} noun glosses of "
        "WordNet "
        f"(WordNet 3.0 licence), measured on {FULL.held_out_sentences} others. Its last three of six layers are "
        "what is replaced "
        "at once. The language model is SmolLM2-135M-Instruct, 4-bit weights dequantised (Apache-2.0): distilled on "
        f"{FULL.window * FULL.train_windows:,} tokens of the topics of Python's `help()` (PSF Licence), measured on "
        f"{FULL.window * FULL.held_out_windows:,} of other topics. More tokens than there are in the text are "
        "several passes.",
        f"- Machine: {'; '.join(sorted(machines))}.",
        "",
    ]
