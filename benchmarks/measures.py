"""Measures of a recording whose coefficients are dense, beside the same in plain torch on one matrix.

Run as a module, it streams a recording of 200,000 samples from a folder through every measure, and prints the seconds
of each and by how much the process grew meanwhile.
"""

from __future__ import annotations

import gc
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.measuring import Effort, alone, measure_ratio
from benchmarks.rows import Row, count
from factorized_moe import MuMoE
from factorized_moe.interpret import (
    Recording,
    compare_duplicates,
    compare_recordings,
    count_labels,
    counterfactuals,
    find_top_experts,
    find_top_samples,
    measure_coactivation,
    measure_histogram,
    measure_label_specialisation,
    measure_load,
    open_recording,
    record,
    sample_active,
)
from factorized_moe.interpret.report.layer import LayerSummary

__all__ = ["SIZES", "TITLE", "Sizes", "rows"]

TITLE = "Measures of dense coefficients beside plain torch on one matrix, and counterfactuals of a dense gate"

CLASSES = 10


@dataclass(frozen=True)
class Sizes:
    """The sizes of the cases.

    Attributes:
        samples: Of the recording in memory.
        experts: Of every recording.
        long: The samples of the recording in a folder.
        taken_out: The experts of the counterfactuals.
        images: The inputs of the counterfactuals.
    """

    samples: int = 10_000
    experts: int = 1024
    long: int = 200_000
    taken_out: int = 64
    images: int = 10_000


SIZES = Sizes()


def rows(effort: Effort, sizes: Sizes = SIZES) -> Iterator[Row]:
    """Each measure beside plain torch; counterfactuals of a softmax gate beside those of an entmax gate."""
    torch.manual_seed(0)
    a = torch.softmax(2 * torch.randn(sizes.samples, sizes.experts), dim=1)
    labels, ids = torch.randint(CLASSES, (sizes.samples,)), torch.arange(sizes.samples) // 4
    recording = Recording.from_coefficients(a, labels=labels, ids=ids)
    ours: dict[str, Callable[[], object]] = {
        "load": lambda: measure_load(recording),
        "histogram": lambda: measure_histogram(recording),
        "co-activation": lambda: measure_coactivation(recording),
        "top samples": lambda: find_top_samples(recording),
        "top experts": lambda: find_top_experts(recording),
        "random samples": lambda: sample_active(recording),
        "samples at quantiles": lambda: sample_active(recording, spread=True),
        "labels": lambda: count_labels(recording),
        "duplicates": lambda: compare_duplicates(recording),
        "two recordings": lambda: compare_recordings(recording, recording),
    }
    plain = plain_measures(a, labels, ids)
    for name, measure in ours.items():
        ratio = measure_ratio(measure, plain[name], effort)
        case = f"{name}, {count(sizes.samples, 'sample')}, {sizes.experts:,} dense experts"
        yield Row(case, "plain torch, one matrix", baseline=True, forward=alone([ratio]))
        yield Row(case, "of a recording", forward=ratio)
    yield from _counterfactuals(effort, sizes)


def plain_measures(a: Tensor, labels: Tensor, ids: Tensor) -> dict[str, Callable[[], object]]:
    """The measures as one writes them for a matrix of coefficients, ``(n, N)``, in memory."""

    def duplicates() -> Tensor:
        known, group, sizes = ids.unique(return_inverse=True, return_counts=True)
        sums = torch.zeros(len(known), a.shape[1]).index_add_(0, group, nn.functional.normalize(a, dim=1))
        return (sums.square().sum(dim=1) - sizes) / (sizes * (sizes - 1))

    def coactivation() -> Tensor:
        active = (a > 0).float()
        return active.T @ active

    def by_label() -> tuple[Tensor, Tensor]:
        members = nn.functional.one_hot(labels).float().T
        return members @ a, members @ (a > 0).float()

    def random_samples() -> Tensor:
        place = torch.randperm(len(a))[:, None]
        return torch.where(a > 0, place, len(a)).topk(10, dim=0, largest=False).indices

    def quantiles() -> Tensor:
        return a.sort(dim=0, descending=True).indices[((torch.arange(10) + 0.5) * (len(a) / 10)).long()]

    return {
        "load": lambda: ((a >= 0.5).sum(dim=0), a.mean(dim=0), a.amax(dim=0)),
        "histogram": lambda: (torch.histc(a, 50, 0, 1), torch.histc(a.amax(dim=1), 50, 0, 1)),
        "co-activation": coactivation,
        "top samples": lambda: a.topk(10, dim=0),
        "top experts": lambda: a.topk(5, dim=1),
        "random samples": random_samples,
        "samples at quantiles": quantiles,
        "labels": by_label,
        "duplicates": duplicates,
        "two recordings": lambda: nn.functional.cosine_similarity(a, a),
    }


def _counterfactuals(effort: Effort, sizes: Sizes) -> Iterator[Row]:
    """All experts of a last layer taken out, with a gate that uses all of them and one that uses a few."""
    inputs, labels = torch.randn(sizes.images, 784), torch.randint(CLASSES, (sizes.images,))
    batches = list(zip(inputs.split(500), labels.split(500), strict=True))
    models = {gate: _classifier(gate, sizes.taken_out) for gate in ("entmax15", "softmax")}
    with torch.no_grad():
        used = {name: float((m[2].gate(m[:2](inputs))[0] != 0).sum(1).double().mean()) for name, m in models.items()}
    ratio = measure_ratio(
        lambda: counterfactuals(models["softmax"], batches),
        lambda: counterfactuals(models["entmax15"], batches),
        effort,
    )
    case = f"counterfactuals of {count(sizes.taken_out, 'expert')}, {count(sizes.images, 'input')}"
    yield Row(case, f"entmax, {used['entmax15']:.1f} experts an input", baseline=True, forward=alone([ratio]))
    yield Row(case, f"softmax, {used['softmax']:.1f} experts an input", forward=ratio)


def _classifier(gate: str, experts: int) -> nn.Sequential:
    torch.manual_seed(0)
    layer = MuMoE(128, CLASSES, [experts], "cp", 32, gate=gate, gate_norm="layer")
    nn.init.normal_(layer.gate.get_parameter("projection.weight"), std=0.25)
    return nn.Sequential(nn.Linear(784, 128), nn.GELU(), layer).eval()


def _streamed(samples: int, experts: int, folder: Path) -> None:
    """Record so many samples of a softmax gate and measure them, printing what each measure took."""
    torch.manual_seed(0)
    layer = MuMoE(64, 8, [experts], rank=4, gate="softmax", gate_norm="layer").eval()
    nn.init.normal_(layer.gate.get_parameter("projection.weight"), std=0.3)
    begun = time.perf_counter()
    with torch.no_grad(), record(layer, folder=folder) as log:
        while log.num_samples < samples:
            some = torch.arange(log.num_samples, min(log.num_samples + 4096, samples))
            layer(torch.randn(len(some), 64))
            log.annotate(labels=some % CLASSES, ids=some // 2)
    recording = open_recording(folder)
    print(f"recorded {recording!r}: {time.perf_counter() - begun:.1f} s, {recording.num_bytes / 2**30:.2f} GiB")
    measures: dict[str, Callable[[], object]] = {
        "load": lambda: measure_load(recording),
        "histogram": lambda: measure_histogram(recording),
        "co-activation": lambda: measure_coactivation(recording),
        "top samples": lambda: find_top_samples(recording),
        "top experts": lambda: find_top_experts(recording),
        "random samples": lambda: sample_active(recording),
        "samples at quantiles": lambda: sample_active(recording, spread=True),
        "labels": lambda: measure_label_specialisation(count_labels(recording)),
        "duplicates": lambda: compare_duplicates(recording),
        "two recordings": lambda: compare_recordings(recording, recording),
        "load of means over duplicates": lambda: measure_load(recording.mean_by_id()),
        "load of a selection": lambda: measure_load(recording.select(recording.labels < 5)),
        "a report's summary": lambda: LayerSummary.from_recording(recording),
    }
    for title, measure in measures.items():
        seconds, grown = _watched(measure)
        print(f"  {title}: {seconds:.1f} s, {grown / 2**20:.0f} MiB above the process's own", flush=True)


def _watched(call: Callable[[], object]) -> tuple[float, int]:
    """The seconds of a call, and by how many bytes the process grew in it at most, looked at every 5 ms."""
    gc.collect()
    own, done, most = _resident(), threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.005):
            most[0] = max(most[0], _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun = time.perf_counter()
    call()
    seconds = time.perf_counter() - begun
    done.set()
    watcher.join()
    return seconds, max(0, most[0] - own)


def _resident() -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if "VmRSS" in line]
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        _streamed(SIZES.long, SIZES.experts, Path(scratch) / "run")
