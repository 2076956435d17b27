"""The page of the study, and its picture: every sentence of result is made from the runs."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from studies.common.paired import Difference, paired
from studies.hierarchy.contenders import CONTENDERS, DENSE, LARGEST, MILLION, PROBLEM_SIZES, TWO_MAPS, Contender

__all__ = ["page", "picture"]

TITLES = {"head": "Head on glosses", "mixer": "Mixer on Fashion-MNIST"}
DENSE_NAMES = {"head": "linear head", "mixer": "dense MLPs"}
FORMS = {"cp": "CP", "tr": "tensor ring"}
COLOURS = {"cp": "#1f77b4", "tr": "#d95f02"}
RATE_SEED = 100
LINES = (({64}, "64", "-", "o"), ({4096}, "4,096", "--", "o"), ({MILLION, 32**4}, "a million", ":", "s"))
"""Numbers of experts that the picture joins, and how."""
FEWEST_SEEDS = 2
"""Of a difference that says anything."""
VERDICT_SEEDS = 3
"""Of a difference that a verdict counts."""

Found = Mapping[str, Mapping[Contender, Mapping[int, Mapping[str, Any]]]]
"""By problem and contender: what each seed gave."""


def _sorted(runs: Sequence[Mapping[str, Any]]) -> Found:
    found: dict[str, dict[Contender, dict[int, Mapping[str, Any]]]] = {}
    for entry in runs:
        settings = entry["settings"]
        if settings["seed"] != RATE_SEED:
            seeds = found.setdefault(settings["problem"], {}).setdefault(Contender.of(settings), {})
            seeds[settings["seed"]] = {**entry["result"], "learning_rate": settings["learning_rate"]}
    order = {name: {c: k for k, c in enumerate(CONTENDERS[name])} for name in CONTENDERS}
    return {
        name: dict(sorted(found[name].items(), key=lambda item: order[name][item[0]]))
        for name in TITLES
        if name in found
    }


def _less(found: Found, problem: str, one: Contender, other: Contender) -> Difference | None:
    """The accuracy of one contender less that of another, over the seeds that both have; None for fewer than two."""
    mine, theirs = (found[problem].get(contender, {}) for contender in (one, other))
    seeds = sorted(mine.keys() & theirs.keys())
    if len(seeds) < FEWEST_SEEDS:
        return None
    return paired([mine[s]["accuracy"] for s in seeds], [theirs[s]["accuracy"] for s in seeds])


def _word(difference: Difference) -> str:
    return "a tie" if difference.is_tie else "better" if difference.mean > 0 else "worse"


def _grids(found: Found, problem: str) -> list[Contender]:
    return [contender for contender in found[problem] if contender.expert_dims and not contender.frozen]


def _against_fewest(found: Found, problem: str) -> list[tuple[Contender, Contender, Difference]]:
    """Each grid at equal parameters with the one of as many experts and the fewest modes."""
    pairs = []
    for contender in _grids(found, problem):
        alike = [
            other
            for other in _grids(found, problem)
            if (other.form, other.budget) == (contender.form, contender.budget)
            and prod(other.expert_dims) == prod(contender.expert_dims)
        ]
        fewest = min(alike, key=lambda other: len(other.expert_dims))
        difference = _less(found, problem, contender, fewest) if contender.budget and fewest != contender else None
        if difference is not None:
            pairs.append((contender, fewest, difference))
    return pairs


def _losses(results: Mapping[int, Mapping[str, Any]]) -> list[list[float]]:
    """For each mode the accuracy lost without it, of each seed."""
    seeds = [results[seed] for seed in sorted(results)]
    return [[r["accuracy"] - r["modes"][k]["without"] for r in seeds] for k in range(len(seeds[0]["modes"]))]


def _matters(losses: Sequence[float]) -> bool:
    """Whether a mode's loss is above zero by more than two standard errors over seeds."""
    difference = paired(losses, [0.0] * len(losses))
    return difference.mean > 0 and not difference.is_tie


def _parity(found: Found) -> list[str]:
    lines = []
    for problem in found:
        pairs = _against_fewest(found, problem)
        if not pairs:
            continue
        words = [_word(difference) for _, _, difference in pairs]
        counts = ", ".join(f"{words.count(word)} {word}" for word in ("better", "a tie", "worse") if word in words)
        worst = min(pairs, key=lambda pair: pair[2].mean)
        best = max(pairs, key=lambda pair: pair[2].mean)
        lines.append(
            f"- **{TITLES[problem]}, more modes at equal experts and parameters**: {counts} against the grid with the "
            f"fewest modes; from {worst[2]} ({_name(worst[0])} less {_name(worst[1])}) to {best[2]} ({_name(best[0])} "
            f"less {_name(best[1])})."
        )
        against = [
            difference
            for contender in _grids(found, problem)
            if contender.budget and (difference := _less(found, problem, contender, DENSE)) is not None
        ]
        if against:
            words = [_word(difference) for difference in against]
            counts = ", ".join(f"{words.count(word)} {word}" for word in ("better", "a tie", "worse") if word in words)
            lines.append(f"  Against the {DENSE_NAMES[problem]}: {counts}.")
    return lines


def _use(found: Found) -> list[str]:
    lines = []
    for problem in found:
        modes = [
            (grid, k, losses)
            for grid in _grids(found, problem)
            for k, losses in enumerate(_losses(found[problem][grid]))
            if len(losses) >= FEWEST_SEEDS
        ]
        if not modes:
            continue
        matter = [entry for entry in modes if _matters(entry[2])]
        several = [entry for entry in modes if len(entry[0].expert_dims) > 1]
        least = min(several or modes, key=lambda entry: statistics.fmean(entry[2]))
        lines.append(
            f"- **{TITLES[problem]}, every mode**: idle, {len(matter)} of {len(modes)} cost accuracy (by more than "
            f"two standard errors); the least is {statistics.fmean(least[2]):+.3f}, mode {least[1] + 1} of "
            f"{_name(least[0])}."
        )
        frozen = [contender for contender in found[problem] if contender.frozen]
        if frozen:
            read = max(abs(loss) for c in frozen for loss in _losses(found[problem][c])[-1])
            parts = [f"{_name(grid)} {d} ({_word(d)})" for grid, d in _learned(found, problem)]
            lines.append(
                f"  Control, the last mode's gate kept uniform: without that mode the accuracy changes by at most "
                f"{read:.4f}. What learning that mode brings: {'; '.join(parts) or 'not run'}."
            )
    return lines


def _million(found: Found) -> list[str]:
    lines = []
    for problem in found:
        parts = []
        for contender in _grids(found, problem):
            if prod(contender.expert_dims) < MILLION:
                continue
            results = found[problem][contender]
            used = [f"{_share(results, k):.0%}" for k in range(len(contender.expert_dims))]
            size = next(iter(results.values()))["parameters"]
            difference = _less(found, problem, contender, DENSE)
            against = f", {difference} ({_word(difference)})" if difference is not None else ""
            parts.append(f"{_name(contender)} with {size:,} parameters{against}, in use by mode {', '.join(used)}")
        if parts:
            what = f"**{TITLES[problem]}, a million experts**, accuracy less that of the {DENSE_NAMES[problem]}"
            lines.append(f"- {what}: {'; '.join(parts)}.")
            largest = Contender("cp", LARGEST[0], budget=False)
            if (difference := _less(found, problem, largest, TWO_MAPS)) is not None:
                lines.append(
                    f"  {_name(largest)} less a linear head of two maps with as many parameters: {difference} "
                    f"({_word(difference)})."
                )
    return lines


def _share(results: Mapping[int, Mapping[str, Any]], mode: int) -> float:
    """The share of a mode's experts that are in use, over seeds."""
    modes = [result["modes"][mode] for result in results.values()]
    return sum(m["in_use"] for m in modes) / sum(m["experts"] for m in modes)


def _name(contender: Contender) -> str:
    return f"{FORMS[contender.form]} {' x '.join(map(str, contender.expert_dims))}"


def _claim(found: Found) -> list[str]:
    """What becomes of the paper's claim: whether modes cost accuracy, whether grids cost it, whether modes are used."""
    pairs = [difference for problem in found for _, _, difference in _against_fewest(found, problem)]
    lines = [_judged("More modes cost no accuracy", pairs)]
    for problem in found:
        grids = [grid for grid in _grids(found, problem) if grid.budget]
        against = [d for grid in grids if (d := _less(found, problem, grid, DENSE)) is not None]
        lines.append(_judged(f"Grids are as accurate as the {DENSE_NAMES[problem]} ({TITLES[problem]})", against))
    modes = [
        losses
        for problem in found
        for grid in _grids(found, problem)
        for losses in _losses(found[problem][grid])
        if len(losses) >= FEWEST_SEEDS
    ]
    used = sum(map(_matters, modes))
    word = _reproduced(used, len(modes))
    lines.append(f"- Every mode is used: **{word}**; {used} of {len(modes)} modes cost accuracy when they are idle.")
    learned = [d for problem in found for _, d in _learned(found, problem)]
    helps = sum(_word(difference) == "better" for difference in learned)
    if learned:
        lines.append(
            "- Used is not useful: against the same grid whose last mode's gate stays uniform from the start of "
            f"training, the learned mode is better in {helps} of {len(learned)} comparisons (no claim of the paper)."
        )
    return lines


def _learned(found: Found, problem: str) -> list[tuple[Contender, Difference]]:
    """Each grid less the same with a frozen mode."""
    pairs = []
    for contender in found[problem]:
        learned = Contender(contender.form, contender.expert_dims)
        if contender.frozen and (difference := _less(found, problem, learned, contender)) is not None:
            pairs.append((learned, difference))
    return pairs


def _judged(what: str, differences: Sequence[Difference]) -> str:
    """A claim of parity, with how many comparisons are not worse, and their mean."""
    differences = [difference for difference in differences if difference.pairs >= VERDICT_SEEDS]
    if not differences:
        return f"- {what}: **cannot tell**; no comparison has {VERDICT_SEEDS} seeds."
    fine = sum(_word(difference) != "worse" for difference in differences)
    mean = statistics.fmean(difference.mean for difference in differences)
    return (
        f"- {what}: **{_reproduced(fine, len(differences))}**; {fine} of {len(differences)} comparisons are a tie or "
        f"better, the mean difference is {mean:+.3f}."
    )


def _reproduced(fine: int, number: int) -> str:
    if number == 0:
        return "not run"
    return "reproduced" if fine == number else "reproduced in part" if 2 * fine >= number else "not reproduced"


def page(runs: Sequence[Mapping[str, Any]]) -> str:
    """The page in Markdown.

    Args:
        runs: What `studies.common.runs.read` gives, of both problems.
    """
    found = _sorted(runs)
    seconds = sum(entry.get("seconds", 0.0) for entry in runs)
    return "\n".join(
        [
            "# One to four expert modes",
            "",
            "A layer whose experts stand in a grid has the product of its modes' sizes in experts, and a gate only as",
            "large as their sum. The uMoE paper's claim: such hierarchical layers are as accurate as flat ones and as",
            "what they replace, at equal parameters. Here grids of one to four modes are trained with equal numbers of",
            "experts and equal parameters, gate and biases counted, up to a million experts.",
            "",
            *_claim(found),
            "- The paper's own tables, of a Mixer S-16 on ImageNet and of CLIP: **not testable here**.",
            "",
            "In numbers:",
            "",
            *_parity(found),
            *_use(found),
            *_million(found),
            "",
            "`±` is the standard error of differences of accuracy paired by seed; within two of them is a tie. Three",
            "seeds call differences real too easily: a test at 5% would ask for 4.3 errors.",
            "",
            "![Accuracy, and the accuracy lost without each mode, against the number of modes](hierarchy.svg)",
            "",
            *(line for problem in found for line in _table(found, problem)),
            "## How it was measured",
            "",
            "- *Idle*: all inputs get the mean of a mode's coefficients over inputs, in all layers; the accuracy lost",
            "  is what the mode's dependence on the input is worth to the trained model. *All idle* is all modes.",
            "- *In use*: the share of a mode's experts whose coefficient varies with the input (`measure_usage`).",
            "- *Frozen* is the control: the last mode's gate stays uniform throughout training.",
            "- *Equal parameters*: at most as many as the dense form, by `Budget`; of the Mixer's MLPs at least 94%,",
            "  for a step of a ring's rank is large. A smaller gate leaves more to the rank.",
            "  A tensor ring's bonds beside expert modes are 4, as in the paper. Of 4,096 experts in one mode the gate",
            "  alone is larger than the dense form. *Rank 128* grids have that CP rank, or 32 between input and output",
            "  of a tensor ring, and as many parameters as it takes; *two maps* is a linear head of two matrices with",
            "  as many as the largest of them.",
            "- Default gates (entmax, batch norm) and initialisation; AdamW, 5% warm-up, half a cosine.",
            *_sizes(),
            "- Learning rates of the heads: the best of 0.001, 0.003 and 0.01 with another seed, on the half of the",
            "  held-out glosses that is not reported, for each form and number of modes with 64 experts. The Mixer's",
            "  is 0.01 for all, which every contender of [a gate for many experts](many-experts.md) took.",
            "",
            "## What this cannot show",
            "",
            "Longer training and larger models. The glosses have about 60 examples for each class, so heads overfit;",
            "and held-out samples are the same for all seeds, so `±` says nothing about other samples.",
            "",
            f"Command: `python -m studies hierarchy`; its {len(runs)} runs took {seconds / 60:.0f} minutes, one thread",
            "each, on a machine that did other work, after minutes for the glosses' embeddings. A stopped command",
            "goes on where it was. Runs: "
            + ", ".join(f"[hierarchy-{name}.jsonl](hierarchy-{name}.jsonl)" for name in found)
            + ".",
            "",
        ]
    )


def _sizes() -> list[str]:
    head, mixer = PROBLEM_SIZES["head"], PROBLEM_SIZES["mixer"]
    return [
        "- Head: embeddings of WordNet's noun glosses by all-MiniLM-L6-v2, to be sorted by the concept above them",
        f"  (239 classes); {head.steps} steps of {head.batch}. Mixer: {mixer.layers} blocks of {mixer.features}",
        f"  features, experts in each channel MLP; {mixer.steps} steps of {mixer.batch} images.",
    ]


def _table(found: Found, problem: str) -> list[str]:
    any_result = next(iter(next(iter(found[problem].values())).values()))
    lines = [
        f"## {TITLES[problem]}",
        "",
        f"Accuracy on {any_result['samples']:,} held-out samples.",
        "",
        "| form | experts | parameters | accuracy | less dense | in use | lost if idle, by mode | all idle | rate |",
        "|---|---|--:|---|---|---|---|--:|--:|",
    ]
    for contender, results in found[problem].items():
        seeds = [results[seed] for seed in sorted(results)]
        values = [result["accuracy"] for result in seeds]
        spread = f"sd {statistics.stdev(values):.3f}, " if len(values) > 1 else ""
        less = "" if contender == DENSE else _less(found, problem, contender, DENSE) or ""
        used = lost = idle = ""
        if contender.expert_dims:
            used = ", ".join(f"{_share(results, k):.0%}" for k in range(len(contender.expert_dims)))
            lost = ", ".join(f"{statistics.fmean(losses):.3f}" for losses in _losses(results))
            idle = f"{statistics.fmean(r['accuracy'] - r['constant'] for r in seeds):.3f}"
        lines.append(
            f"| {_label(problem, contender)} | {' x '.join(map(str, contender.expert_dims))} "
            f"| {seeds[0]['parameters']:,} | {statistics.fmean(values):.3f} ({spread}n {len(values)}) | {less} "
            f"| {used} | {lost} | {idle} "
            f"| {seeds[0]['learning_rate']:g} |"
        )
    return [*lines, ""]


def _label(problem: str, contender: Contender) -> str:
    if contender == DENSE:
        return DENSE_NAMES[problem]
    if contender == TWO_MAPS:
        return "linear, two maps"
    return FORMS[contender.form] + ("" if contender.budget else ", rank 128") + (", frozen" if contender.frozen else "")


def picture(runs: Sequence[Mapping[str, Any]]) -> bytes:
    """For each problem a panel of accuracies and one of what idle modes cost, against the number of modes."""
    from matplotlib.figure import Figure

    found = _sorted(runs)
    figure = Figure(figsize=(9.6, 3.4 * max(1, len(found))), layout="constrained")
    for row, problem in enumerate(found):
        left, right = (figure.add_subplot(len(found), 2, 2 * row + column) for column in (1, 2))
        grids = [grid for grid in _grids(found, problem) if grid.budget]
        for form, colour in COLOURS.items():
            for sizes, words, style, marker in LINES:
                line = [grid for grid in grids if grid.form == form and prod(grid.expert_dims) in sizes]
                x = [len(grid.expert_dims) for grid in line]
                values = [[r["accuracy"] for r in found[problem][grid].values()] for grid in line]
                if line:
                    means = [statistics.fmean(v) for v in values]
                    ends = [[abs(end(v) - m) for v, m in zip(values, means, strict=True)] for end in (min, max)]
                    look = {"color": colour, "ls": style, "marker": marker, "ms": 4, "capsize": 2}
                    left.errorbar(x, means, ends, label=f"{FORMS[form]}, {words} experts", **look)
        for grid in _grids(found, problem):
            losses = [statistics.fmean(values) for values in _losses(found[problem][grid])]
            shift = -0.08 if grid.form == "cp" else 0.08
            places = [len(grid.expert_dims) + shift] * len(losses)
            right.plot(places, losses, "o", ms=4, alpha=0.6, color=COLOURS[grid.form])
        if DENSE in found[problem]:
            mean = statistics.fmean(r["accuracy"] for r in found[problem][DENSE].values())
            left.axhline(mean, color="black", lw=0.8, ls=":", label="linear head, dense MLPs")
        right.axhline(0.0, color="black", lw=0.8, ls=":")
        left.set(title=f"{TITLES[problem]}, equal parameters", xlabel="expert modes", ylabel="accuracy")
        right.set(title="every mode of every grid", xlabel="expert modes of the grid", ylabel="accuracy lost if idle")
        for axes in (left, right):
            axes.set_xticks([1, 2, 3, 4])
    labelled = {
        label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(labelled.values(), labelled.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()
