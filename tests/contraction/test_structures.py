"""Random structures against an einsum of NumPy over all nodes at once, which shares no code with the library."""

import itertools
import random

import numpy as np
import pytest
import torch

from factorized_moe import FactorizedExpertTensor, TensorNetwork, available_decompositions
from factorized_moe.network import Node

FIRST_SEED = 1000


def random_network(rng: random.Random) -> TensorNetwork:
    """One term: two to five nodes, up to four expert modes, bonds on two or three nodes, sizes from 1 to 4."""
    nodes, modes = rng.randint(2, 5), rng.randint(0, 4)
    labels: list[list[str]] = [[] for _ in range(nodes)]
    bonds = {f"bond_{k}": rng.randint(1, 3) for k in range(rng.randint(1, nodes))}
    for bond in bonds:
        for node in rng.sample(range(nodes), min(nodes, rng.choice([2, 2, 3]))):
            labels[node].append(bond)
    for label in [*(f"expert_{k}" for k in range(modes)), "in", "out"]:
        for node in rng.sample(range(nodes), rng.choice([1, 1, 1, 2])):
            labels[node].append(label)
    for mine in labels:
        rng.shuffle(mine)
    named = [Node(f"node_{k}", tuple(mine)) for k, mine in enumerate(labels)]
    dims = [rng.randint(1, 4) for _ in range(modes)]
    return TensorNetwork.from_modes(dims, rng.randint(1, 4), rng.randint(1, 4), nodes=named, bonds=bonds)


def random_tensor(rng: random.Random) -> FactorizedExpertTensor:
    """A network by hand, or a registered decomposition with or without a bias; float64."""
    if rng.random() < 0.5:
        return FactorizedExpertTensor(network=random_network(rng), dtype=torch.float64)
    dims = tuple(rng.randint(1, 4) for _ in range(rng.randint(1, 3)))
    name = rng.choice(available_decompositions())
    sizes = rng.randint(2, 5), rng.randint(2, 5)
    rank: int = rng.randint(1, 3)
    return FactorizedExpertTensor(dims, *sizes, name, rank, bias=rng.random() < 0.5, dtype=torch.float64)


def dense_by_numpy(w: FactorizedExpertTensor) -> np.ndarray:
    """``(*expert_dims, I (+1), O)``: one einsum for each term, written from labels alone."""
    network, values = w.network, iter([operand.detach().numpy() for operand in w.weight.operands])
    total = np.zeros(network.shape)
    for term in network.terms:
        present = {label for node in term for label in node.labels}
        groups = [*((label,) for label in network.expert_labels), network.in_labels, network.out_labels]
        number = {label: k for k, label in enumerate(sorted(present | set(itertools.chain(*groups))))}
        arguments: list[object] = []
        for node in term:
            arguments += [next(values), [number[label] for label in node.labels]]
        missing = [label for group in groups for label in group if label not in present]
        for label in missing:  # a term without a mode is the same for every index of it
            arguments += [np.ones(network.sizes[label]), [number[label]]]
        found = np.einsum(*arguments, [number[label] for group in groups for label in group], optimize="greedy")
        shape = [int(np.prod([network.sizes[label] for label in group])) for group in groups]
        total += found.reshape(shape)[tuple(slice(size) for size in network.shape)]
    return total


def wrong(seed: int) -> str | None:
    """What is wrong with one structure; ``None`` if nothing is."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    w = random_tensor(rng)
    for parameter in w.parameters():
        torch.nn.init.normal_(parameter)
    batch = tuple(rng.randint(1, 3) for _ in range(rng.randint(0, 2)))
    x = torch.randn(*batch, w.in_features, dtype=torch.float64)
    coefficients = tuple(torch.randn(*batch, size, dtype=torch.float64) for size in w.expert_dims)
    dense = dense_by_numpy(w)
    given = x.numpy() if not w.bias else np.concatenate([x.numpy(), np.ones((*batch, 1))], axis=-1)
    arguments: list[object] = [dense, list(range(dense.ndim))]
    for mode, a in enumerate((*coefficients, torch.from_numpy(given))):
        arguments += [a.numpy(), [..., mode]]
    expected = np.einsum(*arguments, [..., dense.ndim - 1], optimize="greedy")
    with torch.no_grad():
        found = w(x, coefficients).numpy()
    scale = max(1.0, float(np.abs(expected).max()))
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-9, atol=1e-10 * scale):
        return f"seed {seed}: {w.network}"
    if not np.allclose(w.to_dense().detach().numpy(), dense, rtol=1e-9, atol=1e-10 * max(1.0, np.abs(dense).max())):
        return f"seed {seed}, dense: {w.network}"
    return None


def test_random_structures() -> None:
    assert [found for seed in range(150) if (found := wrong(seed))] == []


@pytest.mark.slow
def test_10000_random_structures() -> None:
    assert [found for seed in range(FIRST_SEED, FIRST_SEED + 10_000) if (found := wrong(seed))] == []
