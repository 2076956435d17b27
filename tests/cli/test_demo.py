"""`factorized-moe demo`: options in, text, files and exit codes out."""

import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from factorized_moe.cli import main
from factorized_moe.demo import DemoOptions, DemoReport, HeadReport, ModeReport

pytestmark = pytest.mark.thorough

REPORT = DemoReport(
    data="some images",
    num_train=4000,
    num_held_out=1000,
    classes=("a", "b"),
    expert_dims=(3, 2),
    decomposition="tucker",
    rank=(2, 2, 3, 2),
    epochs=2,
    seed=0,
    heads=(HeadReport("linear", 0.9612, 130, 38146), HeadReport("MuMoE", 1.0, 1234, 39250)),
    modes=(
        ModeReport(3, 0.5, 3, 2, 0.8412, 1, (4, 3, 0), (0.7, 0.98, None), ("a", "b", None)),
        ModeReport(2, 0.5, 1, 0, None, 2, (0, 0), (None, None), (None, None)),
    ),
)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[DemoOptions]:
    """The options that the job is run with; it does nothing and returns the report above."""
    options: list[DemoOptions] = []

    def run(chosen: DemoOptions) -> DemoReport:
        options.append(chosen)
        return REPORT

    monkeypatch.setattr("factorized_moe.demo.run_demo", run)
    return options


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Ten images of noise for each of two classes."""
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(10):
            noise = generator.integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


def test_defaults_are_the_library_s(given: list[DemoOptions]) -> None:
    assert main(["demo"]) == 0
    assert given == [DemoOptions()]


def test_options_reach_the_library(given: list[DemoOptions]) -> None:
    common = ["--data", "d", "--epochs", "3", "--seed", "4", "--out", "o", "--force", "--decomposition", "tr"]
    assert main(["demo", *common, "--experts", "8x4", "--rank", "2,3, 4,5,2"]) == 0
    assert main(["demo", "--experts", "16", "--rank", "7"]) == 0
    assert main(["demo", "--parameters", "5000"]) == 0
    assert given == [
        DemoOptions(Path("d"), (8, 4), "tr", (2, 3, 4, 5, 2), None, 3, 4, Path("o"), True),
        DemoOptions(expert_dims=(16,), rank=7),
        DemoOptions(parameters=5000),
    ]


def test_report_is_printed(given: list[DemoOptions], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(
        """\
some images: 4,000 to train on, 1,000 held out, 2 classes

head      accuracy   head parameters   all parameters
linear       96.1%               130           38,146
MuMoE       100.0%             1,234           39,250

MuMoE: 3 x 2 experts, tucker of rank 2,2,3,2. On held-out images:
  3 of 3 experts of mode 0 are in use
  2 of 3 experts of mode 0 reach a coefficient of 0.5
  class-level polysemanticity of mode 0: 0.841, the mean over the 2 experts with an effect
  1 of 2 experts of mode 1 are in use
  0 of 2 experts of mode 1 reach a coefficient of 0.5
  class-level polysemanticity of mode 1: none, no expert alone has an effect

Results in results/demo, after """
    )


def test_help_names_every_option_and_the_true_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    defaults = DemoOptions()
    for option, default in {
        "--experts": "x".join(map(str, defaults.expert_dims)),
        "--decomposition": defaults.decomposition,
        "--epochs": defaults.epochs,
        "--seed": defaults.seed,
        "--out": defaults.out.as_posix(),
    }.items():
        description = text.rpartition(f" {option} ")[2].partition(" --")[0]
        assert description.endswith(f"default: {default}"), option
    for option in ("--data", "--rank", "--parameters", "--force"):
        assert option in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--colour"], "unrecognized arguments: --colour"),
        (["demo", "--experts", "0"], "expected a number of experts such as 32, or one for each expert mode such as"),
        (["demo", "--experts", "8x"], "got '8x'"),
        (["demo", "--rank", "2,-1"], "expected a positive number such as 32, or several such as 4,2,8,8, got '2,-1'"),
        (["demo", "--rank", "2", "--parameters", "9"], "--parameters: not allowed with argument --rank"),
        (["demo", "--epochs", "1.5"], "argument --epochs: expected a whole number of at least 1, got '1.5'"),
        (["demo", "--seed", "-1"], "--seed: expected a whole number of at least 0, got '-1'"),
        (["demo", "--data", "nowhere"], "nowhere: no such folder"),
        (["demo", "--decomposition", "tukcer"], "unknown decomposition 'tukcer'; did you mean 'tucker'"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert shown.err.startswith("factorized-moe")
    assert shown.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_whole_run_and_no_overwriting(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["demo", "--data", str(images), "--experts", "4", "--epochs", "1", "--out", str(out)]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert f"{images}, in grey: 16 to train on, 4 held out, 2 classes" in text
    assert f"Results in {out}, after " in text
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    assert main(arguments) == 2
    assert f"{out}: exists and is not empty" in capsys.readouterr().err
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before
    assert main([*arguments, "--force"]) == 0


def test_interrupt_from_the_keyboard(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: object) -> None:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.signal(signal.SIGINT, before)

    monkeypatch.setattr("factorized_moe.demo.job.train", interrupt)
    assert main(["demo", "--data", str(images), "--out", str(tmp_path / "out")]) == 130
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "factorized-moe demo: interrupted; nothing was written"
    assert "Traceback" not in "".join(lines)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
