"""Several ranks on one machine, for tests: processes that `torch.distributed` joins by gloo."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import torch.distributed

__all__ = ["on_ranks"]

T = TypeVar("T")


def on_ranks(ranks: int, work: Callable[[int], T], *, seconds: float = 120.0) -> list[T]:
    """Run a function on several ranks, each a forked process of one thread, in one process group.

    Args:
        ranks: How many.
        work: The function of the rank. It sees all that this process has in memory; what it returns is pickled.
        seconds: After so long a rank that has not answered is stopped.

    Returns:
        What the function returned on each rank.

    Raises:
        AssertionError: If a rank raised an error or did not answer; its traceback is in the message.

    Examples:
        >>> def total(rank):
        ...     value = torch.tensor([rank + 1])
        ...     torch.distributed.all_reduce(value)
        ...     return int(value)
        >>> on_ranks(2, total)
        [3, 3]
    """
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this build of torch has no gloo, so no process group can be had on CPUs")
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork, and ranks are forked so that they see a test's objects")
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of any fork beside threads
        meeting = Path(folder) / "meeting"
        started = []
        for rank in range(ranks):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_answer, args=(theirs, work, rank, ranks, meeting), daemon=True)
            process.start()
            theirs.close()
            started.append((process, ours))
        answers = []
        try:
            for rank, (_, ours) in enumerate(started):
                answers.append(_received(ours, rank, seconds))
        finally:
            for process, ours in started:
                ours.close()
                process.join(5.0)
                if process.is_alive():
                    process.kill()
                    process.join()
    failed = [text for good, text in answers if not good]
    assert not failed, "\n".join(map(str, failed))
    return [value for _, value in answers]


def _received(ours: Connection, rank: int, seconds: float) -> tuple[bool, Any]:
    try:
        if ours.poll(seconds):
            answer: tuple[bool, Any] = ours.recv()
            return answer
    except EOFError:
        return False, f"rank {rank} ended without an answer"
    return False, f"rank {rank} gave no answer in {seconds} seconds"


def _answer(theirs: Connection, work: Callable[[int], Any], rank: int, ranks: int, meeting: Path) -> None:
    torch.set_num_threads(1)  # also because threads of the forked process do not exist here
    try:
        torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
        theirs.send((True, work(rank)))
        torch.distributed.barrier()  # a rank that leaves early would break the others' connections
    except BaseException:  # noqa: BLE001  # whatever it is, the test has to hear of it
        theirs.send((False, f"rank {rank}: {traceback.format_exc()}"))
    finally:
        theirs.close()
        os._exit(0)  # nothing of the forked test run may go on here
