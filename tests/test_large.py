"""10^12 experts in one layer: what is impossible as a dense tensor is cheap here."""

import resource

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from factorized_moe import FactorizedExpertTensor

pytestmark = pytest.mark.thorough

EXPERTS = (1000, 1000, 1000, 1000)
FEATURES, RANK, TOKENS = 768, 256, 64


def test_a_million_million_experts(capsys: pytest.CaptureFixture[str]) -> None:
    """Four expert modes of 1,000: dense, 768 x 768 matrices would be 2.4 million million million bytes."""
    torch.manual_seed(0)
    w = FactorizedExpertTensor(EXPERTS, FEATURES, FEATURES, "cp", RANK, bias=True)
    assert w.num_parameters == RANK * (4 * 1000 + (FEATURES + 1) + FEATURES) == 1_417_472
    assert sum(p.numel() for p in w.parameters()) == 1_417_472

    plan = w.plan(batch_size=TOKENS)
    assert plan.largest_intermediate == TOKENS * FEATURES
    assert plan.flops == TOKENS * (2 * RANK * (4 * 1000 + FEATURES + 1 + FEATURES) + 4 * RANK)

    x = torch.randn(TOKENS, FEATURES)
    coefficients = [torch.softmax(torch.randn(TOKENS, size), -1).requires_grad_() for size in EXPERTS]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        w(x, coefficients).square().mean().backward()
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profiled.events())
    parameters = 4 * w.num_parameters
    # Everything allocated, freed or not: the gradients are one copy of the parameters, the rest grows with the tokens.
    assert allocated < 2 * parameters + 4 * TOKENS * (3 * sum(EXPERTS) + 20 * RANK + 10 * FEATURES)
    for leaf in (*coefficients, *w.parameters()):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert leaf.grad.any()

    one = w.expert(999, -1, 0, 500)
    assert one.shape == (FEATURES + 1, FEATURES)
    pure = [torch.zeros(1, size) for size in EXPERTS]
    for a, index in zip(pure, (999, 999, 0, 500), strict=True):
        a[0, index] = 1.0
    expected = x[:1] @ one[:-1] + one[-1]
    torch.testing.assert_close(w(x[:1], pure), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with capsys.disabled():
        print(  # noqa: T201  # the figures are what the test is for
            f"\n{len(EXPERTS)} expert modes of 1,000 (10^12 experts), {FEATURES} -> {FEATURES}, rank {RANK}, "
            f"{TOKENS} tokens, forward and backward: {w.num_parameters:,} parameters, {plan.flops:,} FLOPs forward, "
            f"{allocated / 2**20:.1f} MiB allocated (torch.profiler, every allocation added up), "
            f"{peak:,.0f} MiB peak of the whole process (resource.getrusage)"
        )
