"""`shard`: the expert tensors of a module, cut over the ranks of a device mesh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.distributed
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, distribute_tensor

from factorized_moe._validation import check_kind, check_size
from factorized_moe.batch_statistics import GateBatchNorm
from factorized_moe.layers import ExpertLayer
from factorized_moe.parallel.choosing import choose
from factorized_moe.parallel.machine import Machine
from factorized_moe.parallel.shard_report import ShardReport
from factorized_moe.parallel.sharded_tensor import ShardedExpertTensor, spread
from factorized_moe.spread import is_spread
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = ["shard", "shards_of", "synchronise_gates"]

ACCELERATOR = Machine(flops_per_second=3e14, bytes_per_second=2e11, latency=2e-5, bytes_per_element=2)
"""A data-centre GPU in bfloat16 with fast links, from data sheets; nothing was measured on one."""


def shard(
    module: nn.Module,
    mesh: DeviceMesh,
    label: str | Mapping[str, str] = "auto",
    *,
    tokens: int = 4096,
    machine: Machine | None = None,
) -> ShardReport:
    """Cut the parameters of every expert tensor in a module over the ranks of a mesh, in place.

    The parameters become ``DTensor``s, under the same names in the state dict. Calls take and return plain tensors that
    are equal on all ranks, so nothing around the experts changes. Values are those of the mesh's first rank. Shard
    before ``fully_shard``, before compiling, and before an optimiser is made.

    Args:
        module: An expert tensor, a layer, or any model that has some.
        mesh: A mesh of one dimension, or one dimension of a mesh, ``mesh["tp"]``.
        label: ``"auto"`` for the cheapest. The name of a label that every tensor's network has: ``"rank"``, ``"out"``,
            ``"expert_0"``. ``"each"`` for a label for each node. ``"pair"`` for blocks: the first tensors along their
            output, the second along its input. Or one of these, without the last, for each tensor by its path;
            a tensor that is left out gets the cheapest.
        tokens: The number of samples to weigh computing and sending for.
        machine: What they are weighed by; rough figures of a CPU or a GPU by default.

    Returns:
        What was chosen, and what it costs on each rank.

    Raises:
        TypeError: If the module is no module, or the mesh no ``DeviceMesh``.
        ValueError: If the mesh has several dimensions, the module has no expert tensor, or one that cannot be sharded,
            such as one with fixed nodes, or a label is unknown.
    """
    if not isinstance(mesh, DeviceMesh):
        raise TypeError(f"shard: mesh is a torch.distributed.device_mesh.DeviceMesh, got {type(mesh).__name__}")
    if mesh.ndim != 1:
        raise ValueError(
            f"shard: a mesh of one dimension was expected, got {mesh.ndim}; give one of them, such as mesh['tp']"
        )
    tensors = _tensors(module)
    for path, tensor in tensors.items():
        _check(path, tensor)
    default = Machine() if mesh.device_type == "cpu" else ACCELERATOR
    machine = _of_type(default, tensors) if machine is None else machine
    report = _report(module, tensors, mesh.size(), label, tokens, machine)
    for choice in report.choices:
        spread(tensors[choice.path], choice.split, mesh)
    for part in module.modules():
        if isinstance(part, ExpertLayer):
            _take_from_first(part, mesh)
    if mesh.size() == torch.distributed.get_world_size():  # else other ranks have other batches
        for part in module.modules():
            if isinstance(part, GateBatchNorm):
                part.equal_batches = True
    return report


def shards_of(
    module: nn.Module,
    ranks: int,
    label: str | Mapping[str, str] = "auto",
    *,
    tokens: int = 4096,
    machine: Machine | None = None,
) -> ShardReport:
    """What `shard` would choose, from the description alone: no process group, and a module on the meta device.

    Args:
        module: As for `shard`.
        ranks: How many ranks.
        label: As for `shard`.
        tokens: As for `shard`.
        machine: As for `shard`; a CPU's figures by default.

    Raises:
        TypeError: If the module is no module, or the machine no `Machine`.
        ValueError: As for `shard`.

    Examples:
        >>> from factorized_moe import CPMuMoE
        >>> shards_of(CPMuMoE(64, 32, [8], rank=16, device="meta"), 2, "rank", tokens=100)
        2 ranks, 100 tokens, per rank:
          tensor   label  parameters    FLOPs  bytes forward  bytes backward  collectives  est. ms
          experts  rank          840  168,800         12,800          28,800            2     0.45
    """
    ranks = check_size("ranks", ranks)
    tensors = _tensors(module)
    for path, tensor in tensors.items():
        _check_learned(path, tensor)
    return _report(module, tensors, ranks, label, tokens, _of_type(Machine(), tensors) if machine is None else machine)


def synchronise_gates(module: nn.Module, group: torch.distributed.ProcessGroup | None = None) -> int:
    """Let gates with batch statistics normalise over the batches of all ranks, in place.

    Gradients and running averages are then those of one process with the whole batch. Statistics are float32 at least,
    on any device; ``DistributedDataParallel`` takes such a model on CPU too. After this, every rank has to call the
    gates equally often while training.

    Args:
        module: The model.
        group: The ranks whose batches are one; all by default. Of a two-dimensional mesh, the group of its data
            dimension.

    Returns:
        How many gates it has with batch statistics.

    Raises:
        TypeError: If the module is no module.

    Examples:
        >>> from factorized_moe import CPMuMoE
        >>> synchronise_gates(CPMuMoE(64, 32, [8], rank=16, gate_norm="batch"))
        1
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"synchronise_gates: a torch module was expected, got {type(module).__name__}")
    gates = [part for part in module.modules() if isinstance(part, GateBatchNorm)]
    for gate in gates:
        gate.over_ranks, gate.process_group = True, group
    return len(gates)


def _report(
    module: nn.Module,
    tensors: Mapping[str, FactorizedExpertTensor],
    ranks: int,
    label: str | Mapping[str, str],
    tokens: int,
    machine: Machine,
) -> ShardReport:
    check_kind("machine", machine, Machine)
    check_size("tokens", tokens)
    return ShardReport(tuple(choose(module, tensors, ranks, label, tokens, machine)), machine)


def _of_type(machine: Machine, tensors: Mapping[str, FactorizedExpertTensor]) -> Machine:
    size = next(next(iter(tensor.weight.parameters())).element_size() for tensor in tensors.values())
    return replace(machine, bytes_per_element=size)


def _tensors(module: nn.Module) -> dict[str, FactorizedExpertTensor]:
    if not isinstance(module, nn.Module):
        raise TypeError(f"shard: a torch module was expected, got {type(module).__name__}")
    found = {path: part for path, part in module.named_modules() if isinstance(part, FactorizedExpertTensor)}
    if not found:
        raise ValueError(
            f"shard: {type(module).__name__} has no FactorizedExpertTensor; put layers of experts in first"
        )
    return found


@torch.no_grad()
def _take_from_first(layer: ExpertLayer, mesh: DeviceMesh) -> None:
    """Give what all ranks hold of a layer the values of the mesh's first rank.

    A gate starts at random where it has a rank or a start other than zero. With ranks that were seeded apart each would
    mix the experts by coefficients of its own, and what they send one another would belong to different outputs.
    """
    for held in (*layer.parameters(), *layer.buffers()):
        if not is_spread(held) and not held.is_meta:
            given = distribute_tensor(held.detach(), mesh, [Replicate()], src_data_rank=0)
            held.copy_(given.to_local())


def _check_learned(path: str, tensor: FactorizedExpertTensor) -> None:
    if fixed := [node.name for node in tensor.network.nodes if node.fixed is not None]:
        raise ValueError(f"shard: nodes {fixed} of expert tensor {path!r} are fixed, which cannot be sharded")


def _check(path: str, tensor: FactorizedExpertTensor) -> None:
    if isinstance(tensor, ShardedExpertTensor):
        raise ValueError(f"shard: expert tensor {path!r} is sharded already")
    if type(tensor) is not FactorizedExpertTensor:
        raise ValueError(
            f"shard: expert tensor {path!r} is a {type(tensor).__name__}; shard it before fully_shard, and only "
            "FactorizedExpertTensor itself"
        )
    _check_learned(path, tensor)
    computed = sorted(tensor.weight.tensors.keys() - tensor.weight._parameters.keys())
    if computed or tensor.weight._forward_hooks:
        given = f"computes {computed} from other parameters" if computed else "has a forward hook, such as dropout"
        raise ValueError(f"shard: the weight of expert tensor {path!r} {given}; take that away before sharding")
