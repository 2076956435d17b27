"""All counterfactuals of a mode in one pass are those of as many separate interventions."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from factorized_moe import FactorizedExpertTensor, GatedMuMoEBlock, MuMoE, MuMoEBlock, available_decompositions
from factorized_moe.interpret import Ablate, Bias, counterfactuals, expert_contributions, intervene
from factorized_moe.interpret.interventions import last_layer

CLASSES = 5


def experts_layer(
    outputs: int, dims: tuple[int, ...] = (6,), dtype: torch.dtype = torch.float64, **options: str
) -> MuMoE:
    """A layer whose gate gives each sample a few experts, some samples a single one."""
    options = {"gate": "sparsemax", "gate_norm": "layer", "decomposition": "cp", **options}
    layer = MuMoE(8, outputs, expert_dims=dims, rank=3, dtype=dtype, **options)
    for parameter in layer.gate.parameters():
        nn.init.normal_(parameter, std=0.7)
    return layer


class Wrapped(nn.Module):
    """A model whose output is a tensor in a dictionary."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.inner(x)}


def separately(
    model: nn.Module, inputs: Tensor, labels: Tensor, layer: str, mode: int, size: int, call: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Changed predictions, mean effects and correct predictions of each class, by one intervention after the other."""
    changed, effect, correct = [], [], []
    before = call(inputs).flatten(0, -2)
    labels = labels.flatten()
    for expert in range(size):
        with intervene(model, Ablate(expert, layer=layer, mode=mode)):
            after = call(inputs).flatten(0, -2)
        changed.append((before.argmax(-1) != after.argmax(-1)).sum())
        effect.append((before - after).mean(dim=0).double())
        correct.append(labels[after.argmax(-1) == labels].bincount(minlength=before.shape[-1]))
    return torch.stack(changed), torch.stack(effect), torch.stack(correct)


def make(
    kind: str, dtype: torch.dtype
) -> tuple[nn.Module, str, tuple[int, ...], dict[str, Callable[[Tensor], Tensor]]]:
    """A model, its layer's name, the sizes of its modes, and how counterfactuals are asked for."""
    torch.manual_seed(0)
    linear = nn.Linear(4, 8, dtype=dtype)
    if kind in ("tucker", "tt", "tr", "dense", "shared_private"):
        layer = experts_layer(CLASSES, (6, 3), dtype, decomposition=kind)
        return nn.Sequential(linear, nn.GELU(), layer), "2", (6, 3), {}
    if kind == "after":
        after = nn.Sequential(nn.Linear(7, CLASSES, dtype=dtype), nn.Softmax(-1))
        return nn.Sequential(linear, experts_layer(7, dtype=dtype), after), "1", (6,), {"after": after}
    if kind == "inner":
        rest = nn.Linear(8, CLASSES, dtype=dtype)
        return nn.Sequential(linear, experts_layer(8, (6, 3), dtype), nn.GELU(), rest), "1", (6, 3), {}
    if kind in ("block", "gated block"):
        block_of = MuMoEBlock if kind == "block" else GatedMuMoEBlock
        block = block_of(8, 9, CLASSES, expert_dims=[6], rank=3, gate="sparsemax", gate_norm="layer", dtype=dtype)
        nn.init.normal_(block.gate.get_parameter("projection.weight"))
        return nn.Sequential(linear, block), "1", (6,), {}
    if kind == "dictionary":
        model = Wrapped(nn.Sequential(linear, experts_layer(CLASSES, dtype=dtype)))
        return model, "inner.1", (6,), {"forward": lambda inputs: model(inputs)["logits"]}
    return nn.Sequential(linear, experts_layer(CLASSES, dtype=dtype, gate=kind)), "1", (6,), {}


KINDS = ["sparsemax", "softmax", "tucker", "tt", "tr", "dense", "shared_private"]
KINDS += ["after", "inner", "block", "gated block", "dictionary"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("positions", [(), (3,)], ids=["rows", "tokens"])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_separate_interventions(
    kind: str, positions: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_layer, "MOST_ELEMENTS", 200)  # several times what is gathered
    monkeypatch.setattr(last_layer, "GROUP_ELEMENTS", 100)  # several groups of experts
    model, layer, sizes, options = make(kind, dtype)
    model.eval()
    inputs = torch.randn(40, *positions, 4, dtype=dtype)
    labels = torch.randint(CLASSES, (40, *positions))
    call = options.get("forward", model)
    for mode, size in enumerate(sizes):
        batches = zip(inputs.split(16), labels.split(16), strict=True)
        found = counterfactuals(model, batches, layer, mode, **options)
        changed, effect, correct = separately(model, inputs, labels, layer, mode, size, call)
        assert found.num_predictions == labels.numel()
        assert torch.equal(found.changed, changed)
        torch.testing.assert_close(found.mean_effect, effect, rtol=0, atol=1e-6)
        assert torch.equal(found.correct_without, correct)
        assert found.changed.sum() > 0
        torch.testing.assert_close(
            found.accuracy_without, correct / labels.flatten().bincount(minlength=CLASSES).double()
        )


def test_the_factors_are_used_where_the_layer_is_the_last() -> None:
    calls: list[int] = []
    model = make("sparsemax", torch.float64)[0]
    model.eval()[0].register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    inputs = torch.randn(40, 4, dtype=torch.float64)
    counterfactuals(model, inputs.split(16))
    assert calls == [16, 16, 8]
    with intervene(model, Bias(0, 1.0)):  # a bias goes with its expert, and the factors do not have it
        found = counterfactuals(model, inputs.split(16))
        before = model(inputs)
        with intervene(model, Ablate(0)):
            torch.testing.assert_close(found.mean_effect[0], (before - model(inputs)).mean(dim=0), rtol=0, atol=1e-9)
    assert len(calls) > 6


def test_inner_layers_run_again_for_the_experts_that_are_used() -> None:
    model = make("inner", torch.float64)[0]
    rows: list[int] = []
    inputs = torch.randn(40, 4, dtype=torch.float64)
    (a, _) = model.eval()[1].gate(model[0](inputs))
    model[0].register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    found = counterfactuals(model, [inputs], "1", 0)
    assert found.remade.tolist() == (a != 0).sum(dim=0).tolist()
    assert sum(rows) == 40 + int((a != 0).sum()) < 40 * 6


def test_a_sample_whose_only_expert_is_taken_out_has_outputs_of_zero() -> None:
    layer = experts_layer(CLASSES)
    layer.gate = OneHot()
    inputs = torch.randn(30, 8, dtype=torch.float64)
    found = counterfactuals(layer.eval(), [(inputs, torch.zeros(30, dtype=torch.int64))])
    assert found.correct_without is not None
    # The largest of equal scores is the first: class 0, for all that each expert alone took.
    assert torch.equal(
        found.correct_without, found.correct + torch.stack([found.changed, *[found.changed * 0] * 4], dim=1)
    )


class OneHot(nn.Module):
    """A gate that gives each sample one expert, by the largest of its first six features."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (nn.functional.one_hot(x[..., :6].argmax(-1), 6).to(x.dtype),)


def test_polysemanticity_and_labels() -> None:
    model, _, _, _ = make("sparsemax", torch.float64)
    inputs, labels = torch.randn(40, 4, dtype=torch.float64), torch.randint(CLASSES - 1, (40,))
    found = counterfactuals(model.eval(), [[inputs, labels]])
    assert found.accuracy[-1].isnan()  # no sample of the last class
    assert found.polysemanticity().scores.shape == (6,)
    bare = counterfactuals(model, [inputs])
    assert torch.equal(bare.changed, found.changed)
    with pytest.raises(ValueError, match="the batches came without labels, so there is no accuracy"):
        bare.polysemanticity()


def test_nothing_is_left_on_the_model() -> None:
    model, _, _, _ = make("inner", torch.float64)
    inputs = torch.randn(4, 4, dtype=torch.float64)
    counterfactuals(model.eval(), [inputs], "1")
    with pytest.raises(RuntimeError):
        counterfactuals(model, [inputs, inputs[:, :3]], "1")
    assert not any(value for part in model.modules() for key, value in vars(part).items() if "_hooks" in key)


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("dims", [(5,), (3, 1, 2)], ids=len)
@pytest.mark.parametrize("decomposition", available_decompositions())
def test_contributions_add_up_to_the_output(decomposition: str, dims: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    experts = FactorizedExpertTensor(dims, 6, 4, decomposition, rank=2, bias=bias, dtype=torch.float64)
    x = torch.randn(7, 6, dtype=torch.float64)
    coefficients = [torch.rand(7, size, dtype=torch.float64).sub(0.3).relu() for size in dims]
    y = experts(x, coefficients).detach()
    for mode, size in enumerate(dims):
        total = torch.zeros_like(y)
        for expert, inputs, values in expert_contributions(experts, x, coefficients, mode):
            total.index_add_(0, inputs, values)
            alone = [a[inputs] for a in coefficients]
            alone[mode] = alone[mode] * nn.functional.one_hot(torch.tensor(expert), size)
            torch.testing.assert_close(values, experts(x[inputs], alone).detach(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(total, y, rtol=1e-9, atol=1e-12)


def refused(model: nn.Module | None = None, batches: object = None, **options: object) -> Callable[[], object]:
    model = make("inner", torch.float64)[0].eval() if model is None else model
    given = [torch.randn(4, 4, dtype=torch.float64)] if batches is None else batches
    return lambda: counterfactuals(model, given, **{"layer": "1", **options})


X = torch.randn(4, 4, dtype=torch.float64)
LABELS = torch.zeros(4, dtype=torch.int64)
TWICE = experts_layer(8).eval()


def sharing_a_gate() -> nn.Module:
    first, second = experts_layer(8), experts_layer(CLASSES)
    second.gate = first.gate
    return nn.Sequential(nn.Linear(4, 8, dtype=torch.float64), first, second).eval()


class Flattening(nn.Module):
    """Runs its layer on all tokens of all samples side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = experts_layer(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(0, 1)).reshape(*x.shape[:-1], CLASSES)


class Idle(Flattening):
    """Does not run its layer."""

    def forward(self, x: Tensor) -> Tensor:
        return x


REFUSALS = {
    "a tensor": (refused(batches=X), TypeError, r"batches is one tensor; .* such as inputs\.split\(1024\)"),
    "no batch": (refused(batches=[]), ValueError, "there is no batch"),
    "training": (refused(make("inner", torch.float64)[0]), ValueError, r"in training mode; call eval\(\) on it first"),
    "mode": (refused(mode=2), ValueError, r"^counterfactuals: layer '1' has .* sizes \(6, 3\), .* there is no mode 2"),
    "mode's type": (refused(mode="first"), TypeError, "^counterfactuals: mode 'first' is not an int"),
    "experts": (
        refused(experts=[6]),
        ValueError,
        "^counterfactuals: expert 6 is out of range for the 6 experts",
    ),
    "experts' type": (refused(experts=["first"]), TypeError, "^counterfactuals: expert 'first' is not an int"),
    "experts' values": (refused(experts=torch.empty(1, device="meta")), TypeError, "^counterfactuals: experts is"),
    "one expert twice": (
        refused(experts=[1, 1]),
        ValueError,
        r"^counterfactuals: experts are .*, got \[1, 1\]",
    ),
    "a name is needed": (
        refused(nn.Sequential(experts_layer(8), experts_layer(5)).eval(), layer=None),
        ValueError,
        "^counterfactuals: the model has 2 uMoE layers; give layer=, one of '0', '1'",
    ),
    "layer": (refused(layer="one"), ValueError, "no uMoE layer of the model is called 'one'"),
    "two layers": (
        refused(nn.Sequential(experts_layer(8), experts_layer(5)).eval(), layer="*"),
        ValueError,
        r"'\*' names 2 layers, 0, 1; give one of them",
    ),
    "three parts": (refused(batches=[(X, X, X)]), TypeError, r"a pair \(inputs, labels\), got tuple of 3"),
    "no sample": (refused(batches=[X[:0]]), ValueError, r"inputs of shape \(0, 4\), expected \(B, \.\.\.\) with a"),
    "no position": (
        refused(batches=[(X[:3, None][:, :0], LABELS[:3, None][:, :0])]),
        ValueError,
        r"outputs of shape \(3, 0, 5\) hold no prediction",
    ),
    "output": (
        refused(Wrapped(make("softmax", torch.float64)[0]).eval(), layer=None),
        TypeError,
        "the model's output is dict, expected a tensor; give forward=",
    ),
    "no classes": (
        refused(forward=lambda x: make("inner", torch.float64)[0](x)[0]),
        ValueError,
        "layer '1' did not run in a call of the model; it has to run once",
    ),
    "twice": (
        refused(nn.Sequential(TWICE, TWICE).eval(), [torch.randn(3, 8, dtype=torch.float64)], layer=None),
        ValueError,
        "layer '0' ran 2 times in a call of the model",
    ),
    "shared gate": (refused(sharing_a_gate()), ValueError, "the gate of layer '1' ran 2 times in a call of the model"),
    "idle": (refused(Idle().eval(), layer=None), ValueError, "layer 'layer' did not run"),
    "flattened": (
        refused(Flattening().eval(), [torch.randn(3, 2, 8, dtype=torch.float64)], layer=None),
        ValueError,
        r"3 samples, but coefficients of shape \(6, 6\); to take experts out of single samples",
    ),
    "labels' shape": (
        refused(batches=[(X, LABELS[:3])]),
        ValueError,
        r"labels of shape \(3,\) .* expected integers of",
    ),
    "labels' type": (refused(batches=[(X, LABELS.double())]), ValueError, r"type torch\.float64, expected integers"),
    "labels": (refused(batches=[(X, LABELS + 5)]), ValueError, "labels are from 5 to 5, expected 0 to 4 for 5 classes"),
    "some labels": (refused(batches=[(X, LABELS), X]), ValueError, "some batches have labels and some have none"),
    "other classes": (
        refused(make("after", torch.float64)[0].eval(), after=lambda y: y),
        ValueError,
        r"after makes \(4, 7\) of the layer's output, the model's is \(4, 5\)",
    ),
    "not all": (
        refused(make("after", torch.float64)[0].eval(), after=lambda y: y[:, :5]),
        ValueError,
        "after of the layer's output is not the model's output, they differ by up to",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case: str) -> None:
    call, error, message = REFUSALS[case]
    with pytest.raises(error, match=message):
        call()


def test_a_compiled_model_is_refused() -> None:
    with pytest.raises(ValueError, match="counterfactuals: OptimizedModule is compiled"):
        counterfactuals(torch.compile(TWICE, backend="eager"), [X])


def test_contributions_refuse() -> None:
    experts = FactorizedExpertTensor((5,), 6, 4, rank=2)
    with pytest.raises(ValueError, match="mode 1 is not one of the 1 expert modes, counted from 0"):
        next(expert_contributions(experts, torch.randn(7, 6), [torch.rand(7, 5)], 1))
    with pytest.raises(ValueError, match=r"x has shape \(2, 7, 6\), expected \(B, 6\): one row for each input"):
        next(expert_contributions(experts, torch.randn(2, 7, 6), [torch.rand(2, 7, 5)]))


def test_one_prediction_is_its_own_mean() -> None:
    model = make("softmax", torch.float64)[0].eval()
    inputs = torch.randn(1, 4, dtype=torch.float64)
    found = counterfactuals(model, [inputs])
    assert found.num_predictions == 1
    with intervene(model, Ablate(1)):
        without = model(inputs)
    torch.testing.assert_close(found.mean_effect[1], (model(inputs) - without)[0], rtol=0, atol=1e-9)


class Peaked(nn.Module):
    """A gate that gives one expert nearly all, and the others the rest."""

    def __init__(self, left: float) -> None:
        super().__init__()
        self.left = left

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        logits = x @ torch.linspace(-1, 1, 8 * 64, dtype=x.dtype).sin().reshape(8, 64)
        rest = torch.softmax(logits, dim=-1) * self.left
        return (rest + (1 - self.left) * nn.functional.one_hot(logits.argmax(-1), 64),)


@pytest.mark.parametrize("after", [False, True], ids=["last", "after"])
@pytest.mark.parametrize("left", [1e-2, 1e-4, 1e-6])
def test_an_expert_that_holds_nearly_all_is_taken_out_as_exactly_as_by_a_run(left: float, after: bool) -> None:
    """In float32 the difference of two outputs that are nearly equal is rounding, and its largest entry chance."""
    torch.manual_seed(0)
    layer = MuMoE(8, CLASSES, expert_dims=[64], rank=6, decomposition="cp", gate=Peaked(left)).eval()
    rest = nn.Sequential(nn.Linear(CLASSES, 7, bias=False), nn.Softmax(-1)) if after else None
    model = layer if rest is None else nn.Sequential(layer, rest).eval()
    inputs, labels = torch.randn(200, 8), torch.randint(CLASSES, (200,))
    found = counterfactuals(model, [(inputs, labels)], after=rest)
    name = "model" if rest is None else "0"
    changed, _, correct = separately(model, inputs, labels, name, 0, 64, model)
    assert torch.equal(found.changed, changed)
    assert torch.equal(found.correct_without, correct)
    assert changed.sum() > 50


@pytest.mark.parametrize("kind", ["sparsemax", "softmax", "inner"])
def test_some_of_the_experts(kind: str) -> None:
    model, layer, _, _ = make(kind, torch.float64)
    inputs, labels = torch.randn(40, 4, dtype=torch.float64), torch.randint(CLASSES, (40,))
    every = counterfactuals(model.eval(), [(inputs, labels)], layer)
    assert every.experts.tolist() == list(range(6))
    for chosen in ([4, 1], torch.tensor([5])):
        some = counterfactuals(model, [(inputs, labels)], layer, experts=chosen)
        assert some.experts.tolist() == list(chosen)
        for part in ("remade", "changed", "correct_without"):
            assert torch.equal(getattr(some, part), getattr(every, part)[torch.as_tensor(chosen)])
        torch.testing.assert_close(some.mean_effect, every.mean_effect[torch.as_tensor(chosen)])
        assert some.columns()["expert"] == list(chosen)
    for wrong, message in ((6, "expert 6 is out of range"), ([1, 1], "different numbers")):
        with pytest.raises(ValueError, match=message):
            counterfactuals(model, [inputs], layer, experts=wrong)  # type: ignore[arg-type]
