"""The tensors of fixed nodes, which are no parameters: made from a network's description whenever they are needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from factorized_moe.network import TensorNetwork

__all__ = ["fixed_tensors", "with_fixed"]


def _identity(shape: tuple[int, ...]) -> Tensor:
    values = torch.zeros(shape, dtype=torch.float64, device="cpu")
    diagonal = torch.arange(min(shape, default=1), device="cpu")
    values[(diagonal,) * len(shape)] = 1.0
    return values


def _ones(shape: tuple[int, ...]) -> Tensor:
    return torch.ones(shape, dtype=torch.float64, device="cpu")


RULES: dict[str, Callable[[tuple[int, ...]], Tensor]] = {"identity": _identity, "ones": _ones}


def fixed_tensors(network: TensorNetwork) -> dict[str, Tensor]:
    """The tensors of a network's fixed nodes, by the nodes' names, float64 on the CPU.

    Examples:
        >>> network = TensorNetwork.parse("input: in a, link(identity): a b, b out; in=3 out=3 a=2 b=2")
        >>> fixed_tensors(network)["link"].tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    found = {}
    for node in network.nodes:
        shape = tuple(network.sizes[label] for label in node.labels)
        if isinstance(node.fixed, str):
            found[node.name] = RULES[node.fixed](shape)
        elif node.fixed is not None:
            found[node.name] = torch.tensor(node.fixed, dtype=torch.float64, device="cpu").reshape(shape)
    return found


def with_fixed(network: TensorNetwork, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A tensor for every node, by the name of its parameter: the given ones, and those of fixed nodes that are missing.

    Args:
        network: The network.
        tensors: Its parameters by name; fixed nodes' tensors are of their type and on their device.
    """
    like = next(iter(tensors.values()))
    missing = {name: values.to(like) for name, values in fixed_tensors(network).items() if name not in tensors}
    return {**tensors, **missing}
