"""Random tensor networks of any number of operands, for comparisons of plans."""

from __future__ import annotations

import random

from factorized_moe import Node, TensorNetwork

__all__ = ["network"]


def network(seed: int, operands: int) -> TensorNetwork:
    """A random tree of nodes with more bonds on two to four of them, and modes on any, of so many operands."""
    rng = random.Random(seed)
    modes = rng.randint(0, min(6, operands - 3))
    nodes = operands - 1 - modes
    labels: list[list[str]] = [[] for _ in range(nodes)]
    bonds = {}
    for node in range(1, nodes):
        bonds[f"tree_{node}"] = rng.choice((2, 3, 4, 8))
        labels[node].append(f"tree_{node}")
        labels[rng.randrange(node)].append(f"tree_{node}")
    for extra in range(rng.randint(0, nodes // 3)):
        bonds[f"extra_{extra}"] = rng.choice((2, 3, 4, 8))
        for node in rng.sample(range(nodes), min(nodes, rng.choice((2, 3, 4)))):
            labels[node].append(f"extra_{extra}")
    for label in [*(f"expert_{mode}" for mode in range(modes)), "in", "out"]:
        labels[rng.randrange(nodes)].append(label)
    named = [Node(f"node_{number}", tuple(mine)) for number, mine in enumerate(labels)]
    bonds = {bond: size for bond, size in bonds.items() if sum(bond in mine for mine in labels) > 1}
    dims = [rng.choice((2, 4, 8, 16)) for _ in range(modes)]
    features = rng.choice((16, 64, 256)), rng.choice((16, 64, 256))
    return TensorNetwork.from_modes(dims, *features, nodes=named, bonds=bonds)
