"""The study's command: ``python -m studies training_defaults [--quick] [--stage NAME] [--only PROBLEM ..]``.

Every finished run is a line of a file, so a stopped command goes on where it was. The page is written anew at the end
from what the file holds; ``--page`` writes it without any run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe._writing import write_files
from factorized_moe.gating import ExpertGate
from factorized_moe.interpret import watch_usage
from studies.common.command import command_of, folder_of
from studies.common.problems import PROBLEMS
from studies.common.runs import finish, read
from studies.common.training import evaluate, train
from studies.training_defaults.contenders import (
    BALANCING,
    CONFIRM,
    FORMS,
    QUICK,
    RATE_SEED,
    SCREEN,
    Contender,
    Stage,
    form_of,
)
from studies.training_defaults.page import page

__all__ = ["main", "run"]

NAME = "training-defaults"
WATCHED = (1, 5, 50)
"""Steps at which the use of experts is measured, beside the last."""
WATCHED_SAMPLES = 64
KEPT = ("mode", "in_use", "perplexity", "mutual_information")
"""What a run's line holds of each mode; a layer's modes follow one another."""


def run(settings: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
    """Train one contender on one problem, and measure it.

    Args:
        settings: As `Stage.settings` gives them.
        stage: The stage, for its sizes.
    """
    size = stage.sizes[settings["problem"]]
    contender = Contender(settings["init"], settings["gate"])
    torch.manual_seed(settings["seed"])
    generator = torch.Generator().manual_seed(1000 + settings["seed"])
    form = form_of(contender, tuple(settings["expert_dims"]), settings["decomposition"])
    problem = PROBLEMS[settings["problem"]](size, form, generator)
    model = problem.model
    half = slice(None, None, 2) if settings["seed"] == RATE_SEED else slice(1, None, 2)  # rates are chosen on the other
    x, labels = (part[half] for part in problem.held_out)
    usage: dict[str, list[dict[str, Any]]] = {}

    def watch(step: int) -> None:
        if form.expert_dims and (step in WATCHED or step == size.steps):
            usage[str(step)] = _usage(model, x[:WATCHED_SAMPLES])

    with _balancing(model, contender.gate == BALANCING) as extra_loss:
        train(model, problem.batch, size.steps, settings["learning_rate"], extra_loss=extra_loss, after_step=watch)
    loss, accuracy = evaluate(model.eval(), x, labels)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"loss": loss, "accuracy": accuracy, "parameters": parameters, "usage": usage}


def _usage(model: nn.Module, x: Tensor) -> list[dict[str, Any]]:
    """How the experts take part on held-out samples, normalised as in training where the gate reads the batch."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with watch_usage(model) as watcher, torch.no_grad():
        model(x)
    model.load_state_dict(state)  # running averages as they were
    return [{key: _rounded(mode.to_record()[key]) for key in KEPT} for mode in watcher.usage]


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


@contextmanager
def _balancing(model: nn.Module, wanted: bool) -> Iterator[Callable[[], Tensor] | None]:
    """A term that is least where all experts have equal means, 0.01 times; nothing if it is not wanted."""
    if not wanted:
        yield None
        return
    terms: list[Tensor] = []

    def add(_module: nn.Module, _arguments: Any, coefficients: tuple[Tensor, ...]) -> None:
        terms.extend(a.flatten(0, -2).mean(dim=0).square().sum() * a.shape[-1] for a in coefficients)

    def total() -> Tensor:
        found = 0.01 * torch.stack(terms).sum()
        terms.clear()
        return found

    handles = [gate.register_forward_hook(add) for gate in model.modules() if isinstance(gate, ExpertGate)]
    yield total
    for handle in handles:
        handle.remove()


def main(arguments: list[str] | None = None) -> None:
    """Do what is missing, and write the page.

    Args:
        arguments: Those of the command line.
    """
    parser = command_of("training_defaults", __doc__, only=sorted(PROBLEMS))
    parser.add_argument("--stage", choices=["screen", "confirm", "forms"], help="one stage only")
    parser.add_argument("--seeds", type=int, nargs="+", help="some seeds only")
    options = parser.parse_args(arguments)
    out = folder_of(options)
    stages = [QUICK] if options.quick else [s for s in (SCREEN, CONFIRM, FORMS) if options.stage in (None, s.name)]
    file = out / f"{NAME}.jsonl"
    torch.set_num_threads(1)
    for stage in [] if options.page else stages:
        for problem in options.only or stage.sizes:
            _finish(file, stage, problem, options.seeds)
    write_files(out, {f"{NAME}.md": page(read(file)).encode()})


def _finish(file: Path, stage: Stage, problem: str, seeds: list[int] | None) -> None:
    """The runs of one problem: the learning rates of each contender first, then its seeds with the best of them."""
    cells = list(stage.cells(problem))
    rates = stage.rates[problem]
    best = dict.fromkeys((contender for contender, _, _ in cells), rates[0])
    for contender in best if len(rates) > 1 else ():
        first = next(cell for cell in cells if cell[0] == contender)
        tried = finish(
            file,
            [stage.settings(problem, first, RATE_SEED, rate) for rate in rates],
            lambda settings: run(settings, stage),
        )
        best[contender] = min(tried, key=lambda entry: entry["result"]["loss"])["settings"]["learning_rate"]
    for seed in seeds or stage.seeds[problem]:
        wanted = [stage.settings(problem, cell, seed, best[cell[0]]) for cell in cells]
        finish(file, wanted, lambda settings: run(settings, stage))
