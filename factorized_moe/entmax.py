"""How alpha-entmax is computed: the solution, for a batch or a single row, and its exact derivative.

Peters, Niculae and Martins (2019), "Sparse Sequence-to-Sequence Models", eq. 11: with ``q = 1 / (alpha - 1)``,

    p = s ** q,   s = relu((alpha - 1) * x - tau),   tau such that p sums to one.

``alpha = 1.5`` is entmax15 (``p = s ** 2``), ``alpha = 2`` is sparsemax (``p = s``), and ``alpha -> 1`` is softmax.

Shapes: N experts of the mode, batch any leading shape.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["entmax"]

_SMALL = 1024
"""The most logits for which sorting is the faster: about 22 operations for a row of 256, Newton's method takes 63."""

_WIDE = 512
"""The narrowest rows whose search starts from some of their logits."""

_MANY = 2**19
"""More logits than this: a look at whether a step was the last one costs less than the step."""

_EXACT = 256
"""The widest rows whose norm torch finds with an error of a few roundings, whatever is in them."""


def entmax(logits: Tensor, alpha: float) -> Tensor:
    """Alpha-entmax over the last dimension, of an input that is not checked; `Entmax` checks it first.

    Args:
        logits: ``(*batch, N)``, float32 or float64.
        alpha: A finite number above 1.

    Returns:
        Coefficients ``(*batch, N)``, not negative, each row with sum one.

    Examples:
        >>> entmax(torch.tensor([2.0, 1.0, 0.0, -3.0]), alpha=1.5)
        tensor([0.8307, 0.1693, 0.0000, 0.0000])
    """
    if _takes_tangents():  # with and without gradients; those of the steps of the search would be wrong
        coefficients, _ = _EntmaxWithTangents.apply(logits, alpha)  # type: ignore[no-untyped-call]  # as below
    # Asking `requires_grad` instead would miss a gradient that torch.func tracks outside of a vmap.
    elif torch.is_grad_enabled():
        coefficients, _ = _EntmaxFunction.apply(logits, alpha)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    elif alpha == 1.5:
        coefficients = _distances(logits, alpha).square_()
    else:
        coefficients, _ = _coefficients_and_slopes(_distances(logits, alpha), alpha)
    return coefficients  # type: ignore[no-any-return]  # from the untyped call above


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
        if _takes_tangents():
            ctx.save_for_forward(output[1])
        ctx.alpha = inputs[1]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        (slopes,) = ctx.saved_tensors  # (*batch, N)
        of_coefficients, of_slopes = gradients  # (*batch, N) each, or None
        if of_slopes is not None and ctx.alpha != 2:  # sparsemax's slopes are constant
            weighted = _curvature(slopes, ctx.alpha) * of_slopes
            if of_coefficients is not None:
                weighted = weighted + slopes * of_coefficients
            return weighted - slopes * (weighted.sum(-1, keepdim=True) / slopes.sum(-1, keepdim=True)), None
        if of_coefficients is None:
            return None, None
        weighted = slopes * of_coefficients
        mean = weighted.sum(-1, keepdim=True) / slopes.sum(-1, keepdim=True)
        return _minus_product(weighted, slopes, mean), None


class _EntmaxWithTangents(_EntmaxFunction):
    """The same with a forward-mode derivative; a class apart, as torch.compile refuses a function that has one."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        of_logits = tangents[0]  # (*batch, N), or None
        if of_logits is None:
            return None, None
        with forward_ad._set_fwd_grad_enabled(True):  # torch turns it off here, and drops the tangents of tangents
            (slopes,) = ctx.saved_tensors  # (*batch, N)
            moved = of_logits - (slopes * of_logits).sum(-1, keepdim=True) / slopes.sum(-1, keepdim=True)
            of_slopes = torch.zeros_like(slopes) if ctx.alpha == 2 else _curvature(slopes, ctx.alpha) * moved
            return slopes * moved, of_slopes


def _takes_tangents() -> bool:
    """Whether forward-mode derivatives are being taken."""
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0


def _curvature(slopes: Tensor, alpha: float) -> Tensor:
    """``c = (2 - alpha) * s ** (q - 2)`` of the slopes of an ``alpha`` other than 2, ``(*batch, N)``."""
    return (2 - alpha) * _power(slopes, (3 - 2 * alpha) / (2 - alpha))


def _minus_product(values: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """``values - one * other``, in the place of ``values`` where that can be, as new memory is slow."""
    if not torch.compiler.is_compiling() and not torch.is_grad_enabled():
        try:
            return torch.addcmul(values, one, other, value=-1, out=values)
        except RuntimeError:  # of vmap
            pass
    return torch.addcmul(values, one, other, value=-1)


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
    """``s = relu((alpha - 1) * x - tau)`` with ``sum(s ** q) = 1``, ``(*batch, N)``."""
    # A compiler fuses Newton's steps, and a second way for small batches would have it compile once more.
    if torch.compiler.is_compiling() or alpha != 1.5 or logits.dtype == torch.float64 or logits.numel() > _SMALL:
        return _by_newton(logits, alpha)
    return _by_sorting(logits)


def _by_sorting(logits: Tensor) -> Tensor:
    """The same for ``alpha = 1.5`` in few operations: what counts is their number where a call has few logits.

    If the ``k`` largest logits are the support, then ``tau`` is the smaller root of ``sum_i (d_i - tau) ** 2 = 1`` over
    their halved differences ``d`` to the largest: ``tau_k``. For every ``k``, the smaller of ``tau_k`` and ``d_k`` is
    at most the solution, and for the right ``k`` it is the solution. So it is the largest of them, and no support
    has to be found. In float64, because the sums of squares cancel (so float64 logits themselves are left to Newton's
    method). Differences below -1 are never in the support, and cut off so that the sums stay finite.
    """
    half = logits.double().mul_(0.5)
    ordered = half.topk(half.shape[-1]).values  # (*batch, N), descending; faster than a sort
    largest = ordered[..., :1]
    d = (ordered - largest).clamp_min_(-1)
    total, squares = d.cumsum(-1), (d * d).cumsum(-1)
    k = torch.arange(1, d.shape[-1] + 1, dtype=d.dtype, device=d.device)
    discriminant = torch.addcmul(torch.addcmul(k, k, squares, value=-1), total, total)
    roots = total.sub_(discriminant.relu_().sqrt_()).div_(k)  # (*batch, N)
    tau = torch.minimum(roots, d).amax(-1, keepdim=True)
    # Not `half - (largest + tau)`: beside a large offset, tau would be lost.
    return half.sub_(largest).sub_(tau).relu_().float()


def _by_newton(logits: Tensor, alpha: float) -> Tensor:
    """The same for any ``alpha``, whatever the size.

    ``tau`` is at least ``(alpha - 1) * max(x) - 1``, where the search starts. Up to ``alpha = 2`` it is Newton's
    method on ``h(tau) = ||s||_q - 1``, which is convex and decreasing: it moves right, never beyond the solution. The
    norm makes it fast: it is linear for any number of tied logits, where ``sum(s ** q) - 1`` only halves its error.
    Each step is subtracted from ``s`` itself, which keeps rounding errors relative to ``s``: with thousands of experts
    just above ``tau``, subtracting a rounded ``tau`` from the logits leaves rows that miss 1 by 1e-5 in float32.

    In place where it can be, because this is the gate's largest cost (``python -m benchmarks --only entmax``).
    """
    if alpha == 1.5 and logits.shape[-1] >= _WIDE:
        return _newton_15(_from_few(logits))
    largest = logits.amax(-1, keepdim=True)
    if alpha == 1.5:
        return _newton_15(_halved_differences(logits, largest).add_(1).relu_())
    s = logits - largest  # (*batch, N), before the scaling: exactly 0 at the maximum
    s.mul_(alpha - 1).add_(1).relu_()
    if alpha > 2:
        return _bisect(s, 1 / (alpha - 1))
    eps = torch.finfo(s.dtype).eps
    for _ in range(_newton_steps(s.shape[-1], alpha, s.dtype)):
        # excess = h * sum(s ** q) ** (1 - 1 / q) and slope = sum(s ** (q - 1)), each (*batch, 1)
        if alpha == 2:
            excess = s.sum(-1, keepdim=True).sub_(1)
            slope = s.sign().sum(-1, keepdim=True)
        else:
            slopes = s.pow(1 / (alpha - 1) - 1)
            total = (slopes * s).sum(-1, keepdim=True)
            excess = total - total.pow(2 - alpha)
            slope = slopes.sum(-1, keepdim=True)
        s.sub_(excess.relu_().div_(slope), alpha=1 - math.sqrt(eps) / 4).relu_()
    return s


def _newton_15(s: Tensor) -> Tensor:
    """Newton's method for ``alpha = 1.5``, in the place of an ``s`` whose ``tau`` is not beyond the solution.

    Few inputs need all the steps to which they are bounded. The last one is known by what it leaves of ``h``:

    - after a step ``d`` at most ``N * d ** 2 / 2``, because ``h'' <= N / h`` and ``-h' >= 1``;
    - for many logits, where a step costs more than this: ``h'' * norm ** 3`` is the sum of ``(s_i - s_j) ** 2`` over
      the pairs in the support, which only loses pairs. So from one step to the next the curvature grows at most like
      ``norm ** 3``, and of ``h`` at most ``(d / d_before) ** 2 * norm_before ** 3`` is left.
    """
    width, eps = s.shape[-1], torch.finfo(s.dtype).eps
    most, enough = _newton_steps(width, 1.5, s.dtype), math.sqrt(eps / width)
    short = math.sqrt(eps) / 4
    # Elsewhere `_is_below` does not look, and a graph would be bound to a size.
    many = not torch.compiler.is_compiling() and s.device.type == "cpu" and s.numel() > _MANY
    before = growth = s  # until there is a step before
    for number in range(most):
        norm = _norm(s)
        step = norm.square().sub_(norm).relu_().div_(s.sum(-1, keepdim=True))  # (*batch, 1)
        # The step is shortened by more than the rounding error of the sums: one too long cannot be taken back, as a
        # step to the left would lift experts from exactly zero.
        s.sub_(step, alpha=1 - short).relu_()
        if number == most - 1:
            break
        if not many:
            if number > 1 and _is_below(step, enough):
                break
            continue
        if number > 0:
            left = (step / before).square_().mul_(growth).add_(short).mul_(norm - 1).mul_(2 / eps)
            if _is_below(torch.where(step < enough, 0, left), 1):
                break
        before, growth = step, norm.pow(3)
    return s


def _from_few(logits: Tensor) -> Tensor:
    """The ``s`` of a ``tau`` that is not beyond the solution, but near it: about the solution for some of the logits.

    Without some of the logits, ``sum(s ** 2)`` is smaller at the same ``tau``, so its solution lies to the left. The
    logits are arranged in columns of 16. The largest of each column are taken, and those that are left over.
    """
    columns = logits.shape[-1] // 16
    whole = logits.shape[-1] // columns * columns
    some = logits[..., :whole].unflatten(-1, (-1, columns)).amax(-2)
    if whole < logits.shape[-1]:
        some = torch.cat((some, logits[..., whole:]), -1)  # (*batch, some)
    largest = some.amax(-1, keepdim=True)
    some = _halved_differences(some, largest).add_(1).relu_()
    tau = torch.full_like(largest, -1)
    for _ in range(2):
        norm = torch.linalg.vector_norm(some, dim=-1, keepdim=True)
        step = norm.square().sub_(norm).relu_().div_(some.sum(-1, keepdim=True))
        some.sub_(step).relu_()
        tau.add_(step, alpha=0.999)  # by more than the rounding errors less than the solution
    return _halved_differences(logits, largest).sub_(tau).relu_()


def _halved_differences(logits: Tensor, largest: Tensor) -> Tensor:
    """``(x - max(x)) / 2`` in one pass; halves are exact, so it is rounded once, and exactly 0 at the maximum."""
    return torch.add(largest * -0.5, logits, alpha=0.5)


def _is_below(values: Tensor, bound: float) -> bool:
    """Whether all of them are, where asking costs little; ``False`` elsewhere."""
    if values.device.type != "cpu":  # one would wait for an accelerator
        return False
    if torch.compiler.is_compiling():  # a graph would keep the answer for other values
        return False
    try:
        return bool(values.amax() < bound)
    except RuntimeError:  # of torch.func.vmap
        return False


def _norm(s: Tensor) -> Tensor:
    """The norm of each row, ``(*batch, 1)``; torch's own adds up in few sums, so its error grows with the width."""
    width = s.shape[-1]
    if width <= _EXACT:
        norm: Tensor = torch.linalg.vector_norm(s, dim=-1, keepdim=True)
    elif width % _EXACT == 0 and not torch.compiler.is_compiling():
        parts = torch.linalg.vector_norm(s.unflatten(-1, (-1, _EXACT)), dim=-1)
        norm = torch.linalg.vector_norm(parts, dim=-1, keepdim=True)
    else:
        norm = s.square().sum(-1, keepdim=True).sqrt_()
    return norm


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
