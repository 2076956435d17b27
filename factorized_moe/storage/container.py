"""The parameters of a network as a TensorLy-Torch ``FactorizedTensor``, and the ways to TensorLy and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorly
import torch
from tltorch.factorized_tensors.core import FactorizedTensor
from tltorch.tensor_hooks._tensor_lasso import TensorLasso
from torch import Tensor, nn

from factorized_moe._scalars import is_number
from factorized_moe._validation import check_countable
from factorized_moe.contraction import dense_tensor
from factorized_moe.contraction.fixed import fixed_tensors
from factorized_moe.decompositions import Decomposition, get_decomposition, name_of
from factorized_moe.decompositions.base import GivenNetwork, Initialisation
from factorized_moe.decompositions.initialisation import fill_gaussian
from factorized_moe.decompositions.registry import registered_decompositions
from factorized_moe.fitting import fit
from factorized_moe.network import TensorNetwork
from factorized_moe.spread import agree_on_random_numbers, is_spread, like
from factorized_moe.storage.indexing import Index, index_network

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
        dtype: The parameters' type.

    Attributes:
        shape: The dense shape, ``(*expert_dims, I, O)``.
        name: The decomposition's name, as TensorLy-Torch's containers have it, until another one is set: some tools
            (TransformerLens) give every module of a model its name.

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
        self._name = "network" if decomposition is None else name_of(decomposition)
        self._given_name: str | None = None
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
        cls, shape: Sequence[int], rank: Any = "same", decomposition: str | Decomposition = "", **place: Any
    ) -> NetworkTensor:
        """A container for a dense shape, its parameters initialised: TensorLy-Torch's way.

        Args:
            shape: The dense shape, of two or more modes.
            rank: As for `FactorizedExpertTensor`.
            decomposition: A registered name or an instance.
            **place: ``device`` and ``dtype``.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If no decomposition is named, or the rank or the shape do not suit it.
        """
        source, shape = _chosen(decomposition), tuple(shape)
        if len(shape) < 2:
            raise ValueError(f"a network's tensor has two modes or more, got the shape {shape}")
        if place.pop("fixed_rank_modes", None) is not None:  # TensorLy-Torch's convolutions always give it
            raise ValueError(f"fixed_rank_modes is for TensorLy-Torch's Tucker alone; give {name_of(source)} a rank")
        resolved = source.resolve_rank(rank, shape)
        network = source.network(shape[:-2], shape[-2], shape[-1], resolved)
        tensor = NetworkTensor(network, source, resolved, **place)
        with torch.no_grad():
            source.initialisations["variance_preserving"](tensor.network, tensor.tensors)
        return tensor

    @classmethod
    def from_tensor(
        cls, tensor: Tensor, rank: Any = "same", decomposition: str | Decomposition = "", **options: Any
    ) -> NetworkTensor:
        """Fit a dense tensor: TensorLy-Torch's way to `factorized_moe.fitting.fit`.

        Args:
            tensor: The dense tensor, of two or more modes.
            rank: As for `FactorizedExpertTensor`.
            decomposition: A registered name or an instance.
            **options: As for `fit`.

        Raises:
            TypeError: As `fit`.
            ValueError: As `fit`, or if no decomposition is named.

        Examples:
            >>> from tltorch import FactorizedTensor
            >>> FactorizedTensor.from_tensor(torch.ones(3, 4, 5), rank=1, factorization="tr").rank
            (1, 1, 1, 1)
        """
        fitted = fit(tensor, _chosen(decomposition), rank, **options)
        values = next(iter(fitted.tensors.values()))
        made = NetworkTensor(fitted.network, fitted.decomposition, fitted.rank, values.device, values.dtype)
        made.assign(fitted.tensors)
        return made

    @classmethod
    def _holding(cls, network: TensorNetwork, operands: Sequence[Tensor], name: str) -> NetworkTensor:
        """A container of given tensors, through which gradients pass: buffers, as TensorLy-Torch's have them."""
        made = NetworkTensor(network, device="meta")
        for node, operand in zip(network.nodes, operands, strict=True):
            del made._parameters[node.parameter]
            made.register_buffer(node.parameter, operand, persistent=False)
        made._name = name
        return made

    def __getitem__(self, indices: Index | tuple[Index, ...]) -> NetworkTensor | Tensor:
        """The part of the dense tensor at some indices, still factorised; a tensor where fewer than two modes are left.

        Args:
            indices: For each mode from the first an int, a slice, or a list of ints; several lists choose their
                product, as in TensorLy-Torch.

        Raises:
            IndexError: If an index is out of range, or there are more than modes.
            TypeError: If an index is of another type.
            ValueError: If nothing is left, or a mode is one that the network splits over several labels.
        """
        found = index_network(self.network, self.operands, indices if isinstance(indices, tuple) else (indices,))
        return found if isinstance(found, Tensor) else self._holding(*found, self._name)

    def normal_(self, mean: float = 0.0, std: float = 1.0) -> NetworkTensor:
        """Fill the parameters so that the dense tensor's entries have mean 0 and a standard deviation.

        Args:
            mean: 0, as for TensorLy-Torch's containers.
            std: The standard deviation.

        Returns:
            Itself.

        Raises:
            ValueError: If the mean is not 0, or the standard deviation no positive number.
        """
        if mean != 0:
            raise ValueError(f"only a mean of 0 is possible for products of parameters, got {mean!r}")
        if not is_number(std) or not 0.0 < float(std) < float("inf"):
            raise ValueError(f"std is a positive number, got {std!r}")
        self.fill(lambda network, tensors: fill_gaussian(network, tensors, float(std) ** 2))
        return self

    def init_from_tensor(self, tensor: Tensor, **options: Any) -> NetworkTensor:
        """Fit the parameters to a dense tensor of this shape, by `factorized_moe.fitting.fit`.

        Args:
            tensor: The dense tensor.
            **options: As for `fit`.

        Returns:
            Itself.

        Raises:
            TypeError: As `fit`.
            ValueError: As `fit`, or if the tensor is of another shape.
        """
        if isinstance(tensor, Tensor) and tuple(tensor.shape) != tuple(self.shape):
            raise ValueError(f"the tensor has shape {tuple(tensor.shape)}, the container {tuple(self.shape)}")
        source, rank = self.source, self.rank
        if source is None or rank is None:
            source, rank = GivenNetwork(self.network), tuple(self.network.sizes[bond] for bond in self.network.bonds)
        self.assign(fit(tensor, source, rank, **options).tensors)
        return self

    def transduct(self, new_dim: int, mode: int = 0, new_factor: Tensor | None = None) -> NetworkTensor:
        """Refused: a network has the modes that its description gives.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            f"transduct: a NetworkTensor ({self._name}) has the modes of its network and takes no further one; make "
            "one of the larger shape and call init_from_tensor"
        )

    def register_forward_hook(self, hook: Callable[..., Any], **options: Any) -> Any:
        """As of every module, but a lasso of TensorLy-Torch's own containers is refused.

        Raises:
            TypeError: If the hook is a lasso for another container, which would fail in the next call.
        """
        if isinstance(hook, TensorLasso) and not isinstance(hook, TensorLasso._factorizations[NetworkTensor.__name__]):
            del self.lasso_weights
            raise TypeError(
                f"{type(hook).__name__} is for TensorLy-Torch's own containers; for this one, a network's, take "
                "TensorLasso.from_factorization(tensor)"
            )
        return super().register_forward_hook(hook, **options)

    @property
    def name(self) -> str:
        """The name that was set, or else the decomposition's."""
        return self._name if self._given_name is None else self._given_name

    @name.setter
    def name(self, name: str) -> None:
        self._given_name = name

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


def _chosen(decomposition: str | Decomposition) -> Decomposition:
    if decomposition == "":
        raise ValueError(
            f"'network' is every decomposition's container and names none: give one of {registered_decompositions()}, "
            "or build NetworkTensor(network)"
        )
    return get_decomposition(decomposition)
