"""An expert tensor whose parameters are spread over ranks.

Legend: ``*batch`` any leading shape, ``I`` in_features, ``O`` out_features, ``N_k`` experts of mode k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from factorized_moe._validation import check_call
from factorized_moe.contraction import ContractionPlan
from factorized_moe.parallel.moves import Group
from factorized_moe.parallel.placing import WHOLE, share
from factorized_moe.parallel.replaying import execute_split
from factorized_moe.parallel.splitting import SplitPlan
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = ["ShardedExpertTensor", "spread"]


class ShardedExpertTensor(FactorizedExpertTensor):
    """A `FactorizedExpertTensor` after `factorized_moe.parallel.shard`: each rank holds a piece of its parameters.

    Names, shapes and values are those of the whole tensor: the parameters are ``DTensor``s. Calls take and return plain
    tensors. ``to_dense`` and ``expert`` put the parameters together, on all ranks at once.

    Attributes:
        split: Where each value lies, and what is sent, a `factorized_moe.parallel.SplitPlan`.
        group: The ranks.
    """

    split: SplitPlan
    group: Group

    def forward(self, x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        """As the whole tensor's, on every rank.

        Args:
            x: The input, ``(*batch, I)``, equal on all ranks; in a block that is cut along its hidden values, this
                rank's columns of it.
            coefficients: For each expert mode a tensor ``(*batch, N_k)``, equal on all ranks.

        Returns:
            The output, ``(*batch, O)``, or in such a block this rank's columns of it.

        Raises:
            TypeError: If dtypes or devices differ, or the coefficients are not a sequence of tensors.
            ValueError: If a shape does not fit.
        """
        nodes = [_local(operand) for operand in self.weight().operands]
        split, ranks, rank = self.split, self.group.ranks, self.group.rank
        columns = self.in_features if split.input_layout == WHOLE else share(self.in_features, ranks, rank)
        check_call(x, coefficients, columns, self.expert_dims, nodes[0])
        batch = x.shape[:-1]
        rows = [tensor.reshape(-1, tensor.shape[-1]) for tensor in (x, *coefficients)]
        answer = self._replay((*nodes, *rows))
        if x.ndim == 2 and answer.ndim == 2:
            return answer
        outputs = self.out_features if split.answer == WHOLE else share(self.out_features, ranks, rank)
        return answer.reshape(*batch, outputs)

    def _replay(self, operands: tuple[Tensor, ...]) -> Tensor:
        if self.checkpoint and torch.is_grad_enabled():
            answer: Tensor = torch.utils.checkpoint.checkpoint(
                execute_split, self.split, operands, self.group, use_reentrant=False, preserve_rng_state=False
            )
            return answer
        return execute_split(self.split, operands, self.group)

    def plan(self, batch_size: int | None = None, **options: Any) -> ContractionPlan:
        """As the whole tensor's, without the options that plan anew: that is to be done before `shard`.

        Raises:
            ValueError: If an option is given, or the batch size is out of range.
        """
        if options:
            raise ValueError(f"{sorted(options)} would plan a sharded tensor anew; plan it before it is sharded")
        return super().plan(batch_size)


def spread(tensor: FactorizedExpertTensor, split: SplitPlan, mesh: DeviceMesh) -> None:
    """Turn the parameters of an expert tensor into ``DTensor``s, in place, as a split plan says.

    The values are those of the mesh's first rank; on the meta device nothing is sent.
    """
    labels = {node.parameter: node.labels for node in tensor.network.nodes}
    for name, label in split.stored:
        parameter = tensor.weight._parameters[name]
        assert parameter is not None  # a network's parameters are all there
        place = [Shard(labels[name].index(label)) if label else Replicate()]
        source = None if parameter.is_meta else 0  # of the mesh: its first rank's values
        piece = distribute_tensor(parameter.detach(), mesh, place, src_data_rank=source)
        tensor.weight._parameters[name] = nn.Parameter(piece, requires_grad=parameter.requires_grad)
    tensor.__class__ = ShardedExpertTensor
    assert isinstance(tensor, ShardedExpertTensor)
    tensor.split = split
    group = mesh.get_group()
    tensor.group = Group(group.group_name, mesh.size(), mesh.get_local_rank())


def _local(operand: Tensor) -> Tensor:
    return operand.to_local() if isinstance(operand, DTensor) else operand
