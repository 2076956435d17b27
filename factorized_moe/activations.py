"""Activation functions of gates: from logits to the coefficients of the experts of one mode.

An activation is any callable that takes logits of shape ``(*batch, N)`` and returns coefficients of the same
shape, acting on the last dimension alone. Those here return non-negative coefficients that sum to one, except
`TopKReLU`'s, which sum to anything.

The sparse ones belong to one family, alpha-entmax, which `factorized_moe.entmax` solves. A logit of ``-inf`` (a masked
expert) receives exactly zero. A row that holds ``nan`` is ``nan`` throughout, and so is a row without any finite logit.
Half-precision logits are computed in float32 and cast back.

Shapes: N experts of the mode, batch any leading shape.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from factorized_moe._scalars import is_number, is_whole
from factorized_moe.entmax import entmax

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Entmax",
    "TopKReLU",
    "TopKSoftmax",
    "entmax15",
    "resolve_activation",
    "softmax",
    "sparsemax",
]

Activation: TypeAlias = Callable[[Tensor], Tensor]
"""A function from logits ``(*batch, N)`` to coefficients of that shape, which acts on the last dimension alone."""

_HALF_PRECISION = (torch.float16, torch.bfloat16)


def softmax(logits: Tensor) -> Tensor:
    """Softmax over the last dimension.

    Args:
        logits: ``(*batch, N)``, a floating-point tensor.

    Returns:
        Coefficients ``(*batch, N)`` in the dtype of ``logits``.

    Raises:
        TypeError: ``logits`` is not a floating-point tensor.
        ValueError: ``logits`` has no last dimension, or one of size zero.

    Examples:
        >>> softmax(torch.zeros(4))
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    _check_logits(logits, "softmax")
    return _in_full_precision(torch.softmax, logits, -1)


def entmax15(logits: Tensor) -> Tensor:
    """1.5-entmax, the gate's default: like softmax over the last dimension, but small coefficients are exactly zero.

    Args:
        logits: ``(*batch, N)``, a floating-point tensor.

    Returns:
        Coefficients ``(*batch, N)`` in the dtype of ``logits``.

    Raises:
        TypeError: ``logits`` is not a floating-point tensor.
        ValueError: ``logits`` has no last dimension, or one of size zero.

    Source: Peters, Niculae and Martins (2019), "Sparse Sequence-to-Sequence Models", section 4.

    Examples:
        >>> entmax15(torch.tensor([2.0, 1.0, 0.0, -3.0]))
        tensor([0.8307, 0.1693, 0.0000, 0.0000])
    """
    _check_logits(logits, "entmax15")
    return _in_full_precision(entmax, logits, 1.5)


def sparsemax(logits: Tensor) -> Tensor:
    """Sparsemax over the last dimension: the coefficients nearest to the logits that are 0 or more and sum to 1.

    Args:
        logits: ``(*batch, N)``, a floating-point tensor.

    Returns:
        Coefficients ``(*batch, N)`` in the dtype of ``logits``.

    Raises:
        TypeError: ``logits`` is not a floating-point tensor.
        ValueError: ``logits`` has no last dimension, or one of size zero.

    Source: Martins and Astudillo (2016), "From Softmax to Sparsemax", eq. 1.

    Examples:
        >>> sparsemax(torch.tensor([1.0, 0.5, -1.0]))
        tensor([0.7500, 0.2500, 0.0000])
    """
    _check_logits(logits, "sparsemax")
    return _in_full_precision(entmax, logits, 2.0)


@dataclass(frozen=True)
class Entmax:
    """Alpha-entmax over the last dimension: close to softmax for an ``alpha`` near 1, with more zeros above.

    In float32 the relative error of a coefficient grows like ``1 / (alpha - 1)`` towards softmax.

    Args:
        alpha: A finite number above 1. 1.5 is ``entmax15`` and 2 is ``sparsemax``.

    Raises:
        TypeError: ``alpha`` is not a number.
        ValueError: ``alpha`` is not finite, or not above 1.

    Source: Peters, Niculae and Martins (2019), eq. 10 and 11.

    Examples:
        >>> Entmax(alpha=1.25)(torch.tensor([2.0, 0.0, -8.0]))
        tensor([0.9443, 0.0557, 0.0000])
    """

    alpha: float = 1.25

    def __post_init__(self) -> None:
        if not is_number(self.alpha):
            raise TypeError(
                f"Entmax: alpha must be a number above 1, but got {self.alpha!r} of type {type(self.alpha).__name__}; "
                "pass a float such as 1.25"
            )
        if not 1 < self.alpha < math.inf:
            raise ValueError(
                f"Entmax: alpha must be a finite number above 1, but got {self.alpha!r}; "
                "the limit alpha -> 1 is softmax: use the activation 'softmax' for it"
            )

    def __call__(self, logits: Tensor) -> Tensor:
        """Coefficients ``(*batch, N)`` of logits ``(*batch, N)``."""
        _check_logits(logits, "Entmax")
        return _in_full_precision(entmax, logits, float(self.alpha))


@dataclass(frozen=True)
class TopKSoftmax:
    """Softmax over the ``k`` largest logits of the last dimension, and exact zeros elsewhere.

    Logits equal to the k-th largest are kept with it, so that no expert is preferred by its number: at logits that are
    all zero, where a gate starts, all experts are mixed uniformly, and every one of them learns.

    Args:
        k: How many coefficients may differ from zero (more, where logits are equal to the k-th largest), a positive
            integer of at most N.

    Raises:
        TypeError: ``k`` is not an integer.
        ValueError: ``k`` is not positive, or (at the call) above N.

    Source: Shazeer et al. (2017), "Outrageously Large Neural Networks", eq. 3 and 5, without the noise.

    Examples:
        >>> TopKSoftmax(k=2)(torch.tensor([1.0, 3.0, 3.0, 0.0]))
        tensor([0.0000, 0.5000, 0.5000, 0.0000])
        >>> TopKSoftmax(k=2)(torch.zeros(4))
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    k: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", _checked_k("TopKSoftmax", self.k))

    def __call__(self, logits: Tensor) -> Tensor:
        """Coefficients ``(*batch, N)`` of logits ``(*batch, N)``."""
        _check_logits(logits, "TopKSoftmax")
        _check_enough("TopKSoftmax", self.k, logits)
        return _in_full_precision(_topk_softmax, logits, self.k)


@dataclass(frozen=True)
class TopKReLU:
    """The k largest logits, where they are positive, and zero elsewhere: the gate of Mixture of Decoders.

    Coefficients sum to anything. A logit as large as the k-th largest is kept, so ties may keep more than k. With all
    logits at zero there is no gradient, so a gate with it must not start at zero.

    Args:
        k: How many experts to keep; None for all whose logit is positive.

    Raises:
        TypeError: ``k`` is not an integer.
        ValueError: ``k`` is not positive, or (at the call) above N.

    Source: Oldfield et al. (2025), "Towards interpretability without sacrifice", arXiv 2505.21364.

    Examples:
        >>> TopKReLU(k=2)(torch.tensor([1.0, 3.0, 2.0, -1.0]))
        tensor([0., 3., 2., 0.])
        >>> TopKReLU(k=3)(torch.tensor([1.0, -3.0, -2.0, -1.0]))
        tensor([1., 0., 0., 0.])
    """

    k: int | None = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", None if self.k is None else _checked_k("TopKReLU", self.k))

    def __call__(self, logits: Tensor) -> Tensor:
        """Coefficients ``(*batch, N)`` of logits ``(*batch, N)``."""
        _check_logits(logits, "TopKReLU")
        if self.k is None:
            return torch.relu(logits)
        _check_enough("TopKReLU", self.k, logits)
        least = logits.detach().topk(self.k, dim=-1).values[..., -1:]  # (*batch, 1)
        return torch.relu(logits.masked_fill(logits < least, 0.0))


def _checked_k(where: str, k: int) -> int:
    if not is_whole(k):
        raise TypeError(
            f"{where}: k must be a positive integer, but got {k!r} of type {type(k).__name__}; pass an int such as 2"
        )
    if k < 1:
        raise ValueError(f"{where}: k must be a positive integer, but got {k}; pass 1 or more")
    return int(k)


def _check_enough(where: str, k: int, logits: Tensor) -> None:
    if k > logits.shape[-1]:
        raise ValueError(
            f"{where}: k={k} is more than the {logits.shape[-1]} logits of the last dimension of an input of shape "
            f"{tuple(logits.shape)}; choose k of at most {logits.shape[-1]}"
        )


def _topk_softmax(logits: Tensor, k: int) -> Tensor:
    least = logits.detach().topk(k, dim=-1).values[..., -1:]  # (*batch, 1)
    # No nan is less than another number, so one stays, and the softmax of the masked logits makes the whole row nan.
    return logits.masked_fill(logits < least, -math.inf).softmax(-1)  # (*batch, N)


ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        "entmax": Entmax(),
        "entmax15": entmax15,
        "softmax": softmax,
        "sparsemax": sparsemax,
        "topk_softmax": TopKSoftmax(),
    }
)
"""The activations that have a name. Anything else is passed as a callable."""


def resolve_activation(activation: str | Activation) -> Activation:
    """Look up an activation by its name; a callable is returned as it is.

    Args:
        activation: A key of ``ACTIVATIONS``, or any callable from logits ``(*batch, N)`` to coefficients of that
            shape.

    Returns:
        The activation.

    Raises:
        TypeError: ``activation`` is a class, or neither a name nor a callable.
        ValueError: No activation has this name.

    Examples:
        >>> resolve_activation("topk_softmax")
        TopKSoftmax(k=2)
    """
    if isinstance(activation, str):
        if activation in ACTIVATIONS:
            return ACTIVATIONS[activation]
        near = difflib.get_close_matches(activation.lower(), ACTIVATIONS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"activation: {activation!r} is not a known name; {hint}"
            f"pass one of {', '.join(map(repr, ACTIVATIONS))}, or a callable"
        )
    if isinstance(activation, type):
        raise TypeError(f"activation: got the class {activation.__name__}; give an instance, {activation.__name__}()")
    if callable(activation):
        return activation
    raise TypeError(
        f"activation: expected a name or a callable, but got {activation!r} of type {type(activation).__name__}; "
        f"pass one of {', '.join(map(repr, ACTIVATIONS))}, or a callable from logits to coefficients"
    )


def _check_logits(logits: Tensor, where: str) -> None:
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        given = f"a tensor of {logits.dtype}" if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"{where}: logits must be a floating-point tensor, but got {given}; convert it with .float()")
    if logits.is_nested:
        raise TypeError(f"{where}: logits are a nested tensor; give a padded one")
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(
            f"{where}: logits must have shape (*batch, N) with at least one expert N, but got {tuple(logits.shape)}; "
            "give the last dimension one logit per expert"
        )


def _in_full_precision(function: Callable[..., Tensor], logits: Tensor, argument: float) -> Tensor:
    """A function of logits and one argument, computed in float32 where they are of half precision, and cast back."""
    if logits.dtype in _HALF_PRECISION:
        return function(logits.float(), argument).to(logits.dtype)
    return function(logits, argument)
