"""What recording and measuring coefficients costs, and spectra through the factors beside an SVD for each expert.

Run as a module, it records and measures a million tokens and prints how much its process grew.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.block import SIZES as BLOCK_SIZES
from benchmarks.block import Sizes as BlockSizes
from benchmarks.block import block, matched_blocks
from benchmarks.measuring import Effort, Ratio, alone, measure_ratio
from benchmarks.memory import process_bytes, process_peak
from benchmarks.ranks import rank_name
from benchmarks.rows import Contender, Row, count
from factorized_moe import FactorizedExpertTensor, MuMoE
from factorized_moe.interpret import (
    count_labels,
    find_top_samples,
    measure_coactivation,
    measure_histogram,
    measure_label_specialisation,
    measure_load,
    measure_spectra,
    open_recording,
    record,
)

__all__ = ["SIZES", "TITLE", "Sizes", "rows"]

TITLE = "Recording coefficients, and spectra of the experts"


@dataclass(frozen=True)
class Sizes:
    """The sizes of the cases.

    Attributes:
        block: Of the block that is recorded.
        experts: The number of experts.
        tokens: The tokens of a forward pass.
        passes: The forward passes of one recording.
        spectra: The decompositions and ranks whose spectra are taken, with about the parameters of a linear layer.
        rounds: The rounds of the comparison of spectra.
        timed: The SVDs that are timed in each round, for as many as there are experts.
        long: The tokens of the long recording.
    """

    block: BlockSizes = BLOCK_SIZES
    experts: int = 1024
    tokens: int = 1024
    passes: int = 8
    spectra: tuple[tuple[str, Any], ...] = (("cp", 230), ("tr", (4, 4, 93, 4)))
    rounds: int = 3
    timed: int = 8
    long: int = 1_000_000


SIZES = Sizes()


def rows(effort: Effort, sizes: Sizes = SIZES) -> Iterator[Row]:
    """Forward passes plain and recorded; spectra beside SVDs; a long recording, with the default sizes only."""
    yield from _recording(effort, sizes)
    for name, rank in sizes.spectra:
        yield from _spectra(name, rank, sizes)
    if sizes == SIZES:
        peak = process_bytes("benchmarks.interpret")
        case = f"{count(sizes.long, 'token')}, {sizes.experts:,} experts"
        title = "recorded in a folder and measured, the process with all it has imported"
        yield Row(case, title, baseline=True, process_bytes=peak)


def _recording(effort: Effort, sizes: Sizes) -> Iterator[Row]:
    x = torch.randn(sizes.tokens, sizes.block.features)
    case = f"{sizes.passes} x {count(sizes.tokens, 'token')}, {sizes.experts:,} experts"
    for name, size in matched_blocks(sizes.experts, sizes.block).items():
        module = block(name, (sizes.experts,), size, sizes.block).eval()
        passes = partial(_repeat, Contender.of(name, module).forward([x]), sizes.passes)
        with tempfile.TemporaryDirectory() as folder:
            recorded = {
                "recorded in memory": partial(_recorded, module, passes, None),
                "recorded in a folder": partial(_recorded, module, passes, Path(folder) / "run"),
            }
            ratios = {title: measure_ratio(call, passes, effort) for title, call in recorded.items()}
        yield Row(case, rank_name(name, size), baseline=True, forward=alone(list(ratios.values())))
        for title, ratio in ratios.items():
            yield Row(case, f"{rank_name(name, size)}, {title}", forward=ratio)


def _spectra(name: str, rank: Any, sizes: Sizes) -> Iterator[Row]:
    """The singular values of all experts, beside as many SVDs, of which a few are timed in each round."""
    features = sizes.block.features
    experts = FactorizedExpertTensor((sizes.experts,), features, features, decomposition=name, rank=rank)
    others = {"an SVD for each expert": torch.linalg.svd, "the same, values only": torch.linalg.svdvals}
    ours: list[float] = []
    theirs: dict[str, list[float]] = {title: [] for title in others}
    for turn in range(sizes.rounds):
        begun = time.perf_counter()
        values = measure_spectra(experts).singular_values
        ours.append(time.perf_counter() - begun)
        chosen = range(turn * sizes.timed, (turn + 1) * sizes.timed)
        for title, decompose in others.items():
            begun = time.perf_counter()
            for expert in chosen:
                with torch.no_grad():
                    decompose(experts.expert(expert))
            theirs[title].append((time.perf_counter() - begun) / sizes.timed * sizes.experts)
        for expert in chosen:
            _check(experts, expert, values[expert])
    case = f"spectra of {sizes.experts:,} experts, {features} x {features}"
    label = f"{name.upper()} rank {rank}"
    ratios = {title: _ratio(times, ours) for title, times in theirs.items()}
    yield Row(case, f"{label}, through the factors", baseline=True, forward=alone(list(ratios.values())))
    for title, ratio in ratios.items():
        yield Row(case, f"{label}, {title} ({sizes.timed} timed in a round)", forward=ratio)


def _ratio(theirs: list[float], ours: list[float]) -> Ratio:
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(median, lower, upper, statistics.median(theirs), statistics.median(ours), len(ratios))


def _check(experts: FactorizedExpertTensor, expert: int, values: Tensor) -> None:
    """The values are those of the expert's matrix, to 1e-5 of the largest."""
    with torch.no_grad():
        exact = torch.linalg.svdvals(experts.expert(expert).double())
    error = (nn.functional.pad(values, (0, len(exact) - len(values))) - exact).abs().max() / exact[0]
    if error > 1e-5:
        raise ValueError(f"the spectrum of expert {expert} is off by {float(error):.1e} of its largest singular value")


def _repeat(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


def _recorded(module: nn.Module, call: Callable[[], object], folder: Path | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    with record(module, folder=folder):
        call()


def _long(tokens: int, experts: int, folder: Path) -> None:
    """Record so many tokens and measure them, printing what each took."""
    torch.manual_seed(0)
    layer = MuMoE(64, 8, [experts], rank=4, gate_norm="layer").eval()
    Contender.of("gives the gate weights", layer)
    centres = torch.randn(20, 64)  # something for the gate to tell apart
    begun = time.perf_counter()
    with torch.no_grad(), record(layer, folder=folder) as log:
        while log.num_samples < tokens:
            labels = torch.randint(20, (min(8192, tokens - log.num_samples),))
            layer(centres[labels] + torch.randn(len(labels), 64))
            log.annotate(labels=labels)
    recording = open_recording(folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"  recorded {recording.num_samples:,} tokens: {time.perf_counter() - begun:.0f} s, {size / 2**30:.2f} GiB")
    measures: dict[str, Callable[[], object]] = {
        "load": lambda: measure_load(recording, 0.1),
        "histogram": lambda: measure_histogram(recording),
        "top samples": lambda: find_top_samples(recording),
        "labels": lambda: measure_label_specialisation(count_labels(recording)),
        "co-activation": lambda: measure_coactivation(recording),
    }
    for title, measure in measures.items():
        begun = time.perf_counter()
        measure()
        print(f"  {title}: {time.perf_counter() - begun:.1f} s")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        _long(SIZES.long, SIZES.experts, Path(scratch) / "run")
    print(process_peak())
