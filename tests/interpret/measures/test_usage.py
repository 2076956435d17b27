"""Which experts take part while a model trains, held to numbers computed by hand and by numpy."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from factorized_moe import CPMuMoE, MuMoE, MuMoEBlock
from factorized_moe.activations import TopKSoftmax
from factorized_moe.interpret import experts_in_use, measure_usage, watch_usage


class Given(nn.Module):
    """A gate that returns given coefficients."""

    def __init__(self, *coefficients: Tensor) -> None:
        super().__init__()
        self.coefficients = coefficients

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.coefficients


def test_in_use_needs_a_spread_and_a_mean() -> None:
    means = torch.tensor([0.5, 0.24, 0.26, 0.02])
    spreads = torch.tensor([0.4, 0.005, 0.2, 0.1])
    assert experts_in_use(means, spreads).tolist() == [True, False, True, False]


def test_numbers_by_hand() -> None:
    one_hot = torch.eye(4)[[0, 0, 1, 1]]  # two experts share the inputs, two are never used
    layer = MuMoE(3, 2, [4, 2], rank=2, gate=Given(one_hot, torch.full((4, 2), 0.5)))
    first, second = measure_usage(layer, torch.randn(4, 3))
    assert (first.num_in_use, first.num_experts, first.num_samples) == (2, 4, 4)
    assert first.perplexity == pytest.approx(2.0)
    assert first.mutual_information == pytest.approx(1.0)
    assert first.spreads.tolist() == pytest.approx([0.5, 0.5, 0.0, 0.0])
    # A gate that never left the uniform mixture has the perfect mean and is not in use.
    assert (second.num_in_use, second.perplexity, second.mutual_information) == (0, pytest.approx(2.0), 0.0)


def test_numbers_by_numpy_over_several_calls() -> None:
    torch.manual_seed(0)
    layer = CPMuMoE(5, 3, [6], rank=4, gate="softmax", gate_norm=None, gate_temperature=1.0, dtype=torch.float64)
    nn.init.normal_(layer.gate.projection.weight)
    batches = torch.randn(3, 7, 2, 5, dtype=torch.float64)
    with watch_usage(layer) as watcher:
        for batch in batches:
            layer(batch)
    (usage,) = watcher.usage
    logits = batches.reshape(-1, 5).numpy() @ layer.gate.projection.weight.detach().numpy().T
    a = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    mean = a.mean(0)
    np.testing.assert_allclose(usage.means.numpy(), mean)
    np.testing.assert_allclose(usage.spreads.numpy(), a.std(0))
    entropy = -(mean * np.log2(mean)).sum()
    assert usage.perplexity == pytest.approx(2**entropy)
    assert usage.mutual_information == pytest.approx(entropy + (a * np.log2(a)).sum(1).mean())
    rows = layer.experts.weight.expert_0.detach().numpy()
    apart = np.linalg.norm(rows[:, None] - rows, axis=-1)
    size = np.sqrt((rows**2).sum(1).mean())
    off = ~np.eye(6, dtype=bool)
    assert usage.distance == pytest.approx(np.sqrt((apart[off] ** 2).mean()) / size, rel=1e-5)
    assert usage.nearest == pytest.approx(apart[off].min() / size, rel=1e-5)


def test_equal_experts_have_no_distance() -> None:
    layer = CPMuMoE(5, 3, [4, 3], rank=4, init="paper")
    first, second = measure_usage(layer, torch.randn(8, 5))
    assert first.nearest > 0.0
    assert (second.distance, second.nearest) == (0.0, 0.0)
    assert measure_usage(CPMuMoE(5, 3, [1], rank=4), torch.randn(8, 5)).modes[0].nearest == math.inf


def test_a_model_is_as_it_was() -> None:
    model = nn.Sequential(MuMoEBlock(4, 6, 4, [3], rank=2), nn.Dropout(0.5), CPMuMoE(4, 2, [3, 2], rank=2))
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    usage = measure_usage(model, torch.randn(16, 4))
    assert [(mode.layer, mode.mode) for mode in usage] == [("0", 0), ("2", 0), ("2", 1)]
    assert model.training
    assert not model[1].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert list(usage.columns()["experts"]) == [3, 3, 2]
    assert "experts" in usage.modes[0].columns()
    assert len(usage.to_dict()["modes"]) == 3


def test_a_layer_that_does_not_run_is_named() -> None:
    with watch_usage(CPMuMoE(4, 2, [3], rank=2)) as watcher:
        pass
    with pytest.raises(ValueError, match=r"the layers \['model'\] have not run"):
        _ = watcher.usage
    with pytest.raises(
        ValueError, match=r"the layers \['model'\] have run on no samples; give inputs with at least one"
    ):
        measure_usage(CPMuMoE(4, 2, [3], rank=2), torch.randn(0, 4))


def test_every_expert_of_a_top_k_gate_takes_part_and_learns() -> None:
    torch.manual_seed(0)
    layer = MuMoE(6, 4, [8], rank=4, gate=TopKSoftmax(2))
    x = torch.randn(256, 6)
    assert torch.equal(layer(x), layer(x))
    layer(x).square().sum().backward()
    assert (layer.gate.projection.weight.grad.abs().sum(dim=1) > 0).all()
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    target = torch.randn(4, 6, 4)[torch.arange(256) % 4]
    x = x + 3.0 * torch.eye(6)[torch.arange(256) % 4]
    for _ in range(100):
        optimizer.zero_grad()
        (layer(x) - torch.einsum("bi,bio->bo", x, target)).square().mean().backward()
        optimizer.step()
    (usage,) = measure_usage(layer, x)
    assert usage.num_in_use == 8, usage
