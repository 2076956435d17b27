"""The released initial values: the distributions that each release draws its parameters from."""

from typing import Any

import pytest
import torch
from torch import Tensor

from factorized_moe import compat

pytestmark = pytest.mark.thorough


def assert_normal(values: Tensor, mean: float, std: float) -> None:
    error = 5 * std / values.numel() ** 0.5
    assert abs(values.mean().item() - mean) < error
    assert abs(values.std().item() - std) < error


def assert_uniform(values: Tensor, bound: float) -> None:
    assert 0.99 * bound < values.abs().max() <= bound * (1 + 1e-6)
    assert abs(values.mean().item()) < 5 * bound / (3 * values.numel()) ** 0.5
    assert abs(values.std().item() * 3**0.5 / bound - 1) < 2.3 / values.numel() ** 0.5


def assert_replicated(first: Tensor, second: Tensor) -> None:
    """The experts' factors of both releases: noisy copies along the first mode, exact ones along the second."""
    if first.ndim == 2:
        assert_normal(first, 1.0, 1.0)
        assert torch.equal(second, torch.ones_like(second))
    else:
        diagonal = first.diagonal(dim1=0, dim2=2)
        assert_normal(diagonal, 1.0, 1.0)
        assert torch.count_nonzero(first) == diagonal.numel()
        eye = torch.eye(second.shape[0], second.shape[2])
        assert torch.equal(second, eye.unsqueeze(1).expand_as(second))


@pytest.mark.parametrize("form", ["cp", "tucker", "tt", "tr"])
def test_initial_values_of_v1(form: str) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"input_dim": 8, "output_dim": 200, "expert_dims": [500, 6], "hierarchy": 2}
    layer = {
        "cp": lambda: compat.CPMMoE(rank=50, **sizes),
        "tucker": lambda: compat.TuckerMMoE(ranks=[20, 4, 50, 60], **sizes),
        "tt": lambda: compat.TTMMoE(ranks=[[1, 0, 5], [5, 0, 5], [5, 0, 20], [20, 0, 1]], **sizes),
        "tr": lambda: compat.TTMMoE(ranks=[[4, 0, 5], [5, 0, 5], [5, 0, 20], [20, 0, 4]], **sizes),
    }[form]()
    assert_replicated(layer.factors[0], layer.factors[1])
    for factor in (layer.factors[2], layer.factors[3]):
        bonds = 1 if factor.ndim == 2 else (0, 2)
        lengths = torch.linalg.vector_norm(factor, dim=bonds)
        torch.testing.assert_close(lengths, torch.ones_like(lengths))
        assert_normal(factor, 0.0, (factor.numel() / lengths.numel()) ** -0.5)
    if form == "tucker":
        torch.testing.assert_close(layer.core.norm(), torch.tensor(1.0))
        assert_normal(layer.core, 0.0, layer.core.numel() ** -0.5)
    assert not any(weight.any() for weight in layer.projs)


@pytest.mark.parametrize("form", ["cp", "tr"])
def test_initial_values_of_the_neurips_version(form: str) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"input_dim": 8, "output_dim": 200, "expert_dims": [500, 6], "hierarchy": 2}
    layer: compat.CPMuMoE | compat.TRMuMoE
    if form == "cp":
        layer, fan_in = compat.CPMuMoE(rank=100, **sizes), 100
    else:
        layer, fan_in = compat.TRMuMoE(ranks=[[4, 0, 5], [5, 0, 5], [5, 0, 20], [20, 0, 4]], **sizes), 80
    assert_replicated(layer.factors[0], layer.factors[1])
    assert_uniform(layer.factors[2], 8**-0.5)
    assert_uniform(layer.factors[3], fan_in**-0.5)
