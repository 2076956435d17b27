"""Coefficient activations: from the logits of a gate to the coefficients of one expert mode.

An activation is any callable that takes logits of shape ``(*batch, N)`` and returns coefficients of the same
shape, acting on the last dimension alone. Those here return non-negative coefficients that sum to one.

The sparse ones belong to one family, alpha-entmax (Peters, Niculae and Martins 2019, "Sparse
Sequence-to-Sequence Models", eq. 11): with ``q = 1 / (alpha - 1)``,

    p = s ** q,   s = relu((alpha - 1) * x - tau),   tau such that p sums to one.

``alpha = 1.5`` is entmax15 (``p = s ** 2``), ``alpha = 2`` is sparsemax (``p = s``), and ``alpha -> 1`` is softmax.
A logit of ``-inf`` (a masked expert) receives exactly zero. A row that holds ``nan`` is ``nan`` throughout, and so
is a row without any finite logit. Half-precision logits are computed in float32 and cast back.

Shapes: N experts of the mode, batch any leading shape.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Entmax",
    "TopKSoftmax",
    "entmax15",
    "resolve_activation",
    "softmax",
    "sparsemax",
]

Activation: TypeAlias = Callable[[Tensor], Tensor]

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

    Example:
        >>> softmax(torch.zeros(4))
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    _check_logits(logits, "softmax")
    return _widened(logits).softmax(-1).to(logits.dtype)


def entmax15(logits: Tensor) -> Tensor:
    """1.5-entmax over the last dimension: the default of the gate, sparse and yet smooth.

    Args:
        logits: ``(*batch, N)``, a floating-point tensor.

    Returns:
        Coefficients ``(*batch, N)`` in the dtype of ``logits``.

    Raises:
        TypeError: ``logits`` is not a floating-point tensor.
        ValueError: ``logits`` has no last dimension, or one of size zero.

    Source:
        Peters, Niculae and Martins (2019), "Sparse Sequence-to-Sequence Models", section 4.

    Example:
        >>> entmax15(torch.tensor([2.0, 1.0, 0.0, -3.0]))
        tensor([0.8307, 0.1693, 0.0000, 0.0000])
    """
    _check_logits(logits, "entmax15")
    return _entmax(logits, 1.5)


def sparsemax(logits: Tensor) -> Tensor:
    """Sparsemax over the last dimension: the Euclidean projection of the logits onto the simplex.

    Args:
        logits: ``(*batch, N)``, a floating-point tensor.

    Returns:
        Coefficients ``(*batch, N)`` in the dtype of ``logits``.

    Raises:
        TypeError: ``logits`` is not a floating-point tensor.
        ValueError: ``logits`` has no last dimension, or one of size zero.

    Source:
        Martins and Astudillo (2016), "From Softmax to Sparsemax", eq. 1.

    Example:
        >>> sparsemax(torch.tensor([1.0, 0.5, -1.0]))
        tensor([0.7500, 0.2500, 0.0000])
    """
    _check_logits(logits, "sparsemax")
    return _entmax(logits, 2.0)


@dataclass(frozen=True)
class Entmax:
    """Alpha-entmax over the last dimension, for any ``alpha`` above one; larger is sparser.

    In float32 the relative error of a coefficient grows like ``1 / (alpha - 1)`` towards softmax.

    Args:
        alpha: A finite number above 1. 1.5 is ``entmax15`` and 2 is ``sparsemax``.

    Raises:
        TypeError: ``alpha`` is not a number.
        ValueError: ``alpha`` is not finite, or not above 1.

    Source:
        Peters, Niculae and Martins (2019), eq. 10 and 11.

    Example:
        >>> Entmax(alpha=1.25)(torch.tensor([2.0, 0.0, -8.0]))
        tensor([0.9443, 0.0557, 0.0000])
    """

    alpha: float = 1.25

    def __post_init__(self) -> None:
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, (int, float)):
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
        return _entmax(logits, float(self.alpha))


@dataclass(frozen=True)
class TopKSoftmax:
    """Softmax over the ``k`` largest logits of the last dimension, and exact zeros elsewhere.

    Args:
        k: How many coefficients may differ from zero, a positive integer of at most N.

    Raises:
        TypeError: ``k`` is not an integer.
        ValueError: ``k`` is not positive, or (at the call) above N.

    Source:
        Shazeer et al. (2017), "Outrageously Large Neural Networks", eq. 3 and 5, without the noise.

    Example:
        >>> TopKSoftmax(k=2)(torch.tensor([1.0, 3.0, 3.0, 0.0]))
        tensor([0.0000, 0.5000, 0.5000, 0.0000])
    """

    k: int = 2

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, Integral):
            raise TypeError(
                f"TopKSoftmax: k must be a positive integer, but got {self.k!r} of type {type(self.k).__name__}; "
                "pass an int such as 2"
            )
        if self.k < 1:
            raise ValueError(f"TopKSoftmax: k must be a positive integer, but got {self.k}; pass 1 or more")
        object.__setattr__(self, "k", int(self.k))

    def __call__(self, logits: Tensor) -> Tensor:
        """Coefficients ``(*batch, N)`` of logits ``(*batch, N)``."""
        _check_logits(logits, "TopKSoftmax")
        if self.k > logits.shape[-1]:
            raise ValueError(
                f"TopKSoftmax: k={self.k} is more than the {logits.shape[-1]} logits of the last dimension of an input "
                f"of shape {tuple(logits.shape)}; choose k of at most {logits.shape[-1]}"
            )
        wide = _widened(logits)  # (*batch, N)
        largest, index = wide.topk(self.k, dim=-1)  # (*batch, k) each
        # The softmax of the masked logits, not of `largest` alone: a nan then reaches the whole row.
        masked = torch.full_like(wide, -math.inf).scatter(-1, index, largest)  # (*batch, N)
        return masked.softmax(-1).to(logits.dtype)


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
    """The callable that a name stands for; a callable stands for itself.

    Args:
        activation: A key of ``ACTIVATIONS``, or any callable from logits ``(*batch, N)`` to coefficients of that
            shape.

    Returns:
        The activation.

    Raises:
        TypeError: ``activation`` is neither a name nor a callable.
        ValueError: No activation has this name.

    Example:
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
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(
            f"{where}: logits must have shape (*batch, N) with at least one expert N, but got {tuple(logits.shape)}; "
            "give the last dimension one logit per expert"
        )


def _widened(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in _HALF_PRECISION else logits


def _entmax(logits: Tensor, alpha: float) -> Tensor:
    """alpha-entmax of ``(*batch, N)``, of the same shape and dtype."""
    wide = _widened(logits)
    # Asking `requires_grad` instead would miss a gradient that torch.func tracks outside of a vmap.
    if torch.is_grad_enabled():
        coefficients, _ = _EntmaxFunction.apply(wide, alpha)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    elif alpha == 1.5:
        coefficients = _distances(wide, alpha).square_()
    else:
        coefficients, _ = _coefficients_and_slopes(_distances(wide, alpha), alpha)
    return coefficients.to(logits.dtype)  # type: ignore[no-any-return]  # from the untyped call above


class _EntmaxFunction(torch.autograd.Function):
    """Coefficients ``p`` and slopes ``w = s ** (q - 1) = p ** (2 - alpha)``, with the derivative of the exact solution.

    Because ``(alpha - 1) * q = 1``, ``dp_i/dx_j = w_i * (delta_ij - w_j / sum(w))``: zero outside of the support.
    The slopes are an output because ``backward`` reads them: autograd then knows how they depend on the logits, and
    differentiates ``backward`` itself (``dw_i/dx_j = c_i * (delta_ij - w_j / sum(w))``, where
    ``c = (2 - alpha) * s ** (q - 2)``). Reading ``s`` back from ``p`` would divide by zero there, and is slow:
    ``p.sqrt()`` took 1.4 ms at 1024 x 256 with 9 zeros in 10, and 0.09 ms without zeros (torch 2.13, one CPU thread).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        return _coefficients_and_slopes(_distances(logits, alpha), alpha)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(output[1])
        ctx.alpha = inputs[1]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        (slopes,) = ctx.saved_tensors  # (*batch, N)
        of_coefficients, of_slopes = gradients  # (*batch, N) each, or None
        weighted = None if of_coefficients is None else slopes * of_coefficients
        if of_slopes is not None and ctx.alpha != 2:  # sparsemax's slopes are constant
            curvature = (2 - ctx.alpha) * _power(slopes, (3 - 2 * ctx.alpha) / (2 - ctx.alpha))
            weighted = curvature * of_slopes + (0 if weighted is None else weighted)
        if weighted is None:
            return None, None
        return weighted - slopes * (weighted.sum(-1, keepdim=True) / slopes.sum(-1, keepdim=True)), None


def _coefficients_and_slopes(distances: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """``p = s ** q`` and ``w = s ** (q - 1)``, both ``(*batch, N)``."""
    if alpha == 1.5:
        return distances * distances, distances
    if alpha == 2:
        return distances, distances.sign()
    slopes = _power(distances, 1 / (alpha - 1) - 1)
    coefficients = slopes * distances
    # A power of q multiplies the rounding error of `distances` by q, in all coefficients alike.
    return coefficients / coefficients.sum(-1, keepdim=True), slopes


def _distances(logits: Tensor, alpha: float) -> Tensor:
    """``s = relu((alpha - 1) * x - tau)`` with ``sum(s ** q) = 1``, ``(*batch, N)``.

    ``tau`` is at least ``(alpha - 1) * max(x) - 1``, where the search starts. Up to ``alpha = 2`` it is Newton's
    method on ``h(tau) = ||s||_q - 1``, which is convex and decreasing: it moves right, never beyond the solution. The
    norm makes it fast: it is linear for any number of tied logits, where ``sum(s ** q) - 1`` only halves its error.
    Each step is subtracted from ``s`` itself, which keeps rounding errors relative to ``s``: with thousands of experts
    just above ``tau``, subtracting a rounded ``tau`` from the logits leaves rows that miss 1 by 1e-5 in float32.

    In place where it can be, because this is the gate's largest cost. Measured alternately in one process (torch 2.13,
    one CPU thread, float32, best of 10 or more, other work on the machine): at 1024 x 256 entmax15 took 1.7 ms and the
    entmax package, which sorts, 24 ms; sparsemax 3.9 ms and, by sorting, 7.9 ms. A single row is no faster than the
    package with entmax15, and slower with sparsemax: 0.3 ms for its many steps, 0.1 ms for sorting.
    """
    s = logits - logits.amax(-1, keepdim=True)  # (*batch, N), before the scaling: exactly 0 at the maximum
    s.mul_(alpha - 1).add_(1).relu_()
    if alpha > 2:
        return _bisect(s, 1 / (alpha - 1))
    width, eps = s.shape[-1], torch.finfo(s.dtype).eps
    for remaining in reversed(range(_newton_steps(width, alpha, s.dtype))):
        # excess = h * sum(s ** q) ** (1 - 1 / q) and slope = sum(s ** (q - 1)), each (*batch, 1)
        if alpha == 1.5:
            # torch's norm is the faster, but its error grows with the width (6e-6 at 4096 in float32). So it aims
            # short of the solution by more than that, and the last step takes the more exact sum.
            short = remaining > 0 and width <= 4096
            norm = torch.linalg.vector_norm(s, dim=-1, keepdim=True) if short else _norm(s)
            excess = norm.square().sub_(norm, alpha=1 + 256 * eps if short else 1)
            slope = s.sum(-1, keepdim=True)
        elif alpha == 2:
            excess = s.sum(-1, keepdim=True).sub_(1)
            slope = s.sign().sum(-1, keepdim=True)
        else:
            slopes = s.pow(1 / (alpha - 1) - 1)
            total = (slopes * s).sum(-1, keepdim=True)
            excess = total - total.pow(2 - alpha)
            slope = slopes.sum(-1, keepdim=True)
        # The step is shortened by more than the rounding error of the sums: one too long cannot be taken back, as a
        # step to the left would lift experts from exactly zero.
        s.sub_(excess.relu_().div_(slope), alpha=1 - math.sqrt(eps) / 4).relu_()
    return s


def _norm(s: Tensor) -> Tensor:
    return s.square().sum(-1, keepdim=True).sqrt_()


def _newton_steps(width: int, alpha: float, dtype: torch.dtype) -> int:
    """Steps after which no input of this width is further from the solution than rounding.

    A tangent of the convex ``h`` lies below it, so ``h_next / h + slope_next / slope <= 1``, and the slope stays
    between 1 and ``width ** (1 / q)``. This bounds the steps to any precision, and sparsemax comes close on ladders
    of logits built to that end (14 steps at width 4096 in float32, where the bound is 20). entmax15 needs fewer, as
    its ``h`` is smooth and converges quadratically at the end: the worst inputs that an evolutionary search found
    needed one more step for each factor of 4 in width, 7 at width 64 and 10 at 4096 in float64.
    """
    doublings = (width - 1).bit_length()
    double = dtype == torch.float64
    if alpha <= 1.5:
        return 3 + (doublings + 1) // 2 + double
    return 12 + doublings * 3 // 2 if double else 7 + doublings * 5 // 4


def _bisect(s: Tensor, q: float) -> Tensor:
    """The same for ``q < 1``, where the norm is not convex; ``s``, ``(*batch, N)``, is that of the smallest ``tau``."""
    step = 1.0
    for _ in range(64 if s.dtype == torch.float64 else 32):
        step /= 2
        moved = (s - step).relu_()
        s = torch.where(moved.pow(q).sum(-1, keepdim=True) >= 1, moved, s)
    return s


def _power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent`` where ``base`` is not zero, and zero (with a derivative of zero) where it is."""
    zero = base == 0
    return base.masked_fill(zero, 1).pow(exponent).masked_fill(zero, 0)
