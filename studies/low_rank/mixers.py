"""The Mixers: trained by the recipe, dense, one for each seed, and kept."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from recipes.mixer.mixing import MixerOptions, mixer
from recipes.train import train

__all__ = ["STEPS", "held_out", "options", "trained", "untrained"]

STEPS = 1200


def options(cache: Path, seed: int, steps: int = STEPS) -> MixerOptions:
    """The recipe's options: the default Mixer, in its dense form.

    Args:
        cache: Where runs are kept.
        seed: The seed.
        steps: Steps of training.
    """
    shared = {"cpu": True, "quiet": True, "log_every": 100, "evaluate_every": 400, "checkpoint_every": 200}
    out = cache / f"low-rank-mixer-{steps}-{seed}"
    return MixerOptions(**shared, form="dense", seed=seed, steps=steps, held_out=2000, out=out)


def trained(cache: Path, seed: int, steps: int = STEPS) -> nn.Module:
    """A Mixer in evaluation mode; trained if it is not there yet, or its training goes on where it stopped.

    Args:
        cache: Where runs are kept.
        seed: The seed.
        steps: Steps of training.
    """
    given = options(cache, seed, steps)
    file = given.out / "model" / "model.safetensors"
    if not file.exists():
        train(mixer(given), given)
    model = untrained(cache, seed)
    model.load_state_dict(load_file(file))
    return model


def untrained(cache: Path, seed: int) -> nn.Module:
    """The same as it starts."""
    return mixer(options(cache, seed)).build().eval()


def held_out(cache: Path, start: int, number: int) -> tuple[Tensor, Tensor]:
    """So many test images from one on, ``(n, 1, S, S)``, with their labels ``(n,)``.

    Args:
        cache: Where runs are kept.
        start: The first.
        number: How many.
    """
    given = MixerOptions(**{**vars(options(cache, 0)), "held_out": 10_000})
    recipe = mixer(given)
    drawn = [recipe.held_out(k) for k in range(start, min(start + number, recipe.num_held_out))]
    return torch.stack([image for image, _ in drawn]), torch.stack([label for _, label in drawn])
