"""The command as a whole: its help, its errors, its exit codes."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version

import pytest

from factorized_moe.cli import main
from factorized_moe.cli.command import Command
from factorized_moe.cli.running import COMMANDS

pytestmark = pytest.mark.thorough


def made_up(run: Callable[[argparse.Namespace], None]) -> Command:
    return Command("try", "a summary", "a description", lambda parser: None, run)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], []):
        assert main(arguments) == 0
        text = capsys.readouterr().out
        for command in COMMANDS:
            assert f"    {command.name} " in text
            assert command.summary.split()[0] in text


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_help_of_its_own(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command.name, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(f"usage: factorized-moe {command.name} ")
    assert command.description in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"factorized-moe {version('factorized-moe')}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["dmeo"], "invalid choice: 'dmeo'"), (["demo", "--colour"], "unrecognized arguments: --colour")],
)
def test_wrong_usage_is_one_line_and_exit_code_two(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert shown.err.startswith("factorized-moe")
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "factorized-moe try: interrupted; nothing was written"),
        (ValueError("wrong\n  in two lines"), 2, "factorized-moe try: error: wrong in two lines"),
        (OSError(28, "No space left on device"), 2, "factorized-moe try: error: [Errno 28] No space left on device"),
        (ModuleNotFoundError("not installed: x"), 2, "factorized-moe try: error: not installed: x"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(options: argparse.Namespace) -> None:
        raise error

    monkeypatch.setattr("factorized_moe.cli.running.COMMANDS", (made_up(fail),))
    assert main(["try"]) == code
    assert capsys.readouterr().err == f"{line}\n"


def test_faults_of_the_library_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(options: argparse.Namespace) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr("factorized_moe.cli.running.COMMANDS", (made_up(fail),))
    with pytest.raises(RuntimeError, match="a fault"):
        main(["try"])


def test_a_reader_that_leaves_early_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as broken:
        monkeypatch.setattr("sys.stdout", broken)
        assert main(["list"]) == 0
    assert capsys.readouterr().err == ""


def test_help_needs_no_torch() -> None:
    code = "import sys; from factorized_moe.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_package_runs_as_the_command() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "factorized_moe", *arguments], capture_output=True, text=True)

    assert run("--version").stdout == f"factorized-moe {version('factorized-moe')}\n"
    wrong = run("params", "--expert-dims", "none")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("factorized-moe params: error: ")


def test_importing_the_packages_main_module_runs_nothing() -> None:
    code = "import factorized_moe.__main__; print('imported')"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "imported\n"
