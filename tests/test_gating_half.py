"""Gates in half precision."""

import pytest
import torch
from torch import nn

from factorized_moe import ExpertGate


@pytest.mark.parametrize("norm", ["batch", "layer", None])
@pytest.mark.parametrize("activation", ["entmax15", "softmax", "topk_softmax"])
@pytest.mark.parametrize("rank", [None, 8])
def test_half_precision_beyond_its_range(norm: str | None, activation: str, rank: int | None) -> None:
    """Sums of 100,000 are infinite in float16; coefficients are those of float32."""
    gate = ExpertGate(64, [4, 3], activation, norm, rank=rank, dtype=torch.float16).eval()
    torch.manual_seed(0)
    nn.init.normal_(gate.projection.weight)
    first = gate.projection if gate.reduction is None else gate.reduction
    nn.init.normal_(first.weight, std=200.0)
    x = 200.0 * torch.randn(5, 64, dtype=torch.float16)
    for given in (gate.train() if norm == "batch" else gate, gate.eval()):
        found = given(x)
        wide = ExpertGate(64, [4, 3], activation, norm, rank=rank)
        wide.load_state_dict(gate.state_dict())
        assert not torch.isfinite(nn.functional.linear(x, first.weight)).all()
        assert all(a.dtype == torch.float16 and a.isfinite().all() for a in found)
    expected = wide.eval()(x.float())
    assert all(torch.allclose(a.float(), b, atol=2e-3) for a, b in zip(found, expected, strict=True))
