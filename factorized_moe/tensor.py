"""The factorised weight tensor of many experts, and its contraction with an input and coefficient vectors.

Legend: ``*batch`` any leading shape, ``I`` in_features, ``O`` out_features, ``N_k`` experts of mode k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe._validation import (
    check_alone,
    check_call,
    check_called_alone,
    check_dense,
    check_device,
    check_dtype,
    check_expert_dims,
    check_expert_indices,
    check_flag,
    check_network,
    check_place,
    check_size,
)
from factorized_moe.budgets import SizeLike
from factorized_moe.budgets.ranks import rank_of_tensor
from factorized_moe.contraction import (
    ContractionPlan,
    LayerPlans,
    Path,
    Request,
    choose_plan,
    dense_tensor,
    execute,
    expert_rank_bound,
    forward_request,
    num_parameters,
    plan_layer,
    recompute,
)
from factorized_moe.contraction.plan import check_batch_size
from factorized_moe.contraction.planning import DEFAULT_BATCH_SIZE
from factorized_moe.decompositions import Decomposition, get_decomposition, name_of
from factorized_moe.decompositions.base import GivenNetwork, Initialisation, find_initialisation, leave_empty
from factorized_moe.fitting import Fit, fit
from factorized_moe.network import TensorNetwork
from factorized_moe.storage import NetworkTensor

__all__ = ["FactorizedExpertTensor"]


class FactorizedExpertTensor(nn.Module):
    """A weight tensor of shape ``(*expert_dims, I (+1), O)`` held in factorised form; the dense one is never built.

    Args:
        expert_dims: ``(N_0, N_1, ..)``, the sizes of the expert modes; empty for a plain factorised matrix.
        in_features: The number of input features, ``I``.
        out_features: The number of output features, ``O``.
        decomposition: A registered name, such as ``"cp"`` (the default), ``"tucker"``, ``"tt"`` or ``"tr"``, or an
            instance.
        rank: An int, a tuple of ints in TensorLy's convention, in the weight's order (Tucker: one for each mode; TT and
            TR: one for each bond, first and last included), ``"same"``, a fraction of the dense size, or a `Budget`.
        network: Any network, in place of the arguments above, which it says. Its input mode counts the bias row.
        bias: Whether each expert has a bias: one more row of its matrix, the last.
        init: The name of one of the decomposition's initialisations, or a function that fills the parameters in
            place; its first one by default.
        checkpoint: Whether training recomputes intermediate values in the backward pass instead of keeping them.
        sparse_coefficients: Whether coefficients are mostly zeros, as entmax makes them with thousands of experts: only
            rows of non-zero ones are read, where rows are long. The value is exact; a zero may get no gradient, exact
            for entmax, sparsemax and top-k. Not for compilation, vmap, second derivatives and the meta device.
        device: Where the parameters are; ``"meta"`` allocates nothing (see `reset_parameters`).
        dtype: The parameters' type.

    Attributes:
        weight: The parameters, a `factorized_moe.storage.NetworkTensor`.
        decomposition: The decomposition, an instance.
        rank: The rank in its canonical form.
        network: The description of the weight tensor.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a size or a rank is out of range, a name is unknown, or an initial value is not finite.

    Examples:
        >>> w = FactorizedExpertTensor((8, 4), 16, 32, decomposition="tucker", rank=(4, 2, 8, 8), bias=True)
        >>> x, coefficients = torch.randn(5, 16), [torch.rand(5, 8), torch.rand(5, 4)]
        >>> w(x, coefficients).shape
        torch.Size([5, 32])
        >>> w.to_dense().shape, w.expert(3, 1).shape
        (torch.Size([8, 4, 17, 32]), torch.Size([17, 32]))
        >>> w.num_parameters, w.expert_rank_bound
        (944, 8)
    """

    _plans: LayerPlans | None = None  # if several plans run, each at its batch sizes; else it is ``_plan``

    def __init__(
        self,
        expert_dims: Sequence[int] | None = None,
        in_features: int | None = None,
        out_features: int | None = None,
        decomposition: str | Decomposition | None = None,
        rank: SizeLike | None = None,
        *,
        network: TensorNetwork | None = None,
        bias: bool = False,
        init: str | Initialisation | None = None,
        checkpoint: bool = False,
        sparse_coefficients: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if network is not None:
            check_alone(network, (expert_dims, in_features, out_features, decomposition, rank))
            (*expert_dims, rows, out_features), decomposition = network.shape, GivenNetwork(network)
            in_features, rank = rows - bool(bias), tuple(network.sizes[bond] for bond in network.bonds)
        self.expert_dims = check_expert_dims(expert_dims)
        self.in_features = check_size("in_features", in_features)
        self.out_features = check_size("out_features", out_features)
        self.bias = check_flag("bias", bias)
        check_dtype(dtype)
        check_place(device)
        self.decomposition = get_decomposition("cp" if decomposition is None else decomposition)
        if rank is None:
            raise TypeError("rank is missing; give an int, a tuple of ints, 'same', a fraction or a Budget")
        shape = (*self.expert_dims, self.in_features + self.bias, self.out_features)
        self.rank = rank_of_tensor(rank, shape, self.decomposition, bias=self.bias)
        self.network = self.decomposition.network(self.expert_dims, shape[-2], shape[-1], self.rank)
        check_network(self.network, shape, self.decomposition)
        self._init = find_initialisation(self.decomposition, init)
        self.weight = NetworkTensor(self.network, self.decomposition, self.rank, device=device, dtype=dtype)
        self.checkpoint = check_flag("checkpoint", checkpoint)
        self.sparse_coefficients = check_flag("sparse_coefficients", sparse_coefficients)
        plans = plan_layer(self.network, self._request)
        self._plan, self._plans = plans.plans[0], plans if plans.starts else None
        self.reset_parameters()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":  # PEFT and others put wrappers in its place
            check_called_alone("the weight", value)
        super().__setattr__(name, value)

    def reset_parameters(self) -> None:
        """Fill the parameters anew. Call it after ``to_empty`` when the tensor was made on the meta device.

        Raises:
            ValueError: If the initialisation leaves a value that is not finite.
        """
        self.weight.fill(self._init)
        for name, parameter in self.weight.named_parameters():
            if not parameter.is_meta and not torch.isfinite(parameter).all():
                raise ValueError(f"the initialisation left a NaN or an infinite value in parameter {name!r}")

    def forward(self, x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        """Mix the experts' matrices by the coefficients and apply them to the input, without building any.

        ``y_o = sum W[n_0, .., i, o] a_0[n_0] .. x_i``, with a constant 1 appended to ``x`` if there is a bias.

        Args:
            x: The input, ``(*batch, I)``; any leading shape, none and empty included.
            coefficients: For each expert mode a tensor ``(*batch, N_k)``.

        Returns:
            The output, ``(*batch, O)``.

        Raises:
            TypeError: If dtypes or devices differ, or the coefficients are not a sequence of tensors.
            ValueError: If a shape does not fit.
        """
        operands = self.weight().operands
        check_call(x, coefficients, self.in_features, self.expert_dims, operands[0])
        if x.ndim == 2 and len(self.network.out_labels) == 1:
            return self._execute((*operands, x, *coefficients), x)
        batch = x.shape[:-1]
        rows = [tensor.reshape(-1, tensor.shape[-1]) for tensor in (x, *coefficients)]
        return self._execute((*operands, *rows), rows[0]).reshape(*batch, self.out_features)

    @property
    def _request(self) -> Request:
        return forward_request(self.network, self.bias, self.sparse_coefficients)

    def _execute(self, operands: tuple[Tensor, ...], x: Tensor) -> Tensor:
        plan = self._plan if self._plans is None else self._plans.at(x.shape[0])
        return (recompute if self.checkpoint and torch.is_grad_enabled() else execute)(plan, operands)

    def to_dense(self) -> Tensor:
        """The dense tensor, ``(*expert_dims, I (+1), O)``; with a bias, row ``[..., -1, :]`` holds the biases."""
        return dense_tensor(self.network, self.weight().operands)

    def expert(self, *indices: int | None) -> Tensor:
        """One expert's matrix, or a slice of several, without building the dense tensor.

        Args:
            indices: For each expert mode the expert's number (negative ones count from the end), or ``None`` to keep
                the mode. Modes left out at the end are kept.

        Returns:
            The matrix ``(I (+1), O)``, the bias its last row if there is one, with the kept expert modes in front.

        Raises:
            TypeError: If an index is not an int or ``None``.
            ValueError: If there are too many, or one is out of range.
        """
        chosen = check_expert_indices(indices, self.expert_dims).items()
        fixed = {self.network.expert_labels[mode]: index for mode, index in chosen}
        return dense_tensor(self.network, self.weight().operands, fixed)

    def plan(
        self,
        batch_size: int | None = None,
        *,
        optimize: str | None = None,
        memory_limit: int | None = None,
        batch_sizes: Sequence[int] | None = None,
        backward: bool = False,
        path: Path | Sequence[Path] | None = None,
    ) -> ContractionPlan:
        """The plan that the forward pass runs at a number of samples, with its costs.

        With ``optimize``, ``memory_limit`` or ``path`` the layer is planned anew and keeps that plan for all batch
        sizes: it is no part of the state dict, stays valid whatever is loaded, and follows a copy or a pickle.

        Args:
            batch_size: The number of samples; 64 by default.
            optimize: ``"flops"`` for the cheapest order at ``batch_size``, from the description alone, or ``"measure"``
                to time the best candidates on the parameters' device.
            memory_limit: The most bytes that any intermediate value may take at ``batch_size``, in the parameters'
                type. For a limit per token, give ``batch_size=1``.
            batch_sizes: The numbers of samples to time; ``batch_size`` alone by default.
            backward: Whether to time the backward pass too.
            path: An order of your own, in the linear format of opt_einsum and cotengra: see `contraction.plan_along`.

        Returns:
            The plan; its ``repr`` is a table of its steps, and says if another plan runs at other batch sizes.

        Raises:
            TypeError: If the memory limit, the batch sizes or the path are of the wrong type.
            ValueError: If an argument is out of range or of no use, a path leaves something out, or no order keeps to
                the memory limit; the message gives the smallest that is possible, or that was found.

        Examples:
            >>> w = FactorizedExpertTensor((8, 4), 16, 32, decomposition="tucker", rank=4)
            >>> w.plan(batch_size=256).flops
            266240
            >>> plan = w.plan(batch_size=256, optimize="measure")
        """
        size = check_batch_size(DEFAULT_BATCH_SIZE if batch_size is None else batch_size)
        asked = (size, optimize, memory_limit, batch_sizes, backward, path)
        if chosen := choose_plan(self.network, self._request, self.weight.operands, *asked):
            self._plan, self._plans = chosen, None
        return (self._plan if self._plans is None else self._plans.at(size)).at_batch_size(size)

    @property
    def num_parameters(self) -> int:
        """The number of parameters of the weight tensor; a shared one counts once."""
        return num_parameters(self.network)

    @property
    def expert_rank_bound(self) -> int:
        """An upper bound on the rank of each expert's matrix: a minimum cut of the network."""
        return expert_rank_bound(self.network)

    @classmethod
    def from_dense(
        cls,
        dense: Tensor,
        decomposition: str | Decomposition = "cp",
        rank: SizeLike | None = None,
        *,
        bias: bool = False,
        input_covariance: Tensor | None = None,
        output_covariance: Tensor | None = None,
        seed: int = 0,
        starts: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> FactorizedExpertTensor:
        """Approximate a dense tensor. `relative_error` tells how well.

        Args:
            dense: The tensor, ``(*expert_dims, I, O)``, or with one more row ``I + 1`` if ``bias``.
            decomposition: A registered name or an instance.
            rank: As in the constructor.
            bias: Whether the last row of each matrix is its bias.
            input_covariance: As for `fit`: then errors of outputs are minimised, not of weights.
            output_covariance: As for `fit`.
            seed: Where random starts come from.
            starts: The most random starts, as for `fit`.
            device: Where the parameters go; the dense tensor's device by default.
            dtype: Their type; the dense tensor's by default.

        Raises:
            TypeError: As `fit`.
            ValueError: As `fit`, or if a device is ``"meta"``.

        Examples:
            >>> w = FactorizedExpertTensor.from_dense(torch.ones(3, 4, 5), decomposition="cp", rank=1)
            >>> w.relative_error(torch.ones(3, 4, 5)) < 1e-6
            True
        """
        moments: dict[str, Any] = {"input_covariance": input_covariance, "output_covariance": output_covariance}
        found = fit(dense, decomposition, rank, bias=bias, dtype=dtype, seed=seed, starts=starts, **moments)
        return cls.from_fit(found, device)

    @classmethod
    def from_fit(cls, fitted: Fit, device: torch.device | str | None = None) -> FactorizedExpertTensor:
        """The parameters of a `Fit`, copied, on its device by default. `fit` has more options than `from_dense`."""
        check_place(device)
        where, dtype = device or fitted.operands[0].device, fitted.operands[0].dtype
        check_device(where)
        tensor = cls._unfilled(fitted.network.shape, fitted.decomposition, fitted.rank, fitted.bias, where, dtype)
        tensor.weight.assign(fitted.tensors)
        return tensor

    @torch.no_grad()
    def relative_error(self, dense: Tensor) -> float:
        """``||W - dense|| / ||dense||`` in the Frobenius norm; builds the dense tensor.

        Args:
            dense: The tensor to compare with, ``(*expert_dims, I (+1), O)``.

        Returns:
            The error, 0 for an exact fit, and infinite if only ``dense`` is zero.

        Raises:
            TypeError: If it is not a tensor of a real floating type.
            ValueError: If it is of another shape.
        """
        check_dense(dense, self.network.shape)
        exact = dense.double()  # in half precision a norm overflows
        error = torch.linalg.vector_norm(self.to_dense().double() - exact)
        return float(error / torch.linalg.vector_norm(exact)) if error else 0.0

    def to_tensorly(self) -> Any:
        """TensorLy's own ``CPTensor``, ``TuckerTensor``, ``TTTensor`` or ``TRTensor``, sharing memory.

        Raises:
            TypeError: If TensorLy has no type for this decomposition.
        """
        return self.weight.to_tensorly()

    @classmethod
    def from_tensorly(
        cls, value: Any, decomposition: str | Decomposition, rank: SizeLike, *, bias: bool = False
    ) -> FactorizedExpertTensor:
        """Take over TensorLy's tuple type of the modes ``(*expert_dims, I (+1), O)``; the values are copied.

        Args:
            value: A ``CPTensor``, ``TuckerTensor``, ``TTTensor`` or ``TRTensor`` of torch tensors.
            decomposition: The decomposition it is of.
            rank: Its rank.
            bias: Whether the last row of the input mode is the bias.

        Raises:
            TypeError: If TensorLy has no type for this decomposition, or the value is of another type.
            ValueError: If its tensors do not have the shapes that the rank gives.

        Examples:
            >>> w = FactorizedExpertTensor((8,), 16, 32, decomposition="tr", rank=3)
            >>> copy = FactorizedExpertTensor.from_tensorly(w.to_tensorly(), "tr", w.rank)
            >>> torch.equal(copy.to_dense(), w.to_dense())
            True
        """
        source = get_decomposition(decomposition)
        try:
            tensors, shape = source.from_tensorly(value), tuple(value.shape)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            kind, name = type(value).__name__, type(source).__name__
            raise TypeError(f"cannot read {kind} as TensorLy's tensor of torch tensors for {name}: {error}") from error
        first = next(iter(tensors.values()))
        tensor = cls._unfilled(shape, source, rank, bias, first.device, first.dtype)
        tensor.weight.assign(tensors)
        return tensor

    @classmethod
    def _unfilled(
        cls,
        shape: tuple[int, ...],
        decomposition: str | Decomposition,
        rank: SizeLike | None,
        bias: bool,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> FactorizedExpertTensor:
        """Of zeros, to be assigned; only a reset uses the decomposition's initialisation."""
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        tensor = cls(shape[:-2], shape[-2] - bias, shape[-1], decomposition, rank, bias=bias, init=leave_empty, **place)
        tensor._init = find_initialisation(tensor.decomposition, None)
        return tensor

    def extra_repr(self) -> str:
        """The constructor's arguments, for ``print``."""
        return (
            f"expert_dims={self.expert_dims}, in_features={self.in_features}, out_features={self.out_features}, "
            f"decomposition={name_of(self.decomposition)!r}, rank={self.rank}, bias={self.bias}"
        )
