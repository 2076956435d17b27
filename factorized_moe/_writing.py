"""Several files of a folder written as one: after an interruption, the old ones or the new ones, never some of each.

New files are staged in a hidden folder and forced to disk. One rename of that folder is the moment from which the new
files count; then they move to their places. Who reads or writes later finishes moves that an interruption left undone.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

__all__ = ["finish", "place_of", "write_files"]

READY = ".factorized-moe.ready"
"""The folder whose presence says that the files in it are whole and count."""

STAGED = ".factorized-moe.staged"
"""How folders of files that do not count yet begin; a process number follows."""


def write_files(folder: Path, files: Mapping[str, bytes | Callable[[Path], object]]) -> None:
    """Write files into a folder, all or none; others in it are left alone.

    Args:
        folder: The folder; it is made if need be.
        files: The content of each file by its name, or a function that writes it to a path.

    Raises:
        OSError: If they cannot be written; the folder's files are then as they were, or, where only moving them failed,
            the new ones count and wait to be moved.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     write_files(Path(place) / "new", {"a": b"1", "b": b"2"})
        ...     sorted(path.name for path in (Path(place) / "new").iterdir())
        ['a', 'b']
    """
    for name in files:
        if (place := folder / name).exists() and not place.is_file():  # moving the file there would fail, or harm
            raise FileExistsError(errno.EEXIST, "there is something that is no file", str(place))
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    finish(folder)
    _sweep(folder)
    staged = folder / f"{STAGED}.{os.getpid()}"
    staged.mkdir()
    try:
        for name, content in files.items():
            path = staged / name
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                content(path)
            _force(path)
        _force(staged)
        staged.rename(folder / READY)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        if made:
            with suppress(OSError):  # not empty: others have written into it
                folder.rmdir()
        raise
    _force(folder)
    finish(folder)


def finish(folder: Path) -> None:
    """Move files that count to their places, if an interruption left some; nothing otherwise.

    Raises:
        OSError: If they cannot be moved.
    """
    ready = folder / READY
    if not ready.is_dir():
        return
    for path in sorted(ready.iterdir()):
        path.replace(folder / path.name)
    _force(folder)
    ready.rmdir()


def place_of(folder: Path, name: str) -> Path:
    """Where a file of a folder is: in its place, or still among those that an interruption left to be moved.

    For readers who may not change the folder.
    """
    waiting = folder / READY / name
    return waiting if waiting.exists() else folder / name


def _sweep(folder: Path) -> None:
    """Remove what processes left that are no more."""
    for path in folder.glob(f"{STAGED}.*"):
        number = path.name.rpartition(".")[2]
        if number.isdigit() and not _is_alive(int(number)):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    if process == os.getpid():
        return False  # what this process left behind earlier
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _force(path: Path) -> None:
    """To disk, so that the rename that follows cannot overtake the content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
