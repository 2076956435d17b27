"""Random networks that no decomposition would make: bonds on two or three nodes, modes on one or two, any sizes."""

import random

from factorized_moe import Node, TensorNetwork

SIZES = (2, 3, 4, 8, 16, 32, 64)


def random_network(seed: int, operands: int = 7) -> TensorNetwork:
    """A network of two to five nodes and up to four expert modes, of at most so many operands with its vectors."""
    rng = random.Random(seed)
    while True:
        nodes, modes = rng.randint(2, 5), rng.randint(0, 4)
        if nodes + modes + 1 > operands:
            continue
        labels: list[list[str]] = [[] for _ in range(nodes)]
        bonds = {f"bond_{k}": rng.choice(SIZES) for k in range(rng.randint(1, nodes + 1))}
        for bond in bonds:
            for node in rng.sample(range(nodes), min(nodes, rng.choice([2, 2, 2, 3]))):
                labels[node].append(bond)
        for label in [*(f"expert_{k}" for k in range(modes)), "in", "out"]:
            for node in rng.sample(range(nodes), 1 if rng.random() < 0.85 else 2):
                labels[node].append(label)
        for mine in labels:
            rng.shuffle(mine)
        named = [Node(f"node_{k}", tuple(mine)) for k, mine in enumerate(labels)]
        dims = [rng.choice(SIZES) for _ in range(modes)]
        features = rng.choice((16, 64, 256)), rng.choice((16, 64, 256))
        return TensorNetwork.from_modes(dims, *features, nodes=named, bonds=bonds)
