"""The base of every layer of experts: factorised expert tensors behind one gate.

Legend: ``*batch`` any leading shape, ``I`` in_features, ``O`` out_features, ``N_k`` experts of mode k.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe._validation import check_expert_dims, check_flag, check_size
from factorized_moe.budgets import Budget, SizeLike
from factorized_moe.decompositions import Decomposition
from factorized_moe.decompositions.base import Initialisation
from factorized_moe.gating import ExpertGate
from factorized_moe.layers.summary import summary_html
from factorized_moe.network import TensorNetwork
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = ["ExpertLayer"]


class ExpertLayer(nn.Module):
    """The base of every layer of experts: expert tensors of the same experts, and one gate that mixes them.

    What records, intervenes on, trains, saves or describes a layer asks this class and no other, so a subclass of your
    own gets all of it. It names its tensors, writes ``forward``, and says in `own_arguments` what its constructor takes
    beside ``expert_dims``, ``decomposition``, ``rank`` and the options below.

    Args:
        shapes: ``(I, O)`` of each expert tensor, by the name of its attribute, in the order of application. The first
            one's ``I`` is the gate's too.
        expert_dims: The number of experts of each expert mode.
        decomposition: A registered name or an instance; ``"cp"`` by default.
        rank: The rank of every tensor, as for `FactorizedExpertTensor`; a `Budget` is that of the whole layer.
        ranks: Other ranks of some tensors, by name.
        network: Any network, in place of sizes, decomposition and rank, where there is one tensor.
        in_features: ``I`` of the layer, which its gate and input norm read, where it is not the first tensor's.
        bias: Whether every expert has a bias.
        gate: The activation of the gate (a name such as ``"entmax15"``, or a function of logits), or a module that
            maps ``(*batch, I)`` to one coefficient tensor ``(*batch, N_k)`` for each expert mode.
        gate_norm: ``"batch"``, ``"layer"`` or ``None``: how the logits are normalised before the activation, as for
            `ExpertGate`. Ignored where ``gate`` is a module.
        gate_temperature: What the logits are divided by, as for `ExpertGate`. Ignored where ``gate`` is a module.
        gate_rank: The rank of the gate's weight, as for `ExpertGate`: worth trying with thousands of experts. It goes
            with an activation, not with a module.
        input_norm: Whether a ``LayerNorm`` is applied to the experts' input; the gate sees the input as it is.
        init: As for `FactorizedExpertTensor`.
        checkpoint: As for `FactorizedExpertTensor`: less memory in training, more time.
        sparse_coefficients: As for `FactorizedExpertTensor`: worth trying with thousands of experts.
        device: Where the parameters are.
        dtype: The parameters' type.

    Attributes:
        gate: The gate; its output is the tuple of coefficients, for hooks to read or change.
        input_norm: The ``LayerNorm`` of the experts' input, or None.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If one is out of range.

    Examples:
        >>> class Residual(ExpertLayer):
        ...     def __init__(self, features, expert_dims, decomposition="cp", rank=None, **options):
        ...         super().__init__({"experts": (features, features)}, expert_dims, decomposition, rank, **options)
        ...
        ...     def forward(self, x):
        ...         return x + self.experts(x, self.gate(x))
        ...
        ...     def own_arguments(self):
        ...         return {"features": self.experts.in_features}
        >>> layer = Residual(8, [4, 2], rank=3)
        >>> layer(torch.randn(5, 8)).shape, layer.expert_dims, list(layer.expert_tensors)
        (torch.Size([5, 8]), (4, 2), ['experts'])
    """

    gate: nn.Module
    input_norm: nn.LayerNorm | None
    _in_features: int | None = None  # of layers unpickled from before it was there, too

    def __init__(
        self,
        shapes: Mapping[str, tuple[int | None, int | None]],
        expert_dims: Sequence[int] | None,
        decomposition: str | Decomposition | None = None,
        rank: SizeLike | None = None,
        *,
        ranks: Mapping[str, SizeLike | None] = MappingProxyType({}),
        network: TensorNetwork | None = None,
        in_features: int | None = None,
        bias: bool = True,
        gate: str | Callable[[Tensor], Tensor] | nn.Module = "entmax15",
        gate_norm: str | None = "batch",
        gate_temperature: float = 2.0,
        gate_rank: int | None = None,
        input_norm: bool = False,
        init: str | Initialisation | None = None,
        checkpoint: bool = False,
        sparse_coefficients: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_names(type(self), shapes)
        check_flag("input_norm", input_norm)
        if isinstance(gate, nn.Module) and gate_rank is not None:
            raise ValueError(
                f"gate_rank={gate_rank} is for a gate that is made here, but gate is a module; leave it out"
            )
        if network is not None and len(shapes) != 1:
            raise ValueError(f"a network describes one expert tensor, but {type(self).__name__} has {list(shapes)}")
        if any(isinstance(own, Budget) for own in ranks.values()):
            raise TypeError("a budget is that of the whole layer: give it as rank, and no second rank")
        if isinstance(rank, Budget) and network is None:
            if any(own is not None for own in ranks.values()):
                raise ValueError("a budget gives all ranks of a layer; leave out the second rank, or give ranks alone")
            rank = _rank_within(rank, shapes, expert_dims, decomposition, bias, gate, gate_rank, input_norm)
        for name, (inputs, outputs) in shapes.items():
            own_rank = ranks.get(name)
            tensor = FactorizedExpertTensor(
                expert_dims,
                inputs,
                outputs,
                decomposition,
                rank if own_rank is None else own_rank,
                network=network,
                bias=bias,
                init=init,
                checkpoint=checkpoint,
                sparse_coefficients=sparse_coefficients,
                device=device,
                dtype=dtype,
            )
            self.add_module(name, tensor)
        self._in_features = None if in_features is None else check_size("in_features", in_features)
        features = self.in_features
        if isinstance(gate, nn.Module):
            self.gate = gate
        else:
            self.gate = ExpertGate(
                features,
                self.expert_dims,
                gate,
                gate_norm,
                temperature=gate_temperature,
                rank=gate_rank,
                device=device,
                dtype=dtype,
            )
        self.input_norm = nn.LayerNorm(features, device=device, dtype=dtype) if input_norm else None

    @property
    def expert_tensors(self) -> dict[str, FactorizedExpertTensor]:
        """The expert tensors by name, in the order of application."""
        return {name: part for name, part in self.named_children() if isinstance(part, FactorizedExpertTensor)}

    @property
    def expert_dims(self) -> tuple[int, ...]:
        """The sizes of the expert modes."""
        return next(iter(self.expert_tensors.values())).expert_dims

    @property
    def in_features(self) -> int:
        """``I``, of the gate, and of the first expert tensor unless the layer says another one."""
        own: int | None = self._in_features
        return next(iter(self.expert_tensors.values())).in_features if own is None else own

    @property
    def out_features(self) -> int:
        """``O``, of the last expert tensor."""
        return list(self.expert_tensors.values())[-1].out_features

    def own_arguments(self) -> dict[str, Any]:
        """The constructor's arguments that not every layer of experts takes, by name: sizes, second ranks, activations.

        A layer is saved with these and the shared ones, so a subclass with a constructor of its own has to say them.

        Returns:
            What JSON can hold, and modules for activations that `factorized_moe.surgery` can describe.
        """
        raise TypeError(f"{type(self).__name__} does not say its own_arguments, so it cannot be described or saved")

    def _repr_html_(self) -> str:
        return summary_html(self, self.expert_tensors, self.gate)

    def reset_parameters(self) -> None:
        """Fill all parameters anew, as after construction; a gate of your own too, if it has ``reset_parameters``."""
        for child in self.children():
            reset = getattr(child, "reset_parameters", None)
            if reset is not None:
                reset()


def _check_names(layer: type[ExpertLayer], shapes: Mapping[str, Any]) -> None:
    """Refuse a layer without an expert tensor, or one whose tensor would take the place of something else."""
    taken = {"gate", "input_norm", *dir(layer)}
    wrong = [name for name in shapes if not name.isidentifier() or name in taken]
    if wrong or not shapes:
        raise ValueError(
            f"{layer.__name__}: shapes has one entry or more, each under a name that the layer has no other use for, "
            f"such as 'experts'; got {wrong or 'none'}"
        )


def _rank_within(
    budget: Budget,
    shapes: Mapping[str, tuple[int | None, int | None]],
    expert_dims: Sequence[int] | None,
    decomposition: str | Decomposition | None,
    bias: bool,
    gate: object,
    gate_rank: int | None,
    input_norm: bool,
) -> SizeLike:
    """The rank that a budget gives all tensors of a layer."""
    linears = [(check_size("in_features", i), check_size("out_features", o)) for i, o in shapes.values()]
    own_gate = sum(p.numel() for p in gate.parameters()) if isinstance(gate, nn.Module) else None
    return budget.rank(
        check_expert_dims(expert_dims),
        linears,
        **({} if decomposition is None else {"decomposition": decomposition}),
        bias=bias,
        input_norm=input_norm,
        gate_parameters=own_gate,
        gate_rank=gate_rank,
    )
