"""Orders given by the user: read as other libraries write them, checked, and lowered like any other."""

import cotengra
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from factorized_moe import FactorizedExpertTensor, TensorNetwork
from factorized_moe.contraction import contractions, forward_request, make_plan, paths_of, plan_along
from factorized_moe.network import BATCH
from factorized_moe.testing import count_flops, networks, plan_cost

CHAIN = TensorNetwork.parse("in a, a b, b out; in=4 out=5 a=2 b=3")
SUM = CHAIN + TensorNetwork.parse("whole: in out; in=4 out=5")


@pytest.mark.thorough
@settings(max_examples=40)
@given(network=networks(), data=st.data())
def test_any_path_gives_the_same_answer(network: TensorNetwork, data: st.DataObject) -> None:
    w = FactorizedExpertTensor(network=network, dtype=torch.float64)
    x, *coefficients = (torch.rand(3, n, dtype=torch.float64) for n in (w.in_features, *w.expert_dims))
    expected = w(x, coefficients)
    paths = []
    for term in network.terms:
        count = len(term) + 1 + len(coefficients)
        draws = [data.draw(st.permutations(range(left))) for left in range(count, 1, -1)]
        paths.append([tuple(draw[:2]) for draw in draws])
    plan = w.plan(64, path=paths if len(paths) > 1 else paths[0])
    torch.testing.assert_close(w(x, coefficients), expected)
    assert plan.flops == count_flops(plan)
    assert w.plan(64) == plan == w.plan(1).at_batch_size(64)


@settings(max_examples=40)
@given(network=networks())
def test_a_plan_made_again_from_its_path_is_the_same(network: TensorNetwork) -> None:
    request = forward_request(network, bias=False)
    plan = make_plan(network, request, 64)
    again = plan_along(network, request, paths_of(plan), 64)
    assert (again.flops, plan_cost(again)) == (plan.flops, plan_cost(plan))
    assert paths_of(again) == paths_of(plan)


@pytest.mark.parametrize("search", [cotengra.GreedyOptimizer(), cotengra.OptimalOptimizer()], ids=["greedy", "optimal"])
def test_the_path_of_a_tree_of_cotengras(search: object) -> None:
    w = FactorizedExpertTensor((4, 3), 8, 6, "tr", (2, 3, 4, 5, 2), dtype=torch.float64)
    ((inputs, output),) = contractions(w.network, forward_request(w.network, bias=False))
    sizes = w.network.sizes | {BATCH: 64}
    tree = cotengra.array_contract_tree(inputs, output, size_dict=sizes, optimize=search)
    x, *coefficients = (torch.rand(3, n, dtype=torch.float64) for n in (8, 4, 3))
    expected = w(x, coefficients)
    assert len(w.plan(path=tree.get_path()).steps) >= len(inputs) - 1
    torch.testing.assert_close(w(x, coefficients), expected)


def test_a_step_on_one_operand_moves_it_to_the_end() -> None:
    request = forward_request(CHAIN, bias=False)
    assert plan_along(CHAIN, request, [(3,), (0,), (0, 1), (0, 1), (0, 1)], 64).flops > 0
    assert paths_of(plan_along(CHAIN, request, [(0,), (2, 3), (0, 2), (0, 1)], 64)) == [[(0, 3), (0, 2), (0, 1)]]


@pytest.mark.parametrize(
    ("network", "path", "error", "message"),
    [
        (
            CHAIN,
            "auto",
            TypeError,
            r"path is a sequence of pairs of positions .*\[\(0, 2\), \(0, 1\)\], got 'auto'",
        ),
        (CHAIN, 3, TypeError, "path is a sequence of pairs of positions .*, got 3"),
        (CHAIN, [(0, 1.0)], TypeError, r"path: step 0 is \(0, 1.0\), expected two positions, as in \(0, 2\)"),
        (CHAIN, [(0, 3), "ab"], TypeError, "path: step 1 is 'ab', expected two positions"),
        (
            CHAIN,
            [(0, 1, 2)],
            ValueError,
            r"path: step 0 is \(0, 1, 2\), expected two different positions: plans",
        ),
        (CHAIN, [(1, 1)], ValueError, r"path: step 0 is \(1, 1\), expected two different positions"),
        (
            CHAIN,
            [(0, 3), (0, 3)],
            ValueError,
            r"path: step 1 is \(0, 3\), but 3 operands are left, numbered from 0; the",
        ),
        (CHAIN, [(0, -1)], ValueError, r"path: step 0 is \(0, -1\), but 4 operands are left"),
        (
            CHAIN,
            [(0, 3)],
            ValueError,
            "path has 1 steps and leaves 3 operands, expected 3 steps for the 4 operands",
        ),
        (SUM, [(0, 1)], ValueError, "path has 1 entries, expected 2: one path for each term of the network"),
        (SUM, [[(0, 3), (0, 2), (0, 1)], 5], TypeError, "path of term 1 is a sequence of pairs .*, got 5"),
        (SUM, [[(0, 3), (0, 2), (0, 1)], [(0, 2)]], ValueError, r"path of term 1: step 0 is \(0, 2\), but 2 operands"),
    ],
)
def test_refused_paths(network: TensorNetwork, path: object, error: type[Exception], message: str) -> None:
    w = FactorizedExpertTensor(network=network)
    before = w.plan()
    with pytest.raises(error, match=message):
        w.plan(path=path)
    assert w.plan() == before


@pytest.mark.parametrize("other", [{"optimize": "flops"}, {"memory_limit": 1000}])
def test_a_path_is_given_alone(other: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="path is the order itself; give it without optimize and memory_limit"):
        FactorizedExpertTensor(network=CHAIN).plan(path=[(0, 3), (0, 2), (0, 1)], **other)
