"""The benchmarks: contenders compute the same and are as large as stated, and the page says what was measured.

No time is asserted anywhere.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import __main__ as command
from benchmarks import (
    activation,
    block,
    contraction,
    cost_model,
    figure,
    gate_page,
    layer,
    measuring,
    memory,
    parts,
    processors,
    report,
    scaling,
    single_token,
    training_memory,
)
from benchmarks.contenders import (
    CHECKOUT,
    Missing,
    SoftMoE,
    dense_mlp,
    parameters,
    released_code,
    released_layer,
    sparse_moe,
    tltorch_linear,
)
from benchmarks.hand_written import HAND_WRITTEN, experts_first
from benchmarks.headlines import LINES, headlines
from benchmarks.machine import describe
from benchmarks.measuring import Effort, Ratio, measure_ratio
from benchmarks.ranks import block_parameters, largest_rank, layer_parameters, rank_of, rank_step
from benchmarks.rows import Contender, Row, compare
from benchmarks.sections import Section
from factorized_moe import FactorizedExpertTensor

pytestmark = pytest.mark.thorough

ONCE = Effort(seconds=0.0, fewest=2, turn=0.0, compiled=False)

BLOCK = block.Sizes(features=32, hidden=64, experts=(4,), tokens=(3, 1), compiled_experts=4, published=((4, "cp", 5),))
LAYER = layer.Sizes(
    features=24,
    experts=3,
    tokens=(2,),
    published=(("cp", 4), ("tr", 2)),
    expert_hidden=8,
    tensorised=((24,), (4, 6)),
)
CONTRACTION = contraction.Sizes(
    features=6,
    expert_dims=((5,), (3, 4), (2, 3, 2), (2, 2, 3, 2)),
    cp=7,
    bond=2,
    core=3,
    tucker=(3, 2, 2, 2),
    samples=(1, 3),
    many=4,
)
MEMORY = training_memory.Sizes(BLOCK, experts=4, tokens=5)
SCALING = scaling.Sizes(
    features=32,
    cp=4,
    tr=2,
    tokens=3,
    experts=4,
    modes=((2, 4), (2, 3)),
    ranks=(1, 2),
    token_counts=(1, 2),
    many=(3, 4),
    arranged=((2, 3, 2),),
    compared_tokens=(2,),
    block=BLOCK,
)


# -- contenders compute the same function


def inputs(weight: FactorizedExpertTensor, samples: int) -> list[Tensor]:
    vectors = [torch.rand(samples, experts, dtype=torch.float64) for experts in weight.expert_dims]
    return [torch.randn(samples, weight.in_features, dtype=torch.float64), *vectors]


@pytest.mark.parametrize("expert_dims", CONTRACTION.expert_dims, ids=len)
@pytest.mark.parametrize("decomposition", HAND_WRITTEN)
def test_hand_written_code_computes_the_dense_contraction(decomposition: str, expert_dims: tuple[int, ...]) -> None:
    weight = contraction.expert_tensor(decomposition, expert_dims, CONTRACTION).double()
    x, *coefficients = inputs(weight, 5)
    value = torch.einsum("bi,...io->b...o", torch.cat([x, x.new_ones(5, 1)], dim=1), weight.to_dense())
    for a in coefficients:
        value = torch.einsum("bn,bn...->b...", a, value)
    written = list(HAND_WRITTEN[decomposition].values())
    for write in [*written, experts_first] if decomposition == "tucker" else written:
        torch.testing.assert_close(write(weight)(x, coefficients), value)
    torch.testing.assert_close(weight(x, coefficients), value)


def test_different_functions_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(weight: FactorizedExpertTensor) -> object:
        return lambda x, coefficients: HAND_WRITTEN["cp"]["right"](weight)(x, coefficients) + 1

    monkeypatch.setitem(HAND_WRITTEN, "cp", {"right": HAND_WRITTEN["cp"]["hand-written"], "wrong": wrong})
    with pytest.raises(ValueError, match="CP, 5 experts, 1 sample: wrong code computes something else than the gener"):
        list(contraction.rows(ONCE, CONTRACTION))


def test_soft_moe_is_one_function_for_any_number_of_tokens() -> None:
    moe = SoftMoE(6, 5, experts=4).double()
    Contender.of("soft", moe)
    nn.init.normal_(moe.bias)
    x = torch.randn(3, 6, dtype=torch.float64)
    (a,) = moe.gate(x)
    assert not torch.equal(a[0], a[1])
    matrices = torch.einsum("bn,nio->bio", a, moe.weight)
    torch.testing.assert_close(moe(x), torch.einsum("bi,bio->bo", x, matrices) + a @ moe.bias)
    torch.testing.assert_close(torch.cat([moe(row[None]) for row in x]), moe(x))


@pytest.mark.parametrize(("decomposition", "size"), LAYER.published)
def test_released_code_computes_the_same(decomposition: str, size: int) -> None:
    try:
        released_code()
    except Missing as reason:
        pytest.skip(str(reason))
    ours = layer.layer(decomposition, size, LAYER)
    Contender.of("ours", ours)
    theirs = released_layer(ours)
    x = torch.randn(5, LAYER.features)
    torch.testing.assert_close(theirs(x), ours(x))
    assert parameters(theirs) == parameters(ours)


def test_released_code_is_asked_for_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    released_code.cache_clear()
    monkeypatch.delenv(CHECKOUT, raising=False)
    with pytest.raises(Missing, match="MUMOE_CHECKOUT names no checkout of the released code"):
        released_code()
    monkeypatch.setenv(CHECKOUT, str(tmp_path))
    monkeypatch.setattr("benchmarks.contenders.installed", lambda name: "1.0")
    with pytest.raises(Missing, match=r"there is no MuMoE\.py in what it names"):
        released_code()
    monkeypatch.setattr("benchmarks.contenders.installed", lambda name: None)
    with pytest.raises(Missing, match="the released code needs einops and entmax"):
        released_code()
    with pytest.raises(Missing, match="transformers is not installed"):
        sparse_moe(8, 4, 3, "eager")


# -- parameters are as stated


@pytest.mark.parametrize("experts", [64, 256, 1024])
def test_blocks_match_the_mlp_and_are_never_larger(experts: int) -> None:
    with torch.device("meta"):
        mlp = dense_mlp(768, 3072, 768)
    assert parameters(mlp) == 4_722_432
    for name, size in block.matched_blocks(experts, block.SIZES).items():
        made = block.block(name, (experts,), size, block.SIZES)
        assert parameters(made) == block_parameters(name, experts, 768, 3072, 768, size)
        larger = block_parameters(name, experts, 768, 3072, 768, size + rank_step(name))
        assert parameters(made) <= parameters(mlp) < larger
        assert size % rank_step(name) == 0


def test_ranks_of_256_experts() -> None:
    assert block.matched_blocks(256, block.SIZES) == {"cp": 544, "tr": 144}
    assert rank_of("tr", 146) == (4, 4, 146, 4)
    assert rank_of("tr", 146, modes=2) == (4, 4, 4, 146, 4)


@pytest.mark.parametrize(("decomposition", "size", "published"), [("cp", 354, 769_842), ("tr", 95, 772_572)])
def test_layer_has_the_parameters_of_the_published_head(decomposition: str, size: int, published: int) -> None:
    assert layer_parameters(decomposition, 128, 768, 1000, size) == published
    made = layer.layer(decomposition, size, layer.SIZES)
    assert parameters(made) == layer_parameters(decomposition, 128, 768, 768, size)


def test_rank_1_that_is_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 1 has 10 parameters, more than the limit of 9"):
        largest_rank(lambda size: 10 * size, 9)
    assert [largest_rank(lambda size: 10 * size, limit) for limit in (10, 19, 20, 1009)] == [1, 1, 2, 100]
    assert [largest_rank(lambda size: 10 * size, limit, step=16) for limit in (150, 160, 310, 1009)] == [15, 16, 16, 96]


def test_other_libraries_layers_have_as_many_parameters() -> None:
    for modes in layer.SIZES.tensorised:
        features = sum(modes)
        made = parameters(tltorch_linear(modes, 590_592))
        assert 590_592 - (2 * features + 1) < made <= 590_592
    assert parameters(SoftMoE(12, 12, 3)) == 3 * 13 * 12 + 12 * 3


def test_sparse_mixture_has_the_dense_ones_parameters() -> None:
    pytest.importorskip("transformers")
    for how in ("eager", "grouped_mm"):
        moe = sparse_moe(12, 4, 3, how)
        assert parameters(moe) == 3 * 12 * 12 + 12 * 3
        assert moe.block.experts.config._experts_implementation == how
        assert moe(torch.randn(5, 12)).shape == (5, 12)


# -- memory


def test_peak_is_what_the_allocator_held() -> None:
    x = torch.ones(1000)
    assert memory.peak_bytes(lambda: x.exp().exp().exp()) == 2 * 4000
    assert memory.kept_bytes(lambda: x.exp().exp()) == 4000
    assert memory.peak_bytes(lambda: None) == memory.kept_bytes(lambda: None) == 0


def test_kept_bytes_are_those_that_autograd_saves() -> None:
    mlp = dense_mlp(8, 16, 8)
    x = torch.randn(5, 8, requires_grad=True)
    saved = memory.saved_bytes(lambda: mlp(x), excluded=[*mlp.parameters(), x])
    assert saved == 4 * 5 * (16 + 16)  # GELU's input and output
    assert memory.kept_bytes(lambda: mlp(x)) == saved + 4 * 5 * 8  # and the block's output


def test_held_bytes_are_parameters_gradients_and_activations() -> None:
    mlp = Contender.of("mlp", dense_mlp(8, 16, 8))
    held = training_memory.held_bytes(mlp, [torch.randn(5, 8)])
    assert held == 4 * (2 * (2 * 8 * 16 + 16 + 8) + 5 * (8 + 16 + 16 + 8))


def test_checkpoints_keep_less_and_compute_the_same() -> None:
    torch.manual_seed(0)
    made = {name: make() for name, make in training_memory.makers(replace(MEMORY, tokens=64)).items()}
    x = torch.randn(64, 32)
    for name in [name for name in made if not name.startswith("dense") and "checkpoint" not in name]:
        plain, checkpointed = made[name], made[f"{name}, checkpoint=True"]
        Contender.of(name, plain)
        checkpointed.load_state_dict(plain.state_dict())
        outputs = [module(x) for module in (plain, checkpointed)]
        torch.testing.assert_close(outputs[0], outputs[1])
        first, second = (
            torch.autograd.grad(y.sum(), list(module.parameters()))
            for y, module in zip(outputs, (plain, checkpointed), strict=True)
        )
        torch.testing.assert_close(first, second)
        held = [training_memory.held_bytes(Contender.of(name, module), [x]) for module in (plain, checkpointed)]
        assert held[1] < held[0]


def test_failing_process_is_reported() -> None:
    with pytest.raises(RuntimeError, match=r"python -m benchmarks\.nothing 1 failed:\n.*No module named benchmarks\.n"):
        memory.process_bytes("benchmarks.nothing", "1")


# -- times are ratios


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock that only the contenders move."""
    now = [0.0]
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now[0])
    return now


def test_ratio_is_the_median_of_rounds(clock: list[float]) -> None:
    slow_rounds = itertools.chain([1.0] * 3, itertools.cycle([4.0, 2.0, 3.0, 9.0]))

    def contender() -> None:
        clock[0] += next(slow_rounds)

    def baseline() -> None:
        clock[0] += 1.0

    ratio = measure_ratio(contender, baseline, Effort(seconds=0.0, fewest=4, turn=0.0))
    assert ratio == Ratio(3.5, 2.75, 5.25, 3.5, 1.0, 4)
    assert str(ratio) == "3.50 [2.75, 5.25]"


def test_contenders_take_turns_and_short_calls_repeat(clock: list[float]) -> None:
    calls: list[str] = []

    def contender(name: str, seconds: float) -> measuring.Call:
        def call() -> None:
            calls.append(name)
            clock[0] += seconds

        return call

    times = measuring.alternate([contender("a", 1.0), contender("b", 0.5)], Effort(seconds=5.0, fewest=1, turn=1.0))
    assert times == [[1.0] * 3, [0.5] * 3]  # two seconds a round, until five are over
    assert "".join(calls) == "aaa" + "bbb" + "abb" + "bba" + "abb"


# -- every section gives rows, and the page says what they say


def test_sections_give_rows_and_the_page_has_them(tmp_path: Path) -> None:
    measured = {
        "block": list(block.rows(ONCE, BLOCK)),
        "contraction": list(contraction.rows(ONCE, CONTRACTION)),
        "layer": list(layer.rows(ONCE, LAYER)),
        "memory": list(training_memory.rows(ONCE, MEMORY)),
        "parts": list(parts.rows(ONCE, BLOCK, LAYER)),
        "scaling": list(scaling.rows(ONCE, SCALING)),
        "single_token": list(single_token.rows(ONCE, LAYER)),
        "activation": list(activation.rows(ONCE, ((2, 5),))),
    }
    points = {"points": [asdict(point) for point in scaling.points(ONCE, SCALING)]}
    for name, rows in measured.items():
        for row in rows:
            assert row.absent or (row.forward is not None and row.forward.rounds >= 2), (name, row)
            has_none = name in ("parts", "activation")  # of an activation
            assert row.absent or row.parameters or has_none, (name, row)
        section = Section(command.SECTIONS[name][0], "python -m benchmarks", describe(), rows)
        command.write(tmp_path, name, replace(section, extra=points if name == "scaling" else {}))
    assert (tmp_path / "assets" / "scaling.svg").exists()
    main, gate = ((tmp_path / name).read_text(encoding="utf-8") for name in (report.PAGE, gate_page.PAGE))
    assert f"]({gate_page.PAGE})" in main
    assert "](assets/scaling.svg)" in gate
    for name, rows in measured.items():
        page = gate if name in gate_page.SECTIONS else main
        for row in rows:
            assert row.contender in page
            assert row.case in page
    assert len((main + gate).splitlines()) > sum(map(len, measured.values()))


RATIO = Ratio(1.5, 1.25, 2.0, 3e-3, 2e-3, 11)
ROWS = [
    Row("64 experts", "MLP", True, alone := Ratio(1.0, 1.0, 1.0, 2e-3, 2e-3, 11), alone, 1000, held_bytes=2**20),
    Row("64 experts", "CP", False, RATIO, None, 1_234_567, 3 * 2**20, held_bytes=3 * 2**19),
    Row("64 experts", "other", absent="it is not installed"),
]
SECTION = Section("A title", "python -m benchmarks", {"cores": "2"}, ROWS)


def test_section_run_again_replaces_itself_alone(tmp_path: Path) -> None:
    command.write(tmp_path, "layer", SECTION)
    command.write(tmp_path, "block", SECTION)
    changed = replace(SECTION, rows=ROWS[:2], command="python -m benchmarks --only block")
    command.write(tmp_path, "block", changed)
    stored = report.load(tmp_path / "benchmarks.json")
    assert stored == {"block": changed, "layer": SECTION}
    assert list(stored) == ["block", "layer"]  # in the order of the sections, not of the runs
    assert list(json.loads((tmp_path / "benchmarks.json").read_text(encoding="utf-8"))) == ["block", "layer"]
    page = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert "- Measured on (block): cores 2. Command: `python -m benchmarks --only block`." in page
    assert "- Measured on (layer): cores 2. Command: `python -m benchmarks`." in page


def test_what_another_processor_gave_is_kept_and_shown_beside(tmp_path: Path) -> None:
    one, two = ({"processor": name, "threads": "2"} for name in ("One", "Two"))
    command.write(tmp_path, "layer", replace(SECTION, machine=one, date="2026-11-22"))
    assert not (tmp_path / processors.FILE).exists()
    slower = [ROWS[0], replace(ROWS[1], forward=replace(RATIO, median=9.5)), *ROWS[2:]]
    command.write(tmp_path, "layer", replace(SECTION, machine=two, rows=slower))
    command.write(tmp_path, "block", replace(SECTION, machine=two))  # not measured on the first
    assert list(processors.load(tmp_path / processors.FILE)) == ["One"]
    assert f"({processors.PAGE})" in (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    page = (tmp_path / processors.PAGE).read_text(encoding="utf-8")
    assert "| **A title** | | Two, 2 threads | | One, 2 threads, 2026-11-22 | |" in page
    assert "| 64 experts | CP | 9.50 [1.25, 2.00] |  | 1.50 [1.25, 2.00] |  |" in page
    assert page.count("| 64 experts | CP |") == 1  # no baseline, nothing of a section that one processor lacks
    command.write(tmp_path, "layer", replace(SECTION, machine=two))  # again on the second: the first's stay
    assert list(processors.load(tmp_path / processors.FILE)) == ["One"]
    command.write(tmp_path, "layer", replace(SECTION, machine=one))  # and back
    assert list(processors.load(tmp_path / processors.FILE)) == ["Two"]
    command.write(tmp_path, "layer", replace(SECTION, machine=two, rows=[]))
    command.write(tmp_path, "layer", replace(SECTION, machine=two))
    assert {name: list(found) for name, found in processors.load(tmp_path / processors.FILE).items()} == {
        "One": ["layer"]
    }


def test_published_page_is_that_of_the_published_figures() -> None:
    docs = command.ROOT / "docs"
    here, others = report.load(docs / "benchmarks.json"), processors.load(docs / processors.FILE)
    pages = command.pages(here, others)
    assert list(pages) == [report.PAGE, gate_page.PAGE]
    for name, page in pages.items():
        assert page == (docs / name).read_text(encoding="utf-8")
    assert processors.markdown(here, others) == (docs / processors.PAGE).read_text(encoding="utf-8")


def test_table_has_a_line_for_each_row() -> None:
    page = report.markdown({"layer": SECTION})
    assert "Measured on: cores 2. Command: `python -m benchmarks`." in page
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert table[2:] == [
        "| **A title** | | | | | | | | |",
        "| 64 experts | MLP | 2 ms | 2 ms | 1,000 |  |  | 1.0 MiB (1.00) |  |",
        "|  | CP | 1.50 [1.25, 2.00] |  | 1,234,567 | 3.0 MiB |  | 1.5 MiB (1.50) |  |",
        "|  | other: not measured, it is not installed |  |  |  |  |  |  |  |",
    ]
    assert len({line.count("|") for line in table}) == 1


def test_page_names_the_cases_that_are_slower() -> None:
    section = replace(SECTION, rows=ROWS[:2], show_baselines=False)
    page = report.markdown({"contraction": section})
    assert "| 64 experts | CP / MLP | 1.50 [1.25, 2.00] |" in page
    assert "- 64 experts, forward: 1.50 [1.25, 2.00] of MLP" in page
    faster = replace(ROWS[1], forward=replace(RATIO, lower=0.99))
    page = report.markdown({"contraction": replace(section, rows=[ROWS[0], faster])})
    assert "Nowhere in the table" in page


def test_the_first_lines_say_what_the_tables_say() -> None:
    """Each figure of each line is there, of a row of that section's published table."""
    rows = {name: section.rows for name, section in report.load(command.ROOT / "docs" / "benchmarks.json").items()}
    told = headlines(rows)
    assert len(told) == len(LINES) == 8
    for line, text in zip(LINES, told, strict=True):
        for named in line.figures:
            assert f"{named.said} **" in text
    ratio = replace(RATIO, median=9.87)
    changed = [replace(r, forward=ratio) if r.contender == "entmax15" else r for r in rows["activation"]]
    assert "ours **9.87**" in headlines({"activation": changed})[0]
    assert headlines({}) == []


def test_quick_run_leaves_the_published_page_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "SECTIONS", {"layer": ("A title", lambda effort: iter(ROWS))})
    command.main(["--quick", "--only", "layer"])
    page = (tmp_path / "results" / "benchmarks" / "benchmarks.md").read_text(encoding="utf-8")
    assert "Command: `python -m benchmarks --only layer --quick`" in page
    assert not (tmp_path / "docs").exists()
    command.main([])
    assert "Command: `python -m benchmarks`" in (tmp_path / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def test_constants_are_shown_beside_the_ones_in_use() -> None:
    found = cost_model.fit(
        ONCE,
        cost_model.Sizes(products=((4, 4, 4),), elements=(16,), copies=(((2, 3, 4), (0, 2, 1)),), scans=((4, 8),)),
    )
    assert min(found.flop, found.moved, found.copied, found.scanned) > 0
    constants = cost_model.constants(cost_model.Fit(flop=2.0, moved=18.0, copied=500.0, scanned=60.0))
    page = report.markdown({"cost_model": replace(SECTION, rows=[], extra=constants)})
    used = cost_model.MOVED, cost_model.COPIED, cost_model.SCANNED
    assert f"| `MOVED` | 9.0 | {used[0]} |\n| `COPIED` | 250.0 | {used[1]} |\n| `SCANNED` | 30.0 | {used[2]} |" in page


def test_figure_has_every_line(tmp_path: Path) -> None:
    points = list(scaling.points(ONCE, SCALING))
    assert {point.panel for point in points} == set(figure.PANELS)
    assert [p.x for p in points if p.series == "CP, 2 modes"] == [4, 9]
    file = tmp_path / "assets" / "scaling.svg"
    assert figure.draw(points, file)
    first = file.read_bytes()
    assert b"<svg" in first
    assert figure.draw(points, file)
    assert file.read_bytes() == first  # no date, no random names


def test_rows_count_the_parameters_in_memory() -> None:
    linear = Contender.of("linear", nn.Linear(8, 4))
    for row in compare("case", linear, [replace(linear, name="again")], [torch.randn(3, 8)], ONCE):
        assert row.parameters == 36
        assert row.forward_bytes == 4 * (36 + 3 * 4)
        assert row.training_bytes == 4 * (36 + 3 * 4 + 36 + 3 * 8)  # and the gradients of parameters and input
