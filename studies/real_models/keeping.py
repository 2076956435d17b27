"""What a run needs again after a stop and takes minutes to make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["kept_rows"]


def kept_rows(file: Path, make: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
    """Tensors that are made once and read from then on.

    Args:
        file: Where they are kept, without its ending.
        make: Makes them.
    """
    path = file.with_suffix(".safetensors")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file({str(number): rows.contiguous() for number, rows in enumerate(make())}, partial)
        partial.replace(path)
    found = load_file(path)
    return [found[str(number)] for number in range(len(found))]
