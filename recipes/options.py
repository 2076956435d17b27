"""Flat options: a dataclass whose fields become ``--flags``, and which goes into checkpoints as JSON."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["Options", "option", "parse"]

T = TypeVar("T", bound="Options")


def option(default: Any, text: str, *, free: bool = False, **arguments: Any) -> Any:
    """A field that is a flag.

    Args:
        default: Its default.
        text: What ``--help`` says.
        free: Whether a run that goes on from a checkpoint may have another value.
        arguments: For argparse, such as ``choices``; ``type`` where the default's own type does not say it.
    """
    return dataclasses.field(default=default, metadata={"help": text, "free": free, "arguments": arguments})


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all recipes are told.

    Examples:
        >>> parse(Options, ["--steps", "10", "--experts", "8", "4"], "").experts
        (8, 4)
    """

    out: Path = option(Path("results/recipe"), "the folder of the run; one that holds a run goes on", free=True)
    form: str = option("cp", "'dense', or the decomposition of the experts: cp, tr, tucker, ...")
    experts: tuple[int, ...] = option((16,), "the number of experts of each expert mode", type=int, nargs="+")
    gate_norm: str = option("batch", "what normalises the gate's logits", choices=("batch", "layer", "none"))
    depth: int = option(2, "the dial for size: layers, and 64 features for each of them")
    width: int = option(0, "features, where they are not 64 times the depth")
    steps: int = option(400, "steps of the optimiser")
    batch: int = option(16, "samples of a step, over all processes")
    accumulate: int = option(1, "parts that a process computes its share of a step in")
    learning_rate: float = option(0.0, "the largest learning rate; 0 for the recipe's rule")
    warm_up: float = option(0.05, "the share of the steps in which it rises, before half a cosine to zero")
    weight_decay: float = option(0.1, "AdamW's, of all parameters but biases and norms")
    clip: float = option(1.0, "the largest norm of the gradient; 0 for none")
    seed: int = option(0, "of everything random")
    precision: str = option("float32", "of the forward pass", choices=("float32", "bfloat16"))
    held_out: int = option(1024, "the most held-out samples an evaluation reads")
    evaluate_every: int = option(100, "steps between two evaluations")
    checkpoint_every: int = option(100, "steps between two checkpoints", free=True)
    log_every: int = option(10, "steps between two lines of the log")
    fully_shard: bool = option(False, "spread parameters over processes by FSDP2", free=True)
    expert_ranks: int = option(1, "processes that share each expert tensor", free=True)
    expert_label: str = option("auto", "what they cut: auto, each, pair, or a label such as rank", free=True)
    workers: int = option(0, "processes that read data, for each training process", free=True)
    tracker: str = option("", "one of Accelerate's trackers beside the log, such as tensorboard", free=True)
    cpu: bool = option(False, "train on the CPU where there is an accelerator", free=True)
    quiet: bool = option(False, "no progress bar", free=True)

    def __post_init__(self) -> None:
        for name in ("depth", "steps", "batch", "accumulate", "held_out", "expert_ranks"):
            _at_least(name, getattr(self, name), 1)
        for name in ("evaluate_every", "checkpoint_every", "log_every"):
            _at_least(name, getattr(self, name), 1)
        for name in ("width", "learning_rate", "weight_decay", "clip", "seed", "workers"):
            _at_least(name, getattr(self, name), 0)
        if not 0 <= self.warm_up <= 1:
            raise ValueError(f"--warm-up is a share of the steps, from 0 to 1, got {self.warm_up}")

    @property
    def features(self) -> int:
        """The width of the model."""
        return self.width or 64 * self.depth

    def fixed(self) -> dict[str, Any]:
        """What a run cannot change when it goes on, as JSON holds it."""
        kept = [field.name for field in dataclasses.fields(self) if not field.metadata["free"]]
        return {name: _plain(getattr(self, name)) for name in kept}


def parse(kind: type[T], arguments: Sequence[str] | None, description: str | None) -> T:
    """Read the command line.

    Args:
        kind: The options of a recipe.
        arguments: Those of the command line; the process's own by default.
        description: For ``--help``.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for field in dataclasses.fields(kind):
        given = dict(field.metadata["arguments"])
        default = None if field.default is MISSING else field.default
        if isinstance(default, bool):
            given["action"] = "store_true"
        else:
            given.setdefault("type", type(default))
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        text = f"{field.metadata['help']} ({shown})" if shown not in ("", None, False) else field.metadata["help"]
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=default, help=text, **given)
    values = vars(parser.parse_args(arguments))
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    except ValueError as error:
        parser.error(str(error))


def _at_least(name: str, value: Any, least: int) -> None:
    if not value >= least:
        raise ValueError(f"--{name.replace('_', '-')} is {least} or more, got {value!r}")


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
