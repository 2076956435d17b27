"""`factorized-moe list`, `plan`, `params` and `draw`: options in, what the library returns out."""

import json
import re
import shlex
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from factorized_moe import Budget, ExpertGate, FactorizedExpertTensor, TensorNetwork
from factorized_moe.cli import main
from factorized_moe.decompositions import available_decompositions, registration_of
from factorized_moe.parallel import describe_shards, shard_rows

pytestmark = pytest.mark.thorough

PAGE = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")
CONSOLE = re.compile(r"```console\n\$ factorized-moe (.*)\n([\s\S]*?)```")
MEASURED = ["--rank", "2", "--optimize", "measure"]
LAYER = ["--expert-dims", "8x4", "--in-features", "16", "--out-features", "12"]
NETWORK = "expert_0 a, in b, b out c, a c; expert_0=8 in=16 out=32 a=4 b=3 c=5"

Capture = pytest.CaptureFixture[str]


def printed(arguments: list[str], capsys: Capture) -> str:
    assert main(arguments) == 0, capsys.readouterr().err
    shown = capsys.readouterr()
    assert shown.err == ""
    return shown.out


def answer(arguments: list[str], capsys: Capture) -> Any:
    return json.loads(printed([*arguments, "--json"], capsys))


def test_list_is_the_registry(capsys: Capture) -> None:
    listed = answer(["list"], capsys)
    assert [entry["name"] for entry in listed] == list(available_decompositions())
    text = printed(["list"], capsys)
    for entry in listed:
        known = registration_of(entry["name"])
        assert entry == {**vars(known), "aliases": list(known.aliases), "initialisations": list(known.initialisations)}
        assert f"{entry['name']}{' (' if known.aliases else ''}{', '.join(known.aliases)}" in text
        assert known.source in text
        assert set(entry) <= set(keys_of("list"))


def test_registration_names_where_a_class_is() -> None:
    known = registration_of(" LoRA ")
    assert known.name == "low_rank"
    assert known.source == "factorized_moe.decompositions.low_rank:LowRank"
    assert known.initialisations == ("balanced", "variance_preserving")
    with pytest.raises(TypeError, match="registration_of takes a name, got 3"):
        registration_of(3)


@pytest.mark.parametrize(
    ("size", "rank"),
    [
        (["--rank", "4"], 4),
        (["--rank", "3,2,4,4", "--decomposition", "tucker"], (3, 2, 4, 4)),
        (["--rank", "same"], "same"),
        (["--rank", "0.5"], 0.5),
        (["--budget", "492"], Budget(parameters=300)),
    ],
    ids=["int", "tuple", "same", "fraction", "budget"],
)
def test_params_are_the_library_s(size: list[str], rank: Any, capsys: Capture) -> None:
    w = FactorizedExpertTensor((8, 4), 16, 12, "tucker" if isinstance(rank, tuple) else "cp", rank, bias=True)
    found = answer(["params", *LAYER, *size, "--bias"], capsys)
    assert found["rank"] == (list(w.rank) if isinstance(w.rank, tuple) else w.rank)
    assert found["weight_parameters"] == w.num_parameters
    assert found["gate_parameters"] == sum(p.numel() for p in ExpertGate(16, (8, 4)).parameters())
    assert found["expert_rank_bound"] == w.expert_rank_bound
    assert TensorNetwork.parse(found["network"]) == w.network
    shapes = {name: list(shape) for name, shape in w.network.parameter_shapes.items()}
    assert found["parameter_shapes"] == shapes
    text = printed(["params", *LAYER, *size, "--bias"], capsys)
    assert f"{w.num_parameters:,} parameters" in text
    assert "8 x 4 experts, 16 -> 12 features, bias" in text


def test_plan_is_the_library_s(capsys: Capture) -> None:
    arguments = [*LAYER, "--decomposition", "tucker", "--rank", "3,2,4,4"]
    w = FactorizedExpertTensor((8, 4), 16, 12, "tucker", (3, 2, 4, 4))
    for options, asked in (
        ([], {}),
        (["--batch-size", "256"], {"batch_size": 256}),
        (["--optimize", "flops", "--memory-limit", "8192"], {"optimize": "flops", "memory_limit": 8192}),
    ):
        plan = w.plan(**asked)
        assert printed(["plan", *arguments, *options], capsys).endswith(f"{plan}\n")
        found = answer(["plan", *arguments, *options], capsys)
        for name in ("batch_size", "flops", "elements_moved", "largest_intermediate", "saved_activations"):
            assert found[name] == getattr(plan, name)
        assert [step["formula"] for step in found["steps"]] == [step.formula for step in plan.steps]
        assert sum(step["flops"] for step in found["steps"]) == found["flops"]


def test_a_measured_plan_is_one(capsys: Capture) -> None:
    found = answer(["plan", *LAYER, "--rank", "2", "--optimize", "measure", "--batch-size", "4"], capsys)
    assert found["batch_size"] == 4
    assert found["steps"]


@pytest.mark.parametrize("suffix", [".svg", ".PNG", ".pdf"])
def test_draw_writes_a_picture(suffix: str, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / f"picture{suffix}"
    arguments = ["draw", *LAYER, "--rank", "2", "--out", str(out)]
    assert printed(arguments, capsys) == f"cp of rank 2: 8 x 4 experts, 16 -> 12 features, no bias\nDrawn to {out}\n"
    written = out.read_bytes()
    assert written.startswith({".svg": b"<?xml", ".PNG": b"\x89PNG", ".pdf": b"%PDF"}[suffix])
    assert main(arguments) == 2
    assert capsys.readouterr().err.endswith("there is such a file; give another name, or --force to replace it\n")
    assert answer([*arguments, "--force"], capsys)["file"] == str(out)
    if suffix == ".svg":
        assert ET.parse(out).getroot().tag.endswith("svg")


@pytest.mark.parametrize("command", ["params", "plan", "draw"])
def test_any_network_is_described(command: str, tmp_path: Path, capsys: Capture) -> None:
    more = ["--out", str(tmp_path / "n.svg")] if command == "draw" else []
    found = answer([command, "--network", NETWORK, "--bias", *more], capsys)
    assert (found["decomposition"], found["rank"], found["in_features"]) == (None, None, 15)
    assert TensorNetwork.parse(found["network"]) == TensorNetwork.parse(NETWORK)
    assert set(found) == set(keys_of(command))


def keys_of(command: str) -> list[str]:
    """The keys that the page names for a command, those inside lists included for `list`."""
    rows = re.findall(r"^\| (`list`.*?|`params`.*?|`plan`.*?|`draw`.*?) \| (.*) \|$", PAGE, re.MULTILINE)
    cells = [cell.split(": of each")[0] for names, cell in rows if f"`{command}`" in names]
    return [key for cell in cells for key in re.findall(r"`(\w+)`", cell)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["params"], "missing: --expert-dims, --in-features, --out-features, --rank (or --budget); or give a --netw"),
        (["plan", *LAYER], "missing: --rank (or --budget); or give a --network"),
        (["params", *LAYER, "--rank", "2", "--decomposition", "tukcer"], "unknown decomposition 'tukcer'; did you mea"),
        (
            ["params", *LAYER, "--rank", "2,2", "--decomposition", "tt"],
            "rank of TensorTrain is one int for each of the",
        ),
        (["params", *LAYER, "--rank", "1.5"], "a float rank is a fraction of the dense size, above 0 and at most 1"),
        (["params", *LAYER, "--rank", "1.x"], "argument --rank: expected a fraction such as 0.05, got '1.x'"),
        (["params", *LAYER, "--rank", "0"], "argument --rank: expected a positive number such as 32"),
        (["params", *LAYER, "--rank", "2", "--budget", "9"], "--budget: not allowed with argument --rank"),
        (["params", *LAYER, "--budget", "9" * 20], "of more elements than a tensor can have; choose a smaller"),
        (
            ["params", *LAYER[:3], "9" * 12, *LAYER[4:], "--expert-dims", "9" * 8, "--rank", "1"],
            "the gate's weight would have",
        ),
        (
            ["plan", *LAYER, "--rank", "2", "--optimize", "measure", "--batch-size", "9" * 20],
            "what is to be timed would",
        ),
        (
            ["plan", *LAYER, "--rank", "2", "--optimize", "measure", "--batch-size", "9" * 14],
            "torch cannot time this plan",
        ),
        (["plan", *LAYER, "--rank", "9" * 20], "would have shape (8, 99999999999999999999), of more elements"),
        (
            ["plan", "--network", f"in a, a out; in=2 out=3 a={10**13}", "--optimize", "measure"],
            "torch makes no weight of",
        ),
        (["plan", "--network", f"in a, a out; in=2 out=3 a={'9' * 20}"], "of more elements than a tensor can have"),
        (["params", *LAYER, "--budget", "9"], "a budget of 9 parameters is too small for 'cp'"),
        (["params", *LAYER, "--network", NETWORK], "--network says what --expert-dims would say; give one of the two"),
        (["plan", "--network", "in a, a out; in=2 out=3"], "labels ['a'] have no size"),
        (["plan", *LAYER, "--rank", "2", "--batch-size", "0"], "--batch-size: expected a whole number of at least 1"),
        (["plan", *LAYER, "--rank", "2", "--optimize", "time"], "argument --optimize: invalid choice: 'time'"),
        (["plan", *LAYER, "--rank", "2", "--memory-limit", "8"], "memory_limit of 8 bytes is too small at batch size"),
        (["draw", *LAYER, "--rank", "2"], "the following arguments are required: --out"),
        (
            ["draw", *LAYER, "--rank", "2", "--out", "a.gif"],
            "--out a.gif: the name of a picture ends in .svg, .png, .pd",
        ),
        (["draw", *LAYER, "--rank", "2", "--out", "no/a.svg"], "--out no/a.svg: there is no folder no"),
        (["list", "--all"], "unrecognized arguments: --all"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert shown.err.startswith("factorized-moe")
    assert shown.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_drawing_asks_for_matplotlib_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["draw", *LAYER, "--rank", "2", "--out", str(tmp_path / "a.svg")]) == 2
    assert capsys.readouterr().err == (
        "factorized-moe draw: error: drawing needs matplotlib, which is not installed; install factorized-moe[plots]\n"
    )


@pytest.mark.parametrize("line", [line for line, _ in CONSOLE.findall(PAGE)])
def test_the_page_shows_what_is_printed(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = dict(CONSOLE.findall(PAGE))[line]
    main(shlex.split(line))
    output = capsys.readouterr()
    pattern = ".*".join(re.escape(part) for part in shown.rstrip("\n").split("..."))
    if shown.endswith("...\n"):
        pattern = ".*".join(re.escape(part) for part in shown[: -len("...\n")].split("...")) + ".*"
    assert re.fullmatch(pattern, (output.out + output.err).rstrip("\n"), re.DOTALL), output


def test_the_page_has_every_command() -> None:
    shown = {line.split()[0] for line, _ in CONSOLE.findall(PAGE)}
    assert shown == {"list", "params", "plan", "draw"}


def test_plan_shows_the_shards(capsys: Capture) -> None:
    asked = ["plan", *LAYER, "--rank", "6", "--bias", "--batch-size", "100", "--shards", "4"]
    found = answer(asked, capsys)
    weight = FactorizedExpertTensor((8, 4), 16, 12, "cp", 6, bias=True, device="meta")
    assert found["ranks"] == 4
    assert found["shards"] == shard_rows(weight.plan(100), 4)
    assert {row["label"] for row in found["shards"]} == {*weight.network.sizes, "each"}
    by_rank = next(row for row in found["shards"] if row["label"] == "rank")
    assert by_rank["parameters"] == 2 * (8 + 4 + 17 + 12)  # 6 over 4 ranks: 2, 2, 2, 0
    text = printed(asked, capsys)
    assert "4 ranks, 100 samples, per rank:" in text
    assert describe_shards(weight.plan(100), 4) in text
