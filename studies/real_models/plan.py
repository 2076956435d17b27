"""Which runs are made, as data: places, forms, lengths, seeds and learning rates, the most telling first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from studies.real_models.forms import Form

__all__ = [
    "EXPERTS",
    "FRACTION",
    "FULL",
    "LANGUAGE",
    "LAST",
    "LENGTHS",
    "MIDDLE",
    "MORE_SEEDS",
    "QUICK",
    "RATES",
    "RATE_SEED",
    "RATE_STEPS",
    "TEXT",
    "Cell",
    "Effort",
    "cells",
    "chosen_rates",
    "missing",
    "plan",
    "rate_runs",
]

LENGTHS = (0, 32, 128, 512, 2048)
"""Steps. Every length is a run of its own, with a learning rate that falls to zero at its end."""

FRACTION = 0.5
"""The share of the parameters at which forms are distilled for longest, and at which learning rates are chosen."""

RATES = (1e-4, 3e-4, 1e-3, 3e-3)
RATE_STEPS, RATE_SEED = 128, 100
"""Learning rates are chosen on the encoder's middle layer, by the error on validation text; a seed of their own."""

MORE_SEEDS = (1, 2)
"""Beside seed 0; what is fitted to a model starts alike for every seed, so they differ in the order of the text."""

EXPERTS = 16
KINDS = ("cp", "tr", "tucker", "low-rank", "narrow")

MIDDLE, LAST, LANGUAGE = "encoder, middle layer", "encoder, last three layers", "language model, middle layer"

Settings = dict[str, Any]
Cell = tuple[str, Form, str]
"""A place, a form, and ``"layers"`` or ``"model"``."""


@dataclass(frozen=True)
class Effort:
    """How much is done.

    Attributes:
        batch_size: Tokens of a batch.
        train_sentences: Sentences to distil on.
        validation_sentences: Sentences to choose learning rates on.
        held_out_sentences: Sentences to measure on.
        window: Tokens of a window of the language model.
        train_windows: Windows to distil on.
        validation_windows: Windows that are neither distilled nor measured on.
        held_out_windows: Windows to measure on.
    """

    batch_size: int = 256
    train_sentences: int = 6_000
    validation_sentences: int = 256
    held_out_sentences: int = 256
    window: int = 128
    train_windows: int = 96
    validation_windows: int = 8
    held_out_windows: int = 8


FULL = Effort()
QUICK = Effort(
    batch_size=64,
    train_sentences=64,
    validation_sentences=16,
    held_out_sentences=16,
    train_windows=2,
    validation_windows=1,
    held_out_windows=1,
)
"""For tests: figures without meaning."""

TEXT = {MIDDLE: 99_611, LAST: 99_611, LANGUAGE: FULL.window * FULL.train_windows}
"""Tokens of the text to distil on, for each place; those of the sentences are checked by ``pytest -m models``."""


def rate_runs() -> Iterator[Settings]:
    """The runs that learning rates are chosen by."""
    for kind, start in (
        ("cp", "whitened"),
        ("cp", "weights"),
        ("low-rank", "whitened"),
        ("narrow", "whitened"),
        ("dense", "whitened"),
    ):
        for rate in RATES:
            yield _run(MIDDLE, _form(kind, FRACTION, start), RATE_SEED, RATE_STEPS, rate)


def chosen_rates(entries: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """The learning rate of the least error on validation text, by kind of form and start.

    Args:
        entries: Finished runs, those of `rate_runs` among them.
    """
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for entry in entries:
        settings, result = entry["settings"], entry["result"]
        if settings["seed"] == RATE_SEED:
            one = (sum(result["validation"]), settings["learning_rate"])
            key = settings["kind"], settings["start"]
            found[key] = min(one, found.get(key, one))
    return {key: rate for key, (_, rate) in found.items()}


def plan(rates: Mapping[tuple[str, str], float]) -> Iterator[Settings]:
    """All other runs; those that a stop would cost least come last.

    Args:
        rates: What `chosen_rates` gives. Tensor rings and Tucker take CP's.
    """

    def references(place: str) -> Iterator[Settings]:
        for kind in ("original", "mean", "zeros"):
            yield _run(place, Form(kind, 0, 0.0), 0, 0, 0.0)

    def curve(place: str, form: Form, seed: int, lengths: Sequence[int], loss: str = "layers") -> Iterator[Settings]:
        kind = "cp" if form.experts else form.kind
        for steps in lengths:
            yield _run(place, form, seed, steps, rates[kind, form.start] if steps else 0.0, loss)

    yield from references(MIDDLE)
    short, long = LENGTHS[:3], LENGTHS[3:4]
    for kind in KINDS:
        yield from curve(MIDDLE, _form(kind, FRACTION), 0, short)
    yield from curve(MIDDLE, _form("cp", FRACTION, "weights"), 0, short)
    yield from curve(MIDDLE, _form("dense", FRACTION), 0, short)
    for kind, start in (("cp", "whitened"), ("cp", "weights"), ("low-rank", "whitened"), ("narrow", "whitened")):
        yield from curve(MIDDLE, _form(kind, FRACTION, start), 0, long)
    yield from references(LAST)
    for kind in ("cp", "low-rank"):
        yield from curve(LAST, _form(kind, FRACTION), 0, short)
    yield from references(LANGUAGE)
    for kind in ("cp", "low-rank", "narrow"):
        yield from curve(LANGUAGE, _form(kind, FRACTION), 0, short)
    yield from curve(LANGUAGE, _form("cp", FRACTION, "weights"), 0, short)
    for kind in KINDS:
        yield from curve(MIDDLE, _form(kind, FRACTION), 1, short)
    for kind in ("tr", "tucker"):
        yield from curve(MIDDLE, _form(kind, FRACTION), 0, long)
    yield from curve(MIDDLE, _form("dense", FRACTION), 0, long)
    yield from curve(LANGUAGE, _form("tr", FRACTION), 0, short)
    yield from curve(MIDDLE, _form("cp", FRACTION), 0, LENGTHS[4:])
    for fraction in (1.0, 0.75, 0.25):
        for kind in KINDS:
            if (kind, fraction) != ("narrow", 1.0):  # this is the MLP itself
                yield from curve(MIDDLE, _form(kind, fraction), 0, LENGTHS[:1])
    yield from curve(MIDDLE, _form("cp", FRACTION, "weights"), 0, LENGTHS[4:])
    for kind in ("cp", "low-rank"):
        yield from curve(LAST, _form(kind, FRACTION), 0, LENGTHS[3:4])
    for kind in ("low-rank", "narrow"):
        yield from curve(MIDDLE, _form(kind, FRACTION), 0, LENGTHS[4:])
    for kind in ("cp", "low-rank", "narrow"):
        yield from curve(LANGUAGE, _form(kind, FRACTION), 0, LENGTHS[3:4])
    yield from curve(LAST, _form("cp", FRACTION), 0, LENGTHS[2:3], "model")
    for seed in MORE_SEEDS:  # all that has one seed up to the fourth length; the longest keeps one
        for kind in KINDS:
            yield from curve(MIDDLE, _form(kind, FRACTION), seed, long if seed == 1 else LENGTHS[:4])
        yield from curve(MIDDLE, _form("cp", FRACTION, "weights"), seed, LENGTHS[:4])
        yield from curve(MIDDLE, _form("dense", FRACTION), seed, LENGTHS[:4])
        for kind in ("cp", "low-rank"):
            yield from curve(LAST, _form(kind, FRACTION), seed, LENGTHS[:4])
        for kind in ("cp", "low-rank", "narrow"):
            yield from curve(LANGUAGE, _form(kind, FRACTION), seed, LENGTHS[:4])
        yield from curve(LANGUAGE, _form("cp", FRACTION, "weights"), seed, short)
        yield from curve(LANGUAGE, _form("tr", FRACTION), seed, short)


def _all() -> list[Settings]:
    """All runs; learning rates that are not known before are 0."""
    rated = {(settings["kind"], settings["start"]): 0.0 for settings in rate_runs()}
    return [*rate_runs(), *plan(rated)]


def cells() -> dict[Cell, dict[int, set[int]]]:
    """For each curve that is planned its lengths in steps, and the seeds of each."""
    found: dict[Cell, dict[int, set[int]]] = {}
    for settings in _all():
        if settings["fraction"] and settings["seed"] != RATE_SEED:
            form = Form(settings["kind"], settings["experts"], settings["fraction"], settings["start"])
            lengths = found.setdefault((settings["place"], form, settings["loss"]), {})
            lengths.setdefault(settings["steps"], set()).add(settings["seed"])
    return found


def missing(entries: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """How many planned runs are missing, and how many are planned, for each place.

    Args:
        entries: The finished runs.
    """
    done = {_key(entry["settings"]) for entry in entries}
    found: dict[str, tuple[int, int]] = {}
    for settings in _all():
        lacking, planned = found.get(settings["place"], (0, 0))
        found[settings["place"]] = lacking + (_key(settings) not in done), planned + 1
    return found


def _key(settings: Settings) -> tuple[Any, ...]:
    """What tells a run from others; learning rates do only where they are chosen."""
    tuned = settings["seed"] == RATE_SEED
    return tuple(sorted((k, v) for k, v in settings.items() if tuned or k != "learning_rate"))


def _form(kind: str, fraction: float, start: str = "whitened") -> Form:
    return Form(kind, EXPERTS if kind in ("cp", "tr", "tucker") else 0, fraction, start)


def _run(place: str, form: Form, seed: int, steps: int, rate: float, loss: str = "layers") -> Settings:
    return {
        "place": place,
        "kind": form.kind,
        "experts": form.experts,
        "fraction": form.fraction,
        "start": form.start,
        "seed": seed,
        "loss": loss,
        "steps": steps,
        "learning_rate": rate,
    }
