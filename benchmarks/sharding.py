"""A block cut over two ranks of one core each, against one rank of one core: ``python -m benchmarks.sharding``.

Every choice of labels is timed in turn, forward and training, in one run; a figure is the median over rounds of the
time of one rank divided by that of two. Writes ``docs/sharding.md`` and ``docs/sharding.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from benchmarks import machine
from factorized_moe import MuMoEBlock
from factorized_moe._writing import write_files
from factorized_moe.parallel import ShardReport, shard, shards_of
from factorized_moe.parallel.moves import Group, Transfer, move

TOKENS, SIZES, EXPERTS, RANK = 4096, (768, 3072, 768), 256, 544
CHOICES = ("auto", "pair", "each", "rank", "out", "in", "expert_0")
DOCS = Path(__file__).parents[1] / "docs"


def make_block(device: str | None = None) -> MuMoEBlock:
    """The block that is timed."""
    torch.manual_seed(0)
    return MuMoEBlock(*SIZES, [EXPERTS], "cp", RANK, gate="softmax", gate_norm="layer", device=device)


def main() -> None:
    """Time all choices, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--compiled", action="store_true", help="time the cheapest choice compiled too")
    parser.add_argument("--out", type=Path, default=DOCS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        arguments = (str(Path(folder) / "meeting"), str(answer), options.rounds, options.compiled)
        torch.multiprocessing.spawn(time_rank, arguments, nprocs=2)
        found = json.loads(answer.read_text(encoding="utf-8"))
    figures = json.dumps(found, indent=1) + "\n"
    write_files(options.out, {"sharding.json": figures.encode(), "sharding.md": page(found).encode()})


def time_rank(rank: int, meeting: str, answer: str, rounds: int, compiled: bool) -> None:
    """One rank: all choices in turn; the first one writes what it found."""
    torch.set_num_threads(1)
    machine.keep_freed_memory()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    blocks: dict[str, nn.Module] = {"one rank": make_block()}
    for label in CHOICES:
        blocks[label] = make_block()
        shard(blocks[label], mesh, label)
    if compiled:
        for name, label in (("one rank, compiled", None), ("auto, compiled", "auto")):
            made = make_block()
            if label is not None:
                shard(made, mesh, label)
            blocks[name] = torch.compile(made, fullgraph=True)
    x = torch.randn(TOKENS, SIZES[0], requires_grad=True)
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number in range(rounds + 1):
        for name, module in blocks.items():
            for kind, call in (("forward", _forward), ("training", _training)):
                torch.distributed.barrier()
                if rank == 0 or not name.startswith("one rank"):
                    start = time.perf_counter()
                    call(module, x)
                    if number:  # the first round warms up
                        seconds[name][kind].append(time.perf_counter() - start)
    parts = _parts(mesh)
    if rank == 0:
        found = {"seconds": seconds, "parts": parts, "torch": torch.__version__, "rounds": rounds}
        Path(answer).write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _forward(module: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        module(x)


def _training(module: nn.Module, x: torch.Tensor) -> None:
    module.zero_grad()
    module(x).square().mean().backward()


def _parts(mesh: Any) -> dict[str, float]:
    """Seconds of gloo alone, and of the same block with hardly any numbers: what is not products."""
    group = Group(mesh.get_group().group_name, 2, mesh.get_local_rank())
    value = torch.randn(TOKENS, SIZES[2])
    small = MuMoEBlock(8, 16, 8, [4], "cp", 4, gate="softmax", gate_norm="layer")
    sharded = MuMoEBlock(8, 16, 8, [4], "cp", 4, gate="softmax", gate_norm="layer")
    shard(sharded, mesh, "rank")
    x = torch.randn(4, 8)
    calls: dict[str, Callable[[], object]] = {
        "all-reduce of the output, 12.6 MB": lambda: move(value, Transfer("all_reduce"), Transfer("keep"), group),
        "a tiny block, whole": lambda: small(x),
        "a tiny block, sharded": lambda: sharded(x),
    }
    return {name: _median(call) for name, call in calls.items()}


def _median(call: Callable[[], object]) -> float:
    found = []
    for _ in range(8):
        torch.distributed.barrier()
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def page(found: dict[str, Any]) -> str:
    """The page, from what was measured."""
    seconds = found["seconds"]
    gains = {name: _gains(seconds, name) for name in seconds}
    labels = [name for name in seconds if not name.startswith("one rank") and not name.endswith("compiled")]
    best = max(labels, key=lambda name: gains[name][1])
    lines = [
        "# Sharding, measured",
        "",
        f"- Cut as `auto` chooses, a forward pass on two ranks is {gains['auto'][0]:.2f} times as fast as on one, and "
        f"training {gains['auto'][1]:.2f} times.",
        f"- The fastest in training of the {len(labels)} ways to cut is `{best}`, {gains[best][1]:.2f} times as fast.",
        "",
        f"A block of {SIZES[0]} to {SIZES[1]} to {SIZES[2]} features with {EXPERTS} experts, CP of rank {RANK}, "
        f"{TOKENS:,} tokens, float32: two gloo ranks of one core each against one rank of one core, on one machine,",
        f"in turn, the median of {found['rounds']} rounds, torch {found['torch'].partition('+')[0]}. Written by "
        "`python -m benchmarks.sharding --compiled`. Nothing was run on GPUs or over a network.",
        "",
        "| label | forward | training | times faster, forward | training | estimated ms | bytes forward | backward |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, times in seconds.items():
        medians = [statistics.median(times[kind]) for kind in ("forward", "training")]
        report = None if name.startswith("one rank") else shards_of(make_block("meta"), 2, name.partition(",")[0])
        cells = [f"{value * 1e3:.0f} ms" for value in medians]
        cells += ["", ""] if report is None else [f"{ratio:.2f}" for ratio in gains[name]]
        cells += ["", "", ""] if report is None else _predicted(report)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "Where the time of a forward pass goes (no value is a DTensor inside a call, so nothing is dispatched):",
    ]
    lines += ["", "| part | time |", "|---|---|"]
    half, whole = (
        statistics.median(seconds[name]["forward"]) / share for name, share in (("one rank", 2), ("auto", 1))
    )
    reduced = next(iter(found["parts"].values()))
    parts = {
        "products: half of one rank's": half,
        **found["parts"],
        "auto, less that half and the all-reduce": whole - half - reduced,
    }
    lines += [f"| {name} | {value * 1e3:.2f} ms |" for name, value in parts.items()]
    return "\n".join(lines) + "\n"


def _gains(seconds: dict[str, Any], name: str) -> list[float]:
    """How many times faster than one rank, forward and in training."""
    base, times = seconds["one rank, compiled" if name.endswith("compiled") else "one rank"], seconds[name]
    return [
        statistics.median(a / b for a, b in zip(base[kind], times[kind], strict=True))
        for kind in ("forward", "training")
    ]


def _predicted(report: ShardReport) -> list[str]:
    estimate = sum(choice.split.seconds(report.machine) for choice in report.choices)
    return [f"{estimate * 1e3:.0f}", *(f"{count:,}" for count in report.bytes_sent)]


if __name__ == "__main__":
    main()
