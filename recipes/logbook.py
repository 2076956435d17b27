"""The log of a run: a JSON line for each record, rewound when a run goes on. Beside it the bar and trackers."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch.distributed
from torch import Tensor, nn

from factorized_moe import _bars as bars
from factorized_moe._writing import place_of, write_files
from factorized_moe.interpret import watch_usage
from factorized_moe.spread import is_spread
from recipes.options import Options
from recipes.recipe import Recipe, has_experts

__all__ = ["LOG", "Logbook", "clip_gradients", "gradient_norms", "watched"]

LOG = "log.jsonl"

RESUMED = {
    "tensorboard": lambda step, name: {"purge_step": step},
    "wandb": lambda step, name: {"id": name, "resume": "allow"},
}
"""What a tracker has to be told so that a run that goes on stays one run, for those that can be told."""


class Logbook:
    """Writes records in the first process.

    Args:
        recipe: The recipe.
        options: Those of the run.
        accelerator: Accelerate's.
        step: Where the run goes on; later lines of an existing log are taken out.

    Raises:
        OSError: If the log cannot be written.
    """

    def __init__(self, recipe: Recipe, options: Options, accelerator: Any, step: int) -> None:
        self.folder, self.accelerator, self.unit = options.out, accelerator, recipe.unit
        self.units = recipe.units * options.batch
        self.bar = bars.progress(
            total=options.steps, initial=step, unit="step", disable=options.quiet or not accelerator.is_main_process
        )
        if accelerator.is_main_process:
            kept = [line for line in _lines(self.folder) if line["step"] <= step]
            text = "".join(json.dumps(line) + "\n" for line in kept)
            write_files(self.folder, {LOG: text.encode()})
        if accelerator.log_with:
            told = RESUMED.get(options.tracker)
            kwargs = {options.tracker: told(step, options.out.name)} if told else {}
            accelerator.init_trackers(
                recipe.name, config={**options.fixed(), "experts": str(options.experts)}, init_kwargs=kwargs
            )
        self._begun, self._step = time.perf_counter(), step

    def write(self, step: int, record: Mapping[str, Any]) -> None:
        """Add a line."""
        if self.accelerator.is_main_process:
            with (self.folder / LOG).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": step, **record}) + "\n")
        if self.accelerator.log_with:
            self.accelerator.log(dict(_flat(record)), step=step)

    def write_step(self, step: int, loss: Tensor, rate: float, norms: Mapping[str, float], experts: list[Any]) -> None:
        """Add the line of a step of training; its loss becomes that of all processes."""
        now = time.perf_counter()
        speed = (step - self._step) * self.units / (now - self._begun)
        self._begun, self._step = now, step
        shared = float(self.accelerator.reduce(loss, "mean"))
        record = {"loss": shared, "learning_rate": rate, f"{self.unit}_per_second": round(speed, 1)}
        self.write(step, {**record, "gradient_norms": dict(norms), **({"experts": experts} if experts else {})})
        self.bar.set_postfix({"loss": f"{shared:.3f}", f"{self.unit}/s": f"{speed:,.0f}"}, refresh=False)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done within does not count in throughput."""
        begun = time.perf_counter()
        yield
        self._begun += time.perf_counter() - begun

    def close(self) -> None:
        """End the bar and the trackers."""
        self.bar.close()
        if self.accelerator.log_with:
            self.accelerator.end_training()


def _lines(folder: Any) -> list[dict[str, Any]]:
    """The whole lines of a log; one that was cut off ends it."""
    place = place_of(folder, LOG)
    found: list[dict[str, Any]] = []
    for line in place.read_text(encoding="utf-8").splitlines() if place.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def _flat(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a record by one name each, as trackers want them."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{key}", number) for key, number in value.items())
        elif isinstance(value, list):
            for mode in value:
                yield f"in_use/{mode['layer']}.{mode['mode']}", mode["in_use"]
                yield f"entropy/{mode['layer']}.{mode['mode']}", mode["entropy"]
        else:
            yield name, value


@contextmanager
def watched(model: nn.Module, wanted: bool) -> Iterator[list[dict[str, Any]]]:
    """Experts in use, and the entropy of the gate in bits, of each layer's modes in this process's share of a step.

    Args:
        model: The model.
        wanted: Whether to look; nothing is seen otherwise.
    """
    seen: list[dict[str, Any]] = []
    looking: AbstractContextManager[Any] = watch_usage(model) if wanted and has_experts(model) else nullcontext()
    with looking as watcher:
        yield seen
    for mode in watcher.usage if watcher is not None else ():
        entropy = math.log2(mode.perplexity) - mode.mutual_information  # of the coefficients, a mean over samples
        seen.append(
            {
                "layer": mode.layer,
                "mode": mode.mode,
                "experts": mode.num_experts,
                "in_use": mode.num_in_use,
                "perplexity": round(mode.perplexity, 3),
                "entropy": round(entropy, 4),
            }
        )


def gradient_norms(groups: list[dict[str, Any]]) -> dict[str, float]:
    """The norm of the gradient of each of an optimiser's groups, by name, over all processes that share it.

    Args:
        groups: The groups, each with a ``"name"``.
    """
    names = list(dict.fromkeys(group["name"] for group in groups))
    gradients = [(names.index(g["name"]), p.grad) for g in groups for p in g["params"] if p.grad is not None]
    device = gradients[0][1].device if gradients else "cpu"
    squares = torch.zeros(len(names), dtype=torch.float64, device=device)
    shared = any(is_spread(gradient) for _, gradient in gradients)
    for number, gradient in gradients:
        squares[number] += torch.linalg.vector_norm(_local(gradient)).double().square() / (
            _copies(gradient) if shared else 1
        )
    if shared:
        torch.distributed.all_reduce(squares)
    return dict(zip(names, squares.sqrt().tolist(), strict=True))


def clip_gradients(groups: list[dict[str, Any]], norms: Mapping[str, float], largest: float) -> None:
    """Scale all gradients so that their norm is no more than ``largest``; as they are if that is 0.

    Args:
        groups: The optimiser's groups.
        norms: What `gradient_norms` gave.
        largest: The largest norm.
    """
    total = math.hypot(*norms.values())
    if 0.0 < largest < total:
        local = [_local(p.grad) for group in groups for p in group["params"] if p.grad is not None]
        torch._foreach_mul_(local, largest / total)


def _local(gradient: Tensor) -> Tensor:
    """What this process has of a gradient."""
    return gradient.to_local() if is_spread(gradient) else gradient  # type: ignore[attr-defined, no-any-return]


def _copies(gradient: Any) -> int:
    """In how many processes each entry of a gradient is."""
    ranks = torch.distributed.get_world_size()
    if not is_spread(gradient):
        return ranks
    mesh = gradient.device_mesh
    whole = [mesh.size(axis) for axis, where in enumerate(gradient.placements) if where.is_replicate()]
    return math.prod(whole) * (ranks // mesh.size())
