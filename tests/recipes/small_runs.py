"""Runs of seconds, for the tests of recipes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from PIL import Image
from torch import Tensor

from factorized_moe.surgery.distillation.training_state import read_state
from recipes.checkpoints import LAST
from recipes.gpt.language import GPTOptions, gpt
from recipes.gpt.shards import write_shards
from recipes.gpt.tokens import Bytes
from recipes.head.backbones import HeadOptions
from recipes.head.fine_tuning import head
from recipes.mixer.mixing import MixerOptions, mixer
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
            learning_rate=5e-3,
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


def write_images(folder: Path, number: int = 20, side: int = 14) -> Path:
    """Bright images and dark ones, in a folder for each."""
    generator = np.random.default_rng(0)
    for name, low in (("bright", 120), ("dark", 0)):
        (folder / name).mkdir(parents=True)
        for k in range(number):
            pixels = generator.integers(low, low + 130, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{k:02}.png")
    return folder


def write_lines(file: Path, number: int = 30) -> Path:
    """Lines of two classes that one word tells apart."""
    lines = [
        f"{'sum' if k % 2 else 'product'}\t{'add' if k % 2 else 'times'} {k} to {k * k % 7}" for k in range(number)
    ]
    file.write_text("\n".join(lines) + "\n")
    return file


SMALL: dict[str, Any] = {
    "width": 16,
    "experts": (2,),
    "steps": 12,
    "batch": 8,
    "held_out": 10,
    "evaluate_every": 6,
    "checkpoint_every": 4,
    "log_every": 3,
    "cpu": True,
    "quiet": True,
    "learning_rate": 1e-2,
}


def mixer_options(folder: Path, out: Path, **others: Any) -> MixerOptions:
    """A Mixer on `write_images`."""
    given = {"data": folder, "side": 14, "patch": 7, "augment": True, "stochastic_depth": 0.2}
    return MixerOptions(out=out, **{**SMALL, **given, **others})


def head_options(data: Path, out: Path, **others: Any) -> HeadOptions:
    """A classifier on `write_images` or `write_lines`."""
    given = {
        "data": data,
        "depth": 2,
        "width": 32,
        "backbone_rate": 1e-3,
        "head_size": 4.0,
        "dropout": 0.1,
        "tokens": 24,
    }
    return HeadOptions(out=out, **{**SMALL, **given, **others})


def run_mixer(options: MixerOptions) -> float:
    """Train in a process group of its own state."""
    forget()
    return train(mixer(options), options)


def run_head(options: HeadOptions) -> float:
    """Train in a process group of its own state."""
    forget()
    return train(head(options), options)
