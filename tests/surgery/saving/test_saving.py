"""Saving and loading: bit-equal, nothing unpickled, and a file that does not fit leaves the model as it was."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from factorized_moe import FactorizedExpertTensor, GatedMuMoEBlock, MuMoE, MuMoEBlock, TensorNetwork
from factorized_moe.activations import Entmax, TopKSoftmax
from factorized_moe.decompositions import GivenNetwork, TTMatrix
from factorized_moe.storage import NetworkTensor
from factorized_moe.surgery import MuMoEConfig, from_pretrained, is_mlp, load, replace, save, save_pretrained
from factorized_moe.surgery.replacing.nonlinearities import build_nonlinearity
from factorized_moe.surgery.saving import folder as files_module
from factorized_moe.surgery.saving.describing import build_layer_from, describe
from factorized_moe.surgery.saving.folder import digest

CONFIG = MuMoEConfig(expert_dims=(3, 2), decomposition="tr", rank=4, gate_norm="batch", seed=3)


class Tied(nn.Module):
    """A model with tied weights, a buffer, and an MLP."""

    def __init__(self, seed: int = 0, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(11, width)
        self.mlp = nn.Sequential(nn.Linear(width, 9), nn.GELU(approximate="tanh"), nn.Linear(9, width))
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.rand(1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.mlp(self.embedding(ids)) * self.scale)


IDS = torch.arange(11).reshape(1, -1)


def trained(**options: bool) -> Tied:
    model = Tied()
    replace(model, is_mlp, CONFIG, **options)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(IDS).square().sum().backward()
    optimiser.step()
    return model.eval()


@pytest.mark.parametrize("delta", [False, True], ids=["in place", "delta"])
def test_loads_into_a_fresh_base_bit_equal(delta: bool, tmp_path: Path) -> None:
    model = trained(delta=delta)
    save(model, tmp_path)
    fresh = load(Tied(seed=1).eval(), tmp_path)
    assert torch.equal(fresh(IDS), model(IDS))
    assert fresh.head.weight is fresh.embedding.weight
    assert [p.requires_grad for p in fresh.parameters()] == [p.requires_grad for p in model.parameters()]
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert "head.weight" not in file.keys()  # noqa: SIM118  # no mapping
    assert json.loads((tmp_path / "config.json").read_text())["aliases"] == {"head.weight": "embedding.weight"}


@pytest.mark.parametrize("delta", [False, True], ids=["in place", "delta"])
def test_experts_alone(delta: bool, tmp_path: Path) -> None:
    model = trained(delta=delta)
    save(model, tmp_path, only_experts=True)
    base = Tied()
    # What the optimiser changed outside of the experts is no part of the file.
    rest = {name: tensor for name, tensor in model.state_dict().items() if ".experts." not in name or not delta}
    base.load_state_dict(
        {k.replace(".base", ""): v for k, v in rest.items() if k in base.state_dict() or ".base" in k}, strict=False
    )
    assert torch.equal(load(base.eval(), tmp_path)(IDS), model(IDS))
    with pytest.raises(ValueError, match="the model is not the base that these layers were saved from"):
        load(Tied(width=8), tmp_path)


def test_bfloat16_and_second_save_over_the_first(tmp_path: Path) -> None:
    model = trained()
    save(model, tmp_path)
    model = model.to(torch.bfloat16)
    save(model, tmp_path)
    with pytest.raises(ValueError, match=r"is torch.bfloat16 in the file and torch.float32 in the model; convert"):
        load(Tied(), tmp_path)
    assert torch.equal(load(Tied(seed=1).to(torch.bfloat16).eval(), tmp_path)(IDS), model(IDS))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-20])


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def forge(folder: Path, **changes: object) -> None:
    """Edit the config, and the fingerprint of it beside the weights too."""
    edit(folder, **changes)
    config = json.loads((folder / "config.json").read_text())
    weights = folder / "model.safetensors"
    save_file(load_file(weights), weights, {"format": "pt", "config": digest(config)})


def forge_module(folder: Path, **changes: object) -> None:
    modules = json.loads((folder / "config.json").read_text())["modules"]
    forge(folder, modules={path: description | changes for path, description in modules.items()})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "config.json is damaged"),
        (lambda folder: (folder / "config.json").write_text("9" * 10_000), "config.json is damaged"),
        (lambda folder: forge(folder, aliases={"x": "absent"}), "config.json is damaged: its aliases name tensors"),
        (lambda folder: forge(folder, aliases=[1]), "config.json is damaged: its aliases name tensors"),
        (lambda folder: forge(folder, modules={"forward": {"kind": "Merged"}}), "the model has no module 'forward'"),
        (lambda folder: forge_module(folder, kind=[1]), r"no layer of experts is of kind \[1\]"),
        (lambda folder: forge_module(folder, in_features=10**30), "cannot make a MuMoEBlock of its description"),
        (
            lambda folder: forge_module(folder, in_features=10**13),
            r"module 'mlp': 'first\.weight\.input' has shape \(7, 4, 4\) in the file, \(10{12}1, 4, 4\)",
        ),
        (truncate, "model.safetensors is damaged or no safetensors file"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "model.safetensors is damaged"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json is not of the format"),
        (lambda folder: edit(folder, format="other"), "config.json is not of the format"),
        (lambda folder: edit(folder, modules={}), "are not of one save"),
        (lambda folder: save_pretrained(MuMoE(4, 3, [2], rank=1), folder), "does not describe a model"),
    ],
    ids=[
        "too deep",
        "too long",
        "alias",
        "aliases",
        "path",
        "kind",
        "overflow",
        "memory",
        "truncated",
        "no safetensors",
        "no JSON",
        "no object",
        "format",
        "edited",
        "a layer",
    ],
)
def test_damaged_files_leave_the_model_untouched(damage: object, message: str, tmp_path: Path) -> None:
    save(trained(), tmp_path)
    damage(tmp_path)
    model = Tied()
    modules, state = list(model.modules()), {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load(model, tmp_path)
    assert list(model.modules()) == modules
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_missing_file(missing: str, tmp_path: Path) -> None:
    save(trained(), tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {missing}"):
        load(Tied(), tmp_path)


@pytest.mark.parametrize("delta", [False, True], ids=["in place", "delta"])
def test_other_models_are_refused_untouched(delta: bool, tmp_path: Path) -> None:
    save(trained(delta=delta), tmp_path)
    other = Tied(width=8)
    modules = list(other.modules())
    with pytest.raises(ValueError, match=r"has shape \(11, 6\) in the file, \(11, 8\) in the model"):
        load(other, tmp_path)
    assert list(other.modules()) == modules
    assert all(parameter.requires_grad for parameter in other.parameters())
    with pytest.raises(ValueError, match="the model has no module 'mlp"):
        load(nn.Sequential(nn.Linear(6, 6)), tmp_path)
    more = Tied()
    more.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"2 tensors are missing in the file \['extra.bias', 'extra.weight'\]"):
        load(more, tmp_path)


def test_interrupted_save_leaves_the_old_one_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained()
    save(model, tmp_path)
    expected = model(IDS)
    other = Tied(seed=5)
    replace(other, "mlp.0", MuMoEConfig((2,), rank=1))
    other.eval()

    def partly(state: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files_module, "save_file", partly)
        with pytest.raises(KeyboardInterrupt):
            save(other, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert torch.equal(load(Tied(seed=1).eval(), tmp_path)(IDS), expected)
    real = Path.replace

    def second_fails(self: Path, target: Path) -> Path:
        if target.name == "model.safetensors":
            raise OSError("killed")
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", second_fails)
        with pytest.raises(OSError, match="killed"):
            save(other, tmp_path)  # the new one counts; one of its files is in its place
    assert torch.equal(load(Tied(seed=1).eval(), tmp_path)(IDS), other(IDS))
    save(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert torch.equal(load(Tied(seed=1).eval(), tmp_path)(IDS), expected)


def test_model_without_layers_of_experts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the model has no layer of experts"):
        save(Tied(), tmp_path)
    with pytest.raises(ValueError, match="a MuMoE on its own is no model; write it with save_pretrained"):
        save(MuMoE(4, 3, [2], rank=1), tmp_path)


def test_layer_in_several_places_stays_one(tmp_path: Path) -> None:
    def base() -> nn.Sequential:
        shared = nn.Linear(6, 6)
        return nn.Sequential(shared, nn.ReLU(), shared).eval()

    model, x = base(), torch.randn(3, 6)
    replace(model, nn.Linear, CONFIG)
    save(model, tmp_path)
    loaded = load(base(), tmp_path)
    assert loaded[0] is loaded[2]
    assert torch.equal(loaded(x), model(x))


LAYERS = {
    "cp": lambda: MuMoE(6, 5, [4], rank=3, input_norm=True),
    "entmax": lambda: MuMoE(6, 5, [4], "tucker", (2, 3, 3), gate=Entmax(1.7), gate_norm="layer", bias=False),
    "top-k": lambda: MuMoE(6, 5, [4], "kronecker", 2, gate=TopKSoftmax(3), gate_norm=None, dtype=torch.float64),
    "no experts": lambda: MuMoE(6, 5, [], rank=3),
    "dense": lambda: MuMoE(6, 5, [4], "dense", 1),
    "unregistered": lambda: MuMoE(6, 5, [4], TTMatrix(cores=2), 2),
    "given": lambda: MuMoE(
        6, 5, [4], GivenNetwork(TensorNetwork.parse("expert_0 a in, a b, b out; expert_0=2 in=2 out=2 a=2 b=2")), (3, 2)
    ),
    "block": lambda: MuMoEBlock(6, 7, 5, [2, 2], "tt", 3, second_rank=2, checkpoint=True),
    "block of functions": lambda: MuMoEBlock(6, 7, 5, [2], rank=3, activation=nn.functional.relu),
    "sequence": lambda: MuMoEBlock(6, 7, 5, [2], rank=3, activation=nn.Sequential(nn.ReLU(), nn.Dropout(0.3))),
    "gated": lambda: GatedMuMoEBlock(6, 7, 5, [2, 2], "shared_private", 3, gate="softmax", bias=True),
}


@pytest.mark.parametrize("name", LAYERS)
def test_single_layers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]()
    tensor = next(part for part in layer.children() if isinstance(part, FactorizedExpertTensor))
    x = torch.randn(5, 6, dtype=tensor.weight.operands[0].dtype)
    layer(x)  # moves running averages, which are part of the state
    save_pretrained(layer, tmp_path)
    random_state = torch.get_rng_state()
    same = from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert type(same) is type(layer)
    assert str(same.gate) == str(layer.gate)
    assert [str(part) for part in same.modules() if isinstance(part, NetworkTensor)] == [
        str(part) for part in layer.modules() if isinstance(part, NetworkTensor)
    ]
    assert torch.equal(same(x), layer.eval()(x))


def test_transformers_activation(tmp_path: Path) -> None:
    from transformers.activations import ACT2FN

    layer = MuMoEBlock(6, 7, 5, [2], rank=3, activation=ACT2FN["gelu_new"])
    save_pretrained(layer, tmp_path)
    assert type(from_pretrained(tmp_path).activation) is type(ACT2FN["gelu_new"])


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (lambda: nn.Linear(2, 2), TypeError, "expected a layer of experts, an ExpertLayer, got Linear"),
        (lambda: MuMoE(2, 2, [2], rank=1, gate=torch.sigmoid), ValueError, "activation .* cannot be written to a file"),
        (lambda: MuMoE(2, 2, [2], rank=1, gate=nn.Identity()), ValueError, "a gate of class Identity cannot be"),
        (
            lambda: MuMoEBlock(2, 2, 2, [2], rank=1, activation=lambda x: x),
            ValueError,
            "activation .* cannot be written",
        ),
        (lambda: MuMoEBlock(6, 9, 6, [2], TTMatrix(cores=2), 2), ValueError, "register the decomposition"),
    ],
    ids=["linear", "gate's activation", "gate", "activation", "decomposition"],
)
def test_layers_that_cannot_be_described(layer: object, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        save_pretrained(layer(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_sources_of_a_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    layer = MuMoE(6, 5, [4], rank=3).eval()
    save_pretrained(layer, tmp_path)
    asked = {}

    def download(name: str, **options: object) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    x = torch.randn(2, 6)
    assert torch.equal(from_pretrained("someone/some-layer", revision="v1")(x), layer(x))
    assert asked == {
        "name": "someone/some-layer",
        "revision": "v1",
        "allow_patterns": ["config.json", "model.safetensors"],
    }
    with pytest.raises(FileNotFoundError, match="neither a folder nor the name of a repository"):
        from_pretrained(tmp_path / "no" / "such")
    save(trained(), tmp_path)
    with pytest.raises(ValueError, match="does not describe a single layer"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "Linear"}, "no layer of experts is of kind 'Linear'; known are GatedMuMoEBlock, MixtureOfDecoders"),
        ({"rank": 0}, "cannot make a MuMoEBlock of its description: rank must be at least 1"),
        ({"dtype": "load"}, "cannot make a MuMoEBlock of its description"),
        ({"size": 3}, "cannot make a MuMoEBlock of its description: .* unexpected keyword argument 'size'"),
        ({"gate": ["entmax"]}, r"unknown gate \['entmax'\]"),
        ({"activation": {"module": "Linear", "arguments": {}}}, "unknown activation {'module': 'Linear'"),
        ({"activation": {"module": "GELU", "arguments": {"a": 1}}}, "unknown activation"),
        ({"activation": {"transformers": "none"}}, "unknown activation {'transformers': 'none'}"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_descriptions_of_nothing_known(changes: dict[str, object], message: str) -> None:
    description = describe(MuMoEBlock(6, 7, 5, [2], rank=3))
    with pytest.raises(ValueError, match=message):
        build_layer_from({**description, **changes}, "meta")


def fetch() -> object:
    return from_pretrained("someone/some-layer")


def look_up() -> object:
    return build_nonlinearity({"transformers": "gelu_new"})


@pytest.mark.parametrize(
    ("library", "call"), [("huggingface_hub", fetch), ("transformers", look_up)], ids=["hub", "transformers"]
)
def test_missing_library_is_named(library: str, call: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=f"pip install {library}"):
        call()


def test_state_that_cannot_be_saved(tmp_path: Path) -> None:
    class Stateful(nn.Linear):
        def get_extra_state(self) -> str:
            return "text"

        def set_extra_state(self, state: object) -> None:
            pass

    with pytest.raises(ValueError, match=r"'1._extra_state' of the state is str, no tensor"):
        save(nn.Sequential(MuMoE(4, 3, [2], rank=1), Stateful(3, 3)), tmp_path)
    with pytest.raises(ValueError, match=r"is on the meta device and has no values to save"):
        save(nn.Sequential(MuMoE(4, 3, [2], rank=1, device="meta")), tmp_path)
    save(trained(), tmp_path)
    with pytest.raises(ValueError, match=r"of the model is on the meta device; call to_empty first"):
        load(Tied().to("meta"), tmp_path)
