"""What takes an MLP's place: experts of a decomposition, and the controls, all within a share of its parameters.

Legend: ``n`` rows (tokens), ``I`` in_features, ``F`` hidden features, ``O`` out_features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from factorized_moe.budgets import rank_for_budget
from factorized_moe.fitting.closed_form.carriers import mean_matrix
from factorized_moe.layers import ExpertLayer
from factorized_moe.surgery import upcycle
from studies.real_models.mlps import MLP, Parts, Plain, known_moments, low_rank, uniform_

__all__ = ["CONTROLS", "DECOMPOSITIONS", "NAMES", "Form", "make"]

DECOMPOSITIONS = {"cp": "CP", "tr": "tensor ring", "tucker": "Tucker"}
CONTROLS = {"low-rank": "low rank", "narrow": "narrower MLP", "dense": "dense MLP from random weights"}
NAMES = DECOMPOSITIONS | CONTROLS

INDEPENDENT = 4
"""Experts that must be able to be linearly independent; more would leave less rank to each one's matrix."""


@dataclass(frozen=True)
class Form:
    """One form of an MLP.

    Attributes:
        kind: A key of `NAMES`.
        experts: The number of experts; 0 for a control.
        fraction: The most parameters, the gate included, as a share of the MLP's.
        start: ``"whitened"``: low ranks lose what matters least to the MLP's outputs; ``"weights"``: to its weights.
    """

    kind: str
    experts: int
    fraction: float
    start: str = "whitened"

    def __str__(self) -> str:
        return f"{NAMES[self.kind]}, {self.experts} experts" if self.experts else NAMES[self.kind]


def make(mlp: MLP, form: Form, rows: Tensor, seed: int) -> nn.Module:
    """A form of an MLP, started from its weights.

    Args:
        mlp: The MLP.
        form: What is made of it.
        rows: Inputs of the MLP, ``(n, I)``: what a start is fitted to.
        seed: Of the noise between experts, and of random weights.
    """
    makers: dict[str, Callable[[MLP, Form, Tensor, int], nn.Module]] = {
        "low-rank": _low_rank,
        "narrow": _narrow,
        "dense": _dense,
    }
    return makers.get(form.kind, _experts)(mlp, form, rows, seed).train(mlp.module.training)


def _experts(mlp: MLP, form: Form, rows: Tensor, seed: int) -> nn.Module:
    """The MLP's matrices brought to the rank that the mean of the experts can have, and this upcycled: exactly then.

    `upcycle` itself takes the covariance of the MLP's inputs alone; so all layers are whitened, and on both sides.
    """
    parts = mlp.parts(mlp.module)
    bias = parts.last.bias is not None
    sizes = [linear.weight.numel() + (linear.out_features if bias else 0) for linear in parts.linears]
    total = int(form.fraction * sum(sizes)) - parts.firsts[0].in_features * form.experts
    first, last = (_rank(form, *_sides(parts.linears[k]), total * sizes[k] // sum(sizes), bias) for k in (0, -1))

    def upcycled(module: nn.Module) -> ExpertLayer:
        return upcycle(module, (form.experts,), form.kind, first, second_rank=last, seed=seed).layer

    layer = upcycled(mlp.module)
    if form.start == "weights":
        return layer
    copied, truncated = mlp.copied()
    found = known_moments(mlp, rows)
    for linear, one, experts in zip(truncated.linears, found, layer.expert_tensors.values(), strict=True):
        rank = int(torch.linalg.matrix_rank(mean_matrix(experts.network, experts.weight.tensors)))
        _truncate(linear, *_with_constant(one.inputs, one.mean, bias), one.outputs, rank)
    return upcycled(copied)


def _with_constant(inputs: Tensor, mean: Tensor, bias: bool) -> tuple[Tensor, bool]:
    """The second moments of the inputs with a 1 behind them, if there is a bias."""
    if not bias:
        return inputs, bias
    below = torch.cat([mean, mean.new_ones(1)])
    return torch.cat([torch.cat([inputs, mean[:, None]], dim=1), below[None]]), bias


@torch.no_grad()
def _truncate(linear: nn.Linear, inputs: Tensor, bias: bool, outputs: Tensor | None, rank: int) -> None:
    matrix = linear.weight.mT.double()
    if bias:
        matrix = torch.cat([matrix, linear.bias.double()[None]])
    one, other = low_rank(matrix, inputs, outputs, rank)
    product = one @ other
    linear.weight.copy_(product[: linear.in_features].mT)
    if bias:
        linear.bias.copy_(product[-1])


def _sides(linear: nn.Linear) -> tuple[int, int]:
    return linear.in_features, linear.out_features


@cache
def _rank(form: Form, in_features: int, out_features: int, parameters: int, bias: bool) -> int | tuple[int, ...]:
    return rank_for_budget(
        (form.experts,),
        in_features,
        out_features,
        form.kind,
        parameters=parameters,
        bias=bias,
        count_gate=False,
        independent_experts=min(INDEPENDENT, form.experts),
    )


@torch.no_grad()
def _low_rank(mlp: MLP, form: Form, rows: Tensor, seed: int) -> nn.Module:
    """Every linear layer as a product of two; its bias makes up for the mean of what the product loses."""
    parts = mlp.parts(mlp.module)
    found = known_moments(mlp, rows)
    made = []
    for linear, one in zip(parts.linears, found, strict=True):
        biases = linear.out_features if linear.bias is not None else 0
        kept = int(form.fraction * (linear.weight.numel() + biases)) - biases
        rank = min(kept // sum(_sides(linear)), *_sides(linear))
        matrix = linear.weight.mT.double()
        covariance = one.inputs - torch.outer(one.mean, one.mean) if biases else one.inputs
        left, right = low_rank(matrix, covariance, one.outputs, rank)
        first = nn.Linear(linear.in_features, rank, bias=False)
        second = nn.Linear(rank, linear.out_features, bias=bool(biases))
        first.weight.copy_(left.mT)
        second.weight.copy_(right.mT)
        if biases:
            second.bias.copy_(linear.bias + one.mean @ (matrix - left @ right))
        made.append(nn.Sequential(first, second))
    return Plain(made[:-1], parts.activation, made[-1])


@torch.no_grad()
def _narrow(mlp: MLP, form: Form, rows: Tensor, seed: int) -> nn.Module:
    """The hidden features that give most of the output, and the last layer fitted anew to them by least squares."""
    parts = mlp.parts(mlp.module)
    width, each = _narrower(parts, form.fraction)
    last = known_moments(mlp, rows)[-1]
    weight = parts.last.weight.double()
    kept = (last.inputs.diagonal() * weight.square().sum(0)).topk(width).indices.sort().values
    covariance = last.inputs - torch.outer(last.mean, last.mean) if each else last.inputs
    among = covariance[kept][:, kept]
    damped = among + 1e-8 * among.diagonal().mean() * torch.eye(width, dtype=among.dtype)
    fitted = torch.linalg.solve(damped, covariance[kept] @ weight.mT)  # (width, O)
    firsts = []
    for linear in parts.firsts:
        firsts.append(nn.Linear(linear.in_features, width, bias=bool(each)))
        firsts[-1].weight.copy_(linear.weight[kept])
        if each:
            firsts[-1].bias.copy_(linear.bias[kept])
    end = nn.Linear(width, parts.last.out_features, bias=bool(each))
    end.weight.copy_(fitted.mT)
    if each:
        end.bias.copy_(parts.last.bias + weight @ last.mean - last.mean[kept] @ fitted)
    return Plain(firsts, parts.activation, end)


def _narrower(parts: Parts, fraction: float) -> tuple[int, int]:
    """The hidden features that a share of the parameters allows, and whether there are biases."""
    bias = int(parts.last.bias is not None)
    outputs = parts.last.out_features
    each = len(parts.firsts) * (parts.firsts[0].in_features + bias) + outputs
    whole = sum(parameter.numel() for linear in parts.linears for parameter in linear.parameters())
    return min((int(fraction * whole) - bias * outputs) // each, parts.last.in_features), bias


def _dense(mlp: MLP, form: Form, rows: Tensor, seed: int) -> nn.Module:
    """The same shape as far as the parameters allow, from random weights: what training alone does."""
    parts = mlp.parts(mlp.module)
    width, bias = _narrower(parts, form.fraction)
    generator = torch.Generator().manual_seed(seed)
    linears = [nn.Linear(linear.in_features, width, bias=bool(bias)) for linear in parts.firsts]
    linears.append(nn.Linear(width, parts.last.out_features, bias=bool(bias)))
    for linear in linears:
        uniform_(linear, generator)
    return Plain(linears[:-1], parts.activation, linears[-1])
