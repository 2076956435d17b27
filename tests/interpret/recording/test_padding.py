"""Padded positions of a language model's call are not recorded; layers on samples of their own share one recording."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, T5Config, T5Model

from factorized_moe import MuMoE, MuMoEBlock
from factorized_moe.interpret import (
    Recording,
    count_labels,
    find_top_experts,
    find_top_samples,
    measure_load,
    open_recording,
    record,
)
from factorized_moe.interpret.recording import given as limits

PAD = 0


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Chunks of seven samples of the language model: no multiple of a batch."""
    monkeypatch.setattr(limits, "CHUNK_ELEMENTS", 7 * 6)
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(level)


def block(width: int) -> MuMoEBlock:
    found = MuMoEBlock(width, 8, width, [6], rank=4, gate_norm="layer")
    nn.init.normal_(found.gate.get_parameter("projection.weight"))
    return found


@pytest.fixture
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, pad_token_id=PAD, eos_token_id=1, **sizes))
    for layer in model.model.layers:
        layer.mlp = block(16)
    return model.eval()


TEXTS = [[3, 14, 15, 9, 2, 6], [5, 3], [5, 8, 9, 7]]


def padded(side: str) -> tuple[Tensor, Tensor]:
    """Token numbers and the mask, ``(3, 6)``."""
    rows = [[0] * (6 - len(text)) + text if side == "left" else text + [0] * (6 - len(text)) for text in TEXTS]
    ids = torch.tensor(rows)
    return ids, (ids != PAD).long()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("named", [True, False], ids=["by name", "by place"])
def test_padding_of_a_language_model_is_left_out(
    llama: LlamaForCausalLM, side: str, named: bool, tmp_path: Path
) -> None:
    ids, mask = padded(side)
    sequences = torch.arange(3)
    with torch.no_grad(), record(llama, folder=tmp_path / "run") as log:
        for _ in range(2):
            llama(input_ids=ids, attention_mask=mask) if named else llama(ids, mask)
            log.annotate(ids=sequences, labels=ids.masked_fill(mask == 0, -100), texts=[f"t{n}" for n in ids[mask > 0]])
    recording = open_recording(tmp_path / "run")
    words = [word for text in TEXTS for word in text] * 2
    assert recording.num_samples == len(words) == 24
    assert recording.labels.tolist() == words
    assert recording.ids.tolist() == [0] * 6 + [1] * 2 + [2] * 4 + [0] * 6 + [1] * 2 + [2] * 4
    assert recording.texts == tuple(f"t{word}" for word in words)
    assert not any(hook for module in llama.modules() for hook in (module._forward_hooks, module._forward_pre_hooks))
    # The same as without padding: each text alone.
    with torch.no_grad(), record(llama) as alone:
        for text in TEXTS:
            llama(torch.tensor([text]))
    for layer in recording.layers:
        once = recording.coefficients(layer)[:12]
        torch.testing.assert_close(once, alone.recording.coefficients(layer), rtol=0, atol=1e-5)
    with torch.no_grad(), record(llama, mask=None) as log:
        llama(ids, attention_mask=mask)
    assert log.recording.num_samples == 18


def test_generating_with_cached_positions(llama: LlamaForCausalLM) -> None:
    ids, mask = padded("left")
    settings = GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=PAD, eos_token_id=None)
    with torch.no_grad(), record(llama) as log:
        llama.generate(ids, attention_mask=mask, generation_config=settings)
    assert log.recording.num_samples == 12 + 2 * 3  # the prompts, and two further calls with one token of each


def test_a_decoder_has_a_mask_of_its_own() -> None:
    torch.manual_seed(0)
    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    model = T5Model(config).eval()
    model.encoder.block[0].layer[1].DenseReluDense = block(16)
    model.decoder.block[0].layer[2].DenseReluDense = block(16)
    ids, mask = padded("right")
    other = torch.ones_like(mask)
    other[0, 4:] = 0
    for given, expected in (({"decoder_attention_mask": other}, 16), ({}, 18)):
        with torch.no_grad(), record(model, in_step=False) as log:
            model(input_ids=ids, attention_mask=mask, decoder_input_ids=ids, **given)
        encoder, decoder = (log.recording.in_step_with(layer) for layer in log.recording.layers)
        assert (encoder.num_samples, decoder.num_samples) == (12, expected)


def test_a_mask_given_afterwards() -> None:
    torch.manual_seed(0)
    layer = block(8).eval()
    x, mask = torch.randn(2, 3, 8), torch.tensor([[1, 1, 0], [1, 0, 0]])
    with torch.no_grad(), record(layer) as log:
        for number in range(3):
            layer(x)
            log.annotate(mask=mask, labels=[number, 7])
    (a,) = layer.gate(x)
    torch.testing.assert_close(log.recording.coefficients(), a[mask > 0].detach().repeat(3, 1))
    assert log.recording.labels.tolist() == [0, 0, 7, 1, 1, 7, 2, 2, 7]
    with torch.no_grad(), record(layer) as log:
        for _ in range(6):
            layer(x)
            log.annotate(mask=mask.bool())
    assert log.recording.num_samples == 18

    def annotated(times: int, **given: object) -> None:
        with record(layer) as log:
            for _ in range(times):
                layer(x)
            log.annotate(**given)  # type: ignore[arg-type]

    for given, error, message in [
        ({"mask": [1, 0]}, ValueError, "got 2 entries of a mask for 6 samples, those recorded since the last call"),
        ({"mask": [0.5] * 6}, TypeError, "mask is bool, or 0 and 1, got torch.float32 with other values"),
        (
            {"mask": [[1, 1, 0], [0, 0, 0]], "labels": [1, 2]},
            ValueError,
            "got 2 labels for 2 inputs with 2 samples that",
        ),
    ]:
        with pytest.raises(error, match=message):
            annotated(1, **given)
    with pytest.raises(ValueError, match=r"7 samples that the mask is for are stored already; call annotate with"):
        annotated(3, mask=torch.ones(18))


class Mixer(nn.Module):
    """Token mixing over transposed patches, channel mixing, and a head on the mean of the patches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.channels = block(6), block(8)
        self.head = MuMoE(8, 4, [5], rank=3, gate_norm="layer")
        nn.init.normal_(self.head.gate.get_parameter("projection.weight"))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(x.mT).mT
        y: Tensor = self.head((x + self.channels(x)).mean(dim=1))
        return y


@pytest.mark.parametrize("place", ["memory", "folder"])
def test_layers_with_samples_of_their_own(tmp_path: Path, place: str) -> None:
    model, folder = Mixer(), tmp_path / "run"
    images = [torch.randn(4, 6, 8) for _ in range(3)]
    classes = [torch.randint(3, (4,)) for _ in images]
    with torch.no_grad(), record(model, folder=folder if place == "folder" else None, in_step=False) as log:
        for batch, labels in zip(images, classes, strict=True):
            model(batch)
            log.annotate(labels=labels, ids=torch.arange(24))
    recording = log.recording
    assert recording.layers == ("tokens", "channels", "head")
    assert repr(recording) == "Recording(96 + 72 + 12 samples, layers ['tokens', 'channels', 'head'])"
    x = torch.cat(images)
    with torch.no_grad():
        (a,) = model.tokens.gate(x.mT)
        torch.testing.assert_close(recording.coefficients("tokens"), a.flatten(0, 1))
    every = torch.cat(classes)
    for layer, times, ids in (("tokens", 8, False), ("channels", 6, True), ("head", 1, False)):
        alone = recording.in_step_with(layer)
        assert alone.num_samples == 12 * times
        assert torch.equal(alone.labels, every.repeat_interleave(times))
        assert alone.has("ids") == ids
        dense = recording.coefficients(layer)
        assert torch.equal(measure_load(recording, layer=layer).counts, (dense >= 0.5).sum(0))
        sums = count_labels(recording, layer=layer)
        torch.testing.assert_close(sums.means[:, 0], dense[alone.labels == 0].double().mean(0))
        assert find_top_samples(recording, 2, layer=layer).values[:, 0].tolist() == dense.amax(0).tolist()
        assert find_top_experts(recording, 2, layer=layer).experts.shape == (12 * times, 2)
    for ask in (lambda: recording.num_samples, lambda: recording.labels, lambda: recording.select([True])):
        with pytest.raises(ValueError, match=r"the layers ran on samples of their own, .*; name one"):
            ask()
    if place == "folder":
        (folder / "chunk-000001.safetensors").unlink()
        with pytest.raises(ValueError, match=r"chunk-000001.safetensors is missing"):
            open_recording(folder)


def test_layers_in_step_are_still_the_rule() -> None:
    model = Mixer()
    with (
        pytest.raises(ValueError, match="'head' ran on 4 samples and layer 'tokens' on 32"),
        record(model) as log,
    ):
        model(torch.randn(4, 6, 8))
    assert log.recording.num_samples == 4


def test_recordings_of_before_open() -> None:
    folder = Path(__file__).parents[2] / "data" / "recordings" / "version_1"
    recording = open_recording(folder)
    assert isinstance(recording, Recording)
    assert (recording.num_samples, recording.class_names) == (9, ("cat", "dog"))
    assert recording.layers == ("0", "2")
    assert recording.texts[:2] == ("w0", "w1")
    for name, coefficients in load_file(folder / "expected.safetensors").items():
        layer, _, mode = name.partition("/")
        assert torch.equal(recording.coefficients(layer, int(mode)), coefficients)
