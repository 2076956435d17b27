"""The page of the study: every figure and every sentence of result is made from the counts and the times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from studies.costs.formulas import FORMULAS
from studies.costs.models import BUDGET, HEAD, MODELS, REFERENCE
from studies.costs.verdicts import NAMES, NO_MORE, head_flops, rank_text, ratio_text, verdicts

__all__ = ["page"]

RULES = {"script": "released rule", "ours": "at most the MLP's", "formula": ""}
ROUNDINGS = {"up": "released rule", "down": "at most the linear head's"}

Row = Mapping[str, Any]


TEMPLATE = """\
# What experts cost

Oldfield et al. 2024 (arXiv 2402.12550) put many experts into the place of one layer, at no higher cost. This page
counts and measures that cost in parameters, operations, time and memory, without training, at the sizes of their
models: Mixer S-16, GPT-2 of 124 million parameters, a head on CLIP's features. What such layers learn is in
[Pre-training](pretraining.md).

*Reproduced* means: no more than the layer that is replaced. Of parameters, FLOPs and bytes, up to {no_more:.0%} more
counts as no more. A time is more, or less, if the middle half of the rounds' ratios is above 1, or below; else it is
undecided.

{verdicts}

An expert is one of `N` linear maps, and a *gate* gives each input a coefficient for each expert
([The layer](../concepts/layer.md)). CP, Tucker, tensor train and tensor ring write all experts as a network of small
tensors; the indices that these share are its *bonds*, and the bonds' sizes its *rank*
([Networks](../concepts/decompositions.md)). A *plan* is the list of pairwise products that the library runs
([Plans](../concepts/planning.md)).

*Released rule*: ranks as in the authors' training scripts. For MLPs these are fixed shares of a layer's width, rounded
down, so parameters may end up below the MLP's or above; for the head, the smallest rank that reaches the linear head's
parameters. All other ranks are the largest that a [budget](../how-to/budgets.md) of the replaced layer's parameters
allows; each row says which it has.

## Formulas, and what the library counts

One layer of {forms_experts} experts from {inputs:,} to {outputs:,} features, the gate left out. *N* experts, *I* inputs
and one for the bias, *O* outputs, *K* chosen; *R* the entries of the rank, by their place or their mode. FLOPs, here
and on the whole page, are of one input: two for a multiplication with its addition, one for a product alone. Formulas
are written out by hand from the layers' equations; counts are of the module and of the plan that it runs.

{forms}

## Whole models

MLPs are replaced by blocks with experts; a block's gate and its experts' biases count. FLOPs are of one token in one
block, or of one channel in a block over patches and one patch in a block over channels; those of activations and of the
MLP's biases are not counted. {norms}

{models}

## A head of {budget:,} parameters

*Largest rank* is a bound on the rank of an expert's matrix; *found* is the rank of an expert whose values were drawn at
random, one draw each{reached}. *Gate*: its share of the parameters. A linear head takes {linear:,} FLOPs.

{heads}

![Largest rank of an expert, independent experts and parameters, against their number](costs.svg)

Left and middle: heads by the released rule. Right: parameters if the ranks stay those of {reference} experts,
{ranks}.

## Several expert modes

The same head, at most the linear one's parameters; an expert is a combination of one entry of each mode, and the gate
has a row for each entry, not for each expert. The paper has tables of such hierarchies; their sizes were not at hand,
so these are our own.

{grids}

## The order of contraction

FLOPs for one input of {contraction_experts} experts with {contraction_size} inputs and outputs, in every column by the
rule above. *Dense tensor first* builds the experts' tensor, its nodes taken from left to right, and contracts it. *Best
order* builds it too, as cheaply as the planner can. *Fast*, its gate counted, never builds it: what the layers here
run.

{contraction}

{built}

## Time and memory

Layers of {timed[experts]} experts from {timed[inputs]:,} to {timed[outputs]:,} features with their gates; the
factorised ones have at most the linear layer's parameters. Evaluation, float32, one thread of a CPU, in turns, round
after round. *Times the linear layer's* is the median of the rounds' ratios, with the middle half of them. Memory is
that of parameters and of the most that is alive during a call, by torch's own records; *process* is what a process of
its own grew by at its peak, to about half a megabyte.

{latency}

## What this cannot show

GPUs, where a small product takes as long as a smaller one, and training, of which [Benchmarks](../benchmarks.md) has
times and memory. The sparse mixture is a plain loop over the chosen experts; libraries with kernels of their own are
faster with many inputs. The machine did other work too, so times are given as ratios. Nothing here is quoted from the
paper's tables, which were not at hand: sizes and the rule for ranks are those of the released scripts, and the rest
follows by arithmetic.

Command: `python -m studies costs`, {minutes:.0f} minutes. Measured on {processor}, torch {torch}.
Counts and times: [costs.json](costs.json).
"""


def page(found: Mapping[str, Any]) -> str:
    """The page in Markdown.

    Args:
        found: What the command stored.
    """
    heads = [row for row in found["heads"] if len(row["experts"]) == 1]
    tables = {
        "forms": _forms(found["forms"]),
        "models": _models(found["models"]),
        "heads": _heads(heads),
        "grids": _grids([row for row in found["grids"] if row["rounding"] == "down"]),
        "contraction": _contraction(found["contraction"]),
        "latency": _latency(found["latency"]),
    }
    return TEMPLATE.format(
        no_more=NO_MORE,
        verdicts="\n".join(verdicts(found)),
        forms_experts=found["forms_experts"],
        inputs=HEAD[0],
        outputs=HEAD[1],
        norms=_norms(),
        budget=BUDGET,
        reached=_reached(heads),
        linear=head_flops(),
        reference=REFERENCE,
        ranks=_reference(heads),
        contraction_experts=found["contraction_experts"],
        contraction_size=found["contraction_size"],
        built=_built(found["built"]),
        timed=found["timed"],
        minutes=found["seconds"] / 60,
        processor=found["machine"]["processor"],
        torch=found["machine"]["torch"].split("+")[0],
        **{name: "\n".join(lines) for name, lines in tables.items()},
    )


def _norms() -> str:
    """What models with experts have beside their blocks, where they have it."""
    parts = [
        f"{model.name}: {model.norms:,} = {sum(mlp.count for mlp in model.mlps)} x {model.mlps[0].sizes[0]}"
        for model in MODELS
        if model.norms
    ]
    return (
        "Outside its blocks a model with experts also has\na normalisation of each block's input, where the released "
        f"code does ({'; '.join(parts)});\n*beside the MLPs* counts it."
    )


def _reached(heads: Sequence[Row]) -> str:
    drawn = [row for row in heads if row["measured_rank"] is not None]
    if not drawn:
        return ""
    return f": the bound in {sum(row['measured_rank'] == row['max_rank'] for row in drawn)} of {len(drawn)}"


def _reference(heads: Sequence[Row]) -> str:
    mine = [row for row in heads if row["experts"][0] == REFERENCE and row["rounding"] == "up"]
    return " and ".join(f"{NAMES[row['form']]} {rank_text(row['rank'])}" for row in mine)


def _forms(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| layer | rank | parameters | formula | counted | FLOPs | formula | counted | largest rank | counted |",
        "|---|---|---|--:|--:|---|--:|--:|---|--:|",
    ]
    for row in rows:
        formula, by_hand = FORMULAS[row["form"]], row["formula"]
        rule = f", {ROUNDINGS[row['rounding']]}" if row["rounding"] else ""
        flops = "no plan chooses" if row["flops"] is None else f"{row['flops']:,}"
        lines.append(
            f"| {formula.title}{rule} | {rank_text(row['rank'])} | {_formula(formula.parameters)} | "
            f"{by_hand['parameters']:,} | {row['parameters']:,} | {_formula(formula.flops)} | {by_hand['flops']:,} | "
            f"{flops} | {_least(formula.max_rank)} | {row['max_rank']} |"
        )
    return lines


def _formula(text: str) -> str:
    return " + ".join(term.replace(" ", "\N{NO-BREAK SPACE}") for term in text.split(" + "))


def _least(bounds: Sequence[str]) -> str:
    return f"least of {', '.join(bounds)}"


def _models(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| form | rank | MLPs or experts | whole model | beside the MLPs | FLOPs | beside the MLP |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    parts = {model.name: [mlp.name for mlp in model.mlps] for model in MODELS}
    single = rows[0]
    for row in rows:
        names = parts[row["model_name"]]
        if row["form"] == "mlp":
            single = row
            blocks = f" (blocks over {' and '.join(names)})" if len(names) > 1 else ""
            lines.append(f"| **{row['model_name']}**{blocks} | | | | | | |")
        rule = RULES.get(row.get("rule", ""), "")
        form = NAMES[row["form"]] + (f", {rule}" if rule else "")
        ranks = "; ".join(rank_text(rank) for rank in row["ranks"] if rank is not None)
        flops = "; ".join(f"{value:,}" for value in row["flops"])
        shares = "; ".join(_beside(one, other) for one, other in zip(row["flops"], single["flops"], strict=True))
        whole = _beside(single["mlps"] + row["model"] - single["model"], single["mlps"], 2)
        if row["form"] == "mlp":
            shares = whole = ""
        lines.append(f"| {form} | {ranks} | {row['mlps']:,} | {row['model']:,} | {whole} | {flops} | {shares} |")
    return lines


def _beside(one: int, other: int, digits: int = 1) -> str:
    return f"{one / other:.0f} times" if one > 10 * other else f"{one / other - 1.0:+.{digits}%}"


def _heads(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| experts | form | released rule | parameters | gate | FLOPs | largest rank (found) "
        "| at most the linear head's | parameters | FLOPs | largest rank |",
        "|--:|---|---|--:|--:|--:|--:|---|--:|--:|--:|",
    ]
    for up, down in zip(rows[::2], rows[1::2], strict=True):
        found = f" ({up['measured_rank']})" if up["measured_rank"] is not None else ""
        lines.append(
            f"| {up['experts'][0]} | {NAMES[up['form']]} | {rank_text(up['rank'])} | {up['parameters']:,} | "
            f"{up['gate'] / up['parameters']:.0%} | {up['flops']:,} | {up['max_rank']}{found} | "
            f"{rank_text(down['rank'])} | {down['parameters']:,} | {down['flops']:,} | {down['max_rank']} |"
        )
    return lines


def _grids(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| modes | experts | form | rank | parameters | the gate's | FLOPs | largest rank | independent, at most |",
        "|---|--:|---|---|--:|--:|--:|--:|--:|",
    ]
    return lines + [
        f"| {' x '.join(map(str, row['experts']))} | {prod(row['experts']):,} | {NAMES[row['form']]} | "
        f"{rank_text(row['rank'])} | {row['parameters']:,} | {row['gate']:,} | {row['flops']:,} | "
        f"{row['max_rank']} | {row['independent']:,} |"
        for row in rows
    ]


def _contraction(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| form | rank | dense tensor first, FLOPs | formula | best order | fast | of these the gate |",
        "|---|---|--:|---|--:|--:|--:|",
    ]
    return lines + [
        f"| {NAMES[row['form']]} | {rank_text(row['rank'])} | {row['dense_first']:,} | "
        f"{_formula(FORMULAS[row['form']].built)} | {row['best']:,} | {row['fast']:,} | {row['gate']:,} |"
        for row in rows
    ]


def _built(rows: Sequence[Row]) -> str:
    parts = "; ".join(
        f"{NAMES[r['form']]} of rank {rank_text(r['rank'])}: {ratio_text(r['ratio'])} times, {r['rounds']} rounds"
        for r in rows
    )
    worst = max(row["apart"] for row in rows)
    return (
        f"With {rows[0]['experts']} experts, whose dense tensor is small enough to be built here, building it first "
        f"(in the best order)\ntakes this many times as long for one input: {parts}.\n"
        f"Both results agree to {worst:.0e} of the largest output."
    )


def _latency(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| inputs | layer | rank | parameters | times the linear layer's | rounds | memory, MB | times the linear's "
        "| process, MB |",
        "|--:|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    linear = {row["inputs"]: row["bytes"] for row in rows if row["layer"] == "linear"}
    for row in rows:
        own = row["layer"] == "linear"
        ratio = "" if own else ratio_text(row["ratio"])
        memory = "" if own else f"{row['bytes'] / linear[row['inputs']]:.3f}"
        grown = "" if row["grown"] is None else f"{row['grown'] / 1e6:.0f}"
        lines.append(
            f"| {row['inputs']} | {row['layer']} | {rank_text(row['rank'])} | {row['parameters']:,} | {ratio} | "
            f"{row['rounds']} | {row['bytes'] / 1e6:,.3f} | {memory} | {grown} |"
        )
    return lines
