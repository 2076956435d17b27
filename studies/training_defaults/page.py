"""The page of the study: every sentence of result is made from the runs."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from studies.training_defaults.contenders import (
    CONFIRM,
    DEFAULT,
    DENSE,
    FORMS,
    OLD_LANGUAGE,
    OLD_VISION,
    RATE_SEED,
    SCREEN,
    Contender,
    Stage,
)
from studies.training_defaults.rule import (
    Cells,
    cells_of,
    choose,
    difference,
    in_use,
    learns,
    ranking,
    share_in_use,
    worst_regret,
)

__all__ = ["page"]

TITLES = {"gpt": "GPT, held-out loss", "mixer": "Mixer, test loss", "head": "head of many classes, test loss"}


def page(runs: Sequence[Mapping[str, Any]]) -> str:
    """The page in Markdown.

    Args:
        runs: What `studies.common.runs.read` gives.
    """
    confirmed, screened = cells_of(runs, CONFIRM.name), cells_of(runs, SCREEN.name)
    seconds = sum(entry.get("seconds", 0.0) for entry in runs)
    lines = [
        "# Which defaults train",
        "",
        "Small models are trained at equal parameters, the gate counted, with experts in every MLP (GPT, Mixer) or in",
        "the head; contenders of one seed see the same batches. Lower loss is better; `±` is the standard error of",
        "paired differences. Within two of them is a tie; with three or four seeds that calls differences real too",
        "easily (a test at 5% would ask for 4.3 or 3.2). A contender is an initialisation and a gate; *half* is a",
        "temperature of 2.",
        "",
        *_results(confirmed),
        "",
        *_rule_table(confirmed),
        *_confirm_tables(confirmed),
        *_form_tables(runs),
        *_screen_tables(screened),
        "## Rules",
        "",
        "- *Regret* is the mean difference in loss from the best contender for a problem and expert modes, paired by",
        "  seed. The default is the contender with the smallest worst regret; those within two standard errors of it",
        "  tie, and ties go to the simplest gate. Who leaves a mode dead cannot be the default, whatever its loss.",
        "- The screening sends to the larger models the best two gates that read no batch, and the best one that reads",
        "  it, by the same rule. Both were written down before seed 1 of the screening was looked at.",
        "- *Half*: a temperature of 2, by which the normalised logits are divided before entmax. It was added after",
        "  the first seed of the screening, because *unit rows, half* did well on the head.",
        "- Seeds of the larger models: "
        + ", ".join(f"{len(seeds)} ({name})" for name, seeds in CONFIRM.seeds.items())
        + ".",
        "  After three of each, *unit rows* was a tie by the rule; more were run, under the rule as it stood.",
        "- AdamW, weight decay 0.01, 5% warm-up, then half a cosine to zero, gradients clipped at 1; float32.",
        "- Learning rate of the larger models: the best for each contender of "
        + ", ".join(f"{_list(rates)} ({problem})" for problem, rates in CONFIRM.rates.items())
        + ",",
        f"  with {_dims(CONFIRM.expert_dims[0])} experts and by seed {RATE_SEED} on the half of the held-out samples",
        f"  that is not reported; of all others {_list(SCREEN.rates['gpt'])}.",
        *(f"- {_size(CONFIRM, name)}; in the screening {_size(SCREEN, name)}." for name in TITLES),
        "- The GPT reads the bytes of Python's standard library, the Mixer Fashion-MNIST, the head sentence embeddings",
        "  of WordNet's noun glosses, to be sorted by the concept above them.",
        "- An expert is *in use* if the standard deviation of its coefficient over inputs is above 0.01 and its mean",
        "  above a tenth of the uniform one. *Perplexity* is that of the mean coefficients, *information* the mutual",
        "  information of input and expert in bits.",
        "- The old defaults are the paper's initialisation with the layer gate (configs for pretrained models) or the",
        "  batch gate (layers).",
        "",
        "## What this cannot show",
        "",
        "Sizes above these, longer training, several processes, GPUs. The models are undertrained, and the differences",
        "from the dense model hold for short runs only. The learning rates are few, and the screening has one.",
        "",
        f"Command: `python -m studies training_defaults`; the {len(runs)} runs of this page took {seconds / 60:.0f}",
        "minutes, one thread each. A stopped command goes on where it was.",
        "Runs: [training-defaults.jsonl](training-defaults.jsonl).",
        "",
    ]
    return "\n".join(lines)


def _results(confirmed: Cells) -> list[str]:
    lines = []
    if (chosen := choose(confirmed)) is not None:
        winner, ties = chosen
        regret = worst_regret(confirmed, winner)
        assert regret is not None  # it was chosen by it
        lines.append(
            f"- **The rule chooses {winner}** (worst regret {regret[0].mean:.3f}, {regret[1]}; "
            f"{'alone' if len(ties) == 1 else f'{len(ties)} tie'}). The library's default is {DEFAULT}."
        )
    for problem in TITLES:
        found = [
            (key, d)
            for key in confirmed
            if key[0] == problem and key[1] and (d := difference(confirmed, key, DEFAULT, DENSE)) is not None
        ]
        if found:
            parts = ", ".join(f"{_dims(key[1])} {d}" for key, d in found)
            lines.append(f"- {problem}: the default less the dense model of equal parameters: {parts}.")
    for other in (OLD_LANGUAGE, OLD_VISION):
        if other in _contenders(confirmed):
            lower, higher, ties_ = _against(confirmed, other)
            dead, modes = _dead(confirmed, other)
            lines.append(
                f"- {other}, an old default: {dead} of {modes} modes dead at the end; loss of the default lower in "
                f"{lower} cells, higher in {higher}, ties in {ties_}."
            )
    return lines or ["No runs yet."]


def _against(cells: Cells, other: Contender) -> tuple[int, int, int]:
    """In how many cells the default's loss is lower, higher, and a tie."""
    found = [d for key in cells if key[1] and (d := difference(cells, key, DEFAULT, other)) is not None]
    lower, higher = (sum(sign * d.mean > 0 and not d.is_tie for d in found) for sign in (-1, 1))
    return lower, higher, len(found) - lower - higher


def _dead(cells: Cells, who: Contender) -> tuple[int, int]:
    """How many modes of all cells have no expert in use at the end, of how many."""
    modes = [mode for key in cells if key[1] for mode in in_use(cells, key, who)]
    return sum(number == 0.0 for number, _ in modes), len(modes)


def _rule_table(cells: Cells) -> list[str]:
    if not (ranked := ranking(cells)):
        return []
    lines = [
        "## The choice",
        "",
        "Information is that between input and expert at the end, in bits, a mean over modes: what a higher",
        "temperature costs, for an input is then shared by more experts.",
        "",
        "| initialisation, gate | worst regret in loss | where | default's loss lower, higher, tie | dead modes "
        "| in use | information |",
        "|---|---:|---|---|---:|---:|---:|",
    ]
    for who, regret, where in ranked:
        worst = f"{regret.mean:.3f} ± {regret.error:.3f}" if learns(cells, who) else "a dead mode"
        against = "" if who == DEFAULT else "{}, {}, {}".format(*_against(cells, who))
        told = [value for key in cells if key[1] for value, _ in in_use(cells, key, who, "mutual_information")]
        lines.append(
            f"| {who} | {worst} | {where} | {against} | {_dead(cells, who)[0]} of {_dead(cells, who)[1]} "
            f"| {share_in_use(cells, who):.0%} | {statistics.fmean(told):.2f} |"
        )
    return [*lines, ""]


def _confirm_tables(cells: Cells) -> list[str]:
    lines = []
    for problem, title in TITLES.items():
        keys = [key for key in cells if key[0] == problem and key[1]]
        if not keys:
            continue
        lines += [
            f"## {title[0].upper()}{title[1:]}",
            "",
            "| experts | contender | parameters | loss, mean ± sd | accuracy | less dense | default less this "
            "| in use at step 1, 5, 50, end (each mode) | perplexity, information at the end |",
            "|---|---|---:|---|---:|---|---|---|---|",
        ]
        rows = [((problem, ()), DENSE)] if (problem, ()) in cells else []
        rows += [(key, who) for key in keys for who in _contenders(cells) if who in cells[key]]
        lines += [_confirm_row(cells, key, who) for key, who in rows]
        lines.append("")
    return lines


def _confirm_row(cells: Cells, key: Any, who: Contender) -> str:
    results = list(cells[key][who].values())
    accuracy = statistics.fmean(r["accuracy"] for r in results)
    less_dense = "" if who == DENSE else difference(cells, key, who, DENSE) or ""
    default = "" if who in (DENSE, DEFAULT) else difference(cells, key, DEFAULT, who) or ""
    cell = f"| {_dims(key[1]) or '-'} | {who} | {results[0]['parameters']:,} | {_spread(results)} | {accuracy:.3f} "
    use = _use_over_time(results)
    at_end = "; ".join(
        "/".join(f"{value:.{digits}f}" for value, _ in in_use(cells, key, who, measure))
        for measure, digits in (("perplexity", 1), ("mutual_information", 2))
    )
    return cell + f"| {less_dense} | {default} | {use} | {at_end if key[1] else '-'} |"


def _contenders(cells: Cells) -> list[Contender]:
    """Those that took part beside the dense model, the stage's first."""
    found = dict.fromkeys(who for key in cells if key[1] for who in cells[key])
    return [*(who for who in CONFIRM.contenders if who in found), *(w for w in found if w not in CONFIRM.contenders)]


def _form_tables(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for decomposition in FORMS.decompositions:
        cells = cells_of(runs, FORMS.name, decomposition)
        for key in (key for key in cells if key[1] and DEFAULT in cells[key]):
            less = [difference(cells, key, DEFAULT, other) or "" for other in (DENSE, OLD_VISION)]
            use = ", ".join("/".join(f"{n:.0f}" for n, _ in in_use(cells, key, who)) for who in (OLD_VISION, DEFAULT))
            rows.append(f"| {key[0]} | {decomposition} | {_dims(key[1])} | {less[0]} | {less[1]} | {use} |")
    if not rows:
        return []
    return [
        "## Other forms",
        "",
        f"The default and {OLD_VISION}, the small models of the screening, seeds {_list(FORMS.seeds['gpt'])}.",
        "",
        "| problem | form | experts | default less dense | default less old | in use at the end, old and new |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ]


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


def _screen_tables(cells: Cells) -> list[str]:
    ranked = ranking(cells)
    if not ranked:
        return []
    keys = [key for key in cells if key[1]]
    lines = [
        "## Screening: what was tried",
        "",
        "The cells hold the mean difference in loss from the cell's best, paired by seed. What is no name of the",
        "library is a small module in `studies/training_defaults/gates.py`.",
        f"Seeds: {_seeds(cells)}; differences below 0.06 on the GPT and 0.02 on the Mixer mean nothing.",
        "",
        "| initialisation, gate | worst regret | in use | " + " | ".join(f"{k[0]} {_dims(k[1])}" for k in keys) + " |",
        "|---|---:|---:|" + "---:|" * len(keys),
    ]
    for who, regret, _ in ranked:
        values = []
        for key in keys:
            best = min(cells[key], key=lambda one: statistics.fmean(r["loss"] for r in cells[key][one].values()))
            values.append(f"{found.mean:.3f}" if (found := difference(cells, key, who, best)) else "")
        told = f"{regret.mean:.3f}" if learns(cells, who) else "a dead mode"
        lines.append(f"| {who} | {told} | {share_in_use(cells, who):.0%} | " + " | ".join(values) + " |")
    return [*lines, "", *_why_batch(cells)]


def _why_batch(cells: Cells) -> list[str]:
    """How far gates that copy parts of the batch norm come, on the problems where it is ahead."""
    batch, moments = Contender("balanced", "batch"), "input moments"
    parts = []
    for gate in (moments, f"{moments}, no gradient through them", "layer", "none"):
        found = [
            d.mean
            for key in cells
            if key[1] and key[0] != "head" and (d := difference(cells, key, Contender("balanced", gate), batch))
        ]
        if found:
            parts.append(f"{gate} {statistics.fmean(found):+.3f}")
    if not parts:
        return []
    return [
        f"What the batch norm does, on GPT and Mixer, as mean losses less its own: {'; '.join(parts)}.",
        "*Input moments* has its gradients but running averages in place of the batch, and comes nearest; with the",
        "same averages as constants it is further behind. That gradients pass through mean and variance seems to",
        "matter, but two seeds are no proof.",
        "",
    ]


def _seeds(cells: Cells) -> str:
    return _list(sorted({seed for found in cells.values() for results in found.values() for seed in results}))


def _spread(results: Sequence[Mapping[str, Any]]) -> str:
    losses = [r["loss"] for r in results]
    return f"{statistics.fmean(losses):.3f} ± {statistics.stdev(losses):.3f}" if len(losses) > 1 else f"{losses[0]:.3f}"


def _dims(dims: Sequence[int]) -> str:
    return " x ".join(map(str, dims))


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _size(stage: Stage, problem: str) -> str:
    size = stage.sizes[problem]
    shape = f"{size.layers} blocks of {size.features} features, " if size.layers else ""
    samples = f"{size.batch} sequences of {size.tokens} tokens" if problem == "gpt" else f"{size.batch} samples"
    return f"{problem}: {shape}{size.steps} steps of {samples}"
