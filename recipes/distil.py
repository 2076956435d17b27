r"""Distil the last MLPs of a language model into experts, on as many tokens as there are, in one process or in many.

A dense GPT first, then its last MLP as experts that start from its weights::

    python -m recipes.gpt --form dense --out results/gpt-dense
    python -m recipes.distil --model results/gpt-dense/huggingface --out results/distilled
    torchrun --nproc-per-node 2 -m recipes.distil --cpu --model results/gpt-dense/huggingface --out results/distilled

A run goes on from its checkpoint, to the bit. `factorized_moe.surgery.distill` has the loop; every process reads its
share of each step's sequences, and gradients are means over all of them.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from accelerate import PartialState
from torch import Tensor

from factorized_moe._writing import write_files
from factorized_moe.parallel import synchronise_gates
from factorized_moe.surgery import DistillationSettings, capture, distill, is_mlp, output_error, replace
from recipes.command import told
from recipes.finishing import save_model
from recipes.gpt.language import GPTOptions
from recipes.gpt.shards import Shards
from recipes.options import option, parse
from recipes.recipe import checked_batch, cross_entropy, experts_of

__all__ = ["DistilOptions", "distil", "main"]

STATE = "distillation.safetensors"


@dataclass(frozen=True, kw_only=True)
class DistilOptions(GPTOptions):
    """What this recipe is told beside `GPTOptions`; sizes of a model are those of the one that is given."""

    out: Path = option(Path("results/distilled"), "the folder of the run; one that holds a run goes on", free=True)
    model: str = option("results/gpt-dense/huggingface", "the folder of a causal language model of transformers")
    last: int = option(1, "how many of the last MLPs")


def distil(options: DistilOptions, state: Any) -> dict[str, Any]:
    """Distil, and measure on held-out sequences.

    Args:
        options: Those of the command line.
        state: Accelerate's state of this process.

    Returns:
        For each MLP the error of its outputs before and after, relative to their size; and the losses of the model as
        it was and with all of them in place.

    Raises:
        FloatingPointError: If a loss is not finite; the last checkpoint stays.
        OSError: If something cannot be read or written.
        ValueError: If data, model and options do not fit each other.
    """
    from transformers import AutoModelForCausalLM

    teacher = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    config = experts_of(options)
    if config is None:
        raise ValueError("--form dense has no experts to distil into; name a decomposition")
    training, held_out = (Shards(options.data, split, options.tokens, options.seed) for split in ("train", "held_out"))
    if training.vocabulary > teacher.config.vocab_size:
        raise ValueError(
            f"{options.data} has a vocabulary of {training.vocabulary:,}, {options.model} one of "
            f"{teacher.config.vocab_size:,}; make shards with its tokenizer (recipes.gpt.prepare --tokenizer)"
        )
    student = copy.deepcopy(teacher)
    report = replace(student, is_mlp, _pretrained(config), last=options.last)
    paths = [one.path for one in report.replacements]
    replacements = {path: student.get_submodule(path) for path in paths}
    number = min(options.held_out, len(held_out))
    rows = torch.stack([held_out.spread(k, number)[0] for k in range(number)]).split(max(1, options.batch))
    before = _errors(teacher, replacements, rows)
    group = torch.distributed.group.WORLD if state.num_processes > 1 else None
    if group is not None:
        synchronise_gates(student)
    settings = DistillationSettings(
        steps=options.steps,
        learning_rate=options.learning_rate or 1e-3,
        warm_up=options.warm_up,
        weight_decay=options.weight_decay,
        gradient_norm=options.clip or math.inf,
        accumulate=options.accumulate,
        seed=options.seed,
    )
    losses = distill(
        teacher,
        replacements,
        _batches(training, options, state.process_index, state.num_processes),
        settings,
        checkpoint=options.out / STATE,
        checkpoint_every=options.checkpoint_every,
        progress=not options.quiet and state.is_main_process,
        group=group,
    )
    after = _errors(teacher, replacements, rows)
    found = {
        "mlps": {path: {"before": before[path], "after": after[path], "losses": losses[path]} for path in paths},
        "loss": {name: _loss(model, rows) for name, model in (("original", teacher), ("distilled", student))},
    }
    if state.is_main_process:
        save_model(student.eval(), options.out)
        write_files(options.out, {"results.json": (json.dumps(found, indent=2) + "\n").encode()})
    return found


def _pretrained(config: Any) -> Any:
    """The experts start from the weights that they replace."""
    return type(config)(**{**vars(config), "pretrained": True})


def _batches(training: Shards, options: DistilOptions, rank: int, ranks: int) -> Iterator[Tensor]:
    """This process's sequences of each part of each step, in an order that the number of processes does not change."""
    size = checked_batch(options, ranks)
    for start in range(rank * size, options.steps * options.batch, size * ranks):
        yield torch.stack([training.training(n)[0] for n in range(start, start + size)])


def _errors(teacher: Any, replacements: dict[str, Any], rows: Sequence[Tensor]) -> dict[str, float]:
    return {path: output_error(part, capture(teacher, path, rows)) for path, part in replacements.items()}


@torch.no_grad()
def _loss(model: Any, rows: Sequence[Tensor]) -> float:
    """The mean loss of the next token."""
    model.eval()
    total = sum(float(cross_entropy(model(part).logits[:, :-1], part[:, 1:], "sum")) for part in rows)
    return total / sum(part[:, 1:].numel() for part in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command.

    Args:
        arguments: Those of the command line; the process's own by default.
    """
    options = parse(DistilOptions, arguments, __doc__)
    state = PartialState(cpu=True)
    try:
        found = distil(options, state)
    except (FloatingPointError, ModuleNotFoundError, OSError, ValueError) as error:
        print(f"error: {told(error, options)}", file=sys.stderr, flush=True)
        return 1
    if state.is_main_process:
        for path, values in found["mlps"].items():
            print(f"{path}: error of its outputs {values['before']:.3f} -> {values['after']:.3f}")
        print(f"held-out loss {found['loss']['original']:.4f} -> {found['loss']['distilled']:.4f}; {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
