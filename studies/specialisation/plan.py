"""Which heads are trained on which data: data, not code. The order lets the runs be stopped at any time.

Settings name a head fully but for its learning rate, which is the best of a few for its *contender*: the settings that
a contender shares are those of `RATED`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from studies.specialisation.heads import MATCHED, RANK

__all__ = ["LEARNING_RATES", "RATE_SEED", "SAME_INPUTS", "contender", "quick", "rate_runs", "runs"]

EXPERTS = (16, 256, 4, 64, 1024)
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
RATE_SEED = 100
"""Learning rates are chosen with this seed, on training samples that are held out for it."""
SAME_INPUTS = {"wn50": "wn252", "wn10": "wn252", "wn252 all": "wn252"}
"""Data that take the learning rates of others with the same inputs."""

Settings = dict[str, Any]

DEFAULT: Settings = {"head": "cp", "rank": RANK, "gate": "entmax15", "init": "balanced", "weight_decay": 0.01}
SOFTMAX: Settings = {**DEFAULT, "gate": "softmax"}
PAPER: Settings = {**DEFAULT, "init": "paper"}
RING: Settings = {**DEFAULT, "head": "tr"}
MATCHED_CP: Settings = {**DEFAULT, "rank": MATCHED}
MATCHED_TR: Settings = {**RING, "rank": MATCHED}
LINEAR: Settings = {"head": "linear", "weight_decay": 0.01}
TWO_MAPS: Settings = {"head": "two linear maps", "weight_decay": 0.01}


def _cells(data: tuple[str, ...], base: Settings, experts: tuple[int, ...], seeds: range) -> Iterator[Settings]:
    for seed, number, name in product(seeds, experts, data):
        yield {"data": name, **base, "experts": number, "seed": seed}


def runs() -> list[Settings]:
    """The settings of every head but for its learning rate, the most wanted first; no two are the same."""
    many, coarse = ("gl", "wn252"), ("wn10", "wn50")
    found: list[Settings] = []
    for seeds in (range(1), range(1, 3)):
        found += _cells(many, DEFAULT, EXPERTS, seeds)
        found += _cells((*coarse, "fm"), DEFAULT, EXPERTS, seeds)
        found += _cells(many, SOFTMAX, (64, 256, 16), seeds)
        found += _cells(many, LINEAR, (0,), seeds)
        found += _cells(many, MATCHED_CP, (64, 16, 128), seeds)
        found += _cells(many, TWO_MAPS, (256,), seeds)
        found += _cells(many, PAPER, (16, 256), seeds)
        found += _cells(many, RING, (16, 256), seeds)
    found += _cells(many, DEFAULT, EXPERTS, range(3, 5))
    found += _cells(many, SOFTMAX, (64, 256, 16), range(3, 5))
    found += _cells(many, LINEAR, (0,), range(3, 5))
    found += _cells(many, MATCHED_CP, (64, 16, 128), range(3, 5))
    found += _cells(many, TWO_MAPS, (256,), range(3, 5))
    found += _cells(many, MATCHED_TR, (64, 16), range(3))
    found += _cells(("wn252 all",), LINEAR, (0,), range(3))
    found += _cells(("wn252 all",), MATCHED_CP, (64, 16), range(3))
    found += _cells(("fm",), SOFTMAX, (16, 64, 256), range(3))
    found += _cells(many, DEFAULT, (128,), range(5))
    found += _cells(coarse, DEFAULT, (128,), range(3))
    return found


def contender(settings: Mapping[str, Any]) -> Settings:
    """What a learning rate is chosen for: the settings without the number of experts and the seed.

    Examples:
        >>> contender({"data": "wn10", "head": "linear", "weight_decay": 0.01, "experts": 0, "seed": 3})
        {'data': 'wn252', 'head': 'linear', 'weight_decay': 0.01}
    """
    shared = {key: value for key, value in settings.items() if key not in ("experts", "seed")}
    return {**shared, "data": SAME_INPUTS.get(shared["data"], shared["data"])}


def rate_runs(settings: Mapping[str, Any]) -> list[Settings]:
    """The runs that choose the learning rate of a contender: 16 experts, one seed, each of the rates."""
    experts = min(settings["experts"], 16) if settings["head"] != "two linear maps" else settings["experts"]
    base = {**contender(settings), "experts": experts, "seed": RATE_SEED}
    return [{**base, "learning_rate": rate} for rate in LEARNING_RATES]


def quick() -> list[Settings]:
    """A few small heads of each kind on made-up data, for tests."""
    names = ("wn252", "gl", "fm", "wn50", "wn10")
    small = {"rank": 8}
    found = list(_cells(names, {**DEFAULT, **small}, (2, 8), range(2)))
    found += _cells(("gl", "wn252"), {**SOFTMAX, **small}, (2, 8), range(2))
    found += _cells(("gl", "wn252"), LINEAR, (0,), range(2))
    found += _cells(("gl", "wn252"), MATCHED_CP, (2,), range(2))
    return [*found, *_cells(("gl",), TWO_MAPS, (2,), range(2)), *_cells(("gl",), MATCHED_TR, (2,), range(1))]
