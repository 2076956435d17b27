"""Files written as one: interrupted at any call that changes the disk, a folder holds the old ones or the new ones."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from factorized_moe import _writing as writing
from factorized_moe._writing import READY, finish, place_of, write_files

OLD, NEW = {"a": b"1", "b": b"1"}, {"a": b"2", "b": b"2"}


class Stopped(BaseException):
    """A kill: nothing after it runs, clean-up included."""


def read(folder: Path) -> dict[str, bytes]:
    return {name: place_of(folder, name).read_bytes() for name in OLD}


def stop_at(number: int, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> list[int]:
    """Let the given call of those that change the disk fail, counted from 0."""
    calls = [0]

    def counted(original: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == number + 1:
                raise error
            return original(*arguments, **options)

        return call

    for name in ("mkdir", "write_bytes", "rename", "replace", "rmdir"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))
    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    return calls


def calls_of_a_write(tmp_path: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        calls = stop_at(-2, patch, Stopped())
        write_files(tmp_path / "count", NEW)
        return calls[0]


def test_stopped_at_any_call_the_old_or_the_new_is_whole(tmp_path: Path) -> None:
    seen = set()
    for number in range(calls_of_a_write(tmp_path)):
        folder = tmp_path / str(number)
        write_files(folder, OLD)
        with pytest.MonkeyPatch.context() as patch:
            stop_at(number, patch, Stopped())
            patch.setattr(writing.shutil, "rmtree", lambda *_, **__: None)  # a killed process cleans nothing up
            with pytest.raises(Stopped):
                write_files(folder, NEW)
        found = read(folder)
        assert found in (OLD, NEW), number
        seen.add(found["a"])
        finish(folder)
        assert read(folder) == found
        write_files(folder, NEW)  # the next write sweeps what was left
        assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]
        assert read(folder) == NEW
    assert seen == {b"1", b"2"}


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    write_files(tmp_path, OLD)
    for number in range(1, 6):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(number, patch, OSError(errno.ENOSPC, "No space left on device"))
            with pytest.raises(OSError, match="No space"):
                write_files(tmp_path, NEW)
        assert read(tmp_path) == OLD
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_contents_are_forced_to_disk_before_they_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(Path, "rename", lambda path, to: (order.append("rename"), rename(path, to))[1])
    write_files(tmp_path, NEW)
    assert order[:4] == ["fsync", "fsync", "fsync", "rename"]  # two files and their folder


def test_a_folder_that_may_not_be_changed_is_read(tmp_path: Path) -> None:
    write_files(tmp_path, OLD)
    (tmp_path / READY).mkdir()
    (tmp_path / READY / "b").write_bytes(b"2")  # "a" was moved before the interruption
    (tmp_path / "a").write_bytes(b"2")
    assert read(tmp_path) == NEW
    assert (tmp_path / READY).exists()


def test_what_a_living_process_stages_is_left_alone(tmp_path: Path) -> None:
    alive, dead = tmp_path / f"{writing.STAGED}.{os.getppid()}", tmp_path / f"{writing.STAGED}.{2**22 + 1}"
    alive.mkdir()
    dead.mkdir()
    write_files(tmp_path, NEW)
    assert alive.exists()
    assert not dead.exists()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills are POSIX signals")
def test_killed_at_random_moments(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": b"0" * 2**16, "b": b"0" * 2**16})
    script = """
import sys
from pathlib import Path
from factorized_moe._writing import write_files
print("ready", flush=True)
for k in range(10**6):
    content = str(k % 10).encode() * 2**16
    write_files(Path(sys.argv[1]), {"a": content, "b": content})
"""
    for number in range(8):
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.01 + 0.013 * number)
        process.kill()
        process.wait()
        process.stdout.close()
        first, second = (place_of(tmp_path, name).read_bytes() for name in ("a", "b"))
        assert first == second
        assert len(first) == 2**16
        finish(tmp_path)
        assert place_of(tmp_path, "a").read_bytes() == first
