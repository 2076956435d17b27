"""Parameters with which all experts are one given matrix, but for noise that sums to zero.

Nothing of the size of all experts is built. With equal experts a network describes one matrix (`skeleton`), and nearly
always its parameters follow in closed form: two carriers with fixed bridges between them take the two sides of a
truncated singular value decomposition, the best approximation of its rank (Eckart & Young 1936). Three carriers or
more are split off one after the other.

Legend: ``I`` in_features (one more with a bias), ``O`` out_features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from factorized_moe.contraction.named_axes import Named
from factorized_moe.fitting.closed_form.carriers import Part, full_carrier, mean_matrix, read_parts, single_terms
from factorized_moe.fitting.closed_form.pair import contract, solve_pair
from factorized_moe.network import TensorNetwork

__all__ = ["equal_experts"]

NEGLIGIBLE = 1e-12
"""A rest of this relative size is rounding: a further term of a sum need not approximate it."""

RANDOM = "start from random weights: a new layer, or in `replace` a config with pretrained=False"
"""The way out where a network cannot start from a matrix, for messages."""


def equal_experts(
    matrix: Tensor,
    network: TensorNetwork,
    *,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
    input_covariance: Tensor | None = None,
) -> dict[str, Tensor]:
    """Parameters of a network such that the mean of its experts is a matrix, or its best approximation.

    Args:
        matrix: The matrix, ``(I, O)``.
        network: The network.
        noise: How far experts differ from the mean: ``||W[n] - mean|| / ||mean||``, expected, for each expert mode.
        generator: Where random numbers come from, on the CPU; torch's global one by default.
        input_covariance: The second moments of the inputs, ``(I, I)``: the error is then that of the outputs.

    Returns:
        The parameters by name, float64, on the matrix's device.

    Raises:
        ValueError: If two nodes share a parameter, a node is fixed, or the network cannot use a covariance.

    Examples:
        >>> from factorized_moe.decompositions import get_decomposition
        >>> network = get_decomposition("tr").network((5,), 6, 7, rank=(2, 2, 3, 2))
        >>> matrix = torch.randn(6, 7)
        >>> torch.allclose(mean_matrix(network, equal_experts(matrix, network)), matrix.double())
        True
    """
    if fixed := [node.name for node in network.nodes if node.fixed is not None]:
        raise ValueError(
            f"nodes {fixed} are fixed, so experts cannot be set from a matrix; fit the dense tensor, or {RANDOM}"
        )
    if network.shares_parameters:
        raise ValueError(
            f"two nodes share a parameter, so experts cannot be set from a matrix; give each node its own, or {RANDOM}"
        )
    matrix = matrix.detach().double()
    tensors: dict[str, Tensor] = {}
    rest, size = matrix, torch.linalg.vector_norm(matrix)
    # Terms that can hold any matrix come first; the others approximate what is left.
    for term in sorted(single_terms(network), key=lambda term: full_carrier(term) is None):
        spare = bool(tensors) and bool(torch.linalg.vector_norm(rest) <= NEGLIGIBLE * size)
        parts = read_parts(term)
        values = _values(matrix if spare else rest, term, parts, generator, input_covariance)
        fitted = _spread(values, term, parts, noise, generator, spare)
        rest = rest if spare else rest - mean_matrix(term, fitted)
        tensors |= fitted
    return {node.parameter: tensors[node.name] for node in network.nodes}


def _values(
    matrix: Tensor,
    network: TensorNetwork,
    parts: Sequence[Part],
    generator: torch.Generator | None,
    covariance: Tensor | None,
) -> dict[str, Tensor]:
    """For each node of one term its tensor without expert labels, by the node's name."""
    live = {
        part.node.name: _fixed(part, network, parts, generator).to(matrix) for part in parts if part.role != "carrier"
    }
    carriers = [part for part in parts if part.role == "carrier"]
    bridges = [(part.live, live[part.node.name]) for part in parts if part.role == "bridge"]
    external = (*network.in_labels, *network.out_labels)
    grouped = torch.nn.functional.pad(matrix, (0, 0, 0, network.in_padding))
    grouped = grouped.reshape([network.sizes[label] for label in external])
    if full_carrier(network) is not None:
        live[carriers[0].node.name] = _whole(grouped, network, carriers[0], bridges)
    elif len(carriers) == 2:
        first, second = sorted(carriers, key=lambda part: network.in_labels[0] not in part.live)
        if covariance is not None and (network.in_padding or set(first.live) & set(external) != {*network.in_labels}):
            raise ValueError("input_covariance needs a network that has the whole input on one node; leave it out")
        live[first.node.name], live[second.node.name] = solve_pair(
            (external, grouped),
            first.live,
            second.live,
            network,
            bridges=bridges,
            covariance=covariance,
            generator=generator,
        )
    elif covariance is not None:
        raise ValueError(
            f"input_covariance needs a network of two carriers, but {len(carriers)} nodes of this one hold labels of "
            "input or output; leave it out"
        )
    else:
        live |= _in_turn((external, grouped), network, parts, generator)
    return {part.node.name: _embed(live[part.node.name], part, network, generator) for part in parts}


def _in_turn(
    target: Named, network: TensorNetwork, parts: Sequence[Part], generator: torch.Generator | None
) -> dict[str, Tensor]:
    """Carriers and bridges, each split off the rest by a truncated decomposition, and all given the same norm.

    For a tensor train, this is the algorithm of Oseledets 2011: exact where the ranks suffice, and otherwise within
    the root of the number of splits of the best.
    """
    inner = [part for part in parts if part.role != "end"]
    values: dict[str, Tensor] = {}
    for number, part in enumerate(inner[:-1]):
        later = {label for other in inner[number + 1 :] for label in other.live}
        known = target[0]
        bonds = tuple(label for label in part.live if label not in known and label in later)
        rest = (*(label for label in known if label in later), *bonds)
        one, other = solve_pair(target, part.live, rest, network, generator=generator, balanced=False)
        values[part.node.name], target = one, (rest, other)
    last = inner[-1]
    values[last.node.name] = target[1].permute([target[0].index(label) for label in last.live])
    norms = {name: torch.linalg.vector_norm(value) for name, value in values.items()}
    if not all(norms.values()):
        return values
    mean = torch.stack(list(norms.values())).log().mean().exp()
    return {name: value * (mean / norms[name]) for name, value in values.items()}


def _fixed(part: Part, network: TensorNetwork, parts: Sequence[Part], generator: torch.Generator | None) -> Tensor:
    """What an end or a bridge holds, over its live labels: 1 along most, and the identity from bond to bond."""
    sizes = [network.sizes[label] for label in part.live]
    if part.role == "end":
        values = torch.ones(sizes, dtype=torch.float64)
        if part.closes is not None:
            values.narrow(part.live.index(part.closes), 1, sizes[part.live.index(part.closes)] - 1).zero_()
        return values
    inner = [other for other in parts if other.role != "end" and other is not part]
    bonds = [b for b in part.live if b in network.bonds and sum(b in other.live for other in inner) == 1]
    if len(bonds) != 2:  # where several bonds meet, generic values keep as much rank as there can be
        return torch.randn(sizes, generator=generator, dtype=torch.float64)
    first, second = (part.live.index(bond) for bond in bonds)
    identity = torch.eye(sizes[first], sizes[second], dtype=torch.float64)
    shape = [size if axis in (first, second) else 1 for axis, size in enumerate(sizes)]
    return identity.reshape(shape).expand(sizes).clone()


def _whole(
    grouped: Tensor, network: TensorNetwork, part: Part, bridges: Sequence[tuple[tuple[str, ...], Tensor]]
) -> Tensor:
    """The smallest tensor of a node that holds the whole matrix, over its live labels."""
    external = (*network.in_labels, *network.out_labels)
    bonds = tuple(label for label in part.live if label not in external)
    order = (*external, *bonds)
    environment = grouped.new_ones([network.sizes[label] for label in order])
    environment = environment * contract(bridges, order, network)
    grouped = grouped.reshape([*grouped.shape, *[1] * len(bonds)])
    square = environment.square()
    values = (
        grouped * environment / (square.sum(tuple(range(len(external), len(order))), keepdim=True) if bonds else square)
    )
    return values.permute([order.index(label) for label in part.live])


def _embed(values: Tensor, part: Part, network: TensorNetwork, generator: torch.Generator | None) -> Tensor:
    """A node's tensor over all its labels but the experts': at later entries of its idle bonds it varies at random.

    Those entries have no effect as long as all experts are equal. They are the directions in which experts can differ.
    """
    idle = [network.sizes[label] for label in part.idle]
    random = torch.randn([*idle, *values.shape], generator=generator, dtype=torch.float64).to(values)
    if part.closes is None:
        full = values * random
    else:  # the bond that it closes would choose its first entry here too
        full = random * network.sizes[part.closes] ** -0.5
    full[(0,) * len(idle)] = values
    order = (*part.idle, *part.live)
    return full.permute([order.index(label) for label in part.labels])


def _spread(
    values: dict[str, Tensor],
    network: TensorNetwork,
    parts: Sequence[Part],
    noise: float,
    generator: torch.Generator | None,
    spare: bool,
) -> dict[str, Tensor]:
    """The nodes' tensors with all labels: for each expert mode one node varies, with a mean of zero over the experts.

    A spare term is zero but for what varies.
    """
    varied: set[str] = set()
    tensors: dict[str, Tensor] = {}
    for part in parts:
        labels, name = part.node.labels, part.node.name
        axes = [axis for axis, label in enumerate(labels) if label in network.expert_labels]
        sizes = [network.sizes[label] for label in labels]
        base = values[name].reshape([1 if axis in axes else size for axis, size in enumerate(sizes)])
        fresh = [axis for axis in axes if labels[axis] not in varied]
        tensor = base.expand(sizes).clone()
        if fresh:
            shape = [1 if axis in axes and axis not in fresh else size for axis, size in enumerate(sizes)]
            random = torch.randn(shape, generator=generator, dtype=torch.float64).to(base) * noise
            if part.closes is None:
                random = random * base
            else:
                random = random * network.sizes[part.closes] ** -0.5
                for label in part.idle:
                    axis = labels.index(label)
                    random.narrow(axis, 1, sizes[axis] - 1).zero_()
            random = random - random.mean(fresh, keepdim=True)
            tensor = random.expand(sizes).clone() if spare and not varied else tensor + random
            varied |= {labels[axis] for axis in fresh}
        tensors[name] = tensor.contiguous()
    if spare and not varied:
        last = [part.node.name for part in parts if part.role == "carrier"][-1]
        tensors[last].zero_()
    return tensors
