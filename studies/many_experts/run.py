"""The study's command: ``python -m studies many_experts [--quick] [--page]``; two hours on one core.

Every finished run is a line of a file, so a stopped command goes on where it was. The page is written anew at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from factorized_moe._writing import write_files
from factorized_moe.interpret import measure_usage
from studies.common.command import command_of, folder_of
from studies.common.problems import PROBLEMS, Size
from studies.common.runs import finish, read
from studies.common.training import evaluate, train
from studies.many_experts.contenders import DENSE, PROBLEM_SIZES, PRODUCT_KEYS, QUICK_SIZES, GateForm, cells
from studies.many_experts.page import page

__all__ = ["main", "run"]

NAME = "many-experts"
RATES = (1e-3, 3e-3, 1e-2)
RATE_SEED = 100
"""Learning rates are chosen with this seed, on the half of the held-out samples that is not reported."""
SEEDS = (0, 1, 2, 3, 4, 5)
WATCHED_SAMPLES = 64


def run(settings: Mapping[str, Any], sizes: Mapping[str, Size]) -> dict[str, Any]:
    """Train one contender on one problem, and measure it.

    Args:
        settings: As a line of the file holds them.
        sizes: How large each problem's model is.
    """
    torch.manual_seed(settings["seed"])
    generator = torch.Generator().manual_seed(1000 + settings["seed"])
    size = sizes[settings["problem"]]
    form = GateForm.of(settings["contender"], tuple(settings["expert_dims"]))
    problem = PROBLEMS[settings["problem"]](size, form, generator)
    half = slice(None, None, 2) if settings["seed"] == RATE_SEED else slice(1, None, 2)
    x, labels = (part[half] for part in problem.held_out)
    train(problem.model, problem.batch, size.steps, settings["learning_rate"])
    loss, accuracy = evaluate(problem.model.eval(), x, labels)
    mlp = sum(p.numel() for p in problem.model.blocks[0].mlp.parameters())
    usage = []
    if settings["contender"] not in (DENSE, PRODUCT_KEYS):
        usage = [[mode.num_in_use, mode.num_experts] for mode in measure_usage(problem.model, x[:WATCHED_SAMPLES])]
    return {"loss": loss, "accuracy": accuracy, "mlp_parameters": mlp, "in_use": usage}


def main(arguments: list[str] | None = None) -> None:
    """Do what is missing, and write the page.

    Args:
        arguments: Those of the command line.
    """
    parser = command_of("many_experts", __doc__, only=sorted(PROBLEM_SIZES))
    options = parser.parse_args(arguments)
    out = folder_of(options)
    sizes = QUICK_SIZES if options.quick else PROBLEM_SIZES
    file = out / f"{NAME}.jsonl"
    torch.set_num_threads(1)
    for problem in [] if options.page else options.only or sizes:
        best: dict[str, float] = {}
        for contender, dims in cells():
            wanted = {"problem": problem, "contender": contender, "expert_dims": list(dims)}
            if contender not in best:
                rates = [{**wanted, "seed": RATE_SEED, "learning_rate": rate} for rate in RATES]
                tried = finish(file, rates[: 1 if options.quick else None], lambda settings: run(settings, sizes))
                best[contender] = min(tried, key=lambda entry: entry["result"]["loss"])["settings"]["learning_rate"]
            seeds = SEEDS[: 1 if options.quick else None]
            runs = [{**wanted, "seed": seed, "learning_rate": best[contender]} for seed in seeds]
            finish(file, runs, lambda settings: run(settings, sizes))
    write_files(out, {f"{NAME}.md": page(read(file)).encode()})
