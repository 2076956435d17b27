"""The gate: from an input to the coefficients of every expert mode.

Source: Oldfield et al., "Multilinear Mixture of Experts: Scalable Expert Specialization through Factorization",
NeurIPS 2024, arXiv 2402.12550: ``a_k = activation(norm(G_k x))`` for each expert mode ``k``.

Shapes: I in_features, N_k experts of expert mode k, batch any leading shape.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from factorized_moe._linear import Linear
from factorized_moe._validation import (
    check_countable,
    check_dtype,
    check_expert_dims,
    check_flag,
    check_place,
    check_size,
    check_temperature,
)
from factorized_moe.activations import Activation, TopKReLU, TopKSoftmax, resolve_activation
from factorized_moe.batch_statistics import GateBatchNorm, keep_wide, normalise

__all__ = ["ExpertGate"]

_NORMS = ("batch", "layer", None)


class ExpertGate(nn.Module):
    """The gate: an input's coefficients for all experts, ``activation(norm(x @ weight.T) / temperature)``.

    The weight starts at zero, so training starts from the uniform mixture. Logits are normalised before the
    activation, without a learned scale, which keeps a sparse activation from settling on few experts early.

    The output is the tuple of coefficients: forward hooks read it and may replace it.

    Args:
        in_features: ``I``, the size of the input's last dimension.
        expert_dims: The number of experts ``N_k`` of each expert mode; empty for no expert mode.
        activation: A name (see ``ACTIVATIONS``) or a callable from logits ``(*batch, N)`` to coefficients of that
            shape, which acts on the last dimension alone. It is called once for all modes when they have one width.
        norm: ``"batch"`` normalises each expert's logit over all positions, and in evaluation by running averages (the
            source's choice for vision): it kept nearly all experts in use in small models, and reads the other
            positions of the batch while it trains. ``"layer"`` normalises each position over the experts of one mode
            (the source's choice for language), reads nothing else, and left more experts idle. ``None`` does not
            normalise. Measured by ``python -m studies training_defaults``.
        temperature: What the normalised logits are divided by: above 1, an input is shared by more experts. The source
            has none, which is 1. With the batch norm and entmax, 2 was as good in small models or better, by the same
            command; with ``norm=None`` and other activations it was not tried.
        logit_bias: Whether each expert's logit has a bias, which starts at zero.
        zero_start: Whether the weight starts at zero; if not, as ``nn.Linear``'s, for activations that have no gradient
            at zero logits.
        rank: The rank ``r`` of the weight: two maps, from ``I`` to ``r`` and from there to all experts, in place of
            one. The gate then grows by ``r`` with each expert, not by ``I``, and all experts look at the same ``r``
            directions of the input. The first map starts as ``nn.Linear``'s; with the second at zero it has no gradient
            in the first step. `None` for one map. What it does to accuracy: ``python -m studies many_experts``.
        device: Where the parameters are.
        dtype: The type of the weight. Running averages are float32 if it is a half-precision type.

    Attributes:
        projection: The linear map of all expert modes together, weight ``(sum of N_k, I)``, or ``(sum of N_k, r)``;
            None without expert modes.
        reduction: The linear map before it, weight ``(r, I)``; None without a rank.
        batch_norm: The batch normalisation of all logits, None with another ``norm``.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If one is out of range, or ``activation`` or ``norm`` is not a known name.

    Examples:
        >>> gate = ExpertGate(16, [8, 4], norm="layer")
        >>> [tuple(a.shape) for a in gate(torch.randn(2, 5, 16))]
        [(2, 5, 8), (2, 5, 4)]
        >>> gate(torch.randn(16))[1].tolist()  # the weight is zero at first
        [0.25, 0.25, 0.25, 0.25]
    """

    projection: "_Projection | None"
    reduction: "_Linear | None"
    batch_norm: nn.BatchNorm1d | nn.SyncBatchNorm | None

    def __init__(
        self,
        in_features: int,
        expert_dims: Sequence[int],
        activation: str | Activation = "entmax15",
        norm: str | None = "batch",
        *,
        temperature: float = 2.0,
        logit_bias: bool = False,
        zero_start: bool = True,
        rank: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_dtype(dtype)
        check_place(device)
        self.in_features = check_size("in_features", in_features)
        self.expert_dims = check_expert_dims(expert_dims)
        self.activation = resolve_activation(activation)
        if isinstance(self.activation, TopKSoftmax | TopKReLU):
            most, fewest = self.activation.k, min(self.expert_dims, default=None)
            if most is not None and fewest is not None and most > fewest:
                raise ValueError(
                    f"ExpertGate: {self.activation!r} keeps {most} experts, but expert_dims={self.expert_dims} has a "
                    f"mode of {fewest}; give an activation with a k of at most {fewest}"
                )
        if norm not in _NORMS:
            raise ValueError(
                f"norm: expected 'batch', 'layer' or None, but got {norm!r}; pass None to leave the logits as they are"
            )
        check_flag("logit_bias", logit_bias)
        check_flag("zero_start", zero_start)
        self.norm = norm
        self.temperature = check_temperature(temperature)
        self.rank = None if rank is None else check_size("rank of the gate", rank)
        self.projection = None
        self.reduction = None
        self.batch_norm = None
        if self.expert_dims:
            total = sum(self.expert_dims)
            width = self.in_features if self.rank is None else self.rank
            check_countable("the gate's weight", (total, width))
            if self.rank is not None:
                check_countable("the gate's reduction", (width, self.in_features))
                self.reduction = _Linear(self.in_features, width, bias=False, device=device, dtype=dtype)
            self.projection = _Projection(width, total, bias=logit_bias, device=device, dtype=dtype)
            if not zero_start:
                self.projection.zero_start = False
                self.projection.reset_parameters()
            if norm == "batch":
                wide = torch.promote_types(self.projection.weight.dtype, torch.float32)
                self.batch_norm = GateBatchNorm(total, affine=False, device=device, dtype=wide)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What was pickled before gates could have a rank has none."""
        earlier = {} if "rank" in state else {"rank": None, "reduction": None}
        super().__setstate__({**earlier, **state})  # type: ignore[no-untyped-call]  # torch leaves it untyped

    @property
    def num_parameters(self) -> int:
        """``I * sum of N_k``, or ``r * (I + sum of N_k)``, and one more for each expert whose logit has a bias."""
        return sum(parameter.numel() for parameter in self.parameters())

    def reset_parameters(self) -> None:
        """Set the weight to its start, zero by default, and the running averages to theirs, as after construction."""
        for map_ in (self.reduction, self.projection):
            if map_ is not None:
                map_.reset_parameters()
        if self.batch_norm is not None:
            self.batch_norm.reset_running_stats()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ExpertGate":
        before = {} if self.batch_norm is None else dict(self.batch_norm.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if self.batch_norm is not None:  # converted to nn.SyncBatchNorm, it does not keep its averages wide itself
            keep_wide(self.batch_norm, before)
        return self

    def logits(self, x: Tensor) -> tuple[Tensor, ...]:
        """The normalised logits of each expert mode, over the temperature: what the activation is applied to.

        In training mode with ``norm="batch"``, this counts in the running averages, as ``forward`` does.

        Args:
            x: The input, ``(*batch, I)``.

        Returns:
            One tensor ``(*batch, N_k)`` for each expert mode.

        Raises:
            TypeError: As ``forward``.
            ValueError: As ``forward``.

        Examples:
            >>> [tuple(logits.shape) for logits in ExpertGate(16, [8, 4]).logits(torch.randn(5, 16))]
            [(5, 8), (5, 4)]
        """
        return self._for_each_mode(self._normalised, self._projected(x))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The coefficients of each expert mode.

        Args:
            x: The input, ``(*batch, I)``.

        Returns:
            One tensor ``(*batch, N_k)`` for each expert mode; the empty tuple without expert modes.

        Raises:
            TypeError: If ``x`` is not a floating-point tensor of the weight's dtype (outside of autocast).
            ValueError: If the last dimension of ``x`` is not ``I``, if a batch norm in training mode has fewer than two
                positions, or if the activation changes the shape.
        """
        coefficients = self._for_each_mode(self._activated, self._projected(x))
        return tuple(a.to(torch.float16) for a in coefficients) if self._narrow(x) else coefficients

    def _narrow(self, x: Tensor) -> bool:
        """Whether logits are of a wider type than the input, and coefficients should not be."""
        return x.dtype == torch.float16 and not torch.is_autocast_enabled(x.device.type)

    def extra_repr(self) -> str:
        """The constructor's arguments, in the module's ``repr``."""
        biased = self.projection is not None and self.projection.bias is not None
        return (
            f"in_features={self.in_features}, expert_dims={self.expert_dims}, activation={self._activation_name}, "
            f"norm={self.norm!r}, temperature={self.temperature:g}{'' if self.rank is None else f', rank={self.rank}'}"
            f"{', logit_bias=True' if biased else ''}"
        )

    def _projected(self, x: Tensor) -> Tensor | None:
        """The logits of all modes side by side, batch-normalised if so wanted, ``(*batch, sum of N_k)``."""
        projection = self.projection  # once: a look-up of a submodule takes as long as a small operation
        self._check_input(x, None if projection is None else projection.weight)
        if projection is None:
            return None
        reduction = self.reduction
        logits: Tensor = projection(x if reduction is None else reduction(x))
        batch_norm = self.batch_norm
        if batch_norm is None:
            return logits
        rows = logits.reshape(-1, logits.shape[-1])  # (positions, sum of N_k)
        if batch_norm.training and rows.shape[0] < 2:
            raise ValueError(
                f"ExpertGate: batch normalisation in training mode needs at least 2 positions, but the input of shape "
                f"{tuple(x.shape)} has {rows.shape[0]}; give more, call eval(), or build the gate with norm='layer'"
            )
        return normalise(batch_norm, rows).view(logits.shape)

    def _for_each_mode(self, function: Activation, logits: Tensor | None) -> tuple[Tensor, ...]:
        """``function`` on the logits of each mode, in one call if the modes have one width."""
        if logits is None:
            return ()
        if len(self.expert_dims) == 1:
            return (function(logits),)
        if len(set(self.expert_dims)) == 1:
            stacked = logits.unflatten(-1, (len(self.expert_dims), self.expert_dims[0]))  # (*batch, modes, N)
            return function(stacked).unbind(-2)
        return tuple(function(mode) for mode in logits.split(self.expert_dims, dim=-1))

    def _normalised(self, logits: Tensor) -> Tensor:
        logits = F.layer_norm(logits, logits.shape[-1:]) if self.norm == "layer" else logits
        return logits if self.temperature == 1.0 else logits * (1.0 / self.temperature)

    def _activated(self, logits: Tensor) -> Tensor:
        logits = self._normalised(logits)
        coefficients = self.activation(logits)
        if not isinstance(coefficients, Tensor):
            raise TypeError(
                f"ExpertGate: the activation {self._activation_name} returned {type(coefficients).__name__}; it takes "
                "the logits of one mode and returns its coefficients, one tensor"
            )
        if coefficients.shape != logits.shape:
            raise ValueError(
                f"ExpertGate: the activation {self._activation_name} returned shape {tuple(coefficients.shape)} for "
                f"logits of shape {tuple(logits.shape)}; it must keep the shape, one coefficient per expert"
            )
        return coefficients

    def _check_input(self, x: Tensor, weight: Tensor | None) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            given = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"ExpertGate: the input must be a floating-point tensor, but got {given}; convert it first")
        if x.is_nested:
            raise TypeError("ExpertGate: the input is a nested tensor; give a padded or concatenated one")
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"ExpertGate: the input must have shape (*batch, {self.in_features}), but got {tuple(x.shape)}; "
                "its last dimension is in_features"
            )
        if weight is None:
            return
        if x.device != weight.device:
            raise TypeError(
                f"ExpertGate: the input is on {x.device} and the weight on {weight.device}; move one of them"
            )
        # A weight that is not floating-point has been quantised by someone who handles the input's dtype.
        if x.dtype != weight.dtype and weight.is_floating_point() and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(
                f"ExpertGate: the input is {x.dtype} and the weight {weight.dtype}; convert one of them, "
                "or use torch.autocast"
            )

    @property
    def _activation_name(self) -> str:
        return getattr(self.activation, "__name__", None) or repr(self.activation)


class _Linear(Linear):
    """A linear map whose sums are not cut off at 65,504."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        """``input @ weight.T + bias``; of float16 in float32."""
        if self.weight.dtype == torch.float16 and not torch.is_autocast_enabled(input.device.type):
            return F.linear(input.float(), self.weight.float(), None if self.bias is None else self.bias.float())
        return super().forward(input)


class _Projection(_Linear):
    """A linear map that starts at zero, also where a framework resets every module on its own (FSDP, meta device)."""

    zero_start = True

    def reset_parameters(self) -> None:
        super().reset_parameters() if not self.zero_start else nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
