"""The Mixture-of-Decoders block: equal to its authors' numbers, and a layer of experts like the others."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from factorized_moe import Budget, ExpertGate, MixtureOfDecodersBlock, MuMoE, parameter_groups
from factorized_moe.activations import TopKReLU
from factorized_moe.interpret import Ablate, intervene, measure_usage, record
from factorized_moe.surgery import from_pretrained, load, save, save_pretrained

FOLDER = Path(__file__).parent / "data" / "mixture_of_decoders"
FILES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))
ACTIVATIONS = {
    "relu": nn.ReLU(),
    "gelu": nn.GELU(),
    "gelu_pytorch_tanh": nn.GELU(approximate="tanh"),
    "sigmoid": nn.Sigmoid(),
}
# Their names, and ours with how theirs becomes ours.
NAMES = {
    "W_enc": ("encoder.weight", lambda w: w.T),
    "b_enc": ("encoder.bias", lambda b: b),
    "W_glu.weight": ("multiplier.weight", lambda w: w),
    "W_glu.bias": ("multiplier.bias", lambda b: b),
    "W_dec": ("experts.weight.decoder", lambda w: w[:, None]),
    "W_cond": ("experts.weight.expert_0", lambda w: w.T[:, None]),
    "gate": ("gate.projection.weight", lambda w: w),
    "gate_bias": ("gate.projection.bias", lambda b: b),
    "W_skip.weight": ("skip.weight", lambda w: w),
    "b_dec_out": ("output_bias", lambda b: b),
}


def read(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        return json.loads(file.metadata()["config"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def block_of(config: dict[str, Any]) -> MixtureOfDecodersBlock:
    return MixtureOfDecodersBlock(
        config["d_in"],
        config["d_sae"],
        config["d_out"],
        [config["n_experts"]],
        gated=config["use_glu"],
        skip=config["use_skip"],
        activation=ACTIVATIONS[config["mlp_activation_fn"]],
        gate=TopKReLU(config["topk"] if config["topk"] > 0 else None),
        dtype=torch.float64,
    )


def small(**options: Any) -> MixtureOfDecodersBlock:
    torch.manual_seed(0)
    block = MixtureOfDecodersBlock(6, 10, 5, [8], **{"gate": TopKReLU(3), **options})
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    return block


def test_there_are_numbers_of_plain_and_gated_blocks() -> None:
    assert FILES == ["glu", "glu_skip", "plain", "plain_skip"]


@pytest.mark.parametrize("name", FILES)
def test_outputs_coefficients_and_gradients_are_the_authors(name: str) -> None:
    config, tensors = read(name)
    block = block_of(config)
    state = {
        ours: change(tensors[f"state/{theirs}"]).contiguous()
        for theirs, (ours, change) in NAMES.items()
        if f"state/{theirs}" in tensors
    }
    block.load_state_dict(state, strict=True)
    assert len(state) == sum(key.startswith("state/") for key in tensors)
    x = tensors["x"].requires_grad_()
    (coefficients,) = block.gate(x)
    torch.testing.assert_close(coefficients, tensors["coefficients"], rtol=1e-12, atol=1e-12)
    y = block(x)
    torch.testing.assert_close(y, tensors["y"], rtol=1e-12, atol=1e-12)
    (y * tensors["cotangent"]).sum().backward()
    torch.testing.assert_close(x.grad, tensors["grad_x"], rtol=1e-11, atol=1e-11)
    parameters = dict(block.named_parameters())
    for theirs, (ours, change) in NAMES.items():
        if f"grad/{theirs}" in tensors:
            gradient = change(tensors[f"grad/{theirs}"])
            torch.testing.assert_close(parameters[ours].grad, gradient, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("options", [{}, {"gated": True, "skip": True}, {"decomposition": "cp", "rank": 4}])
def test_a_fresh_block_gives_zero_and_learns(options: dict[str, Any]) -> None:
    """As in the source: zero decoders, directions of norm 1, a gate that is not zero with biases that are."""
    torch.manual_seed(0)
    block = MixtureOfDecodersBlock(6, 10, 5, [8], gate=TopKReLU(3), **options)
    x, target = torch.randn(64, 6), torch.randn(64, 5)
    assert torch.equal(block(x), torch.zeros(64, 5))
    assert block.gate(x)[0].count_nonzero(-1).max() == 3
    assert not block.gate.projection.bias.any()
    if not options.get("decomposition"):
        assert not block.experts.weight.decoder.any()
        torch.testing.assert_close(block.experts.weight.expert_0.norm(dim=-1), torch.ones(8, 1))
    before = copy.deepcopy(block.state_dict())
    optimiser = torch.optim.Adam(block.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        loss = (block(x) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert all(not torch.equal(before[name], value) for name, value in block.state_dict().items())
    block.reset_parameters()
    assert torch.equal(block(x), torch.zeros(64, 5))
    assert block.gate.projection.weight.abs().max() > 0


def test_several_expert_modes_and_biases_of_experts() -> None:
    torch.manual_seed(0)
    block = MixtureOfDecodersBlock(6, 10, 5, [4, 3], rank=2, gate=TopKReLU(2), bias=True, input_norm=True)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 7, 6)
    one, two = block.gate(x)
    hidden = torch.relu(block.encoder(block.input_norm(x)))
    rows = torch.cat([hidden, torch.ones(2, 7, 1)], -1)
    expected = torch.einsum("bti,btm,btn,mnio->bto", rows, one, two, block.experts.to_dense()) + block.output_bias
    torch.testing.assert_close(block(x), expected)
    assert block.in_features == 6
    assert block.input_norm.normalized_shape == (6,)


def test_the_face_of_a_layer_of_experts() -> None:
    block, x = small(gated=True, skip=True).eval(), torch.randn(9, 6)
    assert (block.in_features, block.out_features, block.expert_dims) == (6, 5, (8,))
    assert list(block.expert_tensors) == ["experts"]
    with record(block) as log:
        y = block(x)
    torch.testing.assert_close(log.recording.coefficients("model"), block.gate(x)[0])
    with intervene(block, Ablate(range(8))):
        torch.testing.assert_close(block(x), block.skip(x) + block.output_bias)
    assert torch.equal(block(x), y)
    assert [mode.num_experts for mode in measure_usage(block, x)] == [8]
    groups = {group["name"]: group["params"] for group in parameter_groups(block)}
    assert any(parameter is block.gate.projection.bias for parameter in groups["gates"])


@pytest.mark.parametrize(
    "options", [{}, {"gated": True, "skip": True, "gate": TopKReLU(None), "activation": nn.SiLU()}]
)
def test_saved_and_loaded(options: dict[str, Any], tmp_path: Path) -> None:
    block, x = small(**options).eval(), torch.randn(9, 6)
    save_pretrained(block, tmp_path / "layer")
    again = from_pretrained(tmp_path / "layer")
    assert type(again) is MixtureOfDecodersBlock
    assert again.gate.activation == block.gate.activation
    assert torch.equal(again(x), block(x))
    model = nn.Sequential(nn.Linear(6, 6), block)
    save(model, tmp_path / "model")
    fresh = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 5))
    load(fresh, tmp_path / "model")
    assert torch.equal(fresh(x), model(x))


def test_a_gate_that_would_come_back_as_another_is_not_saved(tmp_path: Path) -> None:
    gate = ExpertGate(6, [8], logit_bias=True, norm="layer")
    with pytest.raises(ValueError, match="the gate of a MuMoE has other parameters than it gives its gates"):
        save_pretrained(MuMoE(6, 5, [8], rank=2, gate=gate), tmp_path / "layer")


@pytest.mark.thorough
def test_compiles_and_exports() -> None:
    block, x = small(gated=True, skip=True).eval(), torch.randn(9, 6)
    expected = block(x)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="aot_eager")(x), expected)
    rows = torch.export.Dim("rows", min=2)
    exported = torch.export.export(block, (x,), dynamic_shapes=((rows, None),)).module()
    torch.testing.assert_close(exported(x[:4]), expected[:4])


def test_distilled_from_an_mlp() -> None:
    """What it is for: an MLP's outputs, learned on its inputs."""
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))
    block = MixtureOfDecodersBlock(6, 12, 6, [16], gate=TopKReLU(4), activation=nn.GELU())
    x, unseen = torch.randn(512, 6), torch.randn(128, 6)
    optimiser = torch.optim.Adam(block.parameters(), lr=1e-2)
    for _ in range(300):
        optimiser.zero_grad()
        (block(x) - mlp(x).detach()).square().mean().backward()
        optimiser.step()
    with torch.no_grad():
        error = (block(unseen) - mlp(unseen)).square().mean() / mlp(unseen).square().mean()
    assert error < 0.1


REFUSED = {
    "a budget": (
        {"rank": Budget(parameters=1000)},
        TypeError,
        "a budget counts no encoder; give MixtureOfDecodersBlock",
    ),
    "gated": ({"gated": 1}, TypeError, "gated"),
    "skip": ({"skip": "yes"}, TypeError, "skip"),
    "size": ({"in_features": 0}, ValueError, "in_features"),
    "a gate with a rank": (
        {"gate": ExpertGate(6, [8]), "gate_rank": 2},
        ValueError,
        "gate_rank=2 is for a gate that is made",
    ),
    "activation": ({"activation": nn.GELU}, TypeError, "activation is a module or a function of a tensor"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusal(case: str) -> None:
    options, error, message = REFUSED[case]
    sizes = {"in_features": 6, "hidden_features": 10, "out_features": 5, "expert_dims": [40]}
    with pytest.raises(error, match=message):
        MixtureOfDecodersBlock(**{**sizes, **options})


def test_top_k_relu() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, -1.0], [-1.0, -2.0, 0.5, -3.0]], requires_grad=True)
    assert TopKReLU(2)(logits).tolist() == [[0.0, 3.0, 3.0, 0.0], [0.0, 0.0, 0.5, 0.0]]
    assert TopKReLU(1)(logits).tolist() == [[0.0, 3.0, 3.0, 0.0], [0.0, 0.0, 0.5, 0.0]]  # a tie
    assert TopKReLU(None)(logits).tolist() == [[1.0, 3.0, 3.0, 0.0], [0.0, 0.0, 0.5, 0.0]]
    TopKReLU(2)(logits).sum().backward()
    assert logits.grad.tolist() == [[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]]
    assert TopKReLU(2)(logits.half()).dtype == torch.float16
    with pytest.raises(ValueError, match="TopKReLU: k=5 is more than the 4 logits"):
        TopKReLU(5)(logits)
    with pytest.raises(
        ValueError, match=r"TopKReLU\(k=32\) keeps 32 experts, but expert_dims=\(40, 8\) has a mode of 8; give"
    ):
        MixtureOfDecodersBlock(4, 6, 4, [40, 8], gate=TopKReLU(32))
    with pytest.raises(ValueError, match="TopKReLU: k must be a positive integer, but got 0"):
        TopKReLU(0)
    with pytest.raises(TypeError, match=r"TopKReLU: k must be a positive integer, but got 2\.5"):
        TopKReLU(2.5)  # type: ignore[arg-type]


def test_default_gate_takes_as_many_experts_as_the_smallest_mode_has_below_32() -> None:
    x = torch.randn(5, 6)
    block = MixtureOfDecodersBlock(6, 8, 5, [3, 40])
    assert block(x).shape == (5, 5)
    few, many = block.gate(x)
    assert few.shape == (5, 3)
    assert int((many > 0).sum(-1).max()) <= 3  # one k for all modes
    assert MixtureOfDecodersBlock(6, 8, 5, [40]).gate.activation.k == 32
