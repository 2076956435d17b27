"""A table of runs that survives a stop: a JSON line for each finished run; what is there is not run again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from factorized_moe._writing import place_of, write_files

__all__ = ["finish", "read"]

Run = Mapping[str, Any]


def read(file: Path) -> list[dict[str, Any]]:
    """The finished runs of a file, each with its ``"settings"`` and ``"result"``; none if there is no file.

    A last line that was cut off by a stop is left out; its run is done again.
    """
    found = []
    for line in _lines(file):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def finish(file: Path, wanted: Iterable[Run], run: Callable[[Run], Run]) -> list[dict[str, Any]]:
    """Do the runs that a file lacks, and return all that are wanted, in their order.

    Args:
        file: The table; it is made if need be.
        wanted: The settings of each run, what JSON can hold.
        run: From settings to results, what JSON can hold.
    """
    wanted = list(wanted)
    done = {_key(entry["settings"]): entry for entry in read(file)}
    missing = [settings for settings in wanted if _key(settings) not in done]
    for number, settings in enumerate(missing, 1):
        begun = time.perf_counter()
        entry = {"settings": dict(settings), "result": dict(run(settings))}
        entry["seconds"] = round(time.perf_counter() - begun, 1)
        kept = "".join(f"{line}\n" for line in _lines(file))
        write_files(file.parent, {file.name: f"{kept}{json.dumps(entry)}\n".encode()})
        done[_key(settings)] = entry
        print(f"{number} of {len(missing)}: {' '.join(map(str, settings.values()))} ({entry['seconds']} s)", flush=True)
    return [done[_key(settings)] for settings in wanted]


def _lines(file: Path) -> list[str]:
    place = place_of(file.parent, file.name)
    return place.read_text(encoding="utf-8").splitlines() if place.exists() else []


def _key(settings: Run) -> str:
    return json.dumps(settings, sort_keys=True)
