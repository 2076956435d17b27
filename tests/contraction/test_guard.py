"""A guard against planning regressions: exact FLOPs and largest intermediates, against formulas worked out by hand.

Each function below writes out one order of contraction, step by step, for any number of expert modes: a product that
sums over a label is two FLOPs for each multiplication, one that sums over nothing is one. A plan that takes more, or
fewer, has changed: look at why, then change the formula.

Legend: B samples, I in_features (one more with a bias), O out_features, N experts of each mode, R ranks.
"""

from math import prod

import pytest

from factorized_moe import FactorizedExpertTensor

IN, OUT = 256, 256
EXPERT_DIMS = {1: (64,), 2: (16, 16), 3: (8, 8, 8), 4: (8, 8, 4, 4)}
SMALL, CORE, RANK = 4, 32, 128
TUCKER = (8, 4, 4, 4)

Costs = tuple[int, int]
"""For one sample: FLOPs, and elements of the largest value that a step makes."""


def cp(experts: tuple[int, ...], rows: int) -> tuple[int, Costs]:
    """Every vector with its factor, the products of all of them, the output factor."""
    modes = len(experts)
    flops = 2 * RANK * (sum(experts) + rows + OUT) + modes * RANK
    return RANK, (flops, max(RANK, OUT))


def tensor_train(experts: tuple[int, ...], rows: int) -> tuple[tuple[int, ...], Costs]:
    """Every vector with its core, the first row times one matrix after the other, the output core."""
    first, *others = experts
    vectors = first * SMALL + sum(n * SMALL * SMALL for n in others) + rows * SMALL * CORE
    chain = len(others) * SMALL * SMALL + SMALL * CORE
    rank = (1, *(SMALL,) * len(experts), CORE, 1)
    return rank, (2 * (vectors + chain + CORE * OUT), max(SMALL * CORE, OUT))


def tensor_ring(experts: tuple[int, ...], rows: int) -> tuple[tuple[int, ...], Costs]:
    """Every vector with its core, the expert modes' small matrices first, the output core with both bonds."""
    vectors = sum(n * SMALL * SMALL for n in experts) + rows * SMALL * CORE
    chain = (len(experts) - 1) * SMALL**3 + SMALL * SMALL * CORE
    rank = (*(SMALL,) * (len(experts) + 1), CORE, SMALL)
    return rank, (2 * (vectors + chain + SMALL * CORE * OUT), max(SMALL * CORE, OUT))


def tucker(experts: tuple[int, ...], rows: int) -> tuple[tuple[int, ...], Costs]:
    """Every vector with its factor, outer products of the short vectors, one large product with the core.

    With one or two expert modes the input's vector joins the outer product, so that one product ends the core. With
    more it waits: a product per sample, after the core has lost its expert modes, is cheaper then. For many samples
    see `two_modes_and_many_samples`.
    """
    ranks = TUCKER[: len(experts)]
    vectors = sum(n * r for n, r in zip(experts, ranks, strict=True)) + rows * CORE
    together = prod(ranks)
    core = 2 * together * CORE * CORE
    # Two short vectors first, then two pairs: 8*4 + 4*4 + 8*4*4*4 multiplications for four.
    outer = {1: 0, 2: 8 * 4, 3: 4 * 4 + together, 4: 8 * 4 + 4 * 4 + together}[len(experts)]
    if len(experts) <= 2:
        outer, largest = outer + together * CORE, together * CORE
        last = 0
    else:
        last, largest = 2 * CORE * CORE, max(together, CORE * CORE)
    return (*ranks, CORE, CORE), (2 * vectors + outer + core + last + 2 * CORE * OUT, max(largest, CORE, OUT))


def two_modes_and_many_samples(experts: tuple[int, ...], rows: int) -> Costs:
    """Tucker's first mode and the input as an outer product, the core, the second mode: fewer elements are made.

    The core is copied for it, its second mode last, which is little beside many samples.
    """
    vectors = sum(n * r for n, r in zip(experts, TUCKER, strict=False)) + rows * CORE
    core = 2 * 8 * CORE * 4 * CORE + 2 * 4 * CORE
    return 2 * vectors + 8 * CORE + core + 2 * CORE * OUT, max(8 * CORE, OUT)


ORDERS = {"cp": cp, "tt": tensor_train, "tr": tensor_ring, "tucker": tucker}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("modes", EXPERT_DIMS)
@pytest.mark.parametrize("decomposition", ORDERS)
def test_plan_costs_what_the_order_by_hand_costs(decomposition: str, modes: int, bias: bool) -> None:
    experts = EXPERT_DIMS[modes]
    rank, (flops, largest) = ORDERS[decomposition](experts, IN + bias)
    weight = FactorizedExpertTensor(experts, IN, OUT, decomposition, rank, bias=bias, device="meta")
    for batch_size in (1, 64, 1024):
        if (decomposition, modes, batch_size) == ("tucker", 2, 1024):
            flops, largest = two_modes_and_many_samples(experts, IN + bias)
        plan = weight.plan(batch_size)
        assert plan.flops == batch_size * flops
        assert plan.largest_intermediate == batch_size * largest


def test_formulas_give_numbers_written_down_once() -> None:
    """So that an error in a formula and one in the planner cannot agree unseen."""
    assert cp((64,), 257)[1] == (2 * 128 * (64 + 257 + 256) + 128, 256) == (147_840, 256)
    assert tensor_train((16, 16), 257)[1] == (83_104, 256)
    assert tensor_ring((8, 8, 8), 257)[1] == (133_376, 256)
    assert tucker((16, 16), 257)[1] == (99_808, 1024)
    assert tucker((8, 8, 8), 257)[1] == (297_424, 1024)


@pytest.mark.parametrize(("decomposition", "rank"), [("cp", 552), ("tr", (4, 4, 146, 4))])
def test_block_of_256_experts_costs_what_its_mlp_costs(decomposition: str, rank: int | tuple[int, ...]) -> None:
    """768-3072-768 with the ranks of the benchmark: one MLP takes 2 * 768 * 3072 * 2 FLOPs a token."""
    sizes = [(768, 3072), (3072, 768)]
    layers = [FactorizedExpertTensor([256], i, o, decomposition, rank, bias=True, device="meta") for i, o in sizes]
    # One multiplication and one addition for each parameter, and the products of the small tensors.
    parameters = sum(layer.num_parameters for layer in layers)
    small = 552 if decomposition == "cp" else 2 * 4 * 4 * 146
    assert sum(layer.plan(1).flops for layer in layers) == 2 * parameters + 2 * small
    assert [layer.plan(1).largest_intermediate for layer in layers] == [3072, 768]
