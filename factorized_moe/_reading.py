"""What files may say and ask for: the one reader of JSON and of safetensors' headers, and the one place for bounds.

A file is read as if its author wished ill: every value is looked at before anything is made of it, and what a file asks
for beyond its own size is bounded. Every refusal is a ``ValueError`` that says what was found and what was expected.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open

from factorized_moe._scalars import is_number, is_whole

__all__ = [
    "MOST_EXPERTS",
    "MOST_MODES",
    "MOST_NODES",
    "TensorHeader",
    "check_modes",
    "check_room",
    "flag",
    "listed",
    "number",
    "parse_json",
    "read_json",
    "read_tensor_header",
    "record_of",
    "text",
    "whole",
]

ROOM = 2**27
"""The bytes that any file may ask for, however small it is: 128 MiB."""

GROWTH = 8
"""How many times its own size a larger file may ask for."""

MOST_VALUES = 2**22
"""Values of one JSON text: they take up to 64 bytes each."""

MOST_MODES = 24
"""Expert modes of a layer in a file: planning them takes some seconds, and the time grows with their square."""

MOST_NODES = 32
"""Nodes of a network in a file, for the same reason."""

MOST_EXPERTS = 2**24
"""Experts of one mode in a file."""

T = TypeVar("T")


def check_room(what: str, num_bytes: int, file_bytes: int) -> None:
    """Refuse what a file asks for, if it is far more than the file itself holds.

    Args:
        what: What would take the memory, for the message.
        num_bytes: How many bytes it would take.
        file_bytes: The size of the file, or of the files.

    Raises:
        ValueError: If it is more than `ROOM` and more than `GROWTH` times the size.

    Examples:
        >>> check_room("the counts", 10**9, 10**3)
        Traceback (most recent call last):
        ...
        ValueError: the counts would take 1,000,000,000 bytes, far more than the 1,000 bytes of the file call for
    """
    if num_bytes > max(ROOM, GROWTH * file_bytes):
        raise ValueError(
            f"{what} would take {num_bytes:,} bytes, far more than the {file_bytes:,} bytes of the file call for"
        )


def check_modes(sizes: Any, name: str = "expert_dims") -> tuple[int, ...]:
    """The sizes of expert modes that a file names.

    Raises:
        ValueError: If they are no list of sizes from 1 to `MOST_EXPERTS`, or more than `MOST_MODES` of them.

    Examples:
        >>> check_modes([8, 4])
        (8, 4)
    """
    found = listed(sizes, name, lambda size, entry: whole(size, entry, 1, MOST_EXPERTS))
    if len(found) > MOST_MODES:
        raise ValueError(f"{name} has {len(found)} expert modes; at most {MOST_MODES} are read from a file")
    return tuple(found)


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: If it is no file, no text or no JSON, too deep or of too many values.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file that can be read")
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text: {error}") from error
    return parse_json(content, str(path))


def parse_json(content: str | bytes, where: str) -> Any:
    """What a JSON text means; ``where`` is what the message calls it.

    Raises:
        ValueError: If it is no JSON, too deep or of too many values.

    Examples:
        >>> parse_json('{"a": 1}', "this")
        {'a': 1}
        >>> parse_json("[" * 10**6, "this")
        Traceback (most recent call last):
        ...
        ValueError: this is not JSON that can be read: it is nested too deeply
    """
    commas = content.count(b"," if isinstance(content, bytes) else ",")  # type: ignore[arg-type]
    if commas >= MOST_VALUES:
        raise ValueError(f"{where} holds more than {MOST_VALUES:,} values")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError(f"{where} is not JSON that can be read: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{where} is not JSON that can be read: {error}") from error


def record_of(value: Any, name: str, needed: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Any]:
    """An object with the keys that are needed, and no others than these and the optional ones.

    Raises:
        ValueError: If it is another thing, a key is missing or one is unknown.

    Examples:
        >>> record_of({"start": 0}, "the chunk", ["start", "samples"])
        Traceback (most recent call last):
        ...
        ValueError: the chunk lacks 'samples'
    """
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {_shown(value)}, expected an object")
    needed = list(needed)
    for key in needed:
        if key not in value:
            raise ValueError(f"{name} lacks {key!r}")
    unknown = sorted(value.keys() - {*needed, *optional})
    if unknown:
        raise ValueError(f"{name} has the unknown key {_shown(unknown[0])}")
    return value


def listed(value: Any, name: str, entry: Callable[[Any, str], T]) -> list[T]:
    """A list whose entries are all of one kind.

    Args:
        value: What the file has.
        name: What the message calls it.
        entry: Checks one entry, given it and its name.

    Raises:
        ValueError: If it is no list, or an entry is refused.

    Examples:
        >>> listed([1, -1], "sizes", whole)
        Traceback (most recent call last):
        ...
        ValueError: sizes[1] is -1, expected a whole number from 0 to 9223372036854775807
    """
    if not isinstance(value, list):
        raise ValueError(f"{name} is {_shown(value)}, expected a list")
    return [entry(each, f"{name}[{place}]") for place, each in enumerate(value)]


def whole(value: Any, name: str, least: int = 0, most: int = 2**63 - 1) -> int:
    """A whole number within bounds.

    Raises:
        ValueError: If it is none.
    """
    if not is_whole(value) or not least <= value <= most:
        raise ValueError(f"{name} is {_shown(value)}, expected a whole number from {least} to {most}")
    return value


def number(value: Any, name: str, least: float = -math.inf) -> float:
    """A finite number, not below the least.

    Raises:
        ValueError: If it is none.
    """
    if not is_number(value) or not least <= value <= 1e300:
        raise ValueError(
            f"{name} is {_shown(value)}, expected a finite number" + f" from {least} on" * (least > -1e300)
        )
    return value


def text(value: Any, name: str) -> str:
    """A string.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} is {_shown(value)}, expected a string")
    return value


def flag(value: Any, name: str) -> bool:
    """True or false.

    Raises:
        ValueError: If it is neither.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {_shown(value)}, expected true or false")
    return value


@dataclass(frozen=True)
class TensorHeader:
    """What a safetensors file says before its tensors are read.

    Attributes:
        path: The file.
        metadata: Strings by name.
        shapes: The shape of each tensor.
        dtypes: The type of each tensor, as safetensors calls it: ``"F32"``.
        num_bytes: The size of the file.
    """

    path: Path
    metadata: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    num_bytes: int

    def expect(self, name: str, dtypes: Sequence[str], shape: Sequence[int | None]) -> tuple[int, ...]:
        """The shape of a tensor, found to be as it should; ``None`` stands for any size.

        Raises:
            ValueError: If there is no such tensor, or it is of another type or shape.
        """
        if name not in self.shapes:
            raise ValueError(f"{self.path} lacks the tensor {name!r}")
        found, dtype = self.shapes[name], self.dtypes[name]
        if dtype not in dtypes:
            raise ValueError(f"{self.path}: {name!r} is of type {dtype}, expected {' or '.join(dtypes)}")
        if len(found) != len(shape) or any(b is not None and a != b for a, b in zip(found, shape, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(f"{self.path}: {name!r} has shape {found}, expected ({wanted})")
        return found


def read_tensor_header(path: Path) -> TensorHeader:
    """The header of a safetensors file; no tensor is read.

    Raises:
        ValueError: If it is no such file, or cut off.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file that can be read")
    try:
        with safe_open(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            dtypes = {name: str(part.get_dtype()) for name, part in slices.items()}
            return TensorHeader(path, dict(file.metadata() or {}), shapes, dtypes, path.stat().st_size)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error


def _shown(value: Any) -> str:
    """A value, or its beginning."""
    shown = "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."
