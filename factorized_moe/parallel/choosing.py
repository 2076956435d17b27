"""Which label each expert tensor of a module is cut along: as asked for, or the cheapest.

Legend: ``p`` ranks; in a block, the *hidden values* are what its first tensors give and its second one takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from factorized_moe.contraction import ContractionPlan
from factorized_moe.layers import GatedMuMoEBlock, MuMoEBlock
from factorized_moe.parallel.machine import Machine
from factorized_moe.parallel.splitting import SplitPlan, single_label, split_plan
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = ["Choice", "choose", "tensor_choices"]

EACH = "each"
"""A label for each node, the cheapest ones together."""

PAIR = "pair"
"""In a block: the first tensors along their output, the second along its input; hidden values are never whole."""


@dataclass(frozen=True)
class Choice:
    """An expert tensor, by its path in the module, and how it is to be cut.

    Attributes:
        path: The path.
        label: The label, ``"each"`` where every node has one of its own, with ``"pair"`` where hidden values stay cut.
        split: The plan.
    """

    path: str
    label: str
    split: SplitPlan


def tensor_choices(
    plan: ContractionPlan, ranks: int, machine: Machine, *, input_split: bool = False, output_split: bool = False
) -> dict[str, SplitPlan]:
    """Every way to cut one tensor: along each of its labels, and with a label for each node.

    Args:
        plan: The tensor's plan, at the batch size to weigh costs for.
        ranks: ``p``.
        machine: What costs are weighed by.
        input_split: As for `factorized_moe.parallel.split_plan`.
        output_split: As for it.
    """
    stored = {label: single_label(plan, label) for label in plan.network.sizes}
    options = {"input_split": input_split, "output_split": output_split, "machine": machine}
    found = {label: split_plan(plan, ranks, labels, **options) for label, labels in stored.items()}  # type: ignore[arg-type]
    found[EACH] = split_plan(plan, ranks, **options)  # type: ignore[arg-type]
    return {label: split for label, split in found.items() if split is not None}


def choose(
    module: nn.Module,
    tensors: Mapping[str, FactorizedExpertTensor],
    ranks: int,
    label: str | Mapping[str, str],
    tokens: int,
    machine: Machine,
) -> list[Choice]:
    """How each expert tensor of a module is to be cut.

    Args:
        module: The module.
        tensors: Its expert tensors by their paths.
        ranks: ``p``.
        label: As for `factorized_moe.parallel.shard`.
        tokens: The batch size to weigh costs for.
        machine: What costs are weighed by.

    Raises:
        ValueError: If a label or a path is unknown, or a pair is asked for where there is none.
    """
    plans = {path: tensor.plan(tokens) for path, tensor in tensors.items()}
    if isinstance(label, Mapping):
        unknown = sorted(label.keys() - tensors.keys())
        if unknown:
            raise ValueError(f"label names {unknown}, but the module's expert tensors are {sorted(tensors)}")
        return [_single(path, plans[path], label.get(path, "auto"), ranks, machine) for path in tensors]
    blocks = _blocks(module, tensors)
    if label == PAIR:
        alone = sorted(tensors.keys() - {path for block in blocks for path in block.paths})
        if alone or not all(block.elementwise for block in blocks):
            raise ValueError(
                f"label='pair' is for blocks whose activation acts on each value alone, but there is "
                f"{alone or 'another activation'}; name a label, or take 'auto'"
            )
    if label not in ("auto", PAIR):
        return [_single(path, plan, label, ranks, machine) for path, plan in plans.items()]
    found: dict[str, Choice] = {}
    for block in blocks:
        found |= _of_block(block, plans, ranks, label == PAIR, machine)
    return [found.get(path) or _single(path, plan, "auto", ranks, machine) for path, plan in plans.items()]


@dataclass(frozen=True)
class _Block:
    """The tensors of a block by their paths, and whether its activation can be applied to pieces."""

    enter: tuple[str, ...]
    leave: str
    elementwise: bool

    @property
    def paths(self) -> tuple[str, ...]:
        return (*self.enter, self.leave)


def _blocks(module: nn.Module, tensors: Mapping[str, FactorizedExpertTensor]) -> list[_Block]:
    paths = {id(tensor): path for path, tensor in tensors.items()}
    found = []
    for part in module.modules():
        if isinstance(part, MuMoEBlock | GatedMuMoEBlock):
            first = [part.first, part.multiplier] if isinstance(part, GatedMuMoEBlock) else [part.first]
            enter = tuple(paths[id(tensor)] for tensor in first)
            found.append(_Block(enter, paths[id(part.second)], _is_elementwise(part.activation)))
    return found


def _is_elementwise(activation: Callable[[Tensor], Tensor]) -> bool:
    """Whether an activation gives for a piece what it gives for that piece of the whole."""
    values = torch.linspace(-4.0, 4.0, 12).reshape(2, 6)
    try:
        with torch.no_grad():
            whole = activation(values)
            pieces = [activation(piece.contiguous()) for piece in values.split([4, 2], dim=1)]
    except (RuntimeError, ValueError, TypeError, IndexError):  # of a fixed width, or on another device
        return False
    return isinstance(whole, Tensor) and torch.allclose(whole, torch.cat(pieces, 1), rtol=1e-6, atol=0.0)


def _single(path: str, plan: ContractionPlan, label: str, ranks: int, machine: Machine) -> Choice:
    if label == "auto":
        best = _cheapest(tensor_choices(plan, ranks, machine), machine)
        assert best is not None  # a label is always there
        return Choice(path, *best)
    try:
        stored = None if label == EACH else single_label(plan, label)
    except ValueError as error:
        raise ValueError(f"expert tensor {path!r}: {error}, or 'auto', 'each' and in a block 'pair'") from error
    split = split_plan(plan, ranks, stored, machine=machine)
    assert split is not None  # only split inputs and outputs can be impossible
    return Choice(path, label, split)


def _cheapest(splits: Mapping[str, SplitPlan], machine: Machine) -> tuple[str, SplitPlan] | None:
    return min(splits.items(), key=lambda item: item[1].seconds(machine), default=None)


def _of_block(
    block: _Block, plans: Mapping[str, ContractionPlan], ranks: int, pair: bool, machine: Machine
) -> dict[str, Choice]:
    best: tuple[float, dict[str, Choice]] | None = None
    for hidden_split in [True] if pair else [False, True] if block.elementwise else [False]:
        chosen: dict[str, Choice] = {}
        for path in block.paths:
            first = path in block.enter
            splits = tensor_choices(
                plans[path],
                ranks,
                machine,
                input_split=hidden_split and not first,
                output_split=hidden_split and first,
            )
            if pair:
                network = plans[path].network
                end = (network.out_labels if first else network.in_labels)[0]
                splits = {label: split for label, split in splits.items() if label == end}
            cheapest = _cheapest(splits, machine)
            if cheapest is not None:
                chosen[path] = Choice(
                    path, f"{cheapest[0]}, hidden values cut" if hidden_split else cheapest[0], cheapest[1]
                )
        if len(chosen) == len(block.paths):
            cost = sum(choice.split.seconds(machine) for choice in chosen.values())
            if best is None or cost < best[0]:
                best = cost, chosen
    if best is None:
        raise ValueError(
            f"label='pair': the hidden values of {block.paths} cannot stay cut, as their mode is a group of labels"
        )
    return best[1]
