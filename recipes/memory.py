"""Memory of a rank before anything is trained: from models on the meta device and the descriptions of their experts.

    python -m recipes.memory --ranks 8

Counted are parameters, their gradients and AdamW's two averages, and what a forward pass keeps for the backward pass
of one sequence. Not counted: what a step allocates besides, buckets of DDP (as large as the gradients), the layer that
FSDP2 has gathered, and torch itself.

Legend: ``T`` tokens of a sequence.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from factorized_moe._text_tables import text_table
from factorized_moe.parallel import shards_of
from recipes.gpt.language import GPTOptions, build_gpt
from recipes.gpt.tokens import Bytes
from recipes.recipe import has_experts

__all__ = ["SIZES", "kept_for_backward", "main", "parameters_of_a_rank"]

SIZES = {"124M": (12, 768), "1.3B": (24, 2048), "7B": (32, 4096)}
"""Layers and features of GPTs with dense MLPs of so many parameters."""

STATES = 4
"""A parameter, its gradient, and AdamW's two averages, each float32."""


def parameters_of_a_rank(
    model: nn.Module, ranks: int, *, fully_shard: bool = False, expert_ranks: int = 1, label: str = "auto"
) -> int:
    """The parameters that the rank with most of them holds.

    Args:
        model: The model, on any device.
        ranks: How many ranks there are.
        fully_shard: Whether FSDP2 spreads parameters over those that have different data.
        expert_ranks: How many ranks share each expert tensor.
        label: What they cut, as for `factorized_moe.parallel.shard`.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if expert_ranks > 1 and has_experts(model):
        for choice in shards_of(model, expert_ranks, label).choices:
            stored = dict(choice.split.stored)
            for node in choice.split.plan.network.nodes:
                if (cut := stored.get(node.name)) is not None:
                    name = next(n for n in shapes if n.startswith(f"{choice.path}.") and n.endswith(f".{node.name}"))
                    axis = node.labels.index(cut)
                    shapes[name] = tuple(
                        math.ceil(size / expert_ranks) if k == axis else size for k, size in enumerate(shapes[name])
                    )
    data = ranks // expert_ranks
    if (fully_shard or expert_ranks > 1) and data > 1:
        return sum(math.ceil(shape[0] / data) * math.prod(shape[1:]) for shape in shapes.values() if shape)
    return sum(map(math.prod, shapes.values()))


def kept_for_backward(model: nn.Module, tokens: Tensor) -> int:
    """Bytes that a forward pass keeps for its backward pass, parameters left out.

    Args:
        model: The model, on any device.
        tokens: Its input, ``(1, T)``, on that device.
    """
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, tuple[Any, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage, storage.nbytes()  # held, so that its number is not given away again
        return tensor

    # transformers asks whether positions start anew within a row, which meta tensors cannot say; here they do not
    one_text = mock.patch("transformers.masking_utils.find_packed_sequence_indices", return_value=None)
    attention = mock.patch("torch.nn.functional.scaled_dot_product_attention", _Attention.of)
    with one_text, attention, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(tokens).logits
        loss = nn.functional.cross_entropy(output.flatten(0, 1).float(), tokens.flatten())
    total = sum(size for _, size in kept.values())
    del loss
    return total


class _Attention(torch.autograd.Function):
    """What fused attention keeps; on the meta device torch takes the path that keeps all products."""

    @staticmethod
    def of(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        found: Tensor = _Attention.apply(q, k, v)  # type: ignore[no-untyped-call]
        return found

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, y, q.new_empty(q.shape[:-1]))
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.zeros_like, ctx.saved_tensors[:3]))


def build(layers: int, features: int, form: str, tokens: int, experts: int) -> nn.Module:
    """A GPT on the meta device, with GPT-2's vocabulary."""
    vocabulary = Bytes()
    vocabulary.vocabulary = 50257
    options = GPTOptions(depth=layers, width=features, form=form, tokens=tokens, experts=(experts,), gate_norm="layer")
    return build_gpt(options, vocabulary, device="meta")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table.

    Args:
        arguments: Those of the command line; the process's own by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=8, help="how many ranks")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a sequence")
    parser.add_argument("--experts", type=int, default=256, help="the number of experts")
    given = parser.parse_args(arguments)
    ranks = given.ranks
    rows: list[tuple[str, ...]] = [
        (
            "size",
            "form",
            "parameters",
            "one or DDP",
            "FSDP2",
            f"experts / {ranks}",
            f"experts / 2, FSDP2 / {ranks // 2}",
            "a sequence",
        )
    ]
    for name, (layers, features) in SIZES.items():
        for form in ("dense", "cp"):
            model = build(layers, features, form, given.tokens, given.experts)
            held = [
                parameters_of_a_rank(model, ranks),
                parameters_of_a_rank(model, ranks, fully_shard=True),
                parameters_of_a_rank(model, ranks, expert_ranks=ranks),
                parameters_of_a_rank(model, ranks, expert_ranks=2),
            ]
            kept = kept_for_backward(model, torch.zeros(1, given.tokens, dtype=torch.long, device="meta"))
            cells = [gigabytes(4 * STATES * number) for number in held]
            cells[2:] = cells[2:] if has_experts(model) else ["", ""]
            rows.append((name, form, f"{held[0]:,}", *cells, gigabytes(kept)))
    print(text_table(rows, left=2))
    return 0


def gigabytes(number: float) -> str:
    """Bytes as a text.

    Examples:
        >>> gigabytes(16 * 124_000_000)
        '1.98 GB'
    """
    return f"{number / 1e9:.2f} GB"


if __name__ == "__main__":
    sys.exit(main())
