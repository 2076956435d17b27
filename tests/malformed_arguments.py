"""Malformed arguments by a seed: parameters of public calls, each given what no parameter of its kind may be."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from factorized_moe import (
    Budget,
    CPMuMoE,
    ExpertGate,
    FactorizedExpertTensor,
    GatedMuMoEBlock,
    MixtureOfDecodersBlock,
    MuMoE,
    MuMoEBlock,
    TensorNetwork,
    compat,
    parameter_groups,
    register,
)
from factorized_moe.activations import Entmax, TopKReLU, TopKSoftmax, entmax15, softmax, sparsemax
from factorized_moe.decompositions import CP
from factorized_moe.folding import fold
from factorized_moe.interpret import (
    Ablate,
    Add,
    Bias,
    Force,
    Load,
    Recording,
    Scale,
    Swap,
    balancing_weights,
    class_accuracy,
    compare_duplicates,
    count_labels,
    counterfactuals,
    expert_contributions,
    experts_in_use,
    find_layers,
    find_top_experts,
    find_top_samples,
    intervene,
    measure_coactivation,
    measure_groups,
    measure_histogram,
    measure_load,
    measure_similarity,
    measure_spectra,
    measure_usage,
    open_recording,
    record,
    sample_active,
)
from factorized_moe.interpret.report import ReportData, load_run
from factorized_moe.parallel import Machine, shard, shards_of
from factorized_moe.surgery import (
    DistillationSettings,
    MuMoEConfig,
    distill,
    from_pretrained,
    replace,
    save_pretrained,
    upcycle,
)
from tests.malformed_values import WRONG, shown

Call = tuple[Callable[..., object], dict[str, Any], dict[str, str]]


def _recording() -> Recording:
    layer = CPMuMoE(8, 3, [3], rank=2)
    with record(layer) as log:
        layer(torch.ones(4, 8))
        log.annotate(labels=[0, 1, 0, 1], ids=[0, 1, 0, 1])
    return log.recording


def _recorded(layers: object = None, class_names: Any = (), dtype: Any = torch.float32) -> None:
    layer = CPMuMoE(8, 3, [3], rank=2)
    with record(layer, layers, class_names=class_names, dtype=dtype):
        layer(torch.ones(4, 8))


def _replaced(**given: Any) -> object:
    right = {"model": nn.Sequential(nn.Linear(8, 6)), "target": "0", "config": MuMoEConfig((3,), rank=2)}
    return replace(**{**right, **given})


def _distilled(**given: Any) -> object:
    options = {
        "model": nn.Sequential(nn.Linear(8, 3)),
        "replacements": {"0": CPMuMoE(8, 3, [3], rank=2)},
        "batches": [torch.randn(4, 8)],
        "settings": DistillationSettings(1),
    }
    return distill(**{**options, **given})


def calls() -> dict[str, Call]:
    """Public calls by name: the function, arguments that are right, and of which kind each malformed one is."""
    torch.manual_seed(0)
    layer, recording = CPMuMoE(8, 3, [3], rank=2).eval(), _recording()
    tensor, gate = layer.experts, layer.gate
    sized = {"in_features": 8, "out_features": 6, "expert_dims": [3], "decomposition": "cp", "rank": 2}
    built = {
        **{"in_features": "size", "out_features": "size", "expert_dims": "sizes", "decomposition": "name"},
        **{
            "rank": "rank",
            "bias": "flag",
            "gate": "function",
            "gate_norm": "gate norm",
            "gate_temperature": "positive",
            "gate_rank": "count or none",
        },
        **{"input_norm": "flag", "init": "function", "checkpoint": "flag", "sparse_coefficients": "flag"},
        **{"device": "device", "dtype": "dtype", "network": "module"},
    }
    built = {name: kind for name, kind in built.items() if name not in ("gate_norm", "init", "network")}
    released = {"input_dim": 4, "output_dim": 6, "expert_dims": [3]}
    sizes = {"input_dim": "size", "output_dim": "size", "expert_dims": "sizes"}
    of = {"layer": "layer", "mode": "mode", "recording": "recording"}
    change = {"experts": "experts", "mode": "mode of an intervention"}
    labels = torch.tensor([0, 1, 0, 1])
    return {
        "MuMoE": (MuMoE, sized, built),
        "MuMoEBlock": (
            MuMoEBlock,
            {**sized, "hidden_features": 5},
            {**built, "hidden_features": "size", "activation": "function"},
        ),
        "GatedMuMoEBlock": (GatedMuMoEBlock, {**sized, "hidden_features": 5}, {**built, "hidden_features": "size"}),
        "MixtureOfDecodersBlock": (
            MixtureOfDecodersBlock,
            {**sized, "hidden_features": 5},
            {**built, "hidden_features": "size", "activation": "function", "gated": "flag", "skip": "flag"},
        ),
        "FactorizedExpertTensor": (
            FactorizedExpertTensor,
            sized,
            {k: v for k, v in built.items() if not k.startswith(("gate", "input_norm"))},
        ),
        "from_dense": (
            FactorizedExpertTensor.from_dense,
            {"dense": torch.randn(3, 4, 5), "rank": 2},
            {
                "dense": "dense",
                "rank": "rank",
                "bias": "flag",
                "seed": "seed",
                "device": "device",
                "dtype": "dtype",
                "decomposition": "name",
            },
        ),
        "plan": (
            tensor.plan,
            {},
            {"batch_size": "size or none", "memory_limit": "size or none", "backward": "flag", "optimize": "layer"},
        ),
        "calling a tensor": (
            tensor.forward,
            {"x": torch.randn(5, 8), "coefficients": [torch.rand(5, 3)]},
            {"x": "matrix", "coefficients": "coefficients"},
        ),
        "calling a layer": (layer.forward, {"x": torch.randn(5, 8)}, {"x": "matrix"}),
        "calling a gate": (gate.forward, {"x": torch.randn(5, 8)}, {"x": "matrix"}),
        "expert": (lambda index: tensor.expert(index), {"index": 0}, {"index": "index"}),
        "relative_error": (tensor.relative_error, {"dense": tensor.to_dense().detach()}, {"dense": "dense"}),
        "fold": (fold, {"tensor": tensor, "batch_size": 4}, {"tensor": "module", "batch_size": "count"}),
        "ExpertGate": (
            ExpertGate,
            {"in_features": 8, "expert_dims": [3]},
            {
                "in_features": "size",
                "expert_dims": "sizes",
                "activation": "function",
                "temperature": "positive",
                "rank": "count or none",
                "device": "device",
                "dtype": "dtype",
            },
        ),
        "Budget": (
            Budget,
            {"parameters": 100},
            {
                "parameters": "count or none",
                "count_gate": "flag",
                "count_bias": "flag",
                "dtype": "dtype",
                "choice": "name",
                "rounding": "name",
                "independent_experts": "count or none",
            },
        ),
        "Entmax": (Entmax, {"alpha": 1.5}, {"alpha": "positive"}),
        "TopKSoftmax": (TopKSoftmax, {"k": 2}, {"k": "count"}),
        "TopKReLU": (TopKReLU, {"k": 2}, {"k": "count or none"}),
        "softmax": (softmax, {"logits": torch.randn(2, 3)}, {"logits": "logits"}),
        "entmax15": (entmax15, {"logits": torch.randn(2, 3)}, {"logits": "logits"}),
        "sparsemax": (sparsemax, {"logits": torch.randn(2, 3)}, {"logits": "logits"}),
        "TensorNetwork.parse": (TensorNetwork.parse, {"text": "in a, a out; in=2 a=3 out=2"}, {"text": "text"}),
        "register": (partial(register, decomposition=CP()), {"name": "cp" + "x" * 9}, {"name": "registered name"}),
        "parameter_groups": (
            parameter_groups,
            {"model": layer},
            {"model": "module", "decay_gates": "flag", "weight_decay": "share but large"},
        ),
        "compat.CPMMoE": (compat.CPMMoE, {**released, "rank": 2}, {**sizes, "rank": "size"}),
        "compat.CPMuMoE": (compat.CPMuMoE, {**released, "rank": 2}, {**sizes, "rank": "size", "use_bias": "0 or 1"}),
        "compat.TuckerMMoE": (compat.TuckerMMoE, {**released, "ranks": [2, 2, 2]}, {**sizes, "use_bias": "0 or 1"}),
        "compat.TTMMoE": (
            compat.TTMMoE,
            {**released, "ranks": [[1, 3, 2], [2, 5, 2], [2, 6, 1]]},
            {**sizes, "use_bias": "0 or 1"},
        ),
        "shards_of": (
            shards_of,
            {"module": CPMuMoE(8, 3, [3], rank=2), "ranks": 2},
            {"module": "module", "ranks": "count", "label": "label", "tokens": "count", "machine": "machine"},
        ),
        "shard": (shard, {"module": CPMuMoE(8, 3, [3], rank=2)}, {"mesh": "module"}),
        "Machine": (
            Machine,
            {},
            {"flops_per_second": "positive", "bytes_per_second": "positive", "bytes_per_element": "count"},
        ),
        "MuMoEConfig": (
            MuMoEConfig,
            {"expert_dims": (3,), "rank": 2},
            {
                "expert_dims": "sizes",
                "rank": "rank of a config",
                "decomposition": "name",
                "gate": "name",
                "gate_temperature": "positive",
                "gate_rank": "count or none",
                "noise": "share but large",
                "pretrained": "flag",
                "seed": "seed",
            },
        ),
        "DistillationSettings": (
            DistillationSettings,
            {"steps": 3},
            {
                "steps": "count",
                "learning_rate": "positive",
                "warm_up": "share",
                "weight_decay": "share but large",
                "accumulate": "count",
                "seed": "seed",
            },
        ),
        "distill": (
            _distilled,
            {},
            {
                "model": "module",
                "checkpoint_every": "count",
                "settings": "module",
                "replacements": "module",
                "batches": "iterable",
            },
        ),
        "replace": (
            _replaced,
            {},
            {"model": "module", "target": "layer", "config": "module", "last": "count or none", "delta": "flag"},
        ),
        "upcycle": (
            upcycle,
            {"module": nn.Linear(8, 6), "expert_dims": [3], "rank": 2},
            {
                "module": "module",
                "expert_dims": "sizes",
                "rank": "rank",
                "noise": "share but large",
                "gate_temperature": "positive",
                "seed": "seed",
                "decomposition": "name",
            },
        ),
        "from_pretrained": (from_pretrained, {}, {"source": "folder"}),
        "save_pretrained": (save_pretrained, {"folder": "unused"}, {"layer": "module"}),
        "open_recording": (open_recording, {}, {"folder": "folder"}),
        "load_run": (load_run, {}, {"path": "folder"}),
        "record": (_recorded, {}, {"class_names": "strings", "dtype": "dtype", "layers": "layer"}),
        "measure_load": (measure_load, {"recording": recording}, {**of, "threshold": "threshold"}),
        "measure_histogram": (
            measure_histogram,
            {"recording": recording},
            {**of, "bins": "count", "low": "number", "high": "number"},
        ),
        "measure_coactivation": (measure_coactivation, {"recording": recording}, of),
        "count_labels": (count_labels, {"recording": recording}, of),
        "find_top_samples": (find_top_samples, {"recording": recording}, {**of, "k": "count", "seed": "seed"}),
        "sample_active": (
            sample_active,
            {"recording": recording},
            {**of, "k": "count", "seed": "seed", "threshold": "threshold"},
        ),
        "find_top_experts": (find_top_experts, {"recording": recording}, {**of, "k": "count"}),
        "compare_duplicates": (compare_duplicates, {"recording": recording}, of),
        "from_recording": (
            ReportData.from_recording,
            {"recording": recording, "title": "a"},
            {"recording": "recording", "threshold": "threshold", "title": "title"},
        ),
        "Load.of": (
            Load.of,
            {"coefficients": torch.rand(5, 3)},
            {"coefficients": "measured", "threshold": "threshold"},
        ),
        "experts_in_use": (
            experts_in_use,
            {"means": torch.rand(3), "spreads": torch.rand(3)},
            {"means": "measured", "spreads": "measured"},
        ),
        "class_accuracy": (
            class_accuracy,
            {"correct": labels.bool(), "labels": labels, "num_classes": 2},
            {"correct": "labels", "labels": "labels", "num_classes": "count"},
        ),
        "measure_groups": (
            measure_groups,
            {"labels": labels, "predictions": labels, "groups": torch.tensor([0, 0, 1, 1])},
            {"labels": "binary", "predictions": "binary", "groups": "binary"},
        ),
        "balancing_weights": (
            balancing_weights,
            {"labels": torch.tensor([0, 1, 0, 1]), "groups": torch.tensor([0, 0, 1, 1])},
            {"labels": "binary", "groups": "binary"},
        ),
        "measure_spectra": (measure_spectra, {"experts": tensor}, {"experts": "module"}),
        "measure_similarity": (measure_similarity, {"experts": tensor}, {"experts": "module"}),
        "measure_usage": (
            lambda model, x, **options: measure_usage(model, x, **options),
            {"model": layer, "x": torch.randn(5, 8)},
            {"model": "module", "layers": "layer"},
        ),
        "expert_contributions": (
            lambda **given: list(expert_contributions(**given)),
            {"experts": tensor, "x": torch.randn(5, 8), "coefficients": [torch.rand(5, 3)]},
            {"experts": "module", "x": "matrix", "coefficients": "coefficients", "mode": "mode"},
        ),
        "counterfactuals": (
            lambda **given: counterfactuals(**given),
            {"model": layer, "batches": [torch.randn(5, 8)]},
            {"model": "module", "batches": "batches", "mode": "mode of an intervention"},
        ),
        "find_layers": (find_layers, {"model": layer}, {"model": "module"}),
        "intervene": (
            lambda model, change: intervene(model, change).undo(),
            {"model": layer, "change": Ablate(0)},
            {"model": "module", "change": "module"},
        ),
        "Ablate": (Ablate, {"experts": 0}, {**change}),
        "Scale": (Scale, {"experts": 0, "factor": 2.0}, {**change, "factor": "number"}),
        "Force": (Force, {"experts": 0, "value": 2.0}, {**change, "value": "number"}),
        "Add": (Add, {"experts": 0, "amount": 2.0}, {**change, "amount": "number"}),
        "Swap": (Swap, {"experts": (0, 1)}, change),
        "Bias": (Bias, {"experts": 0, "amount": 2.0}, {**change, "amount": "amount", "outputs": "experts or none"}),
    }


def valid_calls() -> dict[str, Callable[[], object]]:
    """The calls with arguments that are right: they must go through, or a refusal of a wrong one would show nothing."""
    incomplete = {"from_pretrained", "save_pretrained", "open_recording", "load_run", "shard"}  # given a wrong one only
    return {name: partial(call, **right) for name, (call, right, _) in calls().items() if name not in incomplete}


def malformed_calls(count: int, seed: int) -> list[tuple[str, Callable[[], object]]]:
    """So many calls with one wrong argument each, all different, of every function and of every kind in turn."""
    rng = random.Random(seed)
    everything = calls()
    by_parameter = [
        [(name, parameter, kind, value) for value in WRONG[kind]]
        for name, (_, _, parameters) in everything.items()
        for parameter, kind in parameters.items()
    ]
    for values in by_parameter:
        rng.shuffle(values)
    rng.shuffle(by_parameter)
    drawn: list[tuple[str, str, str, Any]] = []
    while len(drawn) < count and any(by_parameter):
        drawn += [values.pop() for values in by_parameter if values]
    found = []
    for name, parameter, _, value in drawn[:count]:
        call, right, _ = everything[name]
        found.append((f"{name}({parameter}={shown(value)})", partial(call, **{**right, parameter: value})))
    return found
