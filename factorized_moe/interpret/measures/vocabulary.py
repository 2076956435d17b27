"""The tokens that each expert of a language model writes towards: the logit lens, through the factors.

Legend: ``N`` experts of the whole grid, ``I`` in_features, ``O`` out_features, ``V`` tokens of the vocabulary, ``k``
how many are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe._validation import check_batches, check_kind, check_size, check_values
from factorized_moe.interpret.finding import find_layers
from factorized_moe.interpret.measures.measurement import Measurement, expert_columns
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = ["WrittenTokens", "average_inputs", "find_written_tokens"]

EXPERTS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class WrittenTokens(Measurement):
    """For each expert the tokens whose logits its output raises most.

    Attributes:
        tokens: The tokens' numbers, the most raised first, ``(N, k)``, int64.
        logits: What the expert adds to their logits where its coefficient is 1, ``(N, k)``.
        grid: The sizes of the expert modes.
    """

    tokens: Tensor
    logits: Tensor
    grid: tuple[int, ...]

    def columns(self) -> dict[str, list[Any]]:
        """One row for each expert and token."""
        experts, kept = self.tokens.shape
        return expert_columns(self.grid, repeat=kept) | {
            "rank": list(range(kept)) * experts,
            "token": self.tokens.reshape(-1).tolist(),
            "logit": self.logits.reshape(-1).tolist(),
        }


@torch.no_grad()
def find_written_tokens(
    experts: FactorizedExpertTensor, unembedding: Tensor, inputs: Tensor, k: int = 10
) -> WrittenTokens:
    """Find the tokens that each expert writes towards, from what it makes of an input.

    Each expert is applied to its input alone, ``x^T W_n`` with its bias, and the result goes through the unembedding:
    the logit lens on one expert's output. The experts' matrices are not built. What comes between the layer and the
    unembedding, such as a last norm, is left out, so logits of different experts compare, and have no absolute scale.

    Args:
        experts: The experts whose output goes to the residual stream: ``layer.experts``, or ``block.second``.
        unembedding: The matrix from the stream to the logits, ``(V, O)``, such as ``model.lm_head.weight``.
        inputs: The experts' input, one for all, ``(I,)``, or one for each, ``(N, I)``, as `average_inputs` finds them.
        k: How many tokens to keep for each expert.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If a shape does not fit.

    Examples:
        >>> w = FactorizedExpertTensor((8,), 16, 32, decomposition="cp", rank=4, bias=True)
        >>> found = find_written_tokens(w, torch.randn(100, 32), torch.randn(16), k=3)
        >>> found.tokens.shape
        torch.Size([8, 3])
    """
    check_kind("experts", experts, FactorizedExpertTensor)
    for name, tensor in (("unembedding", unembedding), ("inputs", inputs)):
        check_values(name, tensor)
    number = math.prod(experts.expert_dims)
    k = check_size("k", k)
    if unembedding.ndim != 2 or unembedding.shape[1] != experts.out_features or len(unembedding) < k:
        raise ValueError(
            f"unembedding has shape {tuple(unembedding.shape)}, expected (V, {experts.out_features}) with at "
            f"least {k} tokens"
        )
    if tuple(inputs.shape) not in {(experts.in_features,), (number, experts.in_features)}:
        raise ValueError(
            f"inputs have shape {tuple(inputs.shape)}, expected ({experts.in_features},) for all experts or "
            f"({number}, {experts.in_features}), one for each"
        )
    like = experts.weight().operands[0]
    rows, matrix = inputs.expand(number, -1).to(like), unembedding.to(like)
    tokens, logits = [], []
    for some in torch.arange(number, device=like.device).split(EXPERTS_AT_ONCE):
        places = torch.unravel_index(some, experts.expert_dims)
        alone = [nn.functional.one_hot(p, n).to(like) for p, n in zip(places, experts.expert_dims, strict=True)]
        best = (experts(rows[some], alone) @ matrix.T).topk(k, dim=1)
        tokens.append(best.indices)
        logits.append(best.values)
    return WrittenTokens(torch.cat(tokens), torch.cat(logits), experts.expert_dims)


@torch.no_grad()
def average_inputs(
    model: nn.Module, batches: Iterable[Any], *, layer: str | None = None, tensor: str | None = None
) -> Tensor:
    """The input that each expert sees on average, each input weighed by the expert's coefficient.

    Args:
        model: The model; called with each batch, or with its entries where it is a tuple, and with keywords where it is
            a dictionary.
        batches: An iterable of batches, such as ``inputs.split(1024)``.
        layer: The layer's name; may be left out if the model has one only.
        tensor: The name of the layer's expert tensor whose input is meant; the last one by default, whose output is the
            layer's.

    Returns:
        ``(N, I)``, float64; NaN for an expert without a coefficient above 0.

    Raises:
        TypeError: If ``batches`` is one tensor, or no iterable.
        ValueError: If there are several layers and none is named, or there is no such layer or tensor.

    Examples:
        >>> from factorized_moe import CPMuMoE
        >>> layer = CPMuMoE(8, 3, expert_dims=[4], rank=2).eval()
        >>> average_inputs(layer, [torch.randn(5, 8), torch.randn(5, 8)]).shape
        torch.Size([4, 8])
    """
    check_batches("batches", batches)
    found = find_layers(model, layer)
    if len(found) > 1:
        raise ValueError(f"the model has {len(found)} layers of experts; name one of {', '.join(map(repr, found))}")
    tensors = next(iter(found.values())).expert_tensors
    name = list(tensors)[-1] if tensor is None else tensor
    if name not in tensors:
        raise ValueError(f"the layer has no expert tensor {name!r}; it has {list(tensors)}")
    sums: list[Tensor] = []
    weights: list[Tensor] = []

    def look(module: nn.Module, arguments: tuple[Tensor, Sequence[Tensor]]) -> None:
        x, modes = arguments
        grid = modes[0].reshape(-1, modes[0].shape[-1]).double()
        for other in modes[1:]:
            grid = (grid[:, :, None] * other.reshape(len(grid), 1, -1).double()).flatten(1)
        grid = grid.clamp(min=0)
        sums[:] = [sum(sums, grid.T @ x.reshape(len(grid), -1).double())]
        weights[:] = [sum(weights, grid.sum(dim=0))]

    handle = tensors[name].register_forward_pre_hook(look)
    try:
        for batch in batches:
            if isinstance(batch, dict):
                model(**batch)
            else:
                model(*(batch if isinstance(batch, tuple) else (batch,)))
    finally:
        handle.remove()
    if not sums:
        raise ValueError("batches is empty, or the layer did not run")
    return sums[0] / weights[0][:, None]
