"""What the counts and the times say: the sentences at the top of the page, each made from the figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from studies.costs.formulas import FORMULAS
from studies.costs.models import BUDGET, HEAD, MODELS

__all__ = ["NAMES", "NO_MORE", "head_flops", "rank_text", "ratio_text", "verdicts"]

NAMES = {"mlp": "MLP", **{name: formula.title for name, formula in FORMULAS.items()}}
NO_MORE = 0.02
"""The share by which a cost may exceed that of the layer that is replaced and still be no more than it."""

Row = Mapping[str, Any]


def verdicts(found: Mapping[str, Any]) -> list[str]:
    """The sentences, as lines of a list.

    Args:
        found: What the command stored.
    """
    heads = [row for row in found["heads"] if len(row["experts"]) == 1]
    return [
        _counts_agree(found),
        f"- **Parameters of heads, and of all blocks of a model together: {_no_more(_shares(found, 'parameters'))}",
        f"- **FLOPs of heads and of each block: {_no_more(_shares(found, 'flops'))} Both bound parameters, not FLOPs.",
        *(_time(found["latency"], inputs, found["timed"]) for inputs in (1, 256)),
        *(_memory(found["latency"], inputs) for inputs in (1, 256)),
        _dense_explodes(found["models"]),
        _fast(found),
        _built(found["built"]),
        _ranks_fall(heads),
        _ring_is_narrow(heads),
    ]


def head_flops() -> int:
    """FLOPs of the linear head for one input, its biases not counted."""
    return 2 * HEAD[0] * HEAD[1]


def ratio_text(quartiles: Sequence[float]) -> str:
    """The median of ratios with the middle half of them in brackets."""
    low, middle, high = (f"{value:,.0f}" if value >= 20 else f"{value:.2f}" for value in quartiles)
    return f"{middle} [{low}, {high}]"


def rank_text(rank: int | Sequence[int] | None) -> str:
    """A rank as the page prints it."""
    if rank is None:
        return ""
    return str(rank) if isinstance(rank, int) else "(" + ", ".join(map(str, rank)) + ")"


def _counts_agree(found: Mapping[str, Any]) -> str:
    rows = [row for row in found["forms"] if row["flops"] is not None]
    names = ("parameters", "flops", "max_rank")
    wrong = [row["form"] for row in rows if any(row[name] != row["formula"][name] for name in names)]
    wrong += [row["form"] for row in found["contraction"] if row["fast"] != row["formula"]]
    if wrong:
        return f"- **Counts**: they differ from hand-written formulas for {_listed(NAMES[name] for name in wrong)}."
    listed = _listed(NAMES[row["form"]] for row in rows)
    return (
        "- **Counts**: the library's parameters, FLOPs and largest ranks agree with hand-written formulas to the last "
        f"digit, for {listed}."
    )


def _of_models(rows: Sequence[Row], rule: str) -> Iterator[tuple[Row, Row]]:
    """Each model of a rule, and the one with MLPs."""
    singles = {row["model_name"]: row for row in rows if row["form"] == "mlp"}
    return ((row, singles[row["model_name"]]) for row in rows if row.get("rule") == rule)


def _shares(found: Mapping[str, Any], cost: str) -> dict[str, dict[str, float]]:
    """By rule and by name, by what share a cost of each block and head exceeds that of the layer it replaces."""
    mlps = {model.name: [mlp.name for mlp in model.mlps] for model in MODELS}
    shares = {}
    for rule, rounding, words in (("script", "up", "By the released rule"), ("ours", "down", "By budgets here")):
        shares[words] = mine = {}
        for row, single in _of_models(found["models"], rule):
            form = f"{row['model_name']}, {NAMES[row['form']]}"
            if cost == "parameters":
                mine[form] = (row["model"] - single["model"]) / single["mlps"]
            else:
                for part, own, other in zip(mlps[row["model_name"]], row["flops"], single["flops"], strict=True):
                    mine[f"{form}, block over {part}" if len(row["flops"]) > 1 else form] = own / other - 1.0
        for row in found["heads"]:
            if row["rounding"] == rounding:
                other = BUDGET if cost == "parameters" else head_flops()
                mine[f"head of {row['experts'][0]} experts, {NAMES[row['form']]}"] = row[cost] / other - 1.0
    return shares


def _no_more(shares: Mapping[str, Mapping[str, float]]) -> str:
    """A verdict of costs beside those of the layers replaced, by rule and by name."""
    word = _word([share for rule in shares.values() for share in rule.values()])
    parts = []
    for words, rule in shares.items():
        more = [f"{name} {share:+.0%}" for name, share in rule.items() if share > NO_MORE]
        parts.append(
            f"{words} {min(rule.values()):+.2%} to {max(rule.values()):+.2%} beside the layer replaced; over "
            f"{NO_MORE:+.0%} in {len(more) or 'none'} of {len(rule)}" + (f": {'; '.join(more)}" if more else "")
        )
    return f"{word}.** {'. '.join(parts)}."


def _word(shares: Sequence[float]) -> str:
    over = sum(share > NO_MORE for share in shares)
    return "reproduced" if not over else "not reproduced" if over == len(shares) else "reproduced in part"


def _time(rows: Sequence[Row], inputs: int, timed: Mapping[str, int]) -> str:
    mine = {row["layer"]: row for row in rows if row["inputs"] == inputs}
    ratios = {name: mine[name]["ratio"] for name in ("tensor ring", "CP")}
    ours = [f"{name} {ratio_text(ratio)}, {_slower(ratio)}" for name, ratio in ratios.items()]
    others = [f"{name} {ratio_text(row['ratio'])}" for name, row in mine.items() if name not in ("linear", *ratios)]
    return (
        f"- **Time, {_inputs(inputs)}**, as a multiple of the linear layer's (median of {mine['CP']['rounds']} rounds "
        f"[middle half]; {timed['experts']} experts, {timed['inputs']:,} to {timed['outputs']:,} features): "
        f"{'; '.join(ours)}. Not factorised: {'; '.join(others)}."
    )


def _slower(quartiles: Sequence[float]) -> str:
    low, _, high = quartiles
    if low > 1.0:
        return "slower: **not reproduced**"
    return "faster: **reproduced**" if high < 1.0 else "undecided: the middle half of rounds contains 1"


def _memory(rows: Sequence[Row], inputs: int) -> str:
    mine = {row["layer"]: row["bytes"] for row in rows if row["inputs"] == inputs}
    shares = {name: mine[name] / mine["linear"] - 1.0 for name in ("tensor ring", "CP")}
    word = _word(list(shares.values()))
    ours = "; ".join(f"{name} {share:+.1%}" for name, share in shares.items())
    others = "; ".join(
        f"{name} {size / mine['linear']:,.0f} times" for name, size in mine.items() if name not in ("linear", *shares)
    )
    return f"- **Memory, {_inputs(inputs)}: {word}.** Beside the linear layer's: {ours}. Not factorised: {others}."


def _inputs(number: int) -> str:
    return "one input" if number == 1 else f"{number} inputs"


def _dense_explodes(rows: Sequence[Row]) -> str:
    parts = [
        f"{row['model_name']}: {row['model'] / 1e9:.1f} billion, {row['model'] / single['model']:.0f} times as many"
        for row, single in _of_models(rows, "formula")
    ]
    return f"- **Dense MoE**: parameters with as many unfactorised experts, of whole models: {'; '.join(parts)}."


def _fast(found: Mapping[str, Any]) -> str:
    parts = [
        f"{NAMES[row['form']]} of rank {rank_text(row['rank'])} takes {row['fast']:,} FLOPs, where building the dense "
        f"tensor takes {row['dense_first']:,} from left to right and {row['best']:,} in the best order"
        for row in found["contraction"]
    ]
    return (
        f"- **Fast contraction, counted**, one input of {found['contraction_experts']} experts with "
        f"{found['contraction_size']} features: {'; '.join(parts)}."
    )


def _built(rows: Sequence[Row]) -> str:
    times = "; ".join(
        f"{NAMES[row['form']]} of rank {rank_text(row['rank'])}: {ratio_text(row['ratio'])} times as fast"
        for row in rows
    )
    return (
        f"- **Fast contraction, timed** with {rows[0]['experts']} experts only, of {rows[0]['size']} features: "
        f"{times} as building the tensor first (median [middle half] of {rows[0]['rounds']} rounds)."
    )


def _ranks_fall(heads: Sequence[Row]) -> str:
    ups = [row for row in heads if row["rounding"] == "up"]
    by = {form: {row["experts"][0]: row for row in ups if row["form"] == form} for form in ("cp", "tr")}
    numbers = sorted(by["cp"])
    falls = all(by[form][a]["max_rank"] >= by[form][b]["max_rank"] for form in by for a, b in pairwise(numbers))
    higher = [n for n in numbers if by["tr"][n]["max_rank"] > by["cp"][n]["max_rank"]]
    first, last = numbers[0], numbers[-1]
    gate = by["cp"][last]["gate"] / by["cp"][last]["parameters"]
    words = "falls" if falls else "does not fall throughout"
    ring = "at every number" if higher == numbers else f"at {_listed(map(str, higher))}" if higher else "at none"
    apart = max(abs(row["parameters"] / BUDGET - 1.0) for row in ups)
    return (
        f"- **Rank against N**: with a head's parameters within {apart:.1%} of the linear one's, an expert's largest "
        f"rank {words} from {first} to {last} experts: CP "
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


def _listed(names: Any) -> str:
    return ", ".join(names)
