"""The loop: every step of training, from data to checkpoints. All recipes share it, in one process or in many.

One step: read this process's part of the samples, add up gradients, take their norms and stop if one is not finite,
clip, set the learning rate, let AdamW move; then log, evaluate and write a checkpoint where it is time. A checkpoint
holds parameters, averages, the step and every process's generator, and a sample depends on its number alone. So a run
that was killed and started again with the same command ends with the same parameters, and a run on several processes
sees the same global batches as a run on one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from factorized_moe.optimisation import warm_up_and_cosine
from recipes.checkpoints import LAST, Checkpoints
from recipes.finishing import finish
from recipes.logbook import Logbook, clip_gradients, gradient_norms, watched
from recipes.options import Options
from recipes.placing import Place, place
from recipes.recipe import IGNORED, Recipe, Samples, checked_batch, cross_entropy

__all__ = ["BETAS", "evaluate", "train"]

BETAS = (0.9, 0.95)
"""AdamW's."""


def train(recipe: Recipe, options: Options) -> float:
    """Train a recipe's model, or go on with it where the folder of the run holds a checkpoint.

    Args:
        recipe: The model and its data.
        options: Those of the command line.

    Returns:
        The held-out loss of the parameters after the last step, not of the best ones.

    Raises:
        FloatingPointError: If the gradient is not finite; the last checkpoint stays.
        ModuleNotFoundError: If a tracker or progress bar is not installed.
        OSError: If something cannot be read or written.
        ValueError: If data are damaged, or the folder holds another run.
    """
    accelerator = Accelerator(
        cpu=options.cpu,
        mixed_precision="bf16" if options.precision == "bfloat16" else "no",
        log_with=options.tracker or None,
        project_dir=options.out,
    )
    if options.tracker and not accelerator.log_with:
        raise ModuleNotFoundError(f"--tracker {options.tracker}: it is not installed; pip install {options.tracker}")
    model = recipe.build().to(accelerator.device)
    where = place(model, options, accelerator)
    optimizer: Any = torch.optim.AdamW(recipe.groups(model, options.weight_decay), lr=recipe.learning_rate, betas=BETAS)
    wrapped: Any = model
    if not where.spread:
        wrapped, optimizer = accelerator.prepare(model, optimizer)
        model = accelerator.unwrap_model(wrapped)
    rates = [group["lr"] for group in optimizer.param_groups]  # before a checkpoint brings those of its step
    torch.manual_seed(options.seed + 1 + accelerator.process_index)  # of dropout alone: the model has its values

    checkpoints = Checkpoints(recipe, options, accelerator, model, optimizer)
    progress = checkpoints.restore()
    log = Logbook(recipe, options, accelerator, progress.step)
    samples = _batches(recipe.training, options, where, progress.step)
    warm_up = max(1, round(options.steps * options.warm_up))
    wrapped.train()
    while progress.step < options.steps:
        step = progress.step + 1  # from 1 on; progress.step counts finished ones
        logs = step % options.log_every == 0 or step == options.steps
        loss = torch.zeros((), device=accelerator.device)
        with watched(model, logs) as experts:
            # Gradients of parts are added up by hand: of DDP the last part averages them over processes, where
            # parameters are spread every part does.
            for part in range(options.accumulate):
                x, labels = send_to_device(next(samples), accelerator.device)
                last = part == options.accumulate - 1
                with nullcontext() if last or where.spread else accelerator.no_sync(wrapped):
                    with accelerator.autocast():
                        part_loss = cross_entropy(wrapped(x), labels) / options.accumulate
                    accelerator.backward(part_loss)
                loss += part_loss.detach()

        norms = gradient_norms(optimizer.param_groups)  # of all processes, so all stop together
        if not math.isfinite(math.hypot(*norms.values())):
            raise FloatingPointError(
                f"the gradient is not finite at step {step} of {options.steps}, with a loss of {float(loss):g}; "
                f"{options.out / LAST} was left as it is. Try a learning rate below {recipe.learning_rate:g}"
            )
        clip_gradients(optimizer.param_groups, norms, options.clip)
        rate_factor = warm_up_and_cosine(progress.step, options.steps, warm_up)  # above 0 at first, 0 after the last
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * rate_factor
        optimizer.step()
        optimizer.zero_grad()
        progress.step = step

        if logs:
            log.write_step(step, loss, recipe.learning_rate * rate_factor, norms, experts)
        with log.paused():
            if step % options.evaluate_every == 0 or step == options.steps:
                found = evaluate(wrapped, recipe, options, where, accelerator)
                log.write(step, {f"held_out_{name}": value for name, value in found.items()})
                if found["loss"] < progress.best:
                    progress.best = found["loss"]
                    checkpoints.save_best(progress)
            if step % options.checkpoint_every == 0 or step == options.steps:
                checkpoints.save(progress)
        log.bar.update()
    log.close()
    # Once more: a finished run that is started again comes here at once, and has a result too.
    found = evaluate(wrapped, recipe, options, where, accelerator)
    finish(recipe, options, accelerator, model, found)
    return found["loss"]


@torch.no_grad()
def evaluate(model: nn.Module, recipe: Recipe, options: Options, where: Place, accelerator: Any) -> dict[str, float]:
    """The loss and the accuracy on the held-out samples, over all processes.

    Args:
        model: The model, wrapped or not; it is left in training mode.
        recipe: The recipe.
        options: Those of the run.
        where: The share of this process.
        accelerator: Accelerate's.
    """
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=accelerator.device)
    number, size = min(recipe.num_held_out, options.held_out), checked_batch(options, where.ranks)
    starts = range(where.rank * size, number + where.rank * size, size * where.ranks)  # equally many for each process
    numbers = [range(start, start + size) for start in starts]
    for batch in _loader(_Padded(recipe.held_out, number), numbers, options.workers):
        x, labels = send_to_device(batch, accelerator.device)
        with accelerator.autocast():
            output = model(x)
        right = (output if isinstance(output, Tensor) else output.logits).argmax(dim=-1) == labels
        sums += torch.stack([cross_entropy(output, labels, "sum").double(), right.sum(), (labels != IGNORED).sum()])
    model.train()
    loss, correct, count = accelerator.reduce(sums, "sum").tolist()
    return {"loss": loss / count, "accuracy": correct / count}


def _batches(training: Samples, options: Options, where: Place, step: int) -> Iterator[Any]:
    """This process's parts of the global batches, from a step on: sample n of all is of step n // batch."""
    size = checked_batch(options, where.ranks)
    starts = range(step * options.batch + where.rank * size, options.steps * options.batch, size * where.ranks)
    return iter(_loader(_Numbered(training), [range(start, start + size) for start in starts], options.workers))


def _loader(samples: Dataset[Any], numbers: Any, workers: int) -> DataLoader[Any]:
    # A generator of its own: the loader draws a seed, and torch's generator is the model's.
    return DataLoader(samples, batch_sampler=numbers, num_workers=workers, generator=torch.Generator())


class _Numbered(Dataset[Any]):
    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitem__(self, number: int) -> tuple[Any, Tensor]:
        return self.samples(number)


class _Padded(_Numbered):
    """As many samples as all processes ask for; those beyond the last are there but do not count."""

    def __init__(self, samples: Samples, number: int) -> None:
        super().__init__(samples)
        self.number = number

    def __getitem__(self, number: int) -> tuple[Any, Tensor]:
        x, label = self.samples(min(number, self.number - 1))
        return x, (label if number < self.number else torch.full_like(label, IGNORED))
