"""The layers and the block: what they compute, how many parameters they have, and that nothing breaks them apart."""

import pytest
import torch
from torch import Tensor, nn

from factorized_moe.budgets import Budget
from factorized_moe.decompositions import available_decompositions
from factorized_moe.gating import ExpertGate
from factorized_moe.layers import MuMoE, MuMoEBlock
from tests.small_layers import ADAPTERS, ALL_MAKERS, DECOMPOSITIONS, MAKERS, Make, make_block, make_layer, train_gate


def mix(dense: Tensor, x: Tensor, coefficients: tuple[Tensor, ...]) -> Tensor:
    """`y_bo = sum W[n, m, i, o] a_bn c_bm x_bi`, with 1 appended to x: the layer's equation, written out."""
    rows = torch.cat([x, x.new_ones(len(x), dense.shape[-2] - x.shape[-1])], dim=-1)
    return torch.einsum("nmio,bn,bm,bi->bo", dense, *coefficients, rows)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# -- what is computed


@DECOMPOSITIONS
@pytest.mark.parametrize("bias", [True, False])
def test_layer_is_its_equation(decomposition: str, bias: bool) -> None:
    layer = make_layer(decomposition, bias=bias, dtype=torch.float64).eval()
    train_gate(layer)
    x = torch.randn(6, 5, dtype=torch.float64)
    coefficients = layer.gate(x)
    assert [tuple(a.shape) for a in coefficients] == [(6, 4), (6, 3)]
    torch.testing.assert_close(layer(x), mix(layer.experts.to_dense(), x, coefficients))


@DECOMPOSITIONS
@pytest.mark.parametrize("bias", [True, False])
def test_block_is_its_equation(decomposition: str, bias: bool) -> None:
    block = make_block(decomposition, bias=bias, dtype=torch.float64).eval()
    train_gate(block)
    x = torch.randn(6, 5, dtype=torch.float64)
    coefficients = block.gate(x)
    hidden = nn.functional.gelu(mix(block.first.to_dense(), x, coefficients))
    torch.testing.assert_close(block(x), mix(block.second.to_dense(), hidden, coefficients))


@pytest.mark.parametrize("decomposition", available_decompositions())
def test_layer_of_any_registered_decomposition(decomposition: str) -> None:
    rank = Budget(parameters=1000, count_gate=False)  # enough for the smallest rank of any
    layer = MuMoE(4, 6, expert_dims=[4, 3], decomposition=decomposition, rank=rank, dtype=torch.float64).eval()
    train_gate(layer)
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x), mix(layer.experts.to_dense(), x, layer.gate(x)))


def test_adapters_name_their_decomposition() -> None:
    for decomposition, (_, rank) in ADAPTERS.items():
        adapted = make_layer(decomposition)
        general = MuMoE(5, 7, [4, 3], decomposition, rank)
        assert adapted.experts.network == general.experts.network


@pytest.mark.parametrize("gate_norm", ["batch", "layer", None])
def test_untrained_gate_mixes_uniformly(gate_norm: str | None) -> None:
    layer = make_layer(gate_norm=gate_norm, dtype=torch.float64)
    x = torch.randn(6, 5, dtype=torch.float64)
    for training in (True, False):
        layer.train(training)
        for a, size in zip(layer.gate(x), (4, 3), strict=True):
            torch.testing.assert_close(a, torch.full_like(a, 1 / size))
    mean = layer.experts.to_dense().mean(dim=(0, 1))  # (I + 1, O)
    torch.testing.assert_close(layer(x), x @ mean[:-1] + mean[-1])


@MAKERS
def test_input_norm_is_for_the_experts_alone(make: Make) -> None:
    module = make(input_norm=True, gate_norm="layer", dtype=torch.float64)
    train_gate(module)
    with torch.no_grad():
        module.input_norm.weight.normal_()
        module.input_norm.bias.normal_()
    x = torch.randn(6, 5, dtype=torch.float64)
    seen: list[Tensor] = []
    handle = module.gate.register_forward_hook(lambda gate, args, output: seen.append(args[0]))
    y = module(x)
    handle.remove()
    assert torch.equal(seen[0], x)
    first = module.experts if isinstance(module, MuMoE) else module.first
    hidden = mix(first.to_dense(), module.input_norm(x), module.gate(x))
    if isinstance(module, MuMoEBlock):
        hidden = mix(module.second.to_dense(), nn.functional.gelu(hidden), module.gate(x))
    torch.testing.assert_close(y, hidden)


def test_second_rank_and_activation_of_a_block() -> None:
    block = MuMoEBlock(5, 6, 7, [4], "cp", 3, second_rank=2, activation=torch.relu, gate_norm=None)
    assert (block.first.rank, block.second.rank) == (3, 2)
    with torch.no_grad():
        block.first.weight.input.zero_()  # the hidden values are 0, and so is what relu makes of them
    zeros = torch.zeros(1, 6)
    torch.testing.assert_close(block(torch.randn(2, 5)), block.second(zeros, [torch.full((1, 4), 0.25)]).expand(2, 7))


@MAKERS
@DECOMPOSITIONS
@pytest.mark.parametrize("batch", [(), (6,), (6, 1), (2, 3), (2, 1, 3), (0,), (2, 0)])
def test_leading_shape_is_kept(make: Make, decomposition: str, batch: tuple[int, ...]) -> None:
    module = make(decomposition, dtype=torch.float64).eval()
    train_gate(module)
    x = torch.randn(*batch, 5, dtype=torch.float64, requires_grad=True)
    y = module(x)
    assert y.shape == (*batch, 7)
    torch.testing.assert_close(y.reshape(-1, 7), module(x.reshape(-1, 5)))
    y.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


# -- the gate


def test_hook_reads_and_replaces_coefficients() -> None:
    layer = make_layer(dtype=torch.float64).eval()
    train_gate(layer)
    x = torch.randn(6, 5, dtype=torch.float64)
    seen: list[tuple[Tensor, ...]] = []
    reading = layer.gate.register_forward_hook(lambda gate, args, output: seen.append(output))
    before = layer(x)
    reading.remove()
    assert [tuple(a.shape) for a in seen[0]] == [(6, 4), (6, 3)]

    def one_expert(gate: nn.Module, args: tuple[Tensor], output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        chosen = [torch.zeros_like(a) for a in output]
        chosen[0][:, 2] = 1.0
        chosen[1][:, 1] = 1.0
        return tuple(chosen)

    writing = layer.gate.register_forward_hook(one_expert)
    expert = layer.experts.expert(2, 1)
    torch.testing.assert_close(layer(x), x @ expert[:-1] + expert[-1])
    writing.remove()
    assert torch.equal(layer(x), before)


def test_block_calls_its_gate_once() -> None:
    block = make_block()
    calls: list[object] = []
    block.gate.register_forward_hook(lambda gate, args, output: calls.append(output))
    block(torch.randn(6, 5))
    assert len(calls) == 1


@ALL_MAKERS
@pytest.mark.parametrize("gate_norm", ["batch", "layer", None])
def test_forward_stores_nothing(make: Make, gate_norm: str | None) -> None:
    module = make(gate_norm=gate_norm)

    def attributes() -> dict[str, dict[str, int]]:
        return {name: {key: id(value) for key, value in vars(child).items()} for name, child in module.named_modules()}

    before = attributes()
    module(torch.randn(6, 5))
    assert attributes() == before


@MAKERS
def test_own_gate(make: Make) -> None:
    class FirstExperts(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return tuple(torch.eye(size)[0].expand(*x.shape[:-1], size) for size in (4, 3))

    module = make(gate=FirstExperts())
    assert isinstance(module.gate, FirstExperts)
    assert count(module.gate) == 0
    assert module(torch.randn(6, 5)).shape == (6, 7)


def test_gate_activation_is_a_name_or_a_function() -> None:
    x = torch.randn(6, 5)
    named = make_layer(gate="softmax", gate_norm=None)
    given = make_layer(gate=lambda logits: torch.softmax(logits, dim=-1), gate_norm=None)
    given.load_state_dict(named.state_dict())
    for layer in (named, given):
        train_gate(layer)
    assert torch.equal(named(x), given(x))


@MAKERS
def test_batch_norm_of_the_gate_follows_the_mode(make: Make) -> None:
    module = make(gate_norm="batch", dtype=torch.float64)
    train_gate(module)
    x = torch.randn(2, 8, 5, dtype=torch.float64)
    logits = x.reshape(16, 5) @ module.gate.projection.weight.T  # (B, sum N_k)
    running = [(n.running_mean, n.running_var) for n in module.modules() if isinstance(n, nn.BatchNorm1d)]
    untouched = torch.cat([mean for mean, _ in running])
    assert torch.equal(untouched, torch.zeros_like(untouched))

    coefficients = module.gate(x)  # over samples and tokens alike
    expected = (logits - logits.mean(0)) / (logits.var(0, correction=0) + 1e-5).sqrt()
    for a, part in zip(coefficients, expected.split([4, 3], dim=1), strict=True):
        flat = a.reshape(16, -1)
        assert torch.equal(flat.argmax(1), part.argmax(1))
    torch.testing.assert_close(torch.cat([mean for mean, _ in running]), 0.1 * logits.mean(0))
    torch.testing.assert_close(torch.cat([var for _, var in running]), 0.9 + 0.1 * logits.var(0))

    trained = module(x)
    module.eval()
    means = [mean.clone() for mean, _ in running]
    assert not torch.allclose(module(x), trained)
    assert torch.equal(module(x[:1]), module(x)[:1]) or torch.allclose(module(x[:1]), module(x)[:1])
    assert all(torch.equal(mean, now) for mean, (now, _) in zip(means, running, strict=True))


@ALL_MAKERS
def test_training_reaches_every_parameter(make: Make) -> None:
    torch.manual_seed(0)
    module = make("tr", input_norm=True)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
    x, target = torch.randn(64, 5), torch.randn(64, 7)
    losses = []
    for _ in range(30):
        loss = (module(x) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())


# -- initial values


def test_other_initial_values() -> None:
    torch.manual_seed(0)
    dense = make_layer("cp", init="variance_preserving").experts.to_dense()
    assert not torch.equal(dense[0], dense[1])
    filled = make_layer("cp", init=lambda network, tensors: [t.fill_(2.0) for t in tensors.values()])
    assert torch.equal(filled.experts.to_dense(), torch.full((4, 3, 6, 7), 3 * 2.0**4))


@ALL_MAKERS
def test_reset_parameters_draws_all_anew(make: Make) -> None:
    module = make(gate_norm="batch")
    train_gate(module)
    module(torch.randn(16, 5))
    torch.manual_seed(1)
    module.reset_parameters()
    torch.manual_seed(1)
    fresh = make(gate_norm="batch")
    for name, value in fresh.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name


# -- what is refused


def test_gate_module_is_taken_as_it_is() -> None:
    gate = ExpertGate(5, (4, 3), activation="softmax", norm=None)
    assert make_layer(gate=gate).gate is gate


@ALL_MAKERS
def test_wrong_width_is_refused(make: Make) -> None:
    module = make()
    with pytest.raises(ValueError, match=r"the input must have shape \(\*batch, 5\), but got \(6, 4\)"):
        module(torch.randn(6, 4))
    with pytest.raises(ValueError, match=r"the input must have shape \(\*batch, 5\), but got \(\)"):
        module(torch.tensor(1.0))


@ALL_MAKERS
def test_wrong_dtype_is_refused(make: Make) -> None:
    with pytest.raises(TypeError, match=r"torch\.float64.*torch\.float32"):
        make()(torch.randn(6, 5, dtype=torch.float64))


@MAKERS
def test_wrong_gate_is_refused_at_the_call(make: Make) -> None:
    module = make(gate=ExpertGate(5, (4,)))
    with pytest.raises(ValueError, match=r"got 1 coefficient tensors for 2 expert modes \(4, 3\)"):
        module(torch.randn(6, 5))
    module = make(gate=ExpertGate(5, (4, 2)))
    with pytest.raises(ValueError, match=r"coefficients of expert mode 1 have shape \(6, 2\), expected \(6, 3\)"):
        module(torch.randn(6, 5))


@MAKERS
def test_bad_arguments_are_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="bach"):
        make(gate_norm="bach")
    with pytest.raises(ValueError, match="sofmax"):
        make(gate="sofmax")
    known = r"\['balanced', 'paper', 'variance_preserving'\]"
    with pytest.raises(ValueError, match=rf"CP has no initialisation 'papr'; it has {known}"):
        make(init="papr")


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(TypeError, match="rank is missing"):
        MuMoE(5, 7, [4])
    with pytest.raises(ValueError, match="in_features must be at least 1, got 0"):
        MuMoE(0, 7, [4], rank=2)
    with pytest.raises(TypeError, match="expert_dims is a sequence"):
        MuMoE(5, 7, 4, rank=2)
    with pytest.raises(ValueError, match=r"expert_dims\[1\] must be at least 1, got 0"):
        MuMoE(5, 7, [4, 0], rank=2)
    with pytest.raises(ValueError, match="unknown decomposition 'tuker'; did you mean 'tucker'"):
        MuMoE(5, 7, [4], "tuker", 2)
