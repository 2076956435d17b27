"""Arguments that once passed as something else, or failed without saying why; each is refused in words, or taken."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from factorized_moe import Decomposition, FactorizedExpertTensor, MuMoE, MuMoEBlock, TensorNetwork, register
from factorized_moe.activations import TopKSoftmax
from factorized_moe.decompositions import CP
from factorized_moe.interpret import Load, experts_in_use, record
from factorized_moe.surgery import DistillationSettings, MuMoEConfig


class Bare(Decomposition):
    """Without a way to fill its parameters."""

    initialisations = {}  # noqa: RUF012

    def network(self, expert_dims: tuple[int, ...], in_features: int, out_features: int, rank: int) -> TensorNetwork:
        return CP().network(expert_dims, in_features, out_features, rank)


def tensor(**options: object) -> FactorizedExpertTensor:
    return FactorizedExpertTensor((3, 2), 5, 4, **{"decomposition": "cp", "rank": 3, **options})


def block(activation: object) -> nn.Module:
    return MuMoEBlock(4, 8, 4, [3], "cp", 2, activation=activation)


NESTED = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)], layout=torch.jagged)
NO_VALUES = "the meta device holds no values to fit or to compare; use another one, such as 'cpu'"
ACTIVATION = r"activation is a module or a function of a tensor, such as nn\.GELU\(\) or torch\.relu, got "
REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "aliases in one string": (
        lambda: register("refused", CP(), aliases="xyz"),
        TypeError,
        "name is a string and aliases a tuple of strings, got 'refused' and 'xyz'",
    ),
    "name of a number": (lambda: register(3, CP()), TypeError, r"name is a string and .*, got 3 and \(\)"),
    "rank in bytes": (lambda: tensor(rank=b"\x03"), TypeError, r"rank is an int, a tuple .*, got b'\\x03'"),
    "no initialisation": (
        lambda: tensor(decomposition=Bare()),
        ValueError,
        "Bare has no initialisations; name one there or give init a function",
    ),
    "gate beyond torch": (
        lambda: MuMoE(2**50, 8, [2**12], "cp", 1, device="meta"),
        ValueError,
        r"the gate's weight would have shape \(4096, 1125899906842624\), of more elements than a tensor can have",
    ),
    "gate of low rank beyond torch": (
        lambda: MuMoE(2**50, 8, [3], "cp", 1, gate_rank=2**12, device="meta"),
        ValueError,
        r"the gate's reduction would have shape \(4096, 1125899906842624\), of more elements than a tensor can have",
    ),
    "dense tensor beyond torch": (
        lambda: FactorizedExpertTensor((1024,) * 7, 4, 4, "cp", 2).to_dense(),
        ValueError,
        r"the dense tensor would have shape \(1024, 1024, .*\), of more elements than a tensor can have",
    ),
    "rank beyond torch": (
        lambda: tensor(rank=10**20),
        ValueError,
        r"parameter '\w+' would have shape \(.*100000000000000000000\), of more elements than a tensor can have",
    ),
    "checkpoint": (lambda: tensor(checkpoint="no"), TypeError, "checkpoint must be True or False, got 'no'"),
    "sparse coefficients": (
        lambda: MuMoE(4, 4, [3], "cp", 2, sparse_coefficients=1),
        TypeError,
        "sparse_coefficients must be True or False, got 1",
    ),
    "activation by name": (lambda: block("relu"), TypeError, f"{ACTIVATION}'relu'"),
    "activation's class": (lambda: block(nn.ReLU), TypeError, f"{ACTIVATION}<class '.*ReLU'>"),
    "memory limit in words": (
        lambda: tensor().plan(memory_limit="3"),
        TypeError,
        "memory_limit is a number of bytes, an int, or None, got '3'",
    ),
    "one batch size": (
        lambda: tensor().plan(optimize="measure", batch_sizes=5),
        TypeError,
        r"batch_sizes is a sequence of one or more ints such as \(1, 1024\), got 5",
    ),
    "no batch size": (
        lambda: tensor().plan(optimize="measure", batch_sizes=()),
        TypeError,
        r"batch_sizes is a sequence of one or more ints such as \(1, 1024\), got \(\)",
    ),
    "batch size of a fraction": (
        lambda: tensor().plan(batch_size=2.0),
        ValueError,
        r"batch_size must be a positive int, got 2\.0",
    ),
    "measuring without memory": (
        lambda: tensor(device="meta").plan(optimize="measure"),
        ValueError,
        "the parameters are on the meta device, where nothing can be timed; use optimize='flops'",
    ),
    "fit of nothing": (
        lambda: FactorizedExpertTensor.from_dense(torch.empty(3, 4, 5, device="meta"), rank=1, device="cpu"),
        ValueError,
        NO_VALUES,
    ),
    "fit into nothing": (
        lambda: FactorizedExpertTensor.from_dense(torch.ones(3, 4, 5), rank=1, device="meta"),
        ValueError,
        NO_VALUES,
    ),
    "comparison with nothing": (
        lambda: tensor().relative_error(torch.empty(3, 2, 5, 4, device="meta")),
        ValueError,
        NO_VALUES,
    ),
    "gate's class": (
        lambda: MuMoE(4, 4, [3], "cp", 2, gate=nn.ReLU),
        TypeError,
        r"activation: got the class ReLU; give an instance, ReLU\(\)",
    ),
    "device of no name": (
        lambda: MuMoE(4, 4, [3], "cp", 2, device="gpu"),
        ValueError,
        "device is a device of torch such as 'cpu' or 'cuda', or None, got 'gpu': ",
    ),
    "float8": (
        lambda: MuMoE(4, 4, [3], "cp", 2, dtype=torch.float8_e4m3fn),
        TypeError,
        r"dtype is a real floating type of 16 bits or more .*, got torch\.float8_e4m3fn",
    ),
    "nested input": (
        lambda: MuMoE(4, 4, [3], "cp", 2)(NESTED),
        TypeError,
        "ExpertGate: the input is a nested tensor; give a padded or concatenated one",
    ),
    "nested input of a tensor": (
        lambda: tensor()(NESTED, (NESTED, NESTED)),
        TypeError,
        "x or coefficients are nested tensors; give padded or concatenated ones",
    ),
    "nested dense tensor": (
        lambda: FactorizedExpertTensor.from_dense(NESTED, rank=1),
        TypeError,
        "dense is a nested tensor; give a padded one",
    ),
    "NaN coefficients": (
        lambda: Load.of(torch.full((3, 4), torch.nan)),
        ValueError,
        "coefficients have a value that is not finite, of which no expert is active or dead",
    ),
    "whole coefficients": (lambda: Load.of(torch.ones(3, 4, dtype=torch.int64)), TypeError, "floating type, got torch"),
    "NaN threshold": (
        lambda: Load.of(torch.ones(3, 4), torch.nan),
        ValueError,
        "threshold must be 0 or more and finite, got nan",
    ),
    "fewest of NaN": (
        lambda: Load.of(torch.ones(3, 4)).dead(torch.nan),
        TypeError,
        "fewest must be an int, got nan",
    ),
    "NaN means": (
        lambda: experts_in_use(torch.full((4,), torch.nan), torch.ones(4)),
        ValueError,
        "means and spreads have a value that is not finite",
    ),
    "class names in one string": (
        lambda: record(MuMoE(4, 4, [3], "cp", 2), class_names="ab").__enter__(),
        TypeError,
        "class_names is a sequence of strings, got 'ab'",
    ),
    "rank 0 of a config": (lambda: MuMoEConfig((3,), rank=0), ValueError, "rank of a config must be above 0"),
    "rank below 0 of a config": (lambda: MuMoEConfig((3,), rank=-1), ValueError, "rank of a config must be above 0"),
    "NaN rank of a config": (lambda: MuMoEConfig((3,), rank=torch.nan), ValueError, "rank of a config must be above 0"),
    "no rank of a config": (
        lambda: MuMoEConfig((3,), rank=object()),
        TypeError,
        "rank of a config is an int, a tuple of ints, a fraction or 'same', got <object",
    ),
    "gate of a config in a list": (
        lambda: MuMoEConfig((3,), rank=1, gate=[]),
        ValueError,
        r"gate of a config is one of .*, got \[\]",
    ),
    "seed of a distillation": (lambda: DistillationSettings(1, seed="x"), TypeError, "seed is an int, got 'x'"),
    "rate of a distillation": (
        lambda: DistillationSettings(1, learning_rate=torch.inf),
        ValueError,
        r"learning_rate must be at most 1e\+30, got inf",
    ),
    "rate of a distillation in words": (
        lambda: DistillationSettings(1, learning_rate="fast"),
        TypeError,
        "learning_rate is a number, got 'fast'",
    ),
    "size of a fraction": (
        lambda: TensorNetwork.parse("in out", {"in": 2.0, "out": 3}),
        ValueError,
        r"label 'in' has size 2\.0; a size is a positive int",
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("case", REFUSED)
def test_refusal(case: str) -> None:
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        call()


def test_nothing_is_registered_under_a_refused_name() -> None:
    with pytest.raises(TypeError):
        register("refused", CP(), aliases="xyz")
    with pytest.raises(ValueError, match="unknown decomposition 'refused'"):
        tensor(decomposition="refused")


def test_numpy_s_ints_are_ints() -> None:
    network = TensorNetwork.parse("in a, a out", {"in": np.int64(2), "a": np.int32(3), "out": np.uint8(200)})
    assert network == TensorNetwork.parse("in a, a out; in=2 a=3 out=200")
    assert all(type(size) is int for _, size in network.label_sizes)
    assert type(TopKSoftmax(np.int64(2)).k) is int
    assert TopKSoftmax(np.int64(2)) == TopKSoftmax(2)
    for options in ({}, {"optimize": "flops"}, {"memory_limit": np.int64(2**20)}):
        plan = tensor().plan(batch_size=np.int64(16), **options)
        assert plan == tensor().plan(batch_size=16, **options)
        assert type(plan.batch_size) is int


def test_a_function_fills_what_has_no_initialisations() -> None:
    w = tensor(decomposition=Bare(), init=lambda network, tensors: [t.fill_(0.5) for t in tensors.values()])
    assert torch.equal(w.weight.input, torch.full((5, 3), 0.5))
