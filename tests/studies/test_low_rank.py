"""The study of low rank in seconds: cuts held to their definitions and to the library's fit, verdicts from runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from factorized_moe.surgery import upcycle
from studies.common.images import FASHION_MNIST
from studies.common.paired import Difference
from studies.low_rank import vision
from studies.low_rank.page import page, picture
from studies.low_rank.run import SHARES, compare, main, run
from studies.low_rank.subjects import Subject, by_centres
from studies.low_rank.truncation import METHODS, kept, linears, measure_moments, truncated
from studies.low_rank.verdicts import TITLES, bracket, word

pytestmark = pytest.mark.thorough

NO_DRAW = torch.Generator()


def _case(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    inputs = torch.randn(200, rows, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 3, rows)
    return weight, inputs.T @ inputs / len(inputs)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])
def test_cuts_are_what_they_say(shape: tuple[int, int]) -> None:
    weight, moment = _case(*shape)
    found = {name: method(weight, moment, torch.Generator().manual_seed(0)) for name, method in METHODS.items()}
    for factors in found.values():
        torch.testing.assert_close(factors.at(6), weight if min(shape) == 6 else factors.at(6))
        torch.testing.assert_close(factors.at(min(shape)), weight)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(found["singular"].at(3), left[:, :3] * values[:3] @ right[:3])

    def lost(name: str) -> float:
        difference = found[name].at(3) - weight
        return float(torch.trace(difference.T @ moment @ difference))

    assert lost("activations") < lost("singular") < lost("random")


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_cut_by_inputs_is_the_fit_of_the_library(shape: tuple[int, int]) -> None:
    weight, moment = _case(*shape)
    linear = nn.Linear(*shape, bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(weight.T)
    layer = upcycle(linear, (1,), "cp", 3, input_covariance=moment).layer
    x = torch.eye(shape[0], dtype=torch.float64)
    cut = METHODS["activations"](weight, moment, NO_DRAW).at(3)
    torch.testing.assert_close(layer.eval()(x), cut, rtol=1e-6, atol=1e-6)


def test_layers_are_as_before_and_moments_by_hand() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    x = torch.randn(5, 7, 3)
    layers, exact = linears(model, ("2",)), model(x)
    assert list(layers) == ["0"]
    rows = x.flatten(0, 1)
    torch.testing.assert_close(measure_moments(layers, lambda: model(x))["0"], (rows.T @ rows / 35).double())
    with truncated(layers, {"0": torch.zeros(3, 4)}):
        assert not torch.equal(model(x), exact)
    assert torch.equal(model(x), exact)
    with pytest.raises(KeyError, match="stop"), truncated(layers, {"0": torch.zeros(3, 4)}):
        raise KeyError("stop")
    assert torch.equal(model(x), exact)


def test_ranks_and_differences_by_hand() -> None:
    assert [kept(torch.zeros(8, 20), share) for share in (1.0, 0.5, 0.3, 0.01)] == [8, 4, 3, 1]
    found = compare(torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 0.0, 1.0]))
    assert found == {"mean": 0.5, "difference": -0.25, "error": pytest.approx(0.25)}


def test_nearest_centres_by_hand() -> None:
    known, labels = torch.tensor([[2.0, 0.0], [3.0, 0.1], [-2.0, 0.0], [-3.0, 0.1]]), torch.tensor([0, 0, 1, 1])
    found = by_centres(known, labels, torch.tensor([[5.0, 1.0], [5.0, 1.0]]), torch.tensor([0, 1]))
    assert found.tolist() == [1.0, 0.0]


def test_a_weight_of_half_the_rank_loses_nothing_at_half() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 8, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(model.weight[:, :4] @ model.weight[:4])
    x = torch.randn(50, 8, dtype=torch.float64)
    exact = model(x).detach()
    subject = Subject(
        model, {"": model}, lambda: {"loss": (model(x).detach() - exact).square().sum(dim=-1)}, lambda: model(x)
    )
    moments = measure_moments(subject.layers, subject.calibrate)
    losses = {}
    for method in METHODS:
        found = run({"method": method, "draw": 0}, subject, moments, subject.measure())
        losses[method] = found["shares"]["0.5"]["loss"]["mean"]
        assert found["shares"]["0.5"]["parameters"] == 1.0  # two factors of half the rank of a square matrix
    assert losses["singular"] < 1e-12
    assert losses["activations"] < 1e-8 < 0.1 < losses["random"]


def test_a_transformer_is_read_from_its_graph(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=12, num_hidden_layers=1, num_attention_heads=6, image_size=28, patch_size=14)
    model = Dinov2Model(config).eval()
    tensors, nodes = [], []
    for name, value in model.state_dict().items():
        values = value.numpy()
        if name == "embeddings.position_embeddings":  # in two parts without names
            tensors += [onnx.numpy_helper.from_array(values[:, :1], "first")]
            tensors += [onnx.numpy_helper.from_array(values[:, 1:], "rest")]
        elif value.ndim == 2 and name.endswith("weight"):  # a matrix without a name, which is multiplied from the right
            tensors += [onnx.numpy_helper.from_array(values.T.copy(), f"matrix {name}")]
            nodes += [onnx.helper.make_node("MatMul", ["x", f"matrix {name}"], [f"product {name}"])]
            bias = "backbone." + name.removesuffix("weight") + "bias"
            nodes += [onnx.helper.make_node("Add", [bias, f"product {name}"], [f"sum {name}"])]
        elif name != "embeddings.mask_token":
            tensors += [onnx.numpy_helper.from_array(values, f"backbone.{name}")]
    graph = onnx.helper.make_graph(nodes, "graph", [], [], tensors)
    (tmp_path / "models").mkdir()
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / vision.FILE))
    found = vision.load(tmp_path, side=28)
    pixels = vision.pixels(torch.rand(3, 784), 28)
    assert pixels.shape == (3, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(vision.features(found, pixels), model(pixel_values=pixels).pooler_output)


@pytest.mark.skipif(not FASHION_MNIST.exists(), reason="needs Debian's dataset-fashion-mnist")
def test_quick_form_runs_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("studies.low_rank.run.CACHE", tmp_path / "cache")
    main(["--quick", "--out", str(tmp_path), "--only", "mixer"])
    assert capsys.readouterr().out.count(" s)") == len(METHODS)
    main(["--quick", "--out", str(tmp_path), "--only", "mixer"])
    assert capsys.readouterr().out == ""
    text = (tmp_path / "low-rank.md").read_text()
    assert "| 100% | +0.000 ± 0.000" in text
    assert (tmp_path / "low-rank.svg").read_text().count("<svg") == 1


def _runs(loss: float, better: float, apart: float = 0.0) -> list[dict[str, Any]]:
    """Mixers of three seeds and one language model, worse at half and below by so much."""

    def shares(measure: str, change: float) -> dict[str, object]:
        return {
            f"{share:g}": {
                "parameters": 1.5 * share,
                "weights_kept": share,
                measure: {"mean": 0.8, "difference": change if share <= 0.5 else 0.0, "error": 0.002},
            }
            for share in SHARES
        }

    def entry(subject: str, method: str, seed: int, measure: str, change: float) -> dict[str, Any]:
        result = {"layers": 3, "samples": 9, "exact": {measure: 0.8}, "shares": shares(measure, change)}
        gaussian = {f"{share:g}": 0.7 for share in SHARES}
        settings = {"subject": subject, "method": method, "seed": seed, "draw": 0}
        return {"settings": settings, "result": {**result, "gaussian_kept": gaussian}, "seconds": 1.0}

    return [
        *(entry("mixer", "singular", seed, "accuracy", -loss + apart * (seed - 1)) for seed in (0, 1, 2)),
        *(entry("mixer", "activations", seed, "accuracy", -better) for seed in (0, 1, 2)),
        entry("language", "singular", 0, "loss", loss),
        entry("language", "activations", 0, "loss", better),
    ]


@pytest.fixture
def one_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, title in list(TITLES.items()):
        monkeypatch.setitem(TITLES, name, replace(title, measures={title.measure: title.measures[title.measure]}))


def test_three_verdicts_by_hand() -> None:
    measures = ["accuracy"] * 4 + ["loss"] * 3
    changes = [(-0.02, 0.004), (-0.02, 0.006), (-0.005, 0.002), (0.3, 0.1), (0.06, 0.004), (0.06, 0.006), (-9.0, 1.0)]
    found = [word(Difference(*change, 1000), m) for change, m in zip(changes, measures, strict=True)]
    sure = ["hurts", "cannot say", "barely hurts"]
    assert found == [*sure, "barely hurts", *sure]
    assert word(Difference(-0.02, 0.004, 3), "accuracy") == "cannot say"  # 4.3 errors for three seeds


def test_a_bracket_leaves_out_what_shares_do_not_agree_on() -> None:
    fine, open_, hurts = "barely hurts", "cannot say", "hurts"
    given = dict(
        zip(("1", "0.9", "0.75", "0.5", "0.35", "0.25"), (fine, open_, fine, hurts, open_, hurts), strict=True)
    )
    assert bracket(given) == ("100%", "50%")
    assert bracket({"1": open_, "0.5": open_}) == ("none", "none")


@pytest.mark.usefixtures("one_measure")
def test_verdicts_come_from_the_runs() -> None:
    fine, poor, open_ = page(_runs(0.005, 0.001)), page(_runs(0.3, 0.001)), page(_runs(0.01, 0.001, apart=0.01))
    assert "**Reproduced on a small Mixer**" in fine
    assert "by singular vectors it barely hurts SmolLM2-135M; by what inputs need it barely hurts SmolLM2" in fine
    assert "| Mixer | 10% | none | 10% | none |" in fine
    assert (
        "| Mixer | accuracy | 0.800 | 0.10 | -0.005 ± 0.000: barely hurts | -0.001 ± 0.000: barely hurts |  |" in fine
    )
    assert "**Not reproduced on a small Mixer**" in poor
    assert "by singular vectors it hurts SmolLM2-135M; by what inputs need it barely" in poor
    assert "| Mixer | 75% | 50% | 10% | none |" in poor
    assert "**Cannot tell on a small Mixer**: with half of the singular vectors the accuracy changes by" in open_
    assert "-0.010 ± 0.006 [-0.035, +0.015] from 0.800" in open_
    assert picture(_runs(0.3, 0.001)).startswith(b"<?xml")


@pytest.mark.usefixtures("one_measure")
def test_a_model_that_is_worse_than_a_guess_is_saturated() -> None:
    guess = "is saturated**: with 50% of the singular vectors its cross-entropy is above a uniform guess's, 10.80"
    runs = _runs(12.0, 9.0)
    assert guess in page(runs)
    assert "a random subspace" not in page(runs)
    null = {**runs[-1], "settings": {**runs[-1]["settings"], "method": "random"}}
    assert "There a random subspace is as good as the singular vectors or better at 4 of 4 shares" in page(
        [*runs, null]
    )
    assert "saturated" not in page(_runs(9.0, 9.0))
