"""How long one input takes, and how much memory: a linear layer, dense and sparse mixtures, rings and CP.

Run as a module with a contender's number, it makes that one alone and prints by how much its process grew.

Legend: ``B`` inputs, ``I`` in_features, ``O`` out_features, ``N`` experts, ``K`` of them chosen.
"""

from __future__ import annotations

import gc
import statistics
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contenders import SoftMoE
from benchmarks.measuring import FULL, QUICK, Effort, alternate
from benchmarks.memory import num_bytes, peak_bytes, process_bytes, process_peak
from factorized_moe import Budget, FactorizedExpertTensor, MuMoE
from studies.costs.formulas import CHOSEN
from studies.costs.models import HEAD, RING

__all__ = ["SIZES", "TINY", "Sizes", "SparseMoE", "built_first", "contenders", "latency"]


@dataclass(frozen=True)
class Sizes:
    """The sizes of the layers.

    Attributes:
        inputs: ``I``.
        outputs: ``O``.
        experts: ``N``.
    """

    inputs: int = HEAD[0]
    outputs: int = HEAD[1]
    experts: int = 128


SIZES, TINY = Sizes(), Sizes(32, 24, 4)


class SparseMoE(nn.Module):
    """A mixture of linear experts of which each input visits those with the largest logits.

    Args:
        sizes: Its sizes.

    Examples:
        >>> SparseMoE(TINY)(torch.randn(3, 32)).shape
        torch.Size([3, 24])
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.gate = nn.Linear(sizes.inputs, sizes.experts, bias=False)
        self.weight = nn.Parameter(torch.randn(sizes.experts, sizes.outputs, sizes.inputs) * sizes.inputs**-0.5)
        self.bias = nn.Parameter(torch.zeros(sizes.experts, sizes.outputs))

    def forward(self, x: Tensor) -> Tensor:
        """From ``(B, I)`` to ``(B, O)``."""
        best = self.gate(x).topk(CHOSEN, dim=-1)
        shares = best.values.softmax(dim=-1)  # (B, K)
        y = x.new_zeros(len(x), self.bias.shape[1])
        for expert in best.indices.unique().tolist():
            sample, place = (best.indices == expert).nonzero(as_tuple=True)
            own = nn.functional.linear(x[sample], self.weight[expert], self.bias[expert])
            y = y.index_add(0, sample, shares[sample, place, None] * own)
        return y


def contenders(sizes: Sizes) -> dict[str, Callable[[], nn.Module]]:
    """How to make each layer, by name, the linear one first; a factorised one has at most as many parameters as it."""
    linear = nn.Linear(sizes.inputs, sizes.outputs, device="meta")
    ring = Budget(like=linear, fixed=(RING, RING, None, RING))
    made = partial(MuMoE, sizes.inputs, sizes.outputs, [sizes.experts])
    return {
        "linear": partial(nn.Linear, sizes.inputs, sizes.outputs),
        "dense MoE": partial(SoftMoE, sizes.inputs, sizes.outputs, sizes.experts),
        f"sparse MoE, {CHOSEN} chosen": partial(SparseMoE, sizes),
        "tensor ring": partial(made, "tr", ring),
        "CP": partial(made, "cp", Budget(like=linear)),
    }


def latency(quick: bool, inputs: int) -> list[dict[str, Any]]:
    """Each layer's time as a multiple of the linear layer's, taken in turns; what the first call of it alone takes.

    Args:
        quick: Whether for tests.
        inputs: ``B``.
    """
    sizes = TINY if quick else SIZES
    torch.manual_seed(0)
    layers = {name: make().eval() for name, make in contenders(sizes).items()}
    x = torch.randn(inputs, sizes.inputs)
    with torch.inference_mode():
        times = alternate(
            [partial(layer, x) for layer in layers.values()], QUICK if quick else Effort(8.0, FULL.fewest)
        )
    rows = []
    for number, (name, layer) in enumerate(layers.items()):
        ratios = [own / linear for own, linear in zip(times[number], times[0], strict=True)]
        rows.append(
            {
                "layer": name,
                "inputs": inputs,
                "parameters": sum(parameter.numel() for parameter in layer.parameters()),
                "rank": getattr(getattr(layer, "experts", None), "rank", None),
                "seconds": statistics.median(times[number]),
                "ratio": statistics.quantiles(ratios, n=4, method="inclusive"),
                "rounds": len(ratios),
                # exact, by torch's allocator: parameters and buffers, and the most alive during a call
                "bytes": num_bytes([*layer.parameters(), *layer.buffers()]) + _peak(layer, x),
                "grown": None if quick else process_bytes("studies.costs.timing", str(number), str(inputs)),
            }
        )
    return rows


@torch.inference_mode()
def _peak(layer: nn.Module, x: Tensor) -> int:
    return peak_bytes(lambda: layer(x))


def built_first(quick: bool, experts: int = 16) -> list[dict[str, Any]]:
    """How many times as long one output takes if the dense tensor is built first; how far both results are apart.

    Args:
        quick: Whether for tests.
        experts: ``N``, few: the dense tensor of 512 experts takes over a gigabyte.
    """
    size, rank = (16, 8) if quick else (HEAD[0], 512)
    torch.manual_seed(0)
    rows = []
    for name, given in (("cp", rank), ("tr", (RING, RING, rank, RING))):
        w = FactorizedExpertTensor((experts,), size, size, name, given, bias=True)
        x, a = torch.randn(1, size), torch.rand(1, experts).softmax(dim=-1)

        def through_dense(
            w: FactorizedExpertTensor = w, x: Tensor = x, a: Tensor = a
        ) -> Tensor:  # defaults: this round's
            matrix = torch.einsum("bn,nio->bio", a, w.to_dense())
            return torch.einsum("bi,bio->bo", nn.functional.pad(x, (0, 1), value=1.0), matrix)

        with torch.inference_mode():
            fast = partial(w, x, [a])
            apart = (fast() - through_dense()).abs().max() / through_dense().abs().max()
            effort = QUICK if quick else Effort(10.0, 7)
            slow_times, fast_times = alternate([through_dense, fast], effort)
        ratios = [slow / quickly for slow, quickly in zip(slow_times, fast_times, strict=True)]
        rows.append(
            {
                "form": name,
                "experts": experts,
                "size": size,
                "rank": given,
                "ratio": statistics.quantiles(ratios, n=4, method="inclusive"),
                "rounds": len(ratios),
                "apart": float(apart),
            }
        )
    return rows


def _grow(number: int, sizes: Sizes, inputs: int) -> None:
    with torch.device("meta"):
        layer = list(contenders(sizes).values())[number]()
    layer.to_empty(device="cpu")
    for tensor in (*layer.parameters(), *layer.buffers()):
        torch.nn.init.zeros_(tensor)  # in place: drawing values would take memory of its own
    with torch.inference_mode():
        layer.eval()(torch.randn(inputs, sizes.inputs))


if __name__ == "__main__":
    torch.set_num_threads(1)
    _grow(int(sys.argv[1]), TINY, 1)  # loads the code, which takes memory too
    gc.collect()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: the peak starts anew from here
    before = process_peak()
    _grow(int(sys.argv[1]), SIZES, int(sys.argv[2]))
    print(process_peak() - before)
