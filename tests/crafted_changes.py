"""How someone who wishes ill changes a file: its bytes, its JSON, or its tensors and what is said of them."""

from __future__ import annotations

import copy
import gzip
import json
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save
from torch import Tensor

DEEP = object()
"""Stands for JSON nested a hundred thousand deep."""

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2.5, 10**9, 10**18, 10**30, -(2**63), 1e308, float("nan"), float("inf"), -0.0),
    *("", "x", "\ud800", "0", "cp" * 50_000, [], [[]], {}, {"": 0}, [1] * 300, [0], [10**12], [-1, 2], [None], DEEP),
)


def changed(name: str, content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One change of a file: what was done, and its new content."""
    ways: list[Callable[[bytes, random.Random], tuple[str, bytes]]] = [_bytes_changed]
    if name.endswith(".json"):
        ways += [_json_changed] * 4
    if name.endswith(".safetensors"):
        ways += [_tensors_changed] * 4
    if name.endswith(".gz"):
        ways += [_unpacked_changed] * 4 + [_bomb] * 2
    return rng.choice(ways)(content, rng)


def _bytes_changed(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    way = rng.choice(("cut", "flip", "flip", "head", "longer", "word", "empty"))
    changed = bytearray(content)
    if way == "cut":
        return "cut off", content[: rng.randrange(len(content))]
    if way == "longer":
        return "longer", content + rng.randbytes(rng.choice((1, 8, 1000)))
    if way == "empty":
        return "empty", b""
    if way == "flip":
        for _ in range(rng.choice((1, 8))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    if way == "head":
        changed[rng.randrange(min(24, len(changed)))] = rng.choice((0, 1, 127, 128, 255))
    if way == "word":
        place = rng.randrange(max(1, len(changed) - 8))
        changed[place : place + 8] = rng.choice((b"\xff" * 8, b"\x00" * 8, struct.pack(">q", 10**12)))
    return f"bytes changed ({way})", bytes(changed)


def _unpacked_changed(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    what, changed = _bytes_changed(gzip.decompress(content), rng)
    return f"unpacked: {what}", gzip.compress(changed, mtime=0)


def _bomb(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Three quarters of a gigabyte of zeros packed into some hundred kilobytes, as the header says."""
    unpacked = gzip.decompress(content)
    sizes = (2**20, 16, 48) if unpacked[3] == 3 else (2**20 * 16 * 48,)
    header = unpacked[:4] + struct.pack(f">{len(sizes)}I", *sizes)
    return "bomb", gzip.compress(header, mtime=0) + gzip.compress(bytes(2**24), mtime=0) * 48


def _json_changed(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    what, changed = _json_text_changed(content.decode(), rng)
    return what, changed.encode(errors="surrogatepass")


def _json_text_changed(content: str, rng: random.Random) -> tuple[str, str]:
    value = json.loads(content)
    places: list[tuple[Any, Any]] = []

    def walk(part: Any) -> None:
        for key, entry in part.items() if isinstance(part, dict) else enumerate(part):
            places.append((part, key))
            if isinstance(entry, (dict, list)):
                walk(entry)

    walk(value)
    holder, key = rng.choice(places)
    way = rng.choice(("value", "value", "value", "drop", "add", "twice", "whole"))
    drawn = rng.choice(VALUES)
    new, shown = (DEEP, "deep") if drawn is DEEP else (copy.deepcopy(drawn), repr(drawn)[:30])
    if way == "drop":
        del holder[key]
    elif way == "add" and isinstance(holder, dict):
        holder["unknown"] = new
    elif way == "twice" and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif way == "whole":
        value = new
    else:
        holder[key] = new
    text = json.dumps(value, default=lambda _: "<deep>")
    return f"JSON {way} at {key!r}: {shown}", text.replace('"<deep>"', "[" * 100_000 + "]" * 100_000)


DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int8, torch.uint8, torch.bool, torch.float32)


def _tensors_changed(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One tensor or the description in the header changed; the rest as it was."""
    size = struct.unpack("<Q", content[:8])[0]
    metadata = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    tensors = load_tensors(content)
    described = [key for key, text in metadata.items() if text.startswith("{")]
    if described and (not tensors or rng.random() < 0.5):
        key = rng.choice(described)
        what, text = _json_text_changed(metadata[key], rng)
        text = text.encode(errors="replace").decode()
        return f"header {key}: {what}", save(tensors, metadata | {key: text})
    name = rng.choice(sorted(tensors))
    what, changed = _tensor_changed(tensors[name], rng)
    if what == "swapped":
        other = rng.choice(sorted(tensors))
        tensors[name], tensors[other] = tensors[other].clone(), tensors[name].clone()
        return f"{name} and {other} swapped", save(tensors, metadata)
    if changed is None:
        del tensors[name]
        return f"{name} dropped", save(tensors, metadata)
    new = "another" if what == "renamed" else name
    if new != name:
        del tensors[name]
    return f"{name} {what}", save(tensors | {new: changed.contiguous().clone()}, metadata)


def _tensor_changed(tensor: Tensor, rng: random.Random) -> tuple[str, Tensor | None]:
    way = rng.choice(("type", "cut", "axis", "turned", "none", "fill", "fill", "fill", "drop", "renamed", "swapped"))
    if way == "type":
        dtype = rng.choice(DTYPES)
        return f"as {dtype}", tensor.to(dtype)
    if way == "cut":
        return "cut", tensor[:-1] if tensor.ndim else tensor
    if way == "axis":
        return "with an axis more", tensor[None]
    if way == "turned":
        return "transposed", tensor.reshape(tensor.shape[::-1])
    if way == "none":
        return "of no values", tensor.new_zeros(0)
    if way == "fill":
        value = rng.choice((float("nan"), float("inf"), -1, 10**9, 0, 100, 2**62))
        if tensor.is_floating_point():
            return f"filled with {value}", torch.full_like(tensor, float(value))
        least, most = (0, 1) if tensor.dtype is torch.bool else _bounds(tensor.dtype)
        return f"filled with {value}", torch.full_like(tensor, min(max(int(np.nan_to_num(value)), least), most))
    return way, None if way == "drop" else tensor


def _bounds(dtype: torch.dtype) -> tuple[int, int]:
    return torch.iinfo(dtype).min, torch.iinfo(dtype).max
