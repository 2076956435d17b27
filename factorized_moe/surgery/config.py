"""What layers of experts a model is to have, as a value that goes into a JSON file and back."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from dataclasses import dataclass
from typing import Any

from factorized_moe._reading import check_modes, parse_json
from factorized_moe._scalars import is_number, is_whole
from factorized_moe._validation import check_expert_dims, check_flag, check_seed, check_size, check_temperature
from factorized_moe.activations import ACTIVATIONS
from factorized_moe.budgets import Budget, SizeLike
from factorized_moe.decompositions import get_decomposition
from factorized_moe.decompositions.base import find_initialisation

__all__ = ["MuMoEConfig"]

VERSION = 4
"""Of the config as JSON; see `_defaults_of` for what earlier ones left out."""


@dataclass(frozen=True)
class MuMoEConfig:
    """The sizes, rank and gate of layers of experts that replace others.

    Exactly one of ``rank``, ``budget`` and ``fraction`` is given.

    Args:
        expert_dims: The number of experts of each expert mode.
        decomposition: A registered name.
        rank: The rank of every expert tensor: an int, a tuple of ints, or a fraction of the dense tensor's size.
        budget: The most parameters that each layer of experts may have, its gate included: a `Budget`.
        fraction: The same, as a fraction of the parameters of what is replaced: 1.0 for as many.
        gate: The name of the gate's activation.
        gate_norm: ``"layer"``, ``"batch"`` or `None`, as for `MuMoE`.
        gate_temperature: As for `MuMoE`.
        gate_rank: As for `MuMoE`.
        init: The name of the initialisation of layers that start from random weights, as for `MuMoE`.
        noise: How far experts start from the dense weight, as for `upcycle`.
        pretrained: Whether the layers start from the weights they replace, or from random ones.
        seed: Of everything random.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If one is out of range or unknown, or not exactly one of the three sizes is given.

    Examples:
        >>> config = MuMoEConfig(expert_dims=(32,), decomposition="cp", fraction=1.0)
        >>> MuMoEConfig.from_json(config.to_json()) == config
        True
    """

    expert_dims: tuple[int, ...]
    decomposition: str = "cp"
    rank: int | float | tuple[int, ...] | None = None
    budget: int | None = None
    fraction: float | None = None
    gate: str = "entmax15"
    gate_norm: str | None = "batch"
    gate_temperature: float = 2.0
    gate_rank: int | None = None
    init: str | None = None
    noise: float = 0.1
    pretrained: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "expert_dims", check_expert_dims(self.expert_dims))
        if not isinstance(self.decomposition, str):
            raise TypeError(
                f"decomposition of a config is a registered name, got {self.decomposition!r}; register the instance"
            )
        if self.init is not None and not isinstance(self.init, str):
            raise TypeError(f"init of a config is the name of an initialisation, got {self.init!r}")
        find_initialisation(get_decomposition(self.decomposition), self.init)
        if isinstance(self.rank, list):
            object.__setattr__(self, "rank", tuple(self.rank))
        given = [name for name in ("rank", "budget", "fraction") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of rank, budget and fraction, got {' and '.join(given) or 'none'}")
        if self.budget is not None:
            Budget(parameters=self.budget)
        _check_rank(self.rank)
        if self.fraction is not None and not (is_number(self.fraction) and 0.0 < self.fraction < math.inf):
            raise ValueError(f"fraction is a number above 0, got {self.fraction!r}")
        if not isinstance(self.gate, str) or self.gate not in ACTIVATIONS:
            raise ValueError(f"gate of a config is one of {', '.join(map(repr, ACTIVATIONS))}, got {self.gate!r}")
        if self.gate_norm is not None and self.gate_norm not in ("layer", "batch"):
            raise ValueError(f"gate_norm is 'layer', 'batch' or None, got {self.gate_norm!r}")
        check_temperature(self.gate_temperature)
        if self.gate_rank is not None:
            check_size("gate_rank", self.gate_rank)
        if not (is_number(self.noise) and 0.0 <= self.noise < math.inf):
            raise ValueError(f"noise is a finite number, 0 or more, got {self.noise!r}")
        check_flag("pretrained", self.pretrained)
        check_seed(self.seed)
        for name in (
            "rank",
            "budget",
            "fraction",
            "gate_temperature",
            "gate_rank",
            "noise",
            "seed",
        ):  # what JSON knows, in place of numpy's scalars
            object.__setattr__(self, name, _plain(getattr(self, name)))

    def size_for(self, replaced: int) -> SizeLike:
        """The rank of a layer of experts, or the budget that it follows from.

        Args:
            replaced: How many parameters are replaced.

        Examples:
            >>> MuMoEConfig((8,), fraction=0.5).size_for(2128).parameters
            1064
        """
        if self.rank is not None:
            return self.rank
        total = self.budget if self.budget is not None else int((self.fraction or 0.0) * replaced)
        return Budget(parameters=max(total, 1))

    def to_json(self) -> str:
        """The config as a JSON object, with the version of its format."""
        return json.dumps({"version": VERSION, **dataclasses.asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> MuMoEConfig:
        """The config that `to_json` wrote.

        A text without a version is of version 1, whose layers started from the paper's initialisation; in versions 1
        and 2 logits were not divided by a temperature.

        Raises:
            ValueError: If the text is no JSON object of a config, or one of a later version; an unknown key is named
                with the nearest one.
        """
        try:
            values: Any = parse_json(text, "the text")
        except ValueError as error:
            raise ValueError(f"a config is a JSON object, but the text is no JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"a config is a JSON object, got {type(values).__name__}")
        version = values.pop("version", 1)
        if isinstance(version, bool) or version not in range(1, VERSION + 1):
            raise ValueError(
                f"a config of version {version!r} was written by a later release; this one reads {VERSION}"
            )
        names = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                near = difflib.get_close_matches(key, names, n=1, cutoff=0.0)[0]
                raise ValueError(f"unknown key {key!r} in a config; did you mean {near!r}?")
        if "expert_dims" not in values:
            raise ValueError("a config needs 'expert_dims'")
        check_modes(values["expert_dims"])
        return cls(**_defaults_of(version, values), **values)


def _defaults_of(version: int, values: dict[str, Any]) -> dict[str, Any]:
    """What a config of an earlier version meant by what it left out."""
    return {name: value for name, value in _earlier(version, values).items() if name not in values}


def _earlier(version: int, values: dict[str, Any]) -> dict[str, Any]:
    if version >= 3:
        return {}
    if version == 2:
        return {"gate_temperature": 1.0}
    known = get_decomposition(values.get("decomposition", MuMoEConfig.decomposition)).initialisations
    init = "paper" if "paper" in known else next((name for name in known if name != "balanced"), None)
    return {"gate_temperature": 1.0, "gate_norm": "layer", "init": init}


def _check_rank(rank: Any) -> None:
    """Refuse what is no rank of any decomposition; each one checks what it takes when a layer is made."""
    parts = rank if isinstance(rank, tuple) else (rank,)
    if rank is None or rank == "same":
        return
    if not parts or not all(is_number(part) for part in parts):
        raise TypeError(f"rank of a config is an int, a tuple of ints, a fraction or 'same', got {rank!r}")
    if not all(0 < part < math.inf for part in parts):
        raise ValueError(f"rank of a config must be above 0 and finite, got {rank!r}")


def _plain(value: Any) -> Any:
    """A number as Python's int or float, also within a tuple; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(_plain(entry) for entry in value)
    if is_whole(value):
        return int(value)
    return float(value) if is_number(value) else value
