"""Twenty kills of a real process at random moments, for each recipe: the end is that of a run that was never killed."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.checkpoints import BEST, LAST
from tests.recipes.small_runs import (
    assert_equal,
    gpt_options,
    head_options,
    mixer_options,
    parameters,
    run_gpt,
    run_head,
    run_mixer,
    write_images,
    write_lines,
    write_text,
)

KILLS = 20
LONGER = {"steps": 150, "checkpoint_every": 3, "evaluate_every": 7}


def start(run: Callable[[Any], float], options: Any) -> Any:
    """The run in a process of its own."""

    def work() -> None:
        torch.set_num_threads(1)  # threads of the forked process do not exist here
        try:
            run(options)
        finally:
            os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    process.start()
    return process


def kill_often(run: Callable[[Any], float], options: Any, seconds: float) -> int:
    """Kill the run twenty times, each time so soon that the kills spread over it; how many found it training."""
    draw, killed, training = random.Random(0), 0, 0
    while killed < KILLS:
        process = start(run, options)
        time.sleep(draw.uniform(0.2, seconds / 4))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
            training += not (options.out / "results.json").exists()
        process.join()
    return training


def make_gpt(folder: Path, out: Path) -> Any:
    if not (folder / "text").exists():
        write_text(folder / "text")
    return gpt_options(folder, out, dropout=0.1, **LONGER)


def make_mixer(folder: Path, out: Path) -> Any:
    if not (folder / "images").exists():
        write_images(folder / "images")
    return mixer_options(folder / "images", out, **LONGER)


def make_head(folder: Path, out: Path) -> Any:
    if not (folder / "lines.tsv").exists():
        write_lines(folder / "lines.tsv")
    return head_options(folder / "lines.tsv", out, **LONGER)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "run"), [(make_gpt, run_gpt), (make_mixer, run_mixer), (make_head, run_head)])
def test_twenty_kills_leave_no_trace(make: Any, run: Any, tmp_path: Path) -> None:
    whole, options = make(tmp_path, tmp_path / "whole"), make(tmp_path, tmp_path / "killed")
    begun = time.perf_counter()
    start(run, whole).join()
    training = kill_often(run, options, time.perf_counter() - begun)
    start(run, options).join()
    for file in (LAST, BEST):
        assert_equal(parameters(options.out, file), parameters(whole.out, file))
    kept = [
        [line.partition("_per_second")[0] for line in (place.out / "log.jsonl").read_text().splitlines()]
        for place in (whole, options)
    ]
    assert kept[0] == kept[1]
    assert training >= 10  # kills that found it before its end
