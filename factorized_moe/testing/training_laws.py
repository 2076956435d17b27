"""The laws of a fresh layer: the variance that it starts with, and that every expert of every mode learns.

Each law is a function of a decomposition and a structure that raises `AssertionError` if it does not hold.

Legend: `N_k` experts of mode k, `I` in_features (one more with a bias), `O` out_features, `n` samples.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from factorized_moe.decompositions import Decomposition
from factorized_moe.interpret import measure_usage
from factorized_moe.layers import MuMoE
from factorized_moe.network import Node, TensorNetwork
from factorized_moe.tensor import FactorizedExpertTensor
from factorized_moe.testing.closeness import oracle_dense
from factorized_moe.testing.strategies import Structure

__all__ = ["balanced_variance", "every_mode_learns"]

DRAWS = 200
"""Fresh tensors whose mean squares are averaged."""

STEPS = 150
"""Steps of Adam after which all experts of the task are in use, with a margin, for every built-in decomposition."""

SAMPLES_PER_PAIR = 12
"""Samples for each combination of experts."""


def balanced_variance(decomposition: Decomposition, structure: Structure) -> None:
    """Under `"balanced"`, the variance at uniform and at one-hot coefficients is what its docstring says.

    Decompositions that name no such initialisation, use a parameter twice, or fix a node with expert modes are left
    out.
    """
    w = _fresh(decomposition, structure)
    network = w.network
    fixed = {label for node in network.nodes if node.fixed is not None for label in node.labels}
    if "balanced" not in decomposition.initialisations or network.shares_parameters:
        return
    if fixed & set(network.expert_labels):  # then the gain depends on what they hold
        return
    target = 1.0 / (3.0 * network.shape[-2])
    one_hot = target * sum(map(_gain, network.terms, [network] * len(network.terms))) / len(network.terms)
    found: dict[str, list[Tensor]] = {"uniform": [], "one-hot": []}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(structure.seed)
        for _ in range(DRAWS):
            w.reset_parameters()
            dense = oracle_dense(w).detach()
            modes = tuple(range(len(network.expert_dims)))
            found["uniform"].append((dense.mean(dim=modes) if modes else dense).square().mean())
            found["one-hot"].append(dense.square().mean())
    for name, expected in (("uniform", target), ("one-hot", one_hot)):
        values = torch.stack(found[name])
        error = 5.0 * float(values.std()) / DRAWS**0.5
        measured = float(values.mean())
        message = (
            f"at {name} coefficients the initial variance is {measured:.3e} within {error:.0e}, not {expected:.3e}"
        )
        assert abs(measured - expected) <= error, message


def _gain(term: tuple[Node, ...], network: TensorNetwork) -> float:
    """How much larger the variance of one expert is than that of the uniform mixture, over all pairs of experts."""
    places = [
        [network.expert_labels.index(label) for label in node.labels if label in network.expert_labels] for node in term
    ]
    experts = list(itertools.product(*map(range, network.expert_dims)))
    common = 0
    for one, other in itertools.product(experts, repeat=2):
        equal = [all(one[place] == other[place] for place in node) for node in places if node]
        common += 2 ** sum(equal)
    alone: int = 2 ** sum(map(bool, places))
    return alone * len(experts) ** 2 / common


def every_mode_learns(decomposition: Decomposition, structure: Structure) -> None:
    """A fresh layer, trained for a few steps on data that needs them, has all experts of all modes in use.

    They differ in their parameters too, under every initialisation but the paper's, which leaves those of further modes
    equal.

    The data: one router for each mode, each visible in its own part of the input, and a matrix of its own for each
    combination, drawn from the same decomposition.
    """
    features = sum(structure.expert_dims)
    if structure.in_features < features:
        pytest.skip(f"the task shows each router in features of its own: {features} of {structure.in_features}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(structure.seed)
        x, target = _task(decomposition, structure)
        for name in [name for name in decomposition.initialisations if name != "paper"]:
            layer = _layer(decomposition, structure, name)
            _check_different(layer, x, f"at the start under {name!r}")
            _train(layer, x, target)
            _check_different(layer, x, f"after training under {name!r}")
            for usage in measure_usage(layer, x):
                where = f"{usage.num_in_use} of {usage.num_experts} experts of mode {usage.mode} under {name!r}"
                assert usage.num_in_use == usage.num_experts, f"only {where} are in use: {usage}"


def _check_different(layer: MuMoE, x: Tensor, when: str) -> None:
    for usage in measure_usage(layer, x):
        assert usage.nearest > DIFFERENT, f"two experts of mode {usage.mode} are equal {when}: {usage}"


DIFFERENT = 1e-2
"""The least distance of two experts' rows, relative to the rows' size, that is no rounding error."""


def _task(decomposition: Decomposition, structure: Structure) -> tuple[Tensor, Tensor]:
    """An input `(n, I)` whose first features say which expert of each mode is wanted, and the target `(n, O)`."""
    teacher = _fresh(decomposition, structure, init="variance_preserving")
    rows, targets = [], []
    for index in itertools.product(*map(range, structure.expert_dims)):
        sizes = zip(index, structure.expert_dims, strict=True)
        routers = [nn.functional.one_hot(torch.tensor(n), size) for n, size in sizes]
        marks = torch.cat(routers).double() * 2.0
        free = torch.randn(SAMPLES_PER_PAIR, structure.in_features - len(marks), dtype=torch.float64)
        x = torch.cat([marks.expand(len(free), -1), free], dim=-1)
        rows.append(x)
        targets.append(x @ teacher.expert(*index)[: structure.in_features])
    target = torch.cat(targets)
    return torch.cat(rows), (target / target.std()).detach()


def _layer(decomposition: Decomposition, structure: Structure, init: str) -> MuMoE:
    return MuMoE(
        structure.in_features,
        structure.out_features,
        structure.expert_dims,
        decomposition,
        structure.rank,
        bias=structure.bias,
        init=init,
        dtype=torch.float64,
    )


def _train(layer: MuMoE, x: Tensor, target: Tensor) -> None:
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.mse_loss(layer(x), target).backward()
        optimizer.step()


def _fresh(decomposition: Decomposition, structure: Structure, init: str = "balanced") -> FactorizedExpertTensor:
    return FactorizedExpertTensor(
        structure.expert_dims,
        structure.in_features,
        structure.out_features,
        decomposition,
        structure.rank,
        bias=structure.bias,
        init=init if init in decomposition.initialisations else None,
        dtype=torch.float64,
    )
