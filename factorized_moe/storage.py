"""The one parameter container, a TensorLy-Torch ``FactorizedTensor``, and the ways to TensorLy and back.

This is the only module that imports ``tltorch``. Importing ``tltorch`` sets TensorLy's global backend to PyTorch;
nothing here depends on that backend: every call into TensorLy names its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tensorly
import torch
from tltorch.factorized_tensors.core import FactorizedTensor
from tltorch.tensor_hooks._tensor_dropout import TensorDropout
from torch import Tensor, nn

from factorized_moe._validation import check_countable
from factorized_moe.contraction import dense_tensor
from factorized_moe.contraction.fixed import fixed_tensors
from factorized_moe.decompositions import Decomposition, get_decomposition
from factorized_moe.decompositions.base import Initialisation
from factorized_moe.decompositions.registry import registered_decompositions
from factorized_moe.network import TensorNetwork
from factorized_moe.spread import agree_on_random_numbers, is_spread, like

__all__ = ["NetworkTensor", "Operands"]


@dataclass(frozen=True)
class Operands:
    """The tensors of a network's nodes, in order: what a forward hook on `NetworkTensor` may return."""

    operands: tuple[Tensor, ...]


class NetworkTensor(FactorizedTensor, name="network"):  # type: ignore[misc, call-arg]
    """The parameters of a network: one named parameter for each node, and a buffer for each fixed one.

    Calling it returns itself, through any forward hooks (TensorLy-Torch's way to add tensor dropout); read the
    nodes' tensors from the result's ``operands``.

    Args:
        network: The description.
        decomposition: Where the description comes from; needed for TensorLy's formats only.
        rank: The canonical rank, for information.
        device: Where the parameters are.
        dtype: Their type.

    Attributes:
        shape: The dense shape, ``(*expert_dims, I, O)``.

    Raises:
        ValueError: If a parameter's name is an attribute of every container, or it has more elements than torch counts.

    Examples:
        >>> from factorized_moe import FactorizedExpertTensor
        >>> w = FactorizedExpertTensor((8,), 16, 32, decomposition="cp", rank=4)
        >>> {name: tuple(p.shape) for name, p in w.weight.named_parameters()}
        {'expert_0': (8, 4), 'input': (16, 4), 'output': (4, 32)}
    """

    def __init__(
        self,
        network: TensorNetwork,
        decomposition: Decomposition | None = None,
        rank: Any = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.source = decomposition
        self.shape = network.shape
        self.order = len(network.shape)
        self.rank = rank
        self._operand_names = tuple(node.parameter for node in network.nodes)
        fixed = fixed_tensors(network)
        for name in (*network.parameter_shapes, *fixed):
            if hasattr(type(self), name) or name in self.__dict__:
                raise ValueError(f"a node's parameter cannot be named {name!r}, an attribute of its container; rename")
        for name, shape in network.parameter_shapes.items():
            check_countable(f"parameter {name!r}", shape)
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        for name, values in fixed.items():  # the description says what they are, so no state dict need hold them
            self.register_buffer(name, values.to(torch.empty((), device=device, dtype=dtype)), persistent=False)

    def __init_subclass__(cls, name: str = "", **kwargs: Any) -> None:
        if name:  # torch.nn.utils.parametrize makes subclasses that have no name and must not be registered
            super().__init_subclass__(name=name, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> NetworkTensor:
        """What every move of a module calls; ``to_empty`` leaves buffers without values."""
        super()._apply(fn, recurse)
        for name, values in fixed_tensors(self.network).items():
            if not self._buffers[name].is_meta:
                self._buffers[name] = values.to(self._buffers[name])
        return self

    @classmethod
    def new(
        cls, shape: tuple[int, ...], rank: Any, decomposition: str | Decomposition = "", **kwargs: Any
    ) -> NetworkTensor:
        """A container for a dense shape of two or more modes, its parameters initialised: TensorLy-Torch's way."""
        source = get_decomposition(decomposition)
        resolved = source.resolve_rank(rank, tuple(shape))
        network = source.network(tuple(shape[:-2]), shape[-2], shape[-1], resolved)
        tensor = NetworkTensor(network, source, resolved, **kwargs)
        with torch.no_grad():
            source.initialisations["variance_preserving"](tensor.network, tensor.tensors)
        return tensor

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The parameters by name; a shared one occurs once."""
        return {name: getattr(self, name) for name in self.network.parameter_shapes}

    @property
    def operands(self) -> tuple[Tensor, ...]:
        """The nodes' tensors, in the order of the network's nodes."""
        held = self._parameters  # a plain dictionary: five times faster than getattr, which goes through Module's
        try:
            return tuple([held[name] for name in self._operand_names])
        except KeyError:  # some are parametrized or pruned
            return tuple([getattr(self, name) for name in self._operand_names])

    @property
    def decomposition(self) -> Any:
        """TensorLy's tuple type, as TensorLy-Torch's containers give it."""
        return self.to_tensorly()

    def to_tensor(self) -> Tensor:
        """The dense tensor, ``(*expert_dims, I, O)``."""
        return dense_tensor(self.network, self.operands)

    def assign(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy values into all parameters.

        Args:
            tensors: One tensor for each parameter, by name, of the parameter's shape.

        Raises:
            ValueError: If names or shapes differ; nothing is copied then.
        """
        if tensors.keys() != self.tensors.keys():
            differing = sorted(tensors.keys() ^ self.tensors.keys())
            raise ValueError(f"names on one side only: {differing}; the parameters are {sorted(self.tensors)}")
        for name, parameter in self.tensors.items():
            if tensors[name].shape != parameter.shape:
                raise ValueError(
                    f"{name!r} has shape {tuple(tensors[name].shape)}, its parameter {tuple(parameter.shape)}"
                )
        with torch.no_grad():
            for name, parameter in self.tensors.items():
                if name in self._parameters:
                    parameter.copy_(like(tensors[name], parameter))
                else:  # parametrized: torch finds the parameters behind the value
                    setattr(self, name, tensors[name].detach())

    @torch.no_grad()
    def fill(self, init: Initialisation) -> None:
        """Fill the parameters by an initialisation.

        Parameters that are spread over ranks get the values that one process would have: every rank fills whole tensors
        by the random numbers of the first rank, one expert tensor at a time, and keeps its pieces.

        Args:
            init: The initialisation.
        """
        tensors = self.tensors
        spread = [tensor for tensor in tensors.values() if is_spread(tensor) and not tensor.is_meta]
        if spread:
            agree_on_random_numbers(spread[0])
            tensors = {
                name: torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
                for name, tensor in tensors.items()
            }
        init(self.network, tensors)
        self.assign(tensors)  # of a parametrized one, ``tensors`` holds a computed value

    def to_tensorly(self) -> Any:
        """TensorLy's own tuple type (``CPTensor``, ``TuckerTensor``, ``TTTensor``, ``TRTensor``), sharing memory.

        Raises:
            TypeError: If TensorLy has no type for this decomposition.
        """
        source = self._known_source()
        with tensorly.backend_context("pytorch", local_threadsafe=True):
            return source.to_tensorly(self.tensors)

    def to_tltorch(self) -> FactorizedTensor:
        """TensorLy-Torch's own container, sharing memory where its parameters have the same layout.

        Raises:
            TypeError: If TensorLy-Torch has no such container.
        """
        source = self._known_source()
        if source.tltorch_name is None:
            raise TypeError(f"TensorLy-Torch has no factorisation like {type(source).__name__}")
        with tensorly.backend_context("pytorch", local_threadsafe=True):
            parts = source.tltorch_arguments(source.to_tensorly(self.tensors))
            kind = FactorizedTensor._factorizations[source.tltorch_name]
            return kind(*(_as_parameters(part) for part in parts))

    def _known_source(self) -> Decomposition:
        if self.source is None:
            raise TypeError("a hand-written network has no TensorLy format")
        return self.source

    def __repr__(self) -> str:
        return f"NetworkTensor({self.network})"


def _as_parameters(part: Any) -> Any:
    if isinstance(part, Tensor):
        return part if isinstance(part, nn.Parameter) else nn.Parameter(part.detach())
    return [_as_parameters(element) for element in part]


class NetworkTensorDropout(TensorDropout, factorization=NetworkTensor):  # type: ignore[misc, call-arg]
    """Tensor dropout on the bonds, registered with ``tltorch.tensor_hooks.tensor_dropout(layer.weight, p)``.

    Each value of each bond longer than ``min_dim`` is dropped with probability p, and the rest scaled by
    ``1 / (1 - p)``, so that the dense tensor's mean is kept. The mask has a fixed shape, so it compiles.
    """

    def _apply_tensor_dropout(self, tensor: NetworkTensor, training: bool = True) -> NetworkTensor | Operands:
        if not self.proba or not (training or self.drop_test):
            return tensor
        operands = list(tensor.operands)
        start = 0
        for term in tensor.network.terms:
            bonds = {bond for bond in tensor.network.bonds if tensor.network.sizes[bond] > self.min_dim}
            for position, node in enumerate(term, start=start):
                for axis, label in enumerate(node.labels):
                    if label in bonds:  # once for each bond: on the first node that carries it
                        bonds.remove(label)
                        operands[position] = self._drop(operands[position], axis)
            start += len(term)
        return Operands(tuple(operands))

    def _drop(self, operand: Tensor, axis: int) -> Tensor:
        kept = torch.rand(operand.shape[axis], device=operand.device) >= self.proba
        mask = kept.to(operand.dtype) / (1.0 - float(self.proba))
        dropped: Tensor = operand * mask.reshape([-1 if k == axis else 1 for k in range(operand.ndim)])
        return dropped


def _complete_tltorch() -> None:
    """Give TensorLy-Torch's registry the decompositions it lacks, such as the tensor ring; never replace one.

    Its registry replaces silently, so only free names are used.
    """
    for name in registered_decompositions():
        if name not in FactorizedTensor._factorizations:

            class Registered(NetworkTensor, name=name):
                _source_name = name

                @classmethod
                def new(cls, shape: tuple[int, ...], rank: Any = "same", **kwargs: Any) -> NetworkTensor:  # type: ignore[override]
                    return NetworkTensor.new(shape, rank, cls._source_name, **kwargs)


_complete_tltorch()
