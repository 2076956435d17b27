"""torch's transforms beyond the suite's laws: inductor, dynamic shapes from the start, ensembles, threads."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from factorized_moe import FactorizedExpertTensor, available_decompositions
from factorized_moe.testing import Structure
from factorized_moe.testing.closeness import absolute_output, assert_near

pytestmark = pytest.mark.thorough

STRUCTURE = Structure((4, 3), 5, 6, rank=2, bias=True, batch_shape=(8,))


# Together these use every kind of step; inductor compiles C++ for about 8 seconds for each.
COMPILED = ("cp", "tucker", "tr", "tt_matrix", "mixture_of_decoders", "shared_private")


class Each(nn.Module):
    """Applies several decompositions to one input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: STRUCTURE.tensor(name) for name in COMPILED})

    def forward(self, x: torch.Tensor, coefficients: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: layer(x, coefficients) for name, layer in self.layers.items()}


def test_compiled_decompositions_use_every_kind_of_step() -> None:
    kinds = {
        name: {type(step.operation) for step in STRUCTURE.tensor(name).plan().steps}
        for name in available_decompositions()
    }
    assert set().union(*(kinds[name] for name in COMPILED)) == set().union(*kinds.values())


# inductor imports torch.jit, which warns of its own use.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_inductor_compiles_forward_and_backward() -> None:
    """All in one graph, as much of inductor's time is spent once for each."""
    module = Each()
    x, coefficients = STRUCTURE.arguments()
    torch.compiler.reset()
    outputs = torch.compile(module, fullgraph=True)(x, coefficients)
    leaves = [x, *coefficients, *module.parameters()]
    gradients = torch.autograd.grad([y.sum() for y in outputs.values()], leaves)
    for name, expected in module(x, coefficients).items():
        assert_near(name, outputs[name], expected, absolute_output(module.layers[name], x, coefficients)[0])
    expected = torch.autograd.grad([y.sum() for y in module(x, coefficients).values()], leaves)
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9 * theirs.abs().max().item())


def test_one_compilation_if_sizes_are_dynamic_from_the_start() -> None:
    """`dynamic=True`: one compilation serves batches of 2 to 4,096; a batch of one is a constant and takes its own."""
    w = STRUCTURE.tensor("tr")
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(w, fullgraph=True, dynamic=True, backend=counter)
    for samples, compilations in ((64, 1), (2, 1), (4096, 1), (7, 1), (1, 2), (33, 2)):
        compiled(*Structure((4, 3), 5, 6, 2, bias=True, batch_shape=(samples,)).arguments())
        assert counter.frame_count == compilations


def test_leading_axes_compile_too() -> None:
    w = STRUCTURE.tensor("tucker")
    torch.compiler.reset()
    compiled = torch.compile(w, fullgraph=True, backend="aot_eager")
    for batch_shape in ((2, 3), (4, 5), ()):
        x, coefficients = Structure((4, 3), 5, 6, 2, bias=True, batch_shape=batch_shape).arguments()
        torch.testing.assert_close(compiled(x, coefficients), w(x, tuple(coefficients)))


@pytest.mark.parametrize("strict", [False, True])
def test_export_saves_and_loads(strict: bool, tmp_path: object) -> None:
    w = STRUCTURE.tensor("cp")
    batch = torch.export.Dim("batch")
    shapes = ({0: batch}, [{0: batch}, {0: batch}])
    program = torch.export.export(w, STRUCTURE.arguments(), dynamic_shapes=shapes, strict=strict)
    file = f"{tmp_path}/program.pt2"
    torch.export.save(program, file)
    loaded = torch.export.load(file).module()
    x, coefficients = Structure((4, 3), 5, 6, 2, bias=True, batch_shape=(3,)).arguments()
    torch.testing.assert_close(loaded(x, coefficients), w(x, coefficients))


def test_an_ensemble_runs_as_one() -> None:
    """Several tensors of one structure, stacked and mapped over."""
    members = [Structure((4, 3), 5, 6, 2, bias=True, seed=seed).tensor("tt") for seed in range(3)]
    x, coefficients = STRUCTURE.arguments()
    parameters, buffers = torch.func.stack_module_state(members)

    def call(parameters: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor]) -> torch.Tensor:
        y: torch.Tensor = torch.func.functional_call(members[0], (parameters, buffers), (x, coefficients))
        return y

    outputs = torch.func.vmap(call)(parameters, buffers)
    torch.testing.assert_close(outputs, torch.stack([w(x, coefficients) for w in members]))


def test_threads_share_a_tensor() -> None:
    w = STRUCTURE.tensor("tucker")
    x, coefficients = STRUCTURE.arguments()
    expected = w(x, coefficients)
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda _: w(x, coefficients), range(32)))
        built = list(
            pool.map(lambda size: FactorizedExpertTensor((size, 3), 4, 5, "tr", 2).num_parameters, range(1, 20))
        )
    assert all(torch.equal(y, expected) for y in outputs)
    assert built == [4 * (size + 3 + 4 + 5) for size in range(1, 20)]


def test_nothing_is_written_by_forward() -> None:
    w = STRUCTURE.tensor("cp")
    before = {**vars(w)}, {**vars(w.weight)}
    w(*STRUCTURE.arguments())
    assert (vars(w), vars(w.weight)) == before
