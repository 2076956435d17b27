"""Train modules to give the outputs of the ones whose place they take, layer by layer, on real activations.

The original runs once for each batch; every replacement is trained on what its own original was given and gave, so
layers do not wait for each other, and one run trains any number of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from factorized_moe import _bars as bars
from factorized_moe import _reading as reading
from factorized_moe._validation import check_batches, check_kind, check_size
from factorized_moe._writing import place_of
from factorized_moe.surgery.distillation.capturing import Call, calls_of, check_names
from factorized_moe.surgery.distillation.distillation_settings import DistillationSettings, DistillationStep
from factorized_moe.surgery.distillation.joint_ranks import Ranks
from factorized_moe.surgery.distillation.training_state import read_state, write_state

__all__ = ["DistillationSettings", "DistillationStep", "distill"]


def distill(
    model: nn.Module,
    replacements: Mapping[str, nn.Module],
    batches: Iterable[Any],
    settings: DistillationSettings,
    *,
    checkpoint: Path | str | None = None,
    checkpoint_every: int = 100,
    progress: bool = False,
    on_step: Callable[[DistillationStep], object] | None = None,
    group: torch.distributed.ProcessGroup | None = None,
) -> dict[str, tuple[float, ...]]:
    """Train replacements, in place, to give what the modules of a model give for the same inputs.

    The loss of a batch is ``mean((y' - y)^2) / mean(y^2)`` with the original's output ``y``, in float32. The model
    itself stays as it is, in evaluation mode while it runs; put the replacements into it when they are trained.

    A run with a ``checkpoint`` goes on from that file if there is one. Stopped at any time and called again with the
    same arguments, it ends with the same parameters, bit for bit, as one that was never stopped, as long as the
    batches come in the same order and the machine computes in the same way; batches already seen are passed over
    without running the model.

    With a ``group`` every rank of it calls this with batches of its own, and gradients and losses are means over ranks:
    a step of ``r`` ranks is that of one process that accumulates ``r`` times as many batches. Replacements start as the
    first rank's, which writes the checkpoint; all ranks have to see its file. Gates that read the batch read that of
    their rank; see `factorized_moe.parallel.synchronise_gates`.

    Args:
        model: The original.
        replacements: For each module to be learned from, by its name in the model, the module that shall take its
            place. The name of the model itself is the empty string.
        batches: What the model is called with, as for `capture`; read one at a time, and never from the start again.
        settings: How to train.
        checkpoint: The file of the run's state, in safetensors with JSON in its header; written at the end too.
        checkpoint_every: Steps between two writes.
        progress: Whether to show a progress bar on the standard error stream.
        on_step: Called after each step, and after the checkpoint if one is due, for logging.
        group: The ranks that distil together, such as ``torch.distributed.group.WORLD``; this process alone by default.

    Returns:
        The losses of all steps for each replacement, by name, those before a restart included.

    Raises:
        FloatingPointError: If a loss, a gradient or a parameter is not finite; the replacements then hold the last
            parameters that gave a finite loss, and the checkpoint stays as it was.
        ModuleNotFoundError: If a progress bar is asked for and tqdm is not installed.
        TypeError: If an argument is of the wrong type, ``batches`` one tensor for instance, or a module does not give a
            tensor.
        ValueError: If an argument is out of range, the original gives a value that is not finite, the batches run
            out before the last step, or the checkpoint is of another run.

    Examples:
        >>> from factorized_moe import CPMuMoE
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> layer = CPMuMoE(16, 4, expert_dims=[4], rank=8, gate_norm=None)
        >>> batches = (torch.randn(32, 8) for _ in range(60))
        >>> losses = distill(model, {"2": layer}, batches, DistillationSettings(steps=60, learning_rate=1e-2))
        >>> losses["2"][-1] < losses["2"][0]
        True
    """
    _check(model, replacements, batches, settings, checkpoint_every)
    ranks = Ranks(group)
    run = _Run(replacements, settings, ranks)
    path = None if checkpoint is None else Path(checkpoint)
    trained = nn.ModuleList(replacements.values())
    modes = [(module, module.training) for module in trained.modules()]
    bar = bars.progress(total=settings.steps, unit="step") if progress else None
    with nullcontext() if bar is None else bar, torch.random.fork_rng(devices=()), torch.enable_grad():
        torch.default_generator.manual_seed(settings.seed + ranks.rank)
        stream = iter(batches)
        if path is not None and place_of(path.parent, path.name).exists():
            random_state = run.restore(path)
            next(islice(stream, run.batches, run.batches), None)  # pass over
            torch.set_rng_state(random_state)
        trained.train()
        try:
            while run.step < settings.steps:
                found = run.take_step(model, stream)
                if path is not None and (run.step % checkpoint_every == 0 or run.step == settings.steps):
                    run.save(path)
                if bar is not None:
                    bar.set_postfix({"loss": f"{sum(found.losses.values()) / len(found.losses):.4f}"}, refresh=False)
                    bar.update(run.step - bar.n)
                if on_step is not None:
                    on_step(found)
        finally:
            for module, mode in modes:
                module.training = mode
    return {name: tuple(losses) for name, losses in run.losses.items()}


class _Run:
    """The state of a run, and its steps."""

    def __init__(self, replacements: Mapping[str, nn.Module], settings: DistillationSettings, ranks: Ranks) -> None:
        self.replacements = dict(replacements)
        self.ranks = ranks
        self.settings = settings
        self.modules = nn.ModuleList(self.replacements.values())
        parameters = [parameter for parameter in self.modules.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=settings.weight_decay)
        self.step = 0
        self.batches = 0
        self.good: dict[str, Tensor] = {}  # the last parameters and buffers that gave a finite loss
        self.losses: dict[str, list[float]] = {name: [] for name in self.replacements}
        ranks.take_firsts(self.modules.state_dict().values())

    def take_step(self, model: nn.Module, stream: Iterator[Any]) -> DistillationStep:
        """One step of the optimiser. A stopped one leaves no trace, nor does a failed one and what led to it."""
        settings = self.settings
        before = {key: value.clone() for key, value in self.modules.state_dict().items()}
        losses = dict.fromkeys(self.replacements, 0.0)
        rate = settings.rate(self.step)
        try:
            with self.ranks.together():
                for _ in range(settings.accumulate):
                    for name, loss in self._add_gradients(model, self._next_batch(stream)).items():
                        losses[name] += loss
            losses = self.ranks.mean(losses, self.modules.parameters())
            self.good = before
            for name, replacement in self.replacements.items():
                norm = nn.utils.clip_grad_norm_(replacement.parameters(), settings.gradient_norm)
                self._check_finite(norm, f"the gradient of {name!r}")
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            for key, value in self.modules.state_dict().items():
                self._check_finite(value, f"{key.partition('.')[2]!r} of a replacement")
        except FloatingPointError:
            self.modules.load_state_dict(self.good or before)
            raise
        except BaseException:
            self.modules.load_state_dict(before)
            raise
        finally:
            self.optimizer.zero_grad()
        self.step += 1
        self.batches += settings.accumulate
        for name, loss in losses.items():
            self.losses[name].append(loss)
        return DistillationStep(self.step, losses, rate)

    def _next_batch(self, stream: Iterator[Any]) -> Any:
        for batch in stream:
            return batch
        steps, share = self.settings.steps, self.settings.accumulate
        raise ValueError(
            f"the batches ran out after {self.step} of {steps} steps; {steps} steps of {share} need {steps * share}"
        )

    def _add_gradients(self, model: nn.Module, batch: Any) -> dict[str, float]:
        """The share that a batch has in the step's losses, by name, its gradients added up."""
        losses = {}
        for name, calls in calls_of(model, list(self.replacements), batch).items():
            share = 1.0 / (len(calls) * self.settings.accumulate)
            losses[name] = 0.0
            for call in calls:
                if not torch.isfinite(call.output).all():
                    number = self.batches + 1
                    raise ValueError(
                        f"the original's {name!r} gives a value that is not finite, batch {number} or later"
                    )
                loss = _normalised_error(self.replacements[name], call)
                self._check_finite(loss, f"the loss of {name!r}")
                (share * loss).backward()
                losses[name] += share * loss.item()
        return losses

    def _check_finite(self, value: Tensor, what: str) -> None:
        if not torch.isfinite(value).all():
            raise FloatingPointError(
                f"{what} is not finite at step {self.step + 1} of {self.settings.steps}; the replacements hold the "
                f"last parameters that gave a finite loss. Try a learning rate below {self.settings.learning_rate:g}"
            )

    def _check_values(self, path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Refuse a file whose values are not those of a run that stopped between two steps."""
        try:
            reading.record_of(values, "the state", ("batches", "losses", "settings", "step"))
            reading.record_of(values["settings"], "its settings", asdict(self.settings))
            reading.record_of(values["losses"], "its losses", self.replacements)
            step = reading.whole(values["step"], "step", 0, self.settings.steps)
            batches = step * self.settings.accumulate
            reading.whole(values["batches"], "batches", batches, batches)
            for name, losses in values["losses"].items():
                if len(reading.listed(losses, f"losses of {name!r}", reading.number)) != step:
                    raise ValueError(f"{len(losses)} losses of {name!r} for {step} steps")
            random_state = tensors.get("random_state")
            ours = self.ranks.all_states(torch.get_rng_state())
            if random_state is None or (random_state.dtype, random_state.shape) != (ours.dtype, ours.shape):
                raise ValueError(f"no state of the generator of each of {self.ranks.number} ranks")
            for state in random_state.view(-1, random_state.shape[-1]):
                torch.Generator().set_state(state.clone())  # a row of a tensor is not taken
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path}: not the state of a run with these settings: {error}") from error

    def _optimizer_state(self, path: Path, tensors: Mapping[str, Tensor], step: int) -> dict[int, dict[str, Tensor]]:
        """AdamW's state of each parameter by its number, found to be what AdamW can go on with."""
        parameters = {str(k): p for k, p in enumerate(p for g in self.optimizer.param_groups for p in g["params"])}
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if not key.startswith("optimizer."):
                continue
            _, number, name = (*key.split(".", 2), "")[:3]
            like = parameters.get(number)
            match name:
                case "exp_avg" | "exp_avg_sq" if like is not None:
                    fits = (value.shape, value.dtype) == (like.shape, like.dtype)
                case "step" if like is not None:
                    fits = value.shape == () and value.is_floating_point() and 1 <= float(value) <= step
                case _:
                    raise ValueError(f"{path}: has the unknown tensor {key!r}")
            if not fits:
                raise ValueError(
                    f"{path}: of a run with other replacements: {key!r} is {value.dtype} of {tuple(value.shape)}, "
                    "which does not fit its parameter"
                )
            state.setdefault(int(number), {})[name] = value
        for place, held in state.items():
            if missing := {"exp_avg", "exp_avg_sq", "step"} - held.keys():
                raise ValueError(f"{path}: lacks {min(missing)!r} of the optimiser's parameter {place}")
        return state

    def save(self, path: Path) -> None:
        """Write all that the next step depends on."""
        tensors = {f"replacements.{key}": value for key, value in self.modules.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
        tensors["random_state"] = self.ranks.all_states(torch.get_rng_state())
        values = {"batches": self.batches, "losses": self.losses, "settings": asdict(self.settings), "step": self.step}
        if self.ranks.rank == 0:
            write_state(path, tensors, values)

    def restore(self, path: Path) -> Tensor:
        """Take over a file's state; returns that of torch's generator, to be set once the batches are passed over."""
        tensors, values = read_state(path)
        settings = asdict(self.settings)
        given = values.get("settings")
        if not isinstance(given, dict) or not isinstance(values.get("losses"), dict):
            raise ValueError(f"{path}: not the state of a run")
        others = {key: value for key, value in given.items() if settings.get(key, self) != value}
        if others:
            raise ValueError(f"{path}: of a run with {others}; go on with these settings, or give another checkpoint")
        if list(values["losses"]) != list(self.replacements):
            raise ValueError(
                f"{path}: of a run that trains {list(values['losses'])}, not {list(self.replacements)}; give another "
                "checkpoint"
            )
        self._check_values(path, tensors, values)
        state = self._optimizer_state(path, tensors, values["step"])
        prefix = "replacements."
        try:
            self.modules.load_state_dict(
                {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            )
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path}: of a run with other replacements: {' '.join(str(error).split())}") from error
        self.step, self.batches = values["step"], values["batches"]
        self.losses = {name: [float(loss) for loss in losses] for name, losses in values["losses"].items()}
        states = tensors["random_state"]
        return states if states.ndim == 1 else states[self.ranks.rank].clone()


def _normalised_error(replacement: nn.Module, call: Call) -> Tensor:
    """``mean((y' - y)^2) / mean(y^2)``, or without the division where the original gives zeros."""
    exact = call.output.float()
    size = exact.square().mean()
    error = (call.repeat(replacement).float() - exact).square().mean()
    return error / torch.where(size > 0, size, 1.0)


def _check(
    model: nn.Module,
    replacements: Mapping[str, nn.Module],
    batches: Iterable[Any],
    settings: DistillationSettings,
    checkpoint_every: int,
) -> None:
    check_kind("model", model, nn.Module)
    check_kind("settings", settings, DistillationSettings)
    check_kind("replacements", replacements, Mapping)
    check_batches("batches", batches)
    if not replacements:
        raise ValueError("there are no replacements to train; give a module for each name")
    check_size("checkpoint_every", checkpoint_every)
    check_names(model, replacements)
    for name, replacement in replacements.items():
        check_kind(f"the replacement of {name!r}", replacement, nn.Module)
        if any(parameter is other for parameter in replacement.parameters() for other in model.parameters()):
            raise ValueError(
                f"the replacement of {name!r} shares a parameter with the model, which would change in training; give "
                "the original model, and copies of what it shares"
            )
        if not any(parameter.requires_grad for parameter in replacement.parameters()):
            raise ValueError(f"the replacement of {name!r} has no parameter to train")
