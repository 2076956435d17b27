"""The released calls: every layer and block is its equation at any level, and what does not fit is refused."""

import copy
import itertools
import pickle
from collections.abc import Sequence
from typing import Any

import entmax
import pytest
import tensorly
import torch
from torch import Tensor, nn

from factorized_moe import FactorizedExpertTensor, compat, layers
from factorized_moe.activations import entmax15
from factorized_moe.compat import weights
from factorized_moe.contraction import execute

pytestmark = pytest.mark.thorough

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-9}


N_EXPERTS, IN_DIM, OUT_DIM, RANK = 32, 4, 8, 8


def chain(modes: int, first: int, middle: object = None) -> list[list[Any]]:
    """A list of cores of `modes` modes: `first` opens and closes it."""
    bonds = [first, *[4] * (modes - 1), first]
    return [[left, middle, right] for left, right in itertools.pairwise(bonds)]


def v1_layers(levels: int, **options: Any) -> dict[str, nn.Module]:
    """Every v1 layer with so many levels, called as its readme does."""
    dims = [N_EXPERTS, *[2] * (levels - 1)]
    if levels > 1:
        options = {"hierarchy": levels, **options}
    modes = levels + 2
    tucker_ranks = [8, 8, 8] if levels == 1 else [3] * modes
    return {
        "cp": compat.CPMMoE(IN_DIM, OUT_DIM, expert_dims=dims, rank=N_EXPERTS, **options),
        "tucker": compat.TuckerMMoE(IN_DIM, OUT_DIM, expert_dims=dims, ranks=tucker_ranks, **options),
        "tt": compat.TTMMoE(IN_DIM, OUT_DIM, expert_dims=dims, ranks=chain(modes, 1, N_EXPERTS), **options),
        "tr": compat.TTMMoE(IN_DIM, OUT_DIM, expert_dims=dims, ranks=chain(modes, 4, N_EXPERTS), **options),
    }


def neurips_layers(levels: int, **options: Any) -> dict[str, nn.Module]:
    """Every NeurIPS layer with so many levels, called as its readme does."""
    dims = [N_EXPERTS, *[2] * (levels - 1)]
    if levels > 1:
        options = {"hierarchy": levels, **options}
    sizes = {"input_dim": IN_DIM, "output_dim": OUT_DIM, "expert_dims": dims}
    ranks = chain(levels + 2, 4, N_EXPERTS)
    return {
        "cp": compat.MuMoE(MuMoE_layer=compat.CPMuMoE, ranks=N_EXPERTS, **sizes, **options),
        "tr": compat.MuMoE(MuMoE_layer=compat.TRMuMoE, ranks=ranks, **sizes, **options),
    }


def fill_gate(layer: nn.Module, seed: int = 0) -> None:
    """Gate weights and running statistics as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in layer.projs:
            weight.copy_(torch.randn(weight.shape, generator=generator))
        for module in layer.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
                module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)


def dense(factors: nn.Module, core: Tensor | None = None) -> Tensor:
    """The dense weight `(*expert_dims, I (+1), O)` by TensorLy, from parameters in the released layout."""
    parts = [factor.detach() for factor in factors]
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        if core is not None:
            return tensorly.tucker_to_tensor((core.detach(), parts))
        if parts[0].ndim == 2:
            return tensorly.cp_to_tensor((None, parts))
        return tensorly.tr_to_tensor(parts)  # of a ring whose first bond is 1, the train


def mix(weight: Tensor, x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
    """`y_bo = sum_{n.., i} W[n.., i, o] a_bn .. x_bi`, mode by mode, with 1 appended to x."""
    rows = torch.cat([x, x.new_ones(len(x), weight.shape[-2] - x.shape[-1])], dim=-1)
    mixed = weight.expand(len(x), *weight.shape)
    for a in coefficients:
        mixed = torch.einsum("bn...,bn->b...", mixed, a)
    return torch.einsum("bio,bi->bo", mixed, rows)


@pytest.mark.parametrize("use_bias", [True, False, 1, 0])
@pytest.mark.parametrize("form", ["cp", "tucker", "tt", "tr"])
@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
def test_v1_layer_is_its_equation(levels: int, form: str, use_bias: bool) -> None:
    layer = v1_layers(levels, use_bias=use_bias)[form].double().eval()
    fill_gate(layer)
    x = torch.randn(6, IN_DIM, dtype=torch.float64)
    coefficients = [entmax15(bn(x @ weight)) for bn, weight in zip(layer.bn, layer.projs, strict=True)]
    weight = dense(layer.factors, layer.core)
    assert weight.shape == (*layer.expert_dims, IN_DIM + bool(use_bias), OUT_DIM)
    y = layer(x)
    torch.testing.assert_close(y, mix(weight, x, coefficients))
    torch.testing.assert_close(layer.to_native()(x), y, **EXACT)
    for ours, theirs in zip(layer.coefficients(x), coefficients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("normalization", ["bn", "ln"])
@pytest.mark.parametrize("form", ["cp", "tr"])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_neurips_layer_is_its_equation(levels: int, form: str, normalization: str, use_bias: bool) -> None:
    layer = neurips_layers(levels, use_bias=use_bias, normalization=normalization)[form].double().eval()
    fill_gate(layer)
    x = torch.randn(6, IN_DIM, dtype=torch.float64)
    normalise = layer.bn if normalization == "bn" else layer.ln
    coefficients = [layer.act(norm(x @ weight)) for norm, weight in zip(normalise, layer.projs, strict=True)]
    expected = mix(dense(layer.MuMoE.factors), x, coefficients)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.MuMoE(x, coefficients), expected)
    torch.testing.assert_close(layer.MuMoE(z=x, a=coefficients), expected)
    torch.testing.assert_close(layer.MuMoE.to_native()(x, coefficients), expected)
    torch.testing.assert_close(layer.to_native()(x), layer(x), **EXACT)


@pytest.mark.parametrize("normalization", ["bn", "ln"])
@pytest.mark.parametrize("apply_ln", [True, False])
@pytest.mark.parametrize("form", ["cp", "tr"])
@pytest.mark.parametrize("levels", [1, 2])
def test_block_is_two_layers_with_one_gate(levels: int, form: str, apply_ln: bool, normalization: str) -> None:
    options = {"second_dim": 3, "apply_ln": apply_ln, "normalization": normalization}
    block = neurips_layers(levels, **options)[form].double().eval()
    fill_gate(block)
    if apply_ln:
        nn.init.normal_(block.input_ln.weight)
        nn.init.normal_(block.input_ln.bias)
    x = torch.randn(6, IN_DIM, dtype=torch.float64)
    coefficients = block.coefficients(x)  # of the input as it is
    hidden = nn.functional.gelu(mix(dense(block.MuMoE.factors), block.input_ln(x), coefficients))
    torch.testing.assert_close(block(x), mix(dense(block.MuMoE2.factors), hidden, coefficients))
    torch.testing.assert_close(block.to_native()(x), block(x), **EXACT)


def test_positional_arguments_are_in_the_released_order() -> None:
    cores = chain(4, 2)
    for layer in (
        compat.CPMMoE(4, 8, [5, 2], 3, torch.sigmoid, False, 2),
        compat.TuckerMMoE(4, 8, [5, 2], [3, 3, 3, 3], torch.sigmoid, False, 2),
        compat.TTMMoE(4, 8, [5, 2], cores, torch.sigmoid, False, 2),
        compat.TRMuMoE(4, 8, [5, 2], cores, torch.sigmoid, False, 2),
    ):
        assert (layer.act, layer.use_bias, layer.hierarchy) == (torch.sigmoid, False, 2)
    assert not compat.CPMuMoE(4, 8, [5, 2], 3, False, 2).use_bias
    wrapper = compat.MuMoE(compat.CPMuMoE, 4, 8, [5, 2], 3, 6, "ln", torch.sigmoid, False, 2, True)
    assert (wrapper.second_dim, wrapper.normalization, wrapper.act) == (6, "ln", torch.sigmoid)
    assert not wrapper.MuMoE.use_bias
    assert isinstance(wrapper.input_ln, nn.LayerNorm)
    assert wrapper(torch.randn(3, 4)).shape == (3, 6)


def test_default_activation_is_that_of_the_entmax_package() -> None:
    ours = compat.CPMMoE(IN_DIM, OUT_DIM, expert_dims=[N_EXPERTS], rank=RANK).double()
    theirs = compat.CPMMoE(IN_DIM, OUT_DIM, expert_dims=[N_EXPERTS], rank=RANK, act=entmax.entmax15).double()
    fill_gate(ours)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(6, IN_DIM, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), **EXACT)


@pytest.mark.parametrize("act", [nn.Softmax(dim=-1), lambda logits: logits.softmax(dim=-1)], ids=["module", "function"])
def test_any_activation_is_carried_over(act: Any) -> None:
    layer = compat.CPMMoE(IN_DIM, OUT_DIM, expert_dims=[N_EXPERTS], rank=RANK, act=act).double()
    fill_gate(layer)
    x = torch.randn(6, IN_DIM, dtype=torch.float64)
    twin = layer.to_native()
    torch.testing.assert_close(twin.gate(x)[0], (layer.bn[0](x @ layer.projs[0])).softmax(dim=-1))
    torch.testing.assert_close(twin.eval()(x), layer.eval()(x), **EXACT)


@pytest.mark.parametrize("batch", [(), (6,), (6, 1), (1, 6), (2, 3), (2, 1, 3), (0,), (2, 0)])
@pytest.mark.parametrize("form", ["cp", "tucker", "tt", "tr", "block"])
def test_leading_shape_is_kept(form: str, batch: tuple[int, ...]) -> None:
    layer = neurips_layers(1, second_dim=OUT_DIM)["tr"] if form == "block" else v1_layers(2)[form]
    layer = layer.double().eval()
    fill_gate(layer)
    x = torch.randn(*batch, IN_DIM, dtype=torch.float64)
    y = layer(x)
    assert y.shape == (*batch, OUT_DIM)
    torch.testing.assert_close(y.reshape(-1, OUT_DIM), layer(x.reshape(-1, IN_DIM)))
    torch.testing.assert_close(layer.to_native()(x), y, **EXACT)


def test_two_dimensional_output_where_the_released_one_has_three() -> None:
    """Callers of the NeurIPS version squeeze the axis away; that leaves ours as it is."""
    layer = neurips_layers(1)["cp"]
    y = layer(torch.randn(6, IN_DIM))
    assert y.shape == y.squeeze(1).shape == (6, OUT_DIM)


def test_forward_stores_nothing() -> None:
    for layer in (*v1_layers(1).values(), *neurips_layers(1, second_dim=3).values()):
        before = [{key: id(value) for key, value in vars(module).items()} for module in layer.modules()]
        layer(torch.randn(6, IN_DIM))
        assert [{key: id(value) for key, value in vars(module).items()} for module in layer.modules()] == before


def test_single_float_types_of_the_native_copy() -> None:
    for layer in (*v1_layers(1).values(), *neurips_layers(1, second_dim=3, apply_ln=True).values()):
        for dtype in (torch.float64, torch.bfloat16):
            twin = layer.to(dtype).to_native()
            assert {parameter.dtype for parameter in twin.parameters()} == {dtype}


def test_batch_norm_made_synchronous_before_the_copy() -> None:
    layer = v1_layers(2)["cp"].eval()
    fill_gate(layer)
    synchronous = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(layer))
    x = torch.randn(6, IN_DIM)
    torch.testing.assert_close(synchronous.to_native()(x), layer(x))


# -- torch's tools


def every_layer() -> dict[str, nn.Module]:
    neurips = neurips_layers(2, second_dim=3, normalization="ln", apply_ln=True)
    return {**v1_layers(2), **{f"block_{name}": block for name, block in neurips.items()}}


EVERY = pytest.mark.parametrize("name", ["cp", "tucker", "tt", "tr", "block_cp", "block_tr"])


@EVERY
def test_copies_answer_alike(name: str) -> None:
    layer = every_layer()[name].eval()
    fill_gate(layer)
    x = torch.randn(6, IN_DIM)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
        assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in layer.parameters()}


# torch warns of itself: tracing an autograd function, as in entmax, makes an instance of it.
TRACING = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@TRACING
@pytest.mark.parametrize("name", ["tucker", "tt", "block_tr"])
def test_compiles_whole_and_exports(name: str) -> None:
    layer = every_layer()[name].eval()
    fill_gate(layer)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager", dynamic=True)
    batch = torch.export.Dim("batch")
    program = torch.export.export(layer, (torch.randn(4, IN_DIM),), dynamic_shapes=({0: batch},))
    for size in (2, 7):
        x = torch.randn(size, IN_DIM)
        torch.testing.assert_close(compiled(x), layer(x))
        torch.testing.assert_close(program.module()(x), layer(x))


@EVERY
def test_meta_device(name: str) -> None:
    with torch.device("meta"):
        layer = every_layer()[name]
        assert layer(torch.randn(6, IN_DIM)).is_meta
    assert layer.to_native()(torch.randn(6, IN_DIM, device="meta")).is_meta
    source = every_layer()[name].eval()
    layer.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(6, IN_DIM)
    assert torch.equal(layer.eval()(x), source(x))


@EVERY
def test_autocast(name: str) -> None:
    layer = every_layer()[name]
    fill_gate(layer)
    x = torch.randn(256, IN_DIM)
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert (y.float() - exact).norm() < 0.1 * exact.norm()
    assert {parameter.grad.dtype for parameter in layer.parameters()} == {torch.float32}


def test_repr_names_the_arguments() -> None:
    text = repr(compat.CPMMoE(4, 8, expert_dims=[5, 2], rank=3, hierarchy=2))
    assert "input_dim=4, output_dim=8, expert_dims=[5, 2], ranks=3, use_bias=True, hierarchy=2" in text


# -- what is refused


def test_hierarchy_must_be_the_number_of_expert_modes() -> None:
    with pytest.raises(ValueError, match=r"hierarchy=1 for 2 expert modes \[5, 2\]; give hierarchy=2"):
        compat.CPMMoE(4, 8, expert_dims=[5, 2], rank=3)
    with pytest.raises(ValueError, match="hierarchy=3 for 1 expert mode"):
        compat.MuMoE(compat.CPMuMoE, 4, 8, expert_dims=[5], ranks=3, hierarchy=3)
    with pytest.raises(ValueError, match="expert_dims is empty"):
        compat.CPMMoE(4, 8, expert_dims=[], rank=3, hierarchy=0)


@pytest.mark.parametrize("make", [compat.TTMMoE, compat.TRMuMoE])
def test_bonds_must_meet(make: Any) -> None:
    with pytest.raises(ValueError, match=r"ranks\[0\] ends with bond 3, but ranks\[1\] begins with 2"):
        make(4, 8, expert_dims=[5], ranks=[[1, 5, 3], [2, 4, 3], [3, 8, 1]])
    with pytest.raises(ValueError, match=r"ranks\[2\] ends with bond 2, but ranks\[0\] begins with 1"):
        make(4, 8, expert_dims=[5], ranks=[[1, 5, 3], [3, 4, 3], [3, 8, 2]])
    with pytest.raises(ValueError, match="each of the 5 bonds"):
        make(4, 8, expert_dims=[5, 2], ranks=[[2, 5, 3], [3, 4, 3], [3, 8, 2]], hierarchy=2)
    with pytest.raises(ValueError, match="every entry of a rank tuple is a positive int"):
        make(4, 8, expert_dims=[5], ranks=[[0, 5, 3], [3, 4, 3], [3, 8, 0]])
    for malformed in (4, [], [2, 3, 3], [[2, 3], [3, 3], [3, 2]]):
        with pytest.raises(ValueError, match=r"ranks is a list with \[left bond, size, right bond\] for each mode"):
            make(4, 8, expert_dims=[5], ranks=malformed)


def test_tucker_needs_a_rank_for_each_mode() -> None:
    with pytest.raises(ValueError, match="one int for each of the 3 modes"):
        compat.TuckerMMoE(4, 8, expert_dims=[5], ranks=[3, 3])


def test_normalization_is_one_of_two() -> None:
    with pytest.raises(ValueError, match=r"normalization is 'bn' .* or 'ln' .*, got 'batch'"):
        compat.MuMoE(compat.CPMuMoE, 4, 8, expert_dims=[5], ranks=3, normalization="batch")


@pytest.mark.parametrize("kind", [layers.CPMuMoE, compat.CPMMoE, "CPMuMoE", compat.CPMuMoE(4, 8, [5], 3)])
def test_wrapper_takes_the_two_classes_alone(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"MuMoE_layer is CPMuMoE or TRMuMoE of factorized_moe\.compat, got"):
        compat.MuMoE(kind, 4, 8, expert_dims=[5], ranks=3)


@pytest.mark.parametrize("second_dim", [-1, 2.5, True, None])
def test_second_dim_is_a_size(second_dim: Any) -> None:
    with pytest.raises(ValueError, match="second_dim is a size, or 0 for one layer only, got"):
        compat.MuMoE(compat.CPMuMoE, 4, 8, expert_dims=[5], ranks=3, second_dim=second_dim)


def test_activation_is_callable() -> None:
    with pytest.raises(TypeError, match="activation: expected a name or a callable, but got 3"):
        compat.CPMMoE(4, 8, expert_dims=[5], rank=3, act=3)


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"expert_dims\[0\] must be at least 1, got 0"):
        compat.CPMMoE(4, 8, expert_dims=[0], rank=3)
    with pytest.raises(TypeError, match="expert_dims is a sequence"):
        compat.TTMMoE(4, 8, expert_dims=5, ranks=chain(3, 2))
    with pytest.raises(TypeError, match="in_features must be an int"):
        compat.CPMMoE(4.0, 8, expert_dims=[5], rank=3)


@EVERY
def test_input_must_fit(name: str) -> None:
    layer = every_layer()[name]
    with pytest.raises(ValueError, match=r"x has shape \(6, 3\), expected \(\*batch, 4\)"):
        layer(torch.randn(6, 3))
    with pytest.raises(ValueError, match=r"x has shape \(\), expected \(\*batch, 4\)"):
        layer(torch.tensor(1.0))
    with pytest.raises(TypeError, match=r"x is torch\.float64, .* the parameters torch\.float32; convert"):
        layer(torch.randn(6, 4, dtype=torch.float64))
    with pytest.raises(TypeError, match="x is on meta, the parameters on cpu; move one"):
        layer(torch.randn(6, 4, device="meta"))
    with pytest.raises(TypeError, match=r"forward takes a tensor x .* got list"):
        layer([1.0, 2.0, 3.0, 4.0])


def test_one_sample_has_no_statistics() -> None:
    for layer in (v1_layers(1)["cp"], neurips_layers(1)["tr"]):
        with pytest.raises(ValueError, match=r"shape \(1, 4\) has 1 samples, too few to normalise over them"):
            layer(torch.randn(1, 4))
        assert layer(torch.randn(1, 2, 4)).shape == (1, 2, 8)
        assert layer.eval()(torch.randn(1, 4)).shape == (1, 8)
    assert neurips_layers(1, normalization="ln")["cp"](torch.randn(4)).shape == (8,)


def test_coefficients_must_fit() -> None:
    layer = compat.CPMuMoE(4, 8, expert_dims=[5, 2], rank=3, hierarchy=2)
    z, a, b = torch.randn(6, 4), torch.rand(6, 5), torch.rand(6, 2)
    with pytest.raises(TypeError, match=r"with one mode, write \[coefficients\]"):
        layer(z, a)
    with pytest.raises(ValueError, match=r"got 1 coefficient tensors for 2 expert modes \(5, 2\)"):
        layer(z, [a])
    with pytest.raises(ValueError, match=r"coefficients of expert mode 1 have shape \(6, 5\), expected \(6, 2\)"):
        layer(z, [a, a])
    with pytest.raises(ValueError, match=r"coefficients of expert mode 0 have shape \(5, 5\), expected \(6, 5\)"):
        layer(z, [a[:5], b])
    with pytest.raises(
        TypeError, match=r"coefficients are torch\.float32, torch\.float64, the parameters torch\.float32"
    ):
        layer(z, [a, b.double()])


def test_the_plan_is_that_of_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tucker's best order changes at a few samples here: the released layer changes with the native one."""
    ran: list[Any] = []

    def spy(plan: Any, operands: Any) -> Tensor:
        ran.append(plan)
        return execute(plan, operands)

    monkeypatch.setattr(weights, "execute", spy)
    weight = weights.ReleasedWeight(32, 32, [4], "tucker", 8, True, 1, lambda *_: None)
    native = FactorizedExpertTensor((4,), 32, 32, "tucker", 8, bias=True)
    assert native.plan(1).steps != native.plan(1000).at_batch_size(1).steps
    for samples in (1, 1000):
        weight.contract(torch.ones(samples, 32), [torch.ones(samples, 4)])
        assert ran[-1].at_batch_size(samples).steps == native.plan(samples).steps
