"""The layers under torch's tools: compile, export, transforms, copies, files, other types and devices."""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.export import Dim

from factorized_moe.layers import CPMuMoE
from tests.small_layers import ALL_MAKERS, DECOMPOSITIONS, Make, make_layer, train_gate

# torch warns of itself: tracing an autograd function, as in entmax, makes an instance of it.
TRACING = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@pytest.mark.thorough
@TRACING
@ALL_MAKERS
@pytest.mark.parametrize("decomposition", ["cp", "tr"])
def test_compiles_whole(make: Make, decomposition: str) -> None:
    module = make(decomposition, gate_norm="layer")
    train_gate(module)
    torch.compiler.reset()
    counter = CompileCounter()
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for batch in (1, 2, 64, 777, 4096):
        x = torch.randn(batch, 5, requires_grad=True)
        y = compiled(x)
        torch.testing.assert_close(y, module(x))
        y.sum().backward()
    assert counter.frame_count <= 2


@TRACING
@ALL_MAKERS
@pytest.mark.parametrize("decomposition", ["cp", "tr"])
def test_exports_with_any_batch(make: Make, decomposition: str) -> None:
    module = make(decomposition).eval()
    train_gate(module)
    program = torch.export.export(module, (torch.randn(4, 5),), dynamic_shapes=({0: Dim("batch")},))
    for batch in (1, 9):
        x = torch.randn(batch, 5)
        torch.testing.assert_close(program.module()(x), module(x))


@ALL_MAKERS
def test_vmap_and_jacobian(make: Make) -> None:
    module = make(gate_norm="layer", dtype=torch.float64)
    train_gate(module)
    x = torch.randn(6, 5, dtype=torch.float64)
    torch.testing.assert_close(torch.vmap(module)(x), module(x))
    jacobian = torch.func.jacrev(module)(x[0])
    assert jacobian.shape == (7, 5)
    step = torch.full((5,), 1e-6, dtype=torch.float64)
    difference = (module(x[0] + step) - module(x[0] - step)) / 2
    torch.testing.assert_close(jacobian @ step, difference, rtol=1e-4, atol=1e-10)


@ALL_MAKERS
def test_gradcheck(make: Make) -> None:
    module = make("tucker", gate_norm="batch", dtype=torch.float64)
    train_gate(module)
    names, values = zip(*module.named_parameters(), strict=True)

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), x)
        return result

    module.eval()
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (x, *values))


@ALL_MAKERS
@DECOMPOSITIONS
def test_copies_answer_alike_and_share_nothing(make: Make, decomposition: str) -> None:
    module = make(decomposition).eval()
    train_gate(module)
    x = torch.randn(6, 5)
    expected = module(x)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), expected)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1.0)
    assert torch.equal(module(x), expected)


@ALL_MAKERS
@DECOMPOSITIONS
def test_state_dict_goes_through_a_file(make: Make, decomposition: str) -> None:
    module = make(decomposition, input_norm=True)
    train_gate(module)
    x = torch.randn(6, 5)
    module(x)  # moves the running statistics
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    twin = make(decomposition, input_norm=True)
    twin.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(twin.eval()(x), module.eval()(x))
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in module.named_parameters()]


@ALL_MAKERS
@DECOMPOSITIONS
def test_meta_device_then_real(make: Make, decomposition: str) -> None:
    module = make(decomposition, input_norm=True, device="meta")
    assert all(parameter.is_meta for parameter in module.parameters())
    assert module(torch.randn(6, 5, device="meta")).shape == (6, 7)
    module.to_empty(device="cpu")
    module.reset_parameters()
    y = module(torch.randn(6, 5))
    assert torch.isfinite(y).all()


@ALL_MAKERS
@DECOMPOSITIONS
def test_bfloat16(make: Make, decomposition: str) -> None:
    module = make(decomposition, gate_norm="layer")
    train_gate(module)
    x = torch.randn(32, 5)
    exact = module(x)
    y = module.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert (y.float() - exact).norm() < 0.1 * exact.norm()


@ALL_MAKERS
@pytest.mark.parametrize("gate_norm", ["batch", "layer", None])
def test_autocast(make: Make, gate_norm: str | None) -> None:
    module = make(gate_norm=gate_norm)
    train_gate(module)
    x = torch.randn(32, 5, requires_grad=True)
    exact = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert (y.float() - exact).norm() < 0.1 * exact.norm()
    assert all(
        parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in module.parameters()
    )


def test_layers_nest_in_sequential_and_move() -> None:
    model = nn.Sequential(make_layer(), nn.ReLU(), CPMuMoE(7, 2, expert_dims=[3], rank=2))
    model = model.double()
    assert model(torch.randn(4, 5, dtype=torch.float64)).dtype == torch.float64
