"""The page of the study: every figure and every sentence of result is made from the counts and the times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from studies.costs.formulas import FORMULAS
from studies.costs.models import BUDGET, HEAD

__all__ = ["page"]

NAMES = {"mlp": "MLP", **{name: formula.title for name, formula in FORMULAS.items()}}
RULES = {"script": "released rule", "ours": "at most the MLP's", "formula": ""}

Row = Mapping[str, Any]


def page(found: Mapping[str, Any]) -> str:
    """The page in Markdown.

    Args:
        found: What the command stored.
    """
    heads = [row for row in found["heads"] if len(row["experts"]) == 1]
    grids = [row for row in found["grids"] if row["rounding"] == "down"]
    return "\n".join(
        [
            "# What experts cost",
            "",
            "A factorised layer of many experts is to cost what the one layer costs that it replaces: in parameters,",
            "operations, time and memory. This page counts and measures that, without training, at the sizes of the",
            "uMoE paper's models: Mixer S-16, GPT-2 of 124 million parameters, a head on CLIP's features. *Released",
            "rule* is the rank that the authors' published training scripts set; the other rows have the ranks that",
            "[budgets](../how-to/budgets.md) give here. What such layers learn is in [Pre-training](pretraining.md).",
            "",
            *_verdicts(found, heads),
            "",
            "## Formulas, and what the library counts",
            "",
            f"One layer of {found['forms_experts']} experts from {HEAD[0]} to {HEAD[1]} features, the gate left out.",
            "*N* experts, *I* inputs and one for the bias, *O* outputs, *R* ranks, *K* chosen. FLOPs are of one input,",
            "two for a multiplication with its addition, one for a product alone. Formulas are written out by hand;",
            "counts are of the module and of the plan that it runs.",
            "",
            *_forms(found["forms"]),
            "",
            "## Whole models",
            "",
            "MLPs are replaced by blocks with experts; a block's gate and its experts' biases count. FLOPs are of one",
            "token in one block, or of one channel and one patch where there are two kinds of blocks.",
            "",
            *_models(found["models"]),
            "",
            f"## A head of {BUDGET:,} parameters",
            "",
            "The released rule rounds up, so it is a little over the linear head's parameters; the library's ranks",
            "never are. *Largest rank* is a bound on the rank of an expert's matrix; *found* is the rank of an expert",
            "whose values were drawn at random.",
            "",
            *_heads(heads),
            "",
            "![Largest rank of an expert, independent experts and parameters, against their number](costs.svg)",
            "",
            "## Several expert modes",
            "",
            "The same head, at most the linear one's parameters; an expert is a combination of one entry of each mode,",
            "and the gate has a row for each entry, not for each expert. The paper has tables of such hierarchies;",
            "their sizes were not at hand, so these are our own.",
            "",
            *_grids(grids),
            "",
            "## The order of contraction",
            "",
            f"Multiply-adds for one input of {found['contraction_experts']} experts with {found['contraction_size']}",
            "inputs and outputs. *Dense tensor first* builds the experts' tensor, its nodes taken from left to right,",
            "and contracts it. *Best order* builds it too, as cheaply as the planner can. *Fast*, its gate counted,",
            "never builds it: what the layers here run.",
            "",
            *_contraction(found["contraction"]),
            "",
            *_built(found["built"]),
            "",
            "## Time and memory of one input",
            "",
            "Layers with their gates; the factorised ones have at most the linear layer's parameters. Evaluation,",
            "float32, one thread of a CPU, in turns, round after round. *Times the linear layer's* is the median of",
            "the rounds' ratios, with the middle half of them. Memory is that of parameters and of the most that is",
            "alive during a call, by torch's own records; *process* is what a process of its own grew by at its peak,",
            "to about half a megabyte.",
            "",
            *_latency(found["latency"]),
            "",
            "## What this cannot show",
            "",
            "GPUs, where a small product takes as long as a smaller one, and training, of which",
            "[Benchmarks](../benchmarks.md) has times and memory. The sparse mixture is a plain loop over the chosen",
            "experts; libraries with kernels of their own are faster with many inputs. The machine did other work too,",
            "so times are given as ratios. Nothing here is quoted from the paper's tables, which were not at hand:",
            "sizes and the rule for ranks are those of the released scripts, and the rest follows by arithmetic.",
            "",
            f"Command: `python -m studies costs`, {found['seconds'] / 60:.0f} minutes. "
            f"Measured on {found['machine']['processor']}, torch {found['machine']['torch'].split('+')[0]}.",
            "Counts and times: [costs.json](costs.json).",
            "",
        ]
    )


def _verdicts(found: Mapping[str, Any], heads: Sequence[Row]) -> list[str]:
    return [
        _counts_agree(found),
        _same_budget(found["models"]),
        _dense_explodes(found["models"]),
        _ranks_fall(heads),
        _ring_is_narrow(heads),
        _fast(found["contraction"], found["built"]),
        _time(found["latency"]),
    ]


def _counts_agree(found: Mapping[str, Any]) -> str:
    rows = [row for row in found["forms"] if row["flops"] is not None]
    names = ("parameters", "flops", "max_rank")
    wrong = [row["form"] for row in rows if any(row[name] != row["formula"][name] for name in names)]
    wrong += [row["form"] for row in found["contraction"] if row["fast_flops"] != row["formula_flops"]]
    if wrong:
        differing = _listed(NAMES[name] for name in wrong)
        return f"- **Formulas: not reproduced**: counts differ from the formulas for {differing}."
    listed = _listed(NAMES[row["form"]] for row in rows)
    same = "parameters, FLOPs and largest ranks are those of the formulas to the last digit"
    return f"- **Formulas: reproduced**: {same}: {listed}."


def _same_budget(rows: Sequence[Row]) -> str:
    parts = []
    for rule, words in (("script", "by the released rule"), ("ours", "by a budget here")):
        shares = [
            row["model"] / single["model"] - 1.0
            for single in rows
            if single["form"] == "mlp"
            for row in rows
            if row["model_name"] == single["model_name"] and row.get("rule") == rule
        ]
        parts.append(f"{min(shares):+.2%} to {max(shares):+.2%} {words}")
    return f"- **Parameters**: models with experts have, beside those with MLPs, {' and '.join(parts)}."


def _dense_explodes(rows: Sequence[Row]) -> str:
    parts = []
    for row in rows:
        if row["form"] == "dense":
            (single,) = [r for r in rows if r["form"] == "mlp" and r["model_name"] == row["model_name"]]
            share = row["model"] / single["model"]
            parts.append(f"{row['model_name']}: {row['model'] / 1e9:.1f} billion, {share:.0f}")
    listed = "; ".join(f"{part} times as many" for part in parts)
    return f"- **Dense MoE**: parameters of models with as many unfactorised experts, beside those with MLPs: {listed}."


def _ranks_fall(heads: Sequence[Row]) -> str:
    by = {
        form: {r["experts"][0]: r for r in heads if r["form"] == form and r["rounding"] == "up"}
        for form in ("cp", "tr")
    }
    numbers = sorted(by["cp"])
    falls = all(by[form][a]["max_rank"] >= by[form][b]["max_rank"] for form in by for a, b in pairwise(numbers))
    higher = [n for n in numbers if by["tr"][n]["max_rank"] > by["cp"][n]["max_rank"]]
    first, last = numbers[0], numbers[-1]
    gate = by["cp"][last]["gate"] / by["cp"][last]["parameters"]
    words = "fall" if falls else "do not fall throughout"
    ring = "at every number" if higher == numbers else f"at {_listed(map(str, higher))}" if higher else "at none"
    return (
        f"- **Rank against N**: with the head's parameters held, ranks {words} from {first} to {last} experts: CP "
        f"{by['cp'][first]['max_rank']} to {by['cp'][last]['max_rank']}, ring {by['tr'][first]['max_rank']} to "
        f"{by['tr'][last]['max_rank']}; the ring's is the higher {ring}. At {last} experts the gate takes {gate:.0%}."
    )


def _ring_is_narrow(heads: Sequence[Row]) -> str:
    rings = [row for row in heads if row["form"] == "tr" and row["rounding"] == "up"]
    most = max(row["independent"] for row in rings)
    beyond = [row["experts"][0] for row in rings if row["independent"] < row["experts"][0]]
    if not beyond:
        return "- **Different experts**: all of a ring's experts can be linearly independent at every number here."
    cp = next(r for r in heads if r["form"] == "cp" and r["rounding"] == "up" and r["experts"][0] == beyond[-1])
    return (
        f"- **What the ring pays**: its bonds of 4 let at most {most} experts be linearly independent, from "
        f"{beyond[0]} experts on fewer than there are; of CP's {beyond[-1]} experts {cp['independent']} can be."
    )


def _fast(rows: Sequence[Row], built: Sequence[Row]) -> str:
    parts = [
        f"{NAMES[row['form']]} {row['fast']:,} multiply-adds in place of {row['materialised']:,}, or of "
        f"{row['best_materialised_flops'] // 2:,} in the best order that builds the tensor"
        for row in rows
    ]
    times = "; ".join(f"{NAMES[row['form']]} {row['ratio'][1]:,.0f} times" for row in built)
    return f"- **Fast contraction**: {'; '.join(parts)}. Timed with {built[0]['experts']} experts: {times} as fast."


def _time(rows: Sequence[Row]) -> str:
    one = [row for row in rows if row["inputs"] == 1 and row["layer"] != "linear"]
    linear = next(row for row in rows if row["inputs"] == 1 and row["layer"] == "linear")
    parts = [
        f"{row['layer']} {_ratio(row['ratio'])}{_tie(row['ratio'])} and {row['bytes'] / linear['bytes']:.3g}"
        for row in one
    ]
    return f"- **One input**, times the linear layer's time [middle half] and memory: {'; '.join(parts)}."


def _tie(quartiles: Sequence[float]) -> str:
    low, _, high = quartiles
    return ", which is a tie," if low <= 1.0 <= high else ""


def _forms(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| layer | rank | parameters | formula | counted | multiply-adds | FLOPs | counted | largest rank |",
        "|---|---|---|--:|--:|---|--:|--:|--:|",
    ]
    for row in rows:
        formula, by_hand = FORMULAS[row["form"]], row["formula"]
        flops = "no plan chooses" if row["flops"] is None else f"{row['flops']:,}"
        lines.append(
            f"| {formula.title} | {_rank(row['rank'])} | {formula.parameters} | {by_hand['parameters']:,} | "
            f"{row['parameters']:,} | {formula.multiply_adds} | {by_hand['flops']:,} | {flops} | {row['max_rank']} |"
        )
    return lines


def _models(rows: Sequence[Row]) -> list[str]:
    lines = ["| form | rank | MLPs or experts | whole model | FLOPs |", "|---|---|--:|--:|--:|"]
    for row in rows:
        if row["form"] == "mlp":
            lines.append(f"| **{row['model_name']}** | | | | |")
        rule = RULES.get(row.get("rule", ""), "")
        form = NAMES[row["form"]] + (f", {rule}" if rule else "")
        ranks = "; ".join(_rank(rank) for rank in row["ranks"] if rank is not None)
        flops = ", ".join(f"{value:,}" for value in row["flops"])
        lines.append(f"| {form} | {ranks} | {row['mlps']:,} | {row['model']:,} | {flops} |")
    return lines


def _heads(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| experts | form | released rule | parameters | largest rank (found) | here | parameters | largest | gate |",
        "|--:|---|---|--:|--:|---|--:|--:|--:|",
    ]
    for up, down in zip(rows[::2], rows[1::2], strict=True):
        found = f" ({up['measured_rank']})" if up["measured_rank"] is not None else ""
        lines.append(
            f"| {up['experts'][0]} | {NAMES[up['form']]} | {_rank(up['rank'])} | {up['parameters']:,} | "
            f"{up['max_rank']}{found} | {_rank(down['rank'])} | {down['parameters']:,} | {down['max_rank']} | "
            f"{up['gate'] / up['parameters']:.0%} |"
        )
    return lines


def _grids(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| modes | experts | form | rank | parameters | the gate's | FLOPs | largest rank | independent, at most |",
        "|---|--:|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        total = 1
        for size in row["experts"]:
            total *= size
        lines.append(
            f"| {' x '.join(map(str, row['experts']))} | {total:,} | {NAMES[row['form']]} | {_rank(row['rank'])} | "
            f"{row['parameters']:,} | {row['gate']:,} | {row['flops']:,} | {row['max_rank']} | {row['independent']:,} |"
        )
    return lines


def _contraction(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| form | rank | dense tensor first | best order | fast | of these the gate |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        best = row["best_materialised_flops"] // 2
        lines.append(
            f"| {NAMES[row['form']]} | {_rank(row['rank'])} | {row['materialised']:,} | {best:,} | {row['fast']:,} | "
            f"{row['gate']:,} |"
        )
    return lines


def _built(rows: Sequence[Row]) -> list[str]:
    parts = "; ".join(f"{NAMES[r['form']]} {_ratio(r['ratio'])} times, {r['rounds']} rounds" for r in rows)
    worst = max(row["apart"] for row in rows)
    return [
        f"With {rows[0]['experts']} experts, whose dense tensor is small enough to be built here, building it first",
        f"(in the best order) takes this many times as long for one input: {parts}. Both results agree to {worst:.0e}",
        "of the largest output.",
    ]


def _latency(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| inputs | layer | rank | parameters | times the linear layer's | rounds | memory, MB | process, MB |",
        "|--:|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        ratio = "" if row["layer"] == "linear" else _ratio(row["ratio"])
        grown = "" if row["grown"] is None else f"{row['grown'] / 1e6:.0f}"
        lines.append(
            f"| {row['inputs']} | {row['layer']} | {_rank(row['rank'])} | {row['parameters']:,} | {ratio} | "
            f"{row['rounds']} | {row['bytes'] / 1e6:,.1f} | {grown} |"
        )
    return lines


def _ratio(quartiles: Sequence[float]) -> str:
    low, middle, high = (f"{value:,.0f}" if value >= 20 else f"{value:.2f}" for value in quartiles)
    return f"{middle} [{low}, {high}]"


def _rank(rank: int | Sequence[int] | None) -> str:
    if rank is None:
        return ""
    return str(rank) if isinstance(rank, int) else "(" + ", ".join(map(str, rank)) + ")"


def _listed(names: Any) -> str:
    return ", ".join(names)
