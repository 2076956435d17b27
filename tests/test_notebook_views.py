"""What a notebook shows of results, layers, plans and networks; and that nothing in them becomes markup."""

from dataclasses import dataclass
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

from factorized_moe import CPMuMoE, FactorizedExpertTensor, GatedMuMoEBlock, TensorNetwork
from factorized_moe._text_tables import html_table
from factorized_moe.drawing import draw_svg
from factorized_moe.interpret import (
    Annotations,
    Coactivation,
    Load,
    Measurement,
    count_labels,
    find_top_samples,
    measure_coactivation,
    measure_histogram,
    measure_load,
    measure_spectra,
    record,
)
from factorized_moe.interpret.recording.rows import Rows
from factorized_moe.interpret.report import ReportData


class Cells(HTMLParser):
    """The rows of a table as lists of texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: object) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def looked_at() -> SimpleNamespace:
    torch.manual_seed(0)
    layer = CPMuMoE(6, 3, expert_dims=[20], rank=4).eval()
    with record(layer, class_names=["<b>cat</b>", "dog"]) as log, torch.no_grad():
        layer(torch.randn(30, 6))
        log.annotate(labels=torch.arange(30) % 2)
    return SimpleNamespace(layer=layer, recording=log.recording)


MEASURES = (measure_load, measure_histogram, measure_coactivation, find_top_samples, count_labels)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.__name__)
def test_a_result_is_a_line_and_a_table(looked_at: SimpleNamespace, measure: object) -> None:
    found = measure(looked_at.recording)
    assert isinstance(found, Measurement)
    assert "\n" not in repr(found)
    assert len(repr(found)) < 200
    shown, columns = found._repr_html_(), found.columns()
    cells = Cells(shown).rows
    assert cells[0] == list(columns)
    assert len(cells) - 1 == min(12, len(next(iter(columns.values()))))
    assert [row[0] for row in cells[1:]] == [
        f"{x:.4g}" if isinstance(x, float) else f"{x:,}" for x in next(iter(columns.values()))[: len(cells) - 1]
    ]
    assert ("more rows" in shown) == (len(next(iter(columns.values()))) > 12)


def test_numbers_have_four_digits() -> None:
    found = Load.of(torch.tensor([[1 / 3, 2 / 3]], dtype=torch.float64), threshold=0)
    assert Cells(found._repr_html_()).rows[1:] == [
        ["0", "1", "1", "0.3333", "0.3333"],
        ["1", "1", "1", "0.6667", "0.6667"],
    ]


def test_names_stay_text(looked_at: SimpleNamespace) -> None:
    shown = count_labels(looked_at.recording)._repr_html_()
    assert "<b>" not in shown
    assert Cells(shown).rows[1][2] == "<b>cat</b>"


def test_a_table_of_millions_of_rows_is_not_made() -> None:
    large = Coactivation(torch.ones(1500, 1500, dtype=torch.int64), num_samples=1, threshold=0.0, grid=(1500,))
    assert large._repr_html_() is None
    assert repr(large) == "Coactivation(counts=int64 (1500, 1500), num_samples=1, threshold=0.0, grid=(1500,))"


def test_a_repr_of_its_own_is_kept() -> None:
    @dataclass(frozen=True, eq=False)
    class Mine(Measurement):
        values: Tensor

        def columns(self) -> dict[str, list[float]]:
            return {"value": self.values.tolist()}

        def __repr__(self) -> str:
            return "mine"

    assert repr(Mine(torch.ones(2))) == "mine"


def test_report_data_has_a_short_repr(looked_at: SimpleNamespace) -> None:
    data = ReportData.from_recording(looked_at.recording, "A run")
    assert repr(data) == "ReportData('A run', 1 layers, 2 classes, no inputs)"
    assert repr(data.layers[0]) == "LayerSummary('model', 20 experts, 30 samples)"


def test_reprs_are_one_short_line(looked_at: SimpleNamespace) -> None:
    (chunk,) = looked_at.recording.chunks()
    assert repr(chunk) == "Chunk(samples 0 to 29, layers ['model'], Annotations(30 labels))"
    assert repr(chunk.modes("model")[0]) == "Rows(30 samples, 20 experts, all kept)"
    assert repr(Rows.of(torch.eye(9))) == "Rows(9 samples, 9 experts, 9 that are not 0)"
    assert repr(Annotations()) == "Annotations(none)"
    assert repr(looked_at.recording) == "Recording(30 samples, layers ['model'])"
    with record(looked_at.layer) as log, torch.no_grad():
        looked_at.layer(torch.randn(1200, 6))
        assert repr(log) == "Recorder(1,200 samples, layers ['model'], under way)"
    assert repr(log) == "Recorder(1,200 samples, layers ['model'], ended)"


def test_a_networks_repr_names_its_sizes() -> None:
    network = FactorizedExpertTensor((8, 4), 16, 32, decomposition="tucker", rank=4).network
    bonds = "rank_expert_0=4 rank_expert_1=4 rank_in=4 rank_out=4"
    assert repr(network) == f"TensorNetwork(8 x 4 x 16 x 32, 5 nodes, {bonds})"
    many = FactorizedExpertTensor([2] * 12, 16, 32, decomposition="tt", rank=2).network
    assert len(repr(many)) < 160
    assert repr(many).endswith("...)")
    assert repr(TensorNetwork.parse("expert_0 in out; expert_0=2 in=3 out=4")).endswith("1 node, no bond)")


def test_a_layer_is_a_summary(looked_at: SimpleNamespace) -> None:
    shown = looked_at.layer._repr_html_()
    (row,) = Cells(shown[: shown.index("<svg")]).rows[1:]
    parameters = looked_at.layer.experts.num_parameters
    flops = looked_at.layer.experts.plan(64).flops // 64
    assert row == ["experts", "6 to 3, with bias", "cp", "4", f"{parameters}", f"{20 * 7 * 3}", f"{flops}"]
    block = GatedMuMoEBlock(8, 12, 8, expert_dims=[2, 3], rank=2)
    assert [row[0] for row in Cells(block._repr_html_()).rows[1:]] == list(block.expert_tensors)
    assert "2 x 3 = 6 experts" in block._repr_html_()


def test_a_plan_is_its_table() -> None:
    plan = FactorizedExpertTensor((8,), 16, 32, decomposition="tucker", rank=4).plan(batch_size=32)
    rows = Cells(plan._repr_html_()).rows
    assert [row[2] for row in rows[1:]] == [f"{step.flops:,}" for step in plan.steps]
    assert f"{plan.flops:,} FLOPs" in plan._repr_html_()


def test_a_network_is_its_picture() -> None:
    network = FactorizedExpertTensor((8,), 16, 32, decomposition="cp", rank=4).network
    assert isinstance(network, TensorNetwork)
    picture = network._repr_svg_()  # type: ignore[attr-defined]
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert picture == draw_svg(network)
    with pytest.raises(TypeError, match="takes a TensorNetwork"):
        draw_svg(nn.Identity())  # type: ignore[arg-type]


def test_without_matplotlib_there_is_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factorized_moe.drawing.svg.find_spec", lambda name: None)
    layer = CPMuMoE(6, 3, expert_dims=[4], rank=2)
    assert layer.experts.network._repr_svg_() is None  # type: ignore[attr-defined]
    assert "<svg" not in layer._repr_html_()


def test_spectra_are_shown_too(looked_at: SimpleNamespace) -> None:
    assert "effective_rank" in measure_spectra(looked_at.layer.experts)._repr_html_()


def test_markup_in_a_table_is_escaped() -> None:
    assert "<script>" not in html_table([("<script>",), ("<script>",)], "<script>", more="<script>")
