"""One token through one layer, as it is, compiled, and packaged by AOTInductor: what is not arithmetic then counts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.layer import SIZES, Sizes
from benchmarks.measuring import Effort
from benchmarks.rows import Contender, Row, compare, count
from factorized_moe import MuMoE

__all__ = ["TITLE", "rows"]

TITLE = "One token through a layer 768-768 with 128 experts: eager, compiled, packaged by AOTInductor"


def rows(effort: Effort, sizes: Sizes = SIZES) -> Iterator[Row]:
    """Each way beside ``nn.Linear`` run in the same way."""
    x = torch.randn(1, sizes.features)
    rank = dict(sizes.published)["cp"]
    modules: dict[str, nn.Module] = {"nn.Linear": nn.Linear(sizes.features, sizes.features)}
    for gate in ("entmax15", "softmax"):
        made = MuMoE(sizes.features, sizes.features, [sizes.experts], "cp", rank, gate=gate, gate_norm="layer")
        modules[f"CP, rank {rank}, {gate}"] = made
    contenders = [Contender.of(name, module.eval()) for name, module in modules.items()]
    case = count(1, "token")
    yield from compare(f"{case}, eager", contenders[0], contenders[1:], [x], effort, training=False)
    if effort.compiled:
        yield from compare(case, contenders[0], contenders[1:], [x], effort, training=False, compiled=True)
        with tempfile.TemporaryDirectory() as folder:
            packed = [
                replace(contender, function=_packaged(module, x, Path(folder) / f"{number}.pt2"))
                for number, (contender, module) in enumerate(zip(contenders, modules.values(), strict=True))
            ]
            yield from compare(f"{case}, packaged", packed[0], packed[1:], [x], effort, training=False)


def _packaged(module: nn.Module, x: torch.Tensor, file: Path) -> Any:
    """A module exported for one token, compiled ahead of time, and loaded again."""
    with torch.no_grad():
        exported = torch.export.export(module, (x,))
    torch._inductor.aoti_compile_and_package(exported, package_path=str(file))
    return torch._inductor.aoti_load_package(str(file))
