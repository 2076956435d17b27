"""Layers of experts that start as what they stand for: exactly where the rank allows, else as near as can be."""

import pytest
import torch
from torch import Tensor, nn

from factorized_moe import MuMoE, MuMoEBlock, available_decompositions
from factorized_moe.contraction import dense_tensor, expert_rank_bound
from factorized_moe.decompositions import Decomposition, GivenNetwork, get_decomposition, registry
from factorized_moe.fitting.closed_form.carriers import mean_matrix
from factorized_moe.fitting.closed_form.equal_experts import equal_experts
from factorized_moe.interpret import measure_usage
from factorized_moe.network import TensorNetwork
from factorized_moe.surgery import MuMoEConfig, replace, upcycle

# Their experts are structured matrices: the matrix rank is not what limits them.
STRUCTURED = ("block_tensor_train", "kronecker", "tt_matrix")
GENERIC = [name for name in available_decompositions() if name not in STRUCTURED]
EXPERTS = [(), (5,), (2, 1, 3)]


def some_matrix(inputs: int = 9, outputs: int = 10, seed: int = 0) -> torch.Tensor:
    return torch.randn(inputs, outputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def truncation_error(matrix: torch.Tensor, rank: int) -> float:
    values = torch.linalg.svdvals(matrix)
    return float(values[rank:].norm() / values.norm())


def relative(difference: torch.Tensor, to: torch.Tensor) -> float:
    return float(difference.norm() / to.norm())


@pytest.mark.parametrize("experts", EXPERTS, ids=str)
@pytest.mark.parametrize("name", GENERIC)
def test_as_good_as_the_truncated_decomposition(name: str, experts: tuple[int, ...]) -> None:
    matrix, source = some_matrix(), get_decomposition(name)
    for rank in (1, 4, 11):
        shape = (*experts, *matrix.shape)
        network = source.network(experts, *matrix.shape, source.resolve_rank(rank, shape))
        tensors = equal_experts(matrix, network, noise=0.4, generator=torch.Generator().manual_seed(1))
        # The oracle: the dense tensor's mean over all experts.
        dense = dense_tensor(network, [tensors[node.parameter] for node in network.nodes])
        mean = dense.reshape(-1, *matrix.shape).mean(0)
        best = truncation_error(matrix, expert_rank_bound(network))
        assert relative(mean - matrix, matrix) == pytest.approx(best, rel=1e-9, abs=1e-12)
        torch.testing.assert_close(mean_matrix(network, tensors), mean)


@pytest.mark.parametrize("name", STRUCTURED)
def test_structured_experts_reach_any_matrix_and_report_what_they_lose(name: str) -> None:
    linear = nn.Linear(8, 12).double()
    errors = [upcycle(linear, (3,), name, rank).error for rank in (1, 2, 16)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-10
    started = upcycle(linear, (3,), name, 2)
    dense = started.layer.experts.to_dense().mean(0).detach()
    exact = torch.cat([linear.weight.T, linear.bias[None]]).detach()
    assert relative(dense - exact, exact) == pytest.approx(started.error)


def test_kronecker_is_the_nearest_sum_of_products() -> None:
    matrix = some_matrix(8, 12)
    network = get_decomposition("kronecker").network((2,), 8, 12, 3)
    tensors = equal_experts(matrix, network)
    (i0, i1), (o0, o1) = ([network.sizes[x] for x in labels] for labels in (network.in_labels, network.out_labels))
    rearranged = matrix.reshape(i0, i1, o0, o1).permute(0, 2, 1, 3).reshape(i0 * o0, i1 * o1)  # Van Loan & Pitsianis
    error = relative(mean_matrix(network, tensors) - matrix, matrix)
    assert error == pytest.approx(truncation_error(rearranged, 3))


@pytest.mark.parametrize("name", available_decompositions())
def test_experts_differ_by_the_noise(name: str) -> None:
    matrix, source = some_matrix(24, 24), get_decomposition(name)
    network = source.network((60,), 24, 24, source.resolve_rank(8, (60, 24, 24)))
    spreads = []
    for seed in range(3):
        tensors = equal_experts(matrix, network, noise=0.2, generator=torch.Generator().manual_seed(seed))
        dense = dense_tensor(network, [tensors[node.parameter] for node in network.nodes])
        mean = dense.mean(0)
        spreads.append(float((dense - mean).flatten(1).norm(dim=1).square().mean().sqrt() / mean.norm()))
    assert sum(spreads) / 3 == pytest.approx(0.2, rel=0.4), spreads
    alike = equal_experts(matrix, network)
    dense = dense_tensor(network, [alike[node.parameter] for node in network.nodes])
    assert relative(dense - dense.mean(0), dense) < 1e-12


@pytest.mark.parametrize("name", available_decompositions())
def test_every_parameter_is_reached_by_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    started = upcycle(nn.Linear(7, 6), (4, 2), name, rank=9, noise=0.2)
    x, target = torch.randn(40, 7), torch.randn(40, 6)
    optimiser = torch.optim.Adam(started.layer.parameters(), lr=1e-2)
    moved = {key: torch.zeros_like(p, dtype=torch.bool) for key, p in started.layer.named_parameters()}
    for _ in range(3):
        optimiser.zero_grad()
        (started.layer(x) - target).square().mean().backward()
        optimiser.step()
        for key, parameter in started.layer.named_parameters():
            moved[key] |= parameter.grad != 0
    padded = started.layer.experts.network.in_padding  # meets an input of zeros
    assert padded or all(mask.all() for mask in moved.values()), [key for key, mask in moved.items() if not mask.all()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layer(bias: bool, dtype: torch.dtype) -> None:
    linear = nn.Linear(6, 9, bias=bias, dtype=dtype).eval()
    started = upcycle(linear, (4,), "tucker", (2, 7, 9))
    x = torch.randn(2, 3, 6, dtype=dtype)
    tolerance = 1e-10 if dtype == torch.float64 else 0.05
    torch.testing.assert_close(started.layer(x), linear(x), rtol=tolerance, atol=tolerance)
    assert isinstance(started.layer, MuMoE)
    assert not started.layer.training
    assert (1e-4 < started.error < 1e-1) if dtype == torch.bfloat16 else started.error < 1e-12


def test_transposed_linear_layer_of_gpt2() -> None:
    from transformers.pytorch_utils import Conv1D

    linear = Conv1D(9, 6)
    nn.init.normal_(linear.bias)
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(upcycle(linear, (4,), "tt", 7).layer(x), linear(x))


def test_mlp_has_one_gate_and_an_error_for_each_layer() -> None:
    mlp = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6, bias=False))
    started = upcycle(mlp, (4,), "cp", 7, second_rank=2)
    assert isinstance(started.layer, MuMoEBlock)
    assert started.errors[0] < 1e-6
    assert started.errors[1] == pytest.approx(truncation_error(mlp[2].weight.detach().T, 2), rel=1e-3)
    assert started.error == started.errors[1]


def test_nothing_of_the_size_of_all_experts_is_built() -> None:
    linear = nn.Linear(64, 64)
    started = upcycle(linear, (10**4, 10**4), "cp", 65)  # the dense tensor would have 4e11 entries
    x = torch.randn(2, 64)
    coefficients = [torch.zeros(2, 10**4) for _ in range(2)]
    for values in coefficients:
        values[:, 3] = 1.0
    expert, expected = started.layer.experts(x, coefficients).detach(), linear(x).detach()
    assert 0.05 < relative(expert - expected, expected) < 0.3


def test_input_covariance_lowers_the_error_of_the_outputs() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(12, 10)
    inputs = torch.randn(500, 12) * torch.linspace(0.01, 3, 12) + 0.5
    augmented = torch.cat([inputs, torch.ones(500, 1)], dim=1)
    moments = [None, inputs.T @ inputs / 500, augmented.T @ augmented / 500]
    errors = []
    for given in moments:
        started = upcycle(linear, (3,), "cp", 4, input_covariance=given)
        expected = linear(inputs).detach()
        errors.append(relative(started.layer(inputs).detach() - expected, expected))
    assert errors[2] < errors[1] < errors[0]
    assert started.error == pytest.approx(errors[2], rel=1e-3)  # it is the error of the outputs


def test_input_covariance_of_rank_one() -> None:
    linear = nn.Linear(5, 4, bias=False)
    x = torch.randn(1, 5)
    started = upcycle(linear, (3,), "tt", 1, input_covariance=x.T @ x)
    torch.testing.assert_close(started.layer.eval()(x), linear(x), rtol=1e-3, atol=1e-3)


def test_zero_weights() -> None:
    linear = nn.Linear(5, 4)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    for name in available_decompositions():
        started = upcycle(linear, (3,), name, 2)
        assert started.error == 0.0
        assert not started.layer(torch.randn(2, 5)).any()


def test_hand_written_network_with_a_bridge_of_three_bonds() -> None:
    text = "expert_0 a, in b, a b c d, c e, d e out; expert_0=3 in=6 out=7 a=2 b=6 c=3 d=4 e=3"
    given = GivenNetwork(TensorNetwork.parse(text))
    matrix = some_matrix(6, 7)
    tensors = equal_experts(matrix, given.given, noise=0.1)
    assert relative(mean_matrix(given.given, tensors) - matrix, matrix) < 1e-9


@pytest.mark.parametrize("gate_rank", [None, 2])
def test_same_seed_same_layer(gate_rank: int | None) -> None:
    linear = nn.Linear(5, 4)
    first, second, third = (
        upcycle(linear, (3,), "tr", 2, gate_rank=gate_rank, seed=seed).layer.state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], third[key]) for key in first if "experts" in key)
    reduction = "gate.reduction.weight"
    assert gate_rank is None or not torch.equal(first[reduction], third[reduction])


def shared_parameters() -> GivenNetwork:
    return GivenNetwork(
        TensorNetwork.parse("expert_0 a, in a b, x@w: b c, y@w: c d, d out; expert_0=3 in=4 out=4 a=2 b=2 c=2 d=2")
    )


class Given(Decomposition):
    """A network of four inputs, two of whose nodes share a parameter, or one of which is fixed."""

    def __init__(self, text: str) -> None:
        self.text = text

    def network(self, expert_dims: object, in_features: int, out_features: int, rank: object) -> TensorNetwork:
        return TensorNetwork.parse(f"{self.text}; expert_0=3 in={in_features} out=4 a=2 b=2 c=2 d=2")


@pytest.mark.parametrize(
    "text",
    ["expert_0 a, in a b, x@w: b c, y@w: c d, d out", "expert_0 a, in a b, link(identity): b c, c d, d out"],
    ids=["shared", "fixed"],
)
def test_networks_that_cannot_start_from_a_matrix_start_at_random(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", {**registry._REGISTRY, "given": Given(text)})
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"cannot be set from a matrix; .* a config with pretrained=False"):
        replace(model, "0", MuMoEConfig(expert_dims=(3,), decomposition="given", rank=2))
    replace(model, "0", MuMoEConfig(expert_dims=(3,), decomposition="given", rank=2, pretrained=False))
    assert model(torch.randn(5, 4)).std() > 0


@pytest.mark.parametrize("name", available_decompositions())
def test_experts_of_every_mode_differ(name: str) -> None:
    layer = upcycle(nn.Linear(8, 6), (4, 3), name, rank=6, noise=0.2).layer
    for usage in measure_usage(layer, torch.randn(5, 8)):
        assert usage.nearest > 1e-3, usage


def first_two(logits: Tensor) -> Tensor:
    return torch.tensor([0.5, 0.5, 0.0]).expand_as(logits)


def test_a_top_k_gate_starts_uniform() -> None:
    linear, x = nn.Linear(4, 4), torch.randn(6, 4)
    started = upcycle(linear, (3,), "cp", 12, gate="topk_softmax")
    torch.testing.assert_close(started.layer(x), linear(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("module", "options", "error", "message"),
    [
        (nn.Conv2d(2, 2, 1), {}, ValueError, "cannot upcycle Conv2d: it is neither a linear layer nor an MLP"),
        (nn.Linear(4, 4), {"noise": -1.0}, ValueError, "noise is a finite number, 0 or more, got -1.0"),
        (nn.Linear(4, 4), {"noise": float("nan")}, ValueError, "noise is a finite number"),
        (nn.Linear(4, 4, device="meta"), {}, ValueError, "the weights are on the meta device and have no values"),
        (nn.Linear(4, 4), {"rank": None}, TypeError, "rank is missing"),
        (nn.Linear(4, 4), {"gate": torch.sigmoid}, ValueError, "coefficients of expert mode 0 do not start uniform"),
        (
            nn.Linear(4, 4),
            {"gate": first_two},
            ValueError,
            r"do not start uniform \(from 0 to 0.5 for 3 experts\)",
        ),
        (
            nn.Linear(4, 4),
            {"decomposition": shared_parameters()},
            ValueError,
            "two nodes share a parameter.* each node its own, or start",
        ),
        (
            nn.Linear(4, 4),
            {"input_covariance": torch.eye(7)},
            ValueError,
            r"shape \(7, 7\), expected \(4, 4\) or, with the constant 1, \(5, 5\)",
        ),
        (nn.Linear(4, 4), {"input_covariance": torch.eye(4) * torch.nan}, ValueError, "input_covariance has a NaN"),
        (nn.Linear(4, 4), {"input_covariance": -torch.eye(4)}, ValueError, "negative eigenvalue, -1"),
        (
            nn.Linear(4, 4),
            {"input_covariance": torch.ones(4, 4).triu()},
            ValueError,
            "input_covariance is not symmetric",
        ),
        (
            nn.Linear(4, 4),
            {"input_covariance": [1.0]},
            TypeError,
            "input_covariance must be a tensor of a real floating type, got list",
        ),
        (
            nn.Linear(7, 4),
            {"input_covariance": torch.eye(7), "decomposition": "kronecker"},
            ValueError,
            "needs a network that has the whole input on one node",
        ),
        (
            nn.Linear(7, 8),
            {"input_covariance": torch.eye(7), "decomposition": "tt_matrix"},
            ValueError,
            "needs a network of two carriers, but 3 nodes",
        ),
    ],
    ids=[
        "conv",
        "noise",
        "nan",
        "meta",
        "rank",
        "sums",
        "uneven",
        "shared",
        "shape",
        "nan moments",
        "negative",
        "not symmetric",
        "type",
        "split",
        "three",
    ],
)
def test_errors(module: nn.Module, options: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"decomposition": "cp", "rank": 2, **options}
    with pytest.raises(error, match=message):
        upcycle(module, (3,), **arguments)


def test_weights_that_are_not_finite() -> None:
    linear = nn.Linear(4, 4)
    with torch.no_grad():
        linear.bias[0] = float("inf")
    with pytest.raises(ValueError, match="linear layer 0 of what is upcycled has a NaN or an infinite weight"):
        upcycle(linear, (3,), "cp", 2)
