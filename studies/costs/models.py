"""The models of the uMoE paper as data: what stands in them besides MLPs, and the MLPs that experts take the place of.

Sizes are those of the released training scripts. Ranks are by the scripts' own rules: a share of a width, rounded
down, for the MLPs; for the head the smallest rank that reaches a budget.

Legend: ``I`` in_features, ``H`` hidden features, ``O`` out_features, ``N`` experts.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BUDGET", "EXPERTS", "GRIDS", "HEAD", "MODELS", "REFERENCE", "RING", "Mlp", "Model"]


@dataclass(frozen=True)
class Mlp:
    """An MLP that occurs several times in a model.

    Attributes:
        name: What it is.
        sizes: ``(I, H, O)``.
        count: How many there are.
        bias: Whether the dense form has biases; experts always have.
        ranks: By decomposition, the rank that the released script gives both layers.
    """

    name: str
    sizes: tuple[int, int, int]
    count: int
    bias: bool
    ranks: dict[str, int | tuple[int, ...]]

    @property
    def linears(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """``((I, H), (H, O))``."""
        i, h, o = self.sizes
        return (i, h), (h, o)

    @property
    def parameters(self) -> int:
        """Of one dense MLP."""
        i, h, o = self.sizes
        return i * h + h * o + self.bias * (h + o)


@dataclass(frozen=True)
class Model:
    """A model whose MLPs are replaced.

    Attributes:
        name: What it is called.
        experts: ``N``.
        rest: The parameters that are in no MLP.
        norms: Parameters that the form with experts has beside its experts: normalisations of the inputs.
        mlps: Its MLPs.
    """

    name: str
    experts: int
    rest: int
    norms: int
    mlps: tuple[Mlp, ...]


RING = 4
"""The bonds of the paper's tensor rings on both sides of the expert mode."""


def _ranks(width: int, cp: float, ring: float) -> dict[str, int | tuple[int, ...]]:
    return {"cp": int(cp * width), "tr": (RING, RING, int(ring * width), RING)}


def _gpt2(experts: int, cp: float, ring: float) -> Model:
    # 50,304 tokens and 1,024 positions; attention's two maps, two LayerNorms without biases a layer, one at the end
    rest = (50_304 + 1_024) * 768 + 12 * (4 * 768 * 768 + 2 * 768) + 768
    mlp = Mlp("MLP", (768, 3072, 768), 12, False, _ranks(768, cp, ring))
    return Model(f"GPT-2, N = {experts}", experts, rest, 12 * 768, (mlp,))


MODELS = (
    Model(
        "Mixer S-16, N = 64",
        64,
        # patches of 16 x 16 pixels in colour, a head of 1,000 classes, two LayerNorms a block, one at the end
        3 * 16 * 16 * 512 + 512 + 512 * 1000 + 1000 + 8 * 2 * 2 * 512 + 2 * 512,
        0,
        (
            Mlp("patches", (196, 256, 196), 8, True, _ranks(196, 0.75, 0.19)),
            Mlp("channels", (512, 2048, 512), 8, True, _ranks(512, 0.75, 0.19)),
        ),
    ),
    _gpt2(256, 0.725, 0.195),
    _gpt2(64, 0.78, 0.2),
)
"""The models of the paper's main table; GPT-2 is the one of 124 million parameters, at two numbers of experts."""

HEAD = (768, 1000)
"""``(I, O)`` of the head on CLIP's features, for ImageNet's classes."""

BUDGET = HEAD[0] * HEAD[1] + HEAD[1]
"""The parameters that a head may have: a linear one's."""

EXPERTS = (16, 32, 64, 128, 256, 512)
"""The numbers of experts of the head."""

REFERENCE = 64
"""The number of experts whose ranks the head keeps where its parameters are drawn against their number."""

GRIDS = ((128,), (16, 8), (8, 4, 4), (4, 4, 4, 2), (64, 64), (16, 16, 16))
"""Expert modes of the head: 128 experts in one to four modes, and 4,096 in two and three."""
