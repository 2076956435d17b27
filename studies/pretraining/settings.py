"""What was run, as a table made from the options of the runs."""

from __future__ import annotations

from collections.abc import Mapping

from recipes.gpt.language import GPTOptions
from recipes.gpt.shards import HELD_OUT_EVERY
from recipes.mixer.mixing import MixerOptions
from recipes.options import Options
from recipes.train import BETAS
from studies.pretraining.parity import TITLES

__all__ = ["settings_table"]


def settings_table(options: Mapping[str, Options]) -> list[str]:
    """A row for each setting, a column for each problem.

    Args:
        options: Those of each problem's dense form.
    """
    columns = [{**_own(given), **_shared(given)} for given in options.values()]
    if not columns:
        return []
    lines = [f"| | {' | '.join(TITLES[name] for name in options)} |", f"|---|{'---|' * len(columns)}"]
    return lines + [f"| {name} | {' | '.join(column[name] for column in columns)} |" for name in columns[0]]


def _own(given: Options) -> dict[str, str]:
    """What the problems are told in different words.

    Raises:
        TypeError: If the problem is not known.
    """
    if isinstance(given, GPTOptions):
        return {
            "data": "modules of Python's standard library, in tokens of a vocabulary of 2,048 trained on all of them",
            "held out": f"one module in {HELD_OUT_EVERY}; of their text {given.held_out:,} sequences at equal "
            f"distances, {given.held_out * given.tokens:,} tokens",
            "a sample": f"a context of {given.tokens} tokens",
            "training": f"{given.steps:,} steps of {given.batch} samples, "
            f"{given.steps * given.batch * given.tokens:,} tokens",
            "experts": f"{_number(given)} in each block, in place of the MLP of each layer",
        }
    if isinstance(given, MixerOptions):
        patches = (given.side // given.patch) ** 2
        return {
            "data": f"Fashion-MNIST{'' if given.augment else ', no augmentation'}",
            "held out": f"{given.held_out:,} of the test images, at equal distances, {given.held_out * patches:,} "
            "patches",
            "a sample": f"an image of {given.side} x {given.side} pixels, {patches} patches",
            "training": f"{given.steps:,} steps of {given.batch} samples",
            "experts": f"{_number(given)} in each block, in place of both MLPs of each layer",
        }
    raise TypeError(f"no words for {type(given).__name__}; expected GPTOptions or MixerOptions")


def _shared(given: Options) -> dict[str, str]:
    """What all problems are told."""
    assert isinstance(given, GPTOptions | MixerOptions)
    return {
        "layers, features": f"{given.depth}, {given.features}",
        "optimiser": f"AdamW, betas {BETAS[0]} and {BETAS[1]}, weight decay {given.weight_decay:g}, gradients' norm "
        f"at most {given.clip:g}",
        "learning rate": f"{given.largest_rate:.2g} at most: rises for {given.warm_up:.0%} of the steps, then half a "
        "cosine to zero",
    }


def _number(given: Options) -> str:
    return " x ".join(map(str, given.experts))
