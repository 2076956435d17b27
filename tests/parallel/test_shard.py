"""Sharded modules on real ranks of gloo: what they compose with. Every label of every decomposition is the law's."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from tltorch.tensor_hooks import tensor_dropout
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import parallelize_module

from factorized_moe import (
    ExpertGate,
    FactorizedExpertTensor,
    GatedMuMoEBlock,
    MixtureOfDecodersBlock,
    MuMoE,
    MuMoEBlock,
    TensorNetwork,
    available_decompositions,
)
from factorized_moe.activations import TopKReLU
from factorized_moe.decompositions import get_decomposition
from factorized_moe.interpret import Ablate, counterfactuals, intervene, record
from factorized_moe.parallel import Machine, ShardExperts, describe_shards, shard, shards_of
from factorized_moe.surgery import MuMoEConfig, load, replace, save
from factorized_moe.testing.processes import on_ranks
from factorized_moe.testing.sharding_laws import sharded_cases
from factorized_moe.testing.strategies import Structure

pytestmark = pytest.mark.thorough

COMPUTING_IS_DEAR = Machine(flops_per_second=1e3, latency=0.0)


def mesh(ranks: int = 2) -> Any:
    return init_device_mesh("cpu", (ranks,))


def whole(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    found = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return found.detach()


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Of the output's mean square: the input's and every parameter's, put together."""
    x = x.clone().requires_grad_()
    module.zero_grad()
    y = module(x)
    y.square().mean().backward()
    return [y.detach(), whole(x.grad), *(whole(p.grad) for p in module.parameters() if p.grad is not None)]


def assert_alike(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-10) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def block(kind: type[nn.Module] = MuMoEBlock, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    given = {"expert_dims": [4], "decomposition": "cp", "rank": 5, "gate_norm": "layer", "dtype": torch.float64}
    made = kind(6, 9, 5, **{**given, **options})
    with torch.no_grad():
        made.gate.projection.weight.normal_()  # a fresh gate gives every expert the same
    return made


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "block": block,
    "no bias": lambda: block(bias=False),
    "gated": lambda: block(GatedMuMoEBlock),
    "gated with bias": lambda: block(GatedMuMoEBlock, bias=True),
    "tucker, two modes": lambda: block(decomposition="tucker", rank=3, expert_dims=[3, 2]),
    "tr": lambda: block(decomposition="tr", rank=3),
    "dense": lambda: block(decomposition="dense", rank=1),
    "entmax of a batch": lambda: block(gate="entmax15", gate_norm="batch"),
    "softmax": lambda: block(gate="softmax", gate_norm=None),
    "top-k": lambda: block(gate="topk_softmax"),
    "entmax of one and a quarter": lambda: block(gate="entmax", gate_norm="layer"),
    "sparse": lambda: block(sparse_coefficients=True, gate="sparsemax", rank=300, expert_dims=[300]),
    "checkpoint": lambda: block(checkpoint=True),
    "gate of low rank": lambda: block(gate_rank=3, gate_norm="batch"),
}


def test_blocks_equal_one_process() -> None:
    x = torch.randn(7, 6, dtype=torch.float64)

    expected = {name: gradients(make(), x) for name, make in BLOCKS.items()}

    def work(rank: int) -> list[str]:
        done = []
        for name, make in BLOCKS.items():
            for label in ("auto", "pair", "each", "out", "in", "expert_0"):
                if name == "dense" and label == "pair":
                    continue  # its coefficients are contracted before the input, which is needed whole then
                module = make()
                shard(module, mesh(), label, tokens=7, machine=COMPUTING_IS_DEAR)
                assert_alike(gradients(module, x), expected[name])
                done.append(f"{name}, {label}")
        return done

    assert len(on_ranks(2, work)[0]) == 6 * len(BLOCKS) - 1


def test_sparse_coefficients_read_rows_by_the_sparse_product() -> None:
    operations = {
        type(step.operation).__name__
        for step in block(sparse_coefficients=True, rank=300, expert_dims=[300]).first.plan().steps
    }
    assert "SparseMatMul" in operations  # so the case "sparse" above runs it


def test_calls_take_and_return_plain_tensors_and_names_stay() -> None:
    def work(rank: int) -> None:
        module = block()
        names, shapes = list(module.state_dict()), [v.shape for v in module.state_dict().values()]
        shard(module, mesh(), "rank")
        state = module.state_dict()
        assert list(state) == names
        assert [v.shape for v in state.values()] == shapes
        assert isinstance(state["first.weight.input"], DTensor)
        assert type(module(torch.randn(2, 3, 6, dtype=torch.float64))) is Tensor
        dense = block().first.to_dense()
        assert torch.equal(module.first.to_dense(), dense)
        assert torch.equal(module.first.expert(2), dense[2])

    on_ranks(2, work)


def test_compiled_whole() -> None:
    x = torch.randn(7, 6, dtype=torch.float64)

    def work(rank: int) -> None:
        for label, options in (("auto", {}), ("bond_1", {"decomposition": "tr", "rank": 3})):
            if label:
                expected = gradients(block(gate="softmax", **options), x)
                module = block(gate="softmax", **options)
                shard(module, mesh(), label, machine=COMPUTING_IS_DEAR)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of torch's compiler
                    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
                    assert_alike(gradients(compiled, x), expected)

    on_ranks(2, work)


def test_half_precision() -> None:
    x = torch.randn(7, 6)

    def work(rank: int) -> None:
        expected = block(dtype=torch.float32)(x)
        for label in ("auto", "pair", "rank"):
            module = block(dtype=torch.float32)
            shard(module, mesh(), label, machine=COMPUTING_IS_DEAR)
            with torch.autocast("cpu", torch.bfloat16):
                y = module(x)
            assert y.dtype == torch.bfloat16
            torch.testing.assert_close(y.float(), expected, rtol=0.1, atol=0.05)
            torch.testing.assert_close(module.bfloat16()(x.bfloat16()).float(), expected, rtol=0.1, atol=0.05)

    on_ranks(2, work)


def test_activation_checkpointing() -> None:
    x = torch.randn(7, 6, dtype=torch.float64)

    def work(rank: int) -> None:
        expected = gradients(block(), x)
        module = block()
        shard(module, mesh(), machine=COMPUTING_IS_DEAR)

        class Checkpointed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = module

            def forward(self, x: Tensor) -> Tensor:
                return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)

        assert_alike(gradients(Checkpointed(), x), expected)

    on_ranks(2, work)


# -- filling, saving


def test_initial_values_are_those_of_one_process() -> None:
    def work(rank: int) -> int:
        done = 0
        for name in available_decompositions():
            for init in get_decomposition(name).initialisations:
                given: dict[str, Any] = {"decomposition": name, "rank": 1 if name == "dense" else 3, "init": init}
                torch.manual_seed(1)
                expected = FactorizedExpertTensor((3, 2), 5, 6, **given)
                for after in (shard, lambda w, mesh: fully_shard(w, mesh=mesh)):
                    w = FactorizedExpertTensor((3, 2), 5, 6, **given, device="meta")
                    after(w, mesh(torch.distributed.get_world_size()))
                    w.to_empty(device="cpu")
                    torch.manual_seed(1 if rank == 0 else 2)  # the first rank's numbers are everybody's
                    w.reset_parameters()
                    for parameter, known in zip(w.parameters(), expected.parameters(), strict=True):
                        assert torch.equal(whole(parameter), whole(known)), (name, init)
                    done += 1
        return done

    assert on_ranks(2, work)[0] == on_ranks(1, work)[0] > 2 * 13


MADE: dict[str, Callable[..., nn.Module]] = {
    "layer": partial(MuMoE, 6, 5, [4, 3], "cp", 3, gate_rank=4),
    "gate": partial(ExpertGate, 6, [8], rank=4),
    "Mixture of Decoders": partial(MixtureOfDecodersBlock, 6, 8, 5, [4], gated=True, skip=True, gate=TopKReLU(2)),
    "gate that starts at random": partial(ExpertGate, 6, [8], rank=4, zero_start=False, logit_bias=True),
}


def test_initial_values_of_gates_are_those_of_one_process() -> None:
    """Drawn piece by piece, both ranks would have the same rows of the reduction, which would lose half of its rank."""

    def work(rank: int) -> int:
        done = 0
        for name, make in MADE.items():
            alone = make()
            torch.manual_seed(1)
            alone.reset_parameters()  # type: ignore[operator]  # torch's modules may have any attribute
            expected = alone.state_dict()
            for after in (shard, lambda module, mesh: fully_shard(module, mesh=mesh)):
                if after is shard and "gate" in name:  # it has no experts
                    continue
                module = make(device="meta")
                after(module, mesh())
                module.to_empty(device="cpu")
                torch.manual_seed(1 if rank == 0 else 2)
                module.reset_parameters()
                for key, value in module.state_dict().items():
                    assert torch.equal(whole(value), expected[key]), (name, key)
                done += 1
        return done

    assert on_ranks(2, work) == [6, 6]


def test_checkpoints_of_torch_go_anywhere(tmp_path: Path) -> None:
    expected = block(gate_rank=3).state_dict()

    def write(rank: int) -> None:
        module = block(gate_rank=3)
        shard(module, mesh(torch.distributed.get_world_size()), "pair")
        dcp.save({"model": module.state_dict()}, checkpoint_id=tmp_path)

    def read(label: str | None) -> Callable[[int], None]:
        def work(rank: int) -> None:
            module = block(gate_rank=3)
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
            if label is not None:
                shard(module, mesh(torch.distributed.get_world_size()), label)
            state = {"model": module.state_dict()}
            dcp.load(state, checkpoint_id=tmp_path)
            module.load_state_dict(state["model"])
            for name, value in module.state_dict().items():
                assert torch.equal(whole(value), expected[name])

        return work

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's checkpoints
        on_ranks(4, write)
        for ranks, label in ((1, None), (1, "rank"), (2, "out"), (2, None)):
            on_ranks(ranks, read(label))


def test_save_writes_what_one_process_writes(tmp_path: Path) -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        made = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 5)))
        replace(made, "1", MuMoEConfig(expert_dims=(4,), rank=5, gate_rank=3))
        return made

    save(model(), tmp_path / "one")

    def work(rank: int) -> None:
        for name, spread in (("shard", shard), ("fsdp", lambda m, mesh: fully_shard(m, mesh=mesh))):
            made = model()
            spread(made, mesh())
            save(made, tmp_path / name)
            with pytest.raises(ValueError, match="is a DTensor: the model is spread over ranks already; call replace"):
                replace(made, "0", MuMoEConfig(expert_dims=(4,), rank=5))

    on_ranks(2, work)
    for name in ("shard", "fsdp"):
        assert (tmp_path / name / "config.json").read_bytes() == (tmp_path / "one" / "config.json").read_bytes()
        found, known = (load_file(tmp_path / folder / "model.safetensors") for folder in (name, "one"))
        assert found.keys() == known.keys()
        assert all(torch.equal(found[key], known[key]) for key in known)
    fresh = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 5)))
    x = torch.randn(3, 6)
    assert torch.equal(load(fresh, tmp_path / "shard")(x), model()(x))


# -- composition with others


class Model(nn.Module):
    def __init__(self, gate_rank: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Linear(4, 6), nn.Linear(5, 3)
        self.mlp = block(dtype=torch.float32, gate_rank=gate_rank).double()
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.mlp(self.enter(x)))


@pytest.mark.parametrize(
    ("label", "gate_rank"), [("auto", 3), ("auto", None), ("pair", None), ("rank", None), ("expert_0", None)]
)
def test_steps_of_fsdp_and_shard_equal_one_process(label: str, gate_rank: int | None) -> None:
    x = torch.randn(3, 8, 4, dtype=torch.float64)

    def train(model: nn.Module, batches: Tensor) -> list[Tensor]:
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for batch in batches:
            optimiser.zero_grad()
            model(batch).square().mean().backward()
            optimiser.step()
        return [whole(parameter) for parameter in model.parameters()]

    expected = train(Model(gate_rank), x)

    def work(rank: int) -> None:
        both = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "experts"))
        model = Model(gate_rank)
        shard(model, both["experts"], label, machine=COMPUTING_IS_DEAR)
        fully_shard(model.mlp, mesh=both["data"])
        fully_shard(model, mesh=both["data"])
        mine = both.get_local_rank("data")
        assert_alike(train(model, x[:, 4 * mine : 4 * mine + 4]), expected, 1e-9)

    on_ranks(4, work)


@pytest.mark.slow
@pytest.mark.parametrize("name", available_decompositions())
def test_every_label_on_four_ranks(name: str) -> None:
    for expert_dims, bias in (((5,), False), ((3, 2), True)):
        structure = Structure(expert_dims, 6, 7, 1 if name == "dense" else 3, bias)
        assert not any(sharded_cases(get_decomposition(name), structure, 4))


def test_style_in_a_plan_of_torch() -> None:
    x = torch.randn(3, 4, 6, dtype=torch.float64)

    def work(rank: int) -> None:
        expected = gradients(block(), x)
        model = nn.Sequential(block())
        style = ShardExperts("pair", input_layout=Shard(1), output_layout=Shard(1))
        parallelize_module(model, mesh(), {"0": style})
        y = model(x[:, 2 * rank : 2 * rank + 2])
        torch.testing.assert_close(y, expected[0][:, 2 * rank : 2 * rank + 2])
        assert style.report is not None
        plain = nn.Sequential(block())
        parallelize_module(plain, mesh(), {"0": ShardExperts(use_local_output=False, output_layout=Replicate())})
        out = plain(x)
        assert isinstance(out, DTensor)
        torch.testing.assert_close(whole(out), expected[0])

    on_ranks(2, work)


@pytest.mark.parametrize("gate_rank", [None, 2])
def test_recordings_interventions_and_counterfactuals_of_a_sharded_model(gate_rank: int | None) -> None:
    x, labels = torch.randn(8, 6), torch.arange(8) % 5

    def layer() -> nn.Module:
        torch.manual_seed(0)
        made = MuMoE(6, 5, [4], "cp", 3, gate_norm="layer", gate_rank=gate_rank)
        nn.init.normal_(made.gate.projection.weight)
        return nn.Sequential(nn.Linear(6, 6), made).eval()

    def measured(model: nn.Module) -> list[Tensor]:
        with torch.no_grad():
            with record(model) as log:
                model(x)
            with intervene(model, Ablate([0, 1])):
                ablated = model(x)
            found = counterfactuals(model, [(x, labels)])
        return [log.recording.coefficients("1"), ablated, found.mean_effect, found.accuracy_without]

    def work(rank: int) -> None:
        for label in ("rank", "expert_0", "out"):
            model = layer()
            shard(model, mesh(), label, machine=COMPUTING_IS_DEAR)
            assert_alike(measured(model), measured(layer()), 1e-5)

    on_ranks(2, work)


# -- what is refused


def test_refusals() -> None:
    def work(rank: int) -> None:
        one = mesh(1)
        with pytest.raises(TypeError, match=r"mesh is a torch.distributed.device_mesh.DeviceMesh, got int"):
            shard(block(), 2)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"a mesh of one dimension was expected, got 2; give one of them, such as"):
            shard(block(), init_device_mesh("cpu", (1, 1)))
        with pytest.raises(ValueError, match=r"Linear has no FactorizedExpertTensor; put layers of experts in first"):
            shard(nn.Linear(2, 2), one)
        with pytest.raises(ValueError, match=r"'first': label 'bond' is on no node of the network; its labels are "):
            shard(block(), one, "bond")
        with pytest.raises(ValueError, match=r"label names \['third'\], but the module's expert tensors are "):
            shard(block(), one, {"third": "rank"})
        with pytest.raises(ValueError, match=r"label='pair' is for blocks .* another activation; name a label"):
            shard(block(activation=nn.LayerNorm(9)), one, "pair")
        with pytest.raises(ValueError, match=r"label='pair' is for blocks .* there is \['experts'\]; name a label"):
            shard(MuMoE(6, 5, [4], "cp", 3), one, "pair")
        with pytest.raises(ValueError, match=r"the hidden values of .* cannot stay cut, as their mode"):
            shard(block(decomposition="kronecker", rank=2), one, "pair")
        sharded = block()
        shard(sharded, one)
        with pytest.raises(ValueError, match="expert tensor 'first' is sharded already"):
            shard(sharded, one)
        with pytest.raises(ValueError, match=r"'optimize'.* would plan a sharded tensor anew; plan it before"):
            sharded.first.plan(optimize="flops")
        flat = FactorizedExpertTensor((3,), 4, 5, "cp", 2)
        fully_shard(flat, mesh=one)
        with pytest.raises(ValueError, match="is a FSDPFactorizedExpertTensor; shard it before fully_shard"):
            shard(flat, one)
        dropped = block()
        tensor_dropout(dropped.first.weight, 0.5)
        with pytest.raises(ValueError, match="'first' has a forward hook, such as dropout; take that away"):
            shard(dropped, one)
        masked = FactorizedExpertTensor(network=TensorNetwork.parse("mask(1 0): a, in a out; in=4 out=5 a=2"))
        with pytest.raises(
            ValueError, match=r"nodes \['mask'\] of expert tensor '' are fixed, which cannot be sharded"
        ):
            shard(masked, one)

    on_ranks(1, work)


@pytest.mark.parametrize("label", ["auto", "each", "a", "out"])
def test_fixed_nodes_are_refused_when_costs_are_asked_for(label: str) -> None:
    masked = FactorizedExpertTensor(network=TensorNetwork.parse("mask(1 0): a, in a out; in=4 out=5 a=2"))
    with pytest.raises(ValueError, match=r"nodes \['mask'\] of expert tensor '' are fixed, which cannot be sharded"):
        shards_of(masked, 2, label)
    with pytest.raises(ValueError, match=r"nodes \['mask'\] are fixed, and a tensor with fixed nodes cannot"):
        describe_shards(masked.plan(64), 2)


def test_an_activation_of_the_whole_keeps_hidden_values_whole() -> None:
    x = torch.randn(7, 6, dtype=torch.float64)

    def work(rank: int) -> None:
        make = partial(block, activation=nn.LayerNorm(9, dtype=torch.float64))
        module = make()
        report = shard(module, mesh())
        assert not any("hidden" in choice.label for choice in report.choices)
        assert_alike(gradients(module, x), gradients(make(), x))

    on_ranks(2, work)


def test_values_are_those_of_the_first_rank() -> None:
    """Of a layer's gate too, which starts at random where it has a rank."""

    def work(rank: int) -> list[tuple[Any, Any]]:
        torch.manual_seed(rank)
        found = []
        for module in (FactorizedExpertTensor((3,), 5, 6, "cp", 4), MuMoE(5, 6, [3], "cp", 4, gate_rank=2)):
            before = {name: parameter.tolist() for name, parameter in module.named_parameters()}
            shard(module, mesh(), "rank")
            found.append((before, {name: whole(value).tolist() for name, value in module.named_parameters()}))
        return found

    for (drawn, kept), (other, taken) in zip(*on_ranks(2, work), strict=True):
        assert drawn == kept == taken != other
