"""Arrays, images and text as they stand in a page: nothing in them can end a script or start another.

Legend: ``H`` height, ``W`` width of an image in pixels.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["data_uri", "pack", "png", "script_json"]

ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}


def script_json(value: Any) -> str:
    r"""JSON to stand inside a script element, in ASCII.

    ``<``, ``>`` and ``&`` can only be in strings, where an escape means the same. All beyond ASCII is escaped too, the
    line ends U+2028 and U+2029 and lone surrogates among them, so that the page reads the same in every encoding.

    Args:
        value: Lists, dictionaries, strings and finite numbers.

    Raises:
        ValueError: If a number is not finite; JSON has no such numbers, `pack` has.

    Examples:
        >>> print(script_json({"label": "</script>"}))
        {"label":"\u003c/script\u003e"}
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":")).translate(ESCAPES)


def pack(array: NDArray[Any]) -> dict[str, Any]:
    """An array as 32-bit numbers in base64, which takes less space and time than digits and keeps NaN.

    Args:
        array: Integers or floating-point numbers.

    Examples:
        >>> pack(np.array([[1, 2]]))
        {'type': 'i4', 'shape': [1, 2], 'data': 'AQAAAAIAAAA='}
    """
    kind = "i4" if array.dtype.kind in "iu" else "f4"
    content = np.ascontiguousarray(array, dtype=f"<{kind}").tobytes()
    return {"type": kind, "shape": list(array.shape), "data": base64.b64encode(content).decode("ascii")}


def png(pixels: NDArray[np.uint8]) -> bytes:
    """An image as the content of a PNG file.

    Args:
        pixels: Grey ``(H, W)`` or colour ``(H, W, 3)``, uint8.

    Examples:
        >>> png(np.zeros((28, 28), dtype=np.uint8))[1:4]
        b'PNG'
    """
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).reshape(height, -1)
    unfiltered = np.pad(rows, ((0, 0), (1, 0))).tobytes()  # each row starts with its filter: 0, none
    colour_type = 0 if pixels.ndim == 2 else 2
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(unfiltered, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """An image as an address that holds it.

    Args:
        pixels: As for `png`.
    """
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode('ascii')}"
