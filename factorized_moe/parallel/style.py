"""Sharded experts in torch's plans of tensor parallelism."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ParallelStyle
from torch.distributed.tensor.placement_types import Placement

from factorized_moe.parallel.machine import Machine
from factorized_moe.parallel.shard_report import ShardReport
from factorized_moe.parallel.sharding import shard

__all__ = ["ShardExperts"]


class ShardExperts(ParallelStyle):
    """`factorized_moe.parallel.shard` as a style for ``torch.distributed.tensor.parallel.parallelize_module``.

    Args:
        label: As for `shard`.
        input_layout: How the layer's input comes: ``Replicate()`` (equal on all ranks), or ``Shard(dim)`` where ranks
            hold pieces of it, such as of a sequence; then it is gathered first.
        output_layout: How the output is to leave.
        use_local_output: Whether it leaves as a plain tensor, not as a ``DTensor``.
        tokens: As for `shard`.
        machine: As for `shard`.

    Attributes:
        report: What was chosen, after the style has been applied.

    Examples:
        In a model whose layers have blocks of experts named ``mlp``:

        >>> from torch.distributed.tensor import Shard
        >>> plan = {"layers.*.mlp": ShardExperts(input_layout=Shard(1), output_layout=Shard(1))}
    """

    def __init__(
        self,
        label: str | Mapping[str, str] = "auto",
        *,
        input_layout: Placement | None = None,
        output_layout: Placement | None = None,
        use_local_output: bool = True,
        tokens: int = 4096,
        machine: Machine | None = None,
    ) -> None:
        super().__init__()
        self.label, self.tokens, self.machine = label, tokens, machine
        self.input_layout = input_layout or Replicate()
        self.output_layout = output_layout or Replicate()
        self.use_local_output = use_local_output
        self.report: ShardReport | None = None

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        self.report = shard(module, device_mesh, self.label, tokens=self.tokens, machine=self.machine)

        def before(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            x, *others = given
            spread = x if isinstance(x, DTensor) else DTensor.from_local(x, device_mesh, [self.input_layout])
            return spread.redistribute(placements=[Replicate()]).to_local(), *others

        def after(_: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
            spread = DTensor.from_local(output, device_mesh, [Replicate()], run_check=False)
            spread = spread.redistribute(placements=[self.output_layout])
            return spread.to_local() if self.use_local_output else spread

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)
        return module
