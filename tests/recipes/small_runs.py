"""Runs of seconds, for the tests of recipes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor

from factorized_moe.surgery.distillation.training_state import read_state
from recipes.checkpoints import LAST
from recipes.gpt.language import GPTOptions, gpt
from recipes.gpt.shards import write_shards
from recipes.gpt.tokens import Bytes
from recipes.train import train

WORDS = ("def", "return", "self", "(x)", "\n    ", "yield 12", "+", "class A:")


def write_text(folder: Path) -> Path:
    """Shards of some made-up text."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(WORDS), (60, 60), generator=generator)
    write_shards(folder, (" ".join(WORDS[k] for k in row) for row in chosen.tolist()), Bytes(), "made up", 4000)
    return folder


def gpt_options(folder: Path, out: str | Path, **others: object) -> GPTOptions:
    """A GPT of 16 features on that text; the folder is to have it."""
    return replace(
        GPTOptions(
            out=folder / out,
            data=folder / "text",
            depth=2,
            width=16,
            tokens=8,
            experts=(3, 2),
            steps=12,
            batch=8,
            held_out=20,
            evaluate_every=5,
            checkpoint_every=4,
            log_every=3,
            cpu=True,
            quiet=True,
        ),
        **others,
    )


def parameters(out: Path, file: str = LAST) -> dict[str, Tensor]:
    """All tensors of a checkpoint."""
    return read_state(out / file)[0]


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Bit for bit, and not of nothing."""
    assert one.keys() == other.keys()
    assert sum(name.startswith("model.") for name in one) > 10
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """To rounding. A bias of attention's keys has no effect: its gradient is rounding, which AdamW makes a step of."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        if name.startswith("model."):
            kept = tensor.chunk(3)[::2] if name.endswith("c_attn.bias") else (tensor,)
            found = other[name].chunk(3)[::2] if name.endswith("c_attn.bias") else (other[name],)
            torch.testing.assert_close(found, kept, rtol=1e-4, atol=2e-5)


def run_gpt(options: GPTOptions) -> float:
    """Train in a process group of its own state."""
    forget()
    return train(gpt(options), options)


def forget() -> None:
    """Let Accelerate begin anew: it keeps its state for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


class Killed(BaseException):
    """What no code catches."""


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, where: object, name: str, call: int) -> Iterator[None]:
    """End the run at the given call of a function."""
    real: Callable[..., object] = getattr(where, name)
    calls = 0

    def counted(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, counted)
        with pytest.raises(Killed):
            yield
    assert calls >= call
