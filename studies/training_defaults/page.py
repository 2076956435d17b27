"""The page of the study: every sentence of result is made from the runs.

Legend: a *cell* is a problem with its expert modes; within one, contenders are compared seed by seed.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from studies.common.paired import Difference, paired
from studies.training_defaults.contenders import CONFIRM, DEFAULT, DENSE, RATE_SEED, SCREEN, Contender, Stage

__all__ = ["page"]

Losses = dict[tuple[str, tuple[int, ...]], dict[Contender, dict[int, Mapping[str, Any]]]]
NOISE = 0.028
"""Two standard errors of an accuracy of 0.62 on the 1,195 glosses that are reported on."""
TITLES = {"gpt": "GPT, held-out loss", "mixer": "Mixer, test loss", "head": "head of many classes, test loss"}


def page(runs: Sequence[Mapping[str, Any]]) -> str:
    """The page in Markdown.

    Args:
        runs: What `studies.common.runs.read` gives.
    """
    confirmed, screened = _cells(runs, CONFIRM.name), _cells(runs, SCREEN.name)
    seconds = sum(entry.get("seconds", 0.0) for entry in runs)
    lines = [
        "# Which defaults train",
        "",
        "Small models are trained at equal parameters, the gate counted, with experts in every MLP (GPT, Mixer) or in",
        "the head; contenders of one seed see the same batches. Lower loss is better; `±` is the standard error of",
        "paired differences. Within two of them is a tie; with three seeds that calls differences real too easily (a",
        "test at 5% would ask for 4.3).",
        "",
        *_results(confirmed, screened),
        "",
        *_confirm_tables(confirmed),
        *_screen_tables(screened),
        "## Rules",
        "",
        "- AdamW, weight decay 0.01, 5% warm-up, then half a cosine to zero, gradients clipped at 1; float32.",
        "- *Regret* is the share of predictions that a contender loses to the best of its cell under which every mode",
        "  learns. A contender that leaves a mode dead cannot be the default, whatever its loss. Of those whose worst",
        f"  regret is within {NOISE:g} of the smallest (two standard errors of the head's accuracy) the default is",
        "  the one that keeps most experts in use. It replaced regret in loss after the screening was seen, because",
        "  the head's loss grows where its accuracy does not; the band is of one unpaired accuracy, not paired.",
        f"- Learning rate of the first tables: the best of {_list(CONFIRM.rates)} for each one, with",
        f"  {_dims(CONFIRM.expert_dims[0])} experts and by seed {RATE_SEED} on the half of the held-out samples that",
        f"  is not reported; of the screening {_list(SCREEN.rates)} for all.",
        *(f"- {_size(CONFIRM, name)}; in the screening {_size(SCREEN, name)}." for name in TITLES),
        "- The GPT reads the bytes of Python's standard library, the Mixer Fashion-MNIST, the head sentence embeddings",
        "  of WordNet's noun glosses, to be sorted by the concept above them.",
        "- An expert is *in use* if the standard deviation of its coefficient over inputs is above 0.01 and its mean",
        "  above a tenth of the uniform one.",
        "- The old defaults are the paper's initialisation with the layer gate (configs for pretrained models) or the",
        "  batch gate (layers).",
        "",
        "## What this cannot show",
        "",
        "Sizes above these, longer training, several processes, GPUs. The models are undertrained, and the differences",
        "from the dense model hold for short runs only. All forms are CP. No gate that reads no batch was run at the",
        "larger size, so whether one does as well as the batch norm is open; the screening has one learning rate.",
        "",
        f"Command: `python -m studies training_defaults`; the {len(runs)} runs of this page took {seconds / 60:.0f}",
        "minutes, one thread each. A stopped command goes on where it was.",
        "Runs: [training-defaults.jsonl](training-defaults.jsonl).",
        "",
    ]
    return "\n".join(lines)


def _cells(runs: Sequence[Mapping[str, Any]], stage: str) -> Losses:
    found: Losses = defaultdict(lambda: defaultdict(dict))
    for entry in runs:
        settings = entry["settings"]
        if settings["stage"] == stage and settings["seed"] != RATE_SEED:
            key = settings["problem"], tuple(settings["expert_dims"])
            found[key][Contender(settings["init"], settings["gate"])][settings["seed"]] = entry["result"]
    return found


def _difference(cells: Losses, key: Any, one: Contender, other: Contender, measure: str = "loss") -> Difference | None:
    """Over the seeds that both have; the dense model is in a cell of its own."""
    first, second = (cells[(key[0], ()) if who == DENSE else key].get(who, {}) for who in (one, other))
    seeds = sorted(first.keys() & second.keys())
    return paired([first[s][measure] for s in seeds], [second[s][measure] for s in seeds]) if seeds else None


def _worst_regret(cells: Losses, contender: Contender) -> tuple[float, str] | None:
    """The largest share of predictions lost to a cell's best contender under which every mode learns, and the cell."""
    regrets = []
    for key in cells:
        found = cells[key].get(contender)
        if key[1] and found:
            best = max(_accuracy(results) for who, results in cells[key].items() if _learns(cells, who))
            regrets.append((best - _accuracy(found), f"{key[0]} {_dims(key[1])}"))
    return max(regrets) if regrets else None


def _by_loss(cells: Losses) -> list[tuple[float, Contender]]:
    """The rule that was set before the runs: the worst mean difference in loss, under which every mode learns."""
    found: dict[Contender, list[float]] = defaultdict(list)
    for key in cells:
        means = {
            who: statistics.fmean(result["loss"] for result in results.values())
            for who, results in cells[key].items()
            if key[1] and results and _learns(cells, who)
        }
        for who, mean in means.items():
            found[who].append(mean - min(means.values()))
    most = max(map(len, found.values()), default=0)
    return sorted(
        ((max(regrets), who) for who, regrets in found.items() if len(regrets) == most), key=lambda one: one[0]
    )


def _accuracy(results: Mapping[int, Mapping[str, Any]]) -> float:
    return statistics.fmean(result["accuracy"] for result in results.values())


def _learns(cells: Losses, who: Contender) -> bool:
    """Whether no mode is dead at the end of any run."""
    return all(in_use > 0.0 for key in cells if key[1] for in_use, _ in _in_use(cells, key, who))


def _share_in_use(cells: Losses, who: Contender) -> float:
    modes = [mode for key in cells if key[1] for mode in _in_use(cells, key, who)]
    return statistics.fmean(in_use / experts for in_use, experts in modes) if modes else 0.0


def _results(confirmed: Losses, screened: Losses) -> list[str]:
    lines = []
    for other in CONFIRM.contenders:
        if other == DEFAULT:
            continue
        found = [d for key in confirmed if key[1] and (d := _difference(confirmed, key, DEFAULT, other)) is not None]
        lines.append(
            f"- {DEFAULT} (the default) against {other} (an old one): lower loss in "
            f"{sum(d.mean < 0 and not d.is_tie for d in found)} of {len(found)} cells, higher in "
            f"{sum(d.mean > 0 and not d.is_tie for d in found)}, ties in {sum(d.is_tie for d in found)}."
        )
    for problem in TITLES:
        found = [
            (key, d)
            for key in confirmed
            if key[0] == problem and key[1] and (d := _difference(confirmed, key, DEFAULT, DENSE)) is not None
        ]
        if found:
            parts = ", ".join(f"{_dims(key[1])} {d}" for key, d in found)
            lines.append(f"- {problem}: the default less the dense model of equal parameters: {parts}.")
    for who in CONFIRM.contenders:
        modes = [mode for key in confirmed if key[1] for mode in _in_use(confirmed, key, who)]
        if modes:
            dead = sum(in_use == 0.0 for in_use, _ in modes)
            share = statistics.fmean(in_use / experts for in_use, experts in modes)
            lines.append(f"- {who}: {dead} of {len(modes)} modes dead at the end, {share:.0%} of all experts in use.")
    ranked = [(regret[0], who) for regret, who in _ranking(screened) if _learns(screened, who)]
    if ranked:
        ties = [who for regret, who in ranked if regret <= ranked[0][0] + NOISE]
        chosen = max(ties, key=lambda who: _share_in_use(screened, who))
        lines.append(
            f"- Screening: {len(ties)} contenders are within noise of the smallest worst regret, {ranked[0][0]:.3f} "
            f"({ranked[0][1]}); most experts are in use under {chosen}, {_share_in_use(screened, chosen):.0%}."
        )
        by_loss = _by_loss(screened)
        place = next((n for n, (_, who) in enumerate(by_loss, 1) if who == DEFAULT), None)
        if place is not None:
            lines.append(
                "- **That rule was set after the data were seen.** The one set before, the smallest worst regret in "
                f"loss, picks {by_loss[0][1]} ({by_loss[0][0]:.3f}); {DEFAULT} is number {place} of {len(by_loss)} "
                f"by it ({by_loss[place - 1][0]:.3f}). So the gate is a choice, not a result."
            )
    return lines or ["No runs yet."]


def _in_use(cells: Losses, key: Any, who: Contender) -> list[tuple[float, int]]:
    """For each mode of a cell the experts in use at the end, a mean over layers and seeds, and how many there are."""
    totals: dict[int, list[int]] = defaultdict(list)
    for result in cells[key].get(who, {}).values():
        for mode in result["usage"][max(result["usage"], key=int)] if result["usage"] else []:
            totals[mode["mode"]].append(mode["in_use"])
    return [(statistics.fmean(values), key[1][mode]) for mode, values in sorted(totals.items())]


def _confirm_tables(cells: Losses) -> list[str]:
    lines = []
    for problem, title in TITLES.items():
        keys = [key for key in cells if key[0] == problem and key[1]]
        if not keys:
            continue
        lines += [
            f"## {title[0].upper()}{title[1:]}",
            "",
            "| experts | contender | parameters | loss, mean ± sd | accuracy | less dense | default less this "
            "| in use at step 1, 5, 50, end (each mode) |",
            "|---|---|---:|---|---:|---|---|---|",
        ]
        rows = [((problem, ()), DENSE)] if (problem, ()) in cells else []
        rows += [(key, who) for key in keys for who in CONFIRM.contenders if who in cells[key]]
        lines += [_confirm_row(cells, key, who) for key, who in rows]
        lines.append("")
    return lines


def _confirm_row(cells: Losses, key: Any, who: Contender) -> str:
    results = list(cells[key][who].values())
    accuracy = statistics.fmean(r["accuracy"] for r in results)
    less_dense = "" if who == DENSE else _difference(cells, key, who, DENSE) or ""
    default = "" if who in (DENSE, DEFAULT) else _difference(cells, key, DEFAULT, who) or ""
    cell = f"| {_dims(key[1]) or '-'} | {who} | {results[0]['parameters']:,} | {_spread(results)} | {accuracy:.3f} "
    return cell + f"| {less_dense} | {default} | {_use_over_time(results)} |"


def _use_over_time(results: Sequence[Mapping[str, Any]]) -> str:
    if not results[0]["usage"]:
        return "-"
    parts = []
    for step in sorted(results[0]["usage"], key=int):
        by_mode: dict[int, list[int]] = defaultdict(list)
        for result in results:
            for mode in result["usage"].get(step, []):
                by_mode[mode["mode"]].append(mode["in_use"])
        parts.append("/".join(f"{statistics.fmean(values):.0f}" for _, values in sorted(by_mode.items())))
    return ", ".join(parts)


def _ranking(cells: Losses) -> list[tuple[tuple[float, str], Contender]]:
    contenders = list(dict.fromkeys(who for key in cells if key[1] for who in cells[key]))
    found = [(regret, who) for who in contenders if (regret := _worst_regret(cells, who)) is not None]
    most = max((_runs(cells, who) for who in contenders), default=0)
    return sorted(
        found, key=lambda pair: (not _learns(cells, pair[1]), _runs(cells, pair[1]) < most, pair[0][0])
    )  # those with gaps last


def _runs(cells: Losses, who: Contender) -> int:
    """In how many cells a contender was run."""
    return sum(bool(key[1]) and bool(cells[key].get(who)) for key in cells)


def _screen_tables(cells: Losses) -> list[str]:
    ranked = _ranking(cells)
    if not ranked:
        return []
    keys = [key for key in cells if key[1]]
    lines = [
        "## Screening: what was tried",
        "",
        "Worst regret is in accuracy (see the rules). The cells hold the mean difference in loss from the cell's best,",
        "paired by seed; an empty one was not run. What is no name of the library is a small module in",
        "`studies/training_defaults/gates.py`.",
        f"Seeds: {_seeds(cells)}; with one seed, differences below 0.06 on the GPT and 0.02 on the Mixer mean nothing.",
        "",
        "| initialisation, gate | worst regret | in use | " + " | ".join(f"{k[0]} {_dims(k[1])}" for k in keys) + " |",
        "|---|---:|---:|" + "---:|" * len(keys),
    ]
    for (regret, _), who in ranked:
        values = []
        for key in keys:
            best = min(cells[key], key=lambda one: statistics.fmean(r["loss"] for r in cells[key][one].values()))
            values.append(f"{difference.mean:.3f}" if (difference := _difference(cells, key, who, best)) else "")
        told = f"{regret:.3f}" if _learns(cells, who) else "a dead mode"
        lines.append(f"| {who} | {told} | {_share_in_use(cells, who):.0%} | " + " | ".join(values) + " |")
    return [*lines, ""]


def _seeds(cells: Losses) -> str:
    return _list(sorted({seed for found in cells.values() for results in found.values() for seed in results}))


def _spread(results: Sequence[Mapping[str, Any]]) -> str:
    losses = [r["loss"] for r in results]
    return f"{statistics.fmean(losses):.3f} ± {statistics.stdev(losses):.3f}" if len(losses) > 1 else f"{losses[0]:.3f}"


def _dims(dims: Sequence[int]) -> str:
    return " x ".join(map(str, dims))


def _list(values: Sequence[float]) -> str:
    return " and ".join(f"{value:g}" for value in values)


def _size(stage: Stage, problem: str) -> str:
    size = stage.sizes[problem]
    shape = f"{size.layers} blocks of {size.features} features, " if size.layers else ""
    samples = f"{size.batch} sequences of {size.tokens} tokens" if problem == "gpt" else f"{size.batch} samples"
    return f"{problem}: {shape}{size.steps} steps of {samples}"
