"""The layers' equations written out by hand, one function for each decomposition: straightforward einsum code.

Each function takes a `FactorizedExpertTensor` with a bias and returns a function of an input and coefficients that
computes the same. Steps have two operands, vectors are contracted first, and the bias is added after the input's
product: what somebody who knows the layer writes.

Legend: b samples, n experts of a mode, i input, o output; other letters are bonds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, einsum

from factorized_moe import FactorizedExpertTensor

__all__ = ["HAND_WRITTEN", "Forward", "experts_first"]

Forward = Callable[[Tensor, Sequence[Tensor]], Tensor]


def cp(weight: FactorizedExpertTensor) -> Forward:
    """``y = C (B x * A_0 a_0 * ..)``: uMoE paper, Eq. 2."""
    *experts, inputs, outputs = weight.weight.operands

    def forward(x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        hidden = einsum("bi,ir->br", x, inputs[:-1]) + inputs[-1]
        for a, factor in zip(coefficients, experts, strict=True):
            hidden = hidden * einsum("bn,nr->br", a, factor)
        return einsum("br,ro->bo", hidden, outputs)

    return forward


def tucker(weight: FactorizedExpertTensor) -> Forward:
    """The input's mode of the core first, then one expert mode after the other."""
    *experts, inputs, outputs, core = weight.weight.operands

    def forward(x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        z = einsum("bi,ir->br", x, inputs[:-1]) + inputs[-1]
        value = einsum("bi,...io->b...o", z, core)
        for a, factor in zip(coefficients, experts, strict=True):
            value = einsum("bn,bn...->b...", einsum("bm,mn->bn", a, factor), value)
        return einsum("br,ro->bo", value, outputs)

    return forward


def outer_products(weight: FactorizedExpertTensor) -> Forward:
    """Tucker again: all vectors' outer product, then one product with the core."""
    *experts, inputs, outputs, core = weight.weight.operands

    def forward(x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        z = einsum("bi,ir->br", x, inputs[:-1]) + inputs[-1]
        vectors = [einsum("bn,nr->br", a, factor) for a, factor in zip(coefficients, experts, strict=True)]
        product, *others = [*vectors, z]
        for other in others:
            product = einsum("bi,bj->bij", product, other).flatten(1)
        return einsum("br,ro->bo", einsum("bp,pr->br", product, core.flatten(0, -2)), outputs)

    return forward


def experts_first(weight: FactorizedExpertTensor) -> Forward:
    """Tucker again: the expert modes of the core first, the input's last, so that each sample gets a matrix."""
    *experts, inputs, outputs, core = weight.weight.operands

    def forward(x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        (a, factor), *others = zip(coefficients, experts, strict=True)
        value = einsum("bn,n...->b...", einsum("bm,mn->bn", a, factor), core)
        for a, factor in others:
            value = einsum("bn,bn...->b...", einsum("bm,mn->bn", a, factor), value)
        z = einsum("bi,ir->br", x, inputs[:-1]) + inputs[-1]
        return einsum("br,ro->bo", einsum("bi,bio->bo", z, value), outputs)

    return forward


def tensor_train(weight: FactorizedExpertTensor) -> Forward:
    """A row vector times one matrix after the other: uMoE v1, Eq. 4."""
    first, *experts, inputs, outputs = weight.weight.operands

    def forward(x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        row = einsum("bn,nr->br", coefficients[0], first)
        for a, core in zip(coefficients[1:], experts, strict=True):
            row = einsum("bl,blr->br", row, einsum("bn,nlr->blr", a, core))
        matrix = einsum("bi,ilr->blr", x, inputs[:-1]) + inputs[-1]
        return einsum("br,ro->bo", einsum("bl,blr->br", row, matrix), outputs)

    return forward


def tensor_ring(weight: FactorizedExpertTensor) -> Forward:
    """One matrix after the other, then the trace with the output core: uMoE paper, Eq. 3."""
    *experts, inputs, outputs = weight.weight.operands

    def forward(x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        product, *others = [einsum("bn,nlr->blr", a, core) for a, core in zip(coefficients, experts, strict=True)]
        for other in others:
            product = einsum("bij,bjk->bik", product, other)
        matrix = einsum("bi,ilr->blr", x, inputs[:-1]) + inputs[-1]
        return einsum("bij,ijo->bo", einsum("bij,bjk->bik", product, matrix), outputs)

    return forward


HAND_WRITTEN: dict[str, dict[str, Callable[[FactorizedExpertTensor], Forward]]] = {
    "cp": {"hand-written": cp},
    "tucker": {"hand-written, input first": tucker, "hand-written, outer products": outer_products},
    "tt": {"hand-written": tensor_train},
    "tr": {"hand-written": tensor_ring},
}
"""For each decomposition, the code that it is compared with, by the name in the table."""
