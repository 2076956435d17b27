"""The page of the study: every sentence of result is made from the runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from factorized_moe._writing import write_files
from studies.common.runs import read
from studies.specialisation import verdicts
from studies.specialisation.figures import TITLES, draw_all
from studies.specialisation.plan import DEFAULT, LINEAR, MATCHED_CP, MATCHED_TR, PAPER, RING, SOFTMAX, TWO_MAPS
from studies.specialisation.plan import runs as runs_of_the_plan
from studies.specialisation.table import Runs, known, spread

__all__ = ["page", "write"]

NAME = "specialisation"

HEADS: dict[str, dict[str, Any]] = {
    "CP, entmax": DEFAULT,
    "CP, softmax": SOFTMAX,
    "CP, the paper's init": PAPER,
    "TR": RING,
    "CP, equal parameters": MATCHED_CP,
    "TR, equal parameters": MATCHED_TR,
}

CLAIMS: dict[str, tuple[str, Callable[[Runs], list[str]]]] = {
    "More experts, less polysemantic ones: below half as many experts as classes": (
        "Reproduced where the mean falls by more than two standard errors and falls further than its null does.",
        verdicts.falls,
    ),
    "The same above half as many experts as classes": (
        "With many more experts than classes each expert does less, and the measure tends to 1 whatever it serves.",
        verdicts.rises,
    ),
    "More experts, more special ones, by measures that the size of an effect does not move": (
        "Yes where the figure moves by more than two standard errors and is beyond its null at the end.",
        verdicts.other_measures,
    ),
    "Entmax gives less polysemantic experts than softmax": (
        "Pairs of the same seed. Where experts have no effect, the rule for them decides the verdict.",
        verdicts.entmax,
    ),
    "As accurate as linear heads of as many parameters": (
        "Pairs of the same seed; within two standard errors is a tie.",
        verdicts.accuracy,
    ),
    "Other forms": ("Polysemanticity, experts without effect left out.", verdicts.variants),
}

FIGURES = {
    "polysemanticity.svg": "Polysemanticity against experts by class: mean and range of the seeds; dashed: null.",
    "measures.svg": "Three measures that do not depend on the size of an effect. Dashed: their nulls.",
    "gates.svg": "Entmax against softmax under three rules for experts without effect. Dashed: null.",
    "accuracy.svg": "Accuracy less that of a linear head, with two standard errors: grey is a tie.",
    "glyphs.png": "Twelve test pictures, drawn at random among those that an expert has most of, for six experts drawn "
    "at random: 16 experts on the left, 256 on the right.",
    "glosses.svg": "The same for nouns; a colour is a class of its row, grey is a class that the row has once.",
}


def page(runs: Runs, drawn: list[str]) -> str:
    """The page in Markdown.

    Args:
        runs: The runs.
        drawn: The figures that there are.
    """
    planned = runs_of_the_plan()
    done = len(runs.kept)
    seconds = sum(entry.get("seconds", 0.0) for entry in runs.all)
    lines = [
        "# Specialisation and the number of experts",
        "",
        "Do more experts make more special ones? Heads of 4 to 1,024 experts were trained on features of many classes.",
        "Each expert was then taken out, and the test samples that are lost without it were counted by class.",
        "*Polysemanticity* is 0 for an expert that carries all accuracy of one class, about 1 for one whose effect is",
        "small, and more for one that carries several classes. It must be read beside its *null*, the same number of",
        "lost samples drawn at random, because a small effect alone brings it near 1.",
        "",
        "## In short",
        "",
        *(f"- {line}" for line in verdicts.in_short(runs)),
        "",
        *_picture("polysemanticity.svg", drawn),
        *_picture("glyphs.png", drawn),
        *_picture("glosses.svg", drawn),
    ]
    after = {2: "measures.svg", 3: "gates.svg", 4: "accuracy.svg"}
    for number, (title, (rule, sentences)) in enumerate(CLAIMS.items()):
        found = sentences(runs)
        if found:
            lines += [f"## {title}", "", rule, "", *(f"- {line[0].upper()}{line[1:]}" for line in found), ""]
            lines += _picture(after.get(number, ""), drawn)
    lines += ["## All figures", ""]
    lines += [line for data in TITLES for line in _table(runs, data)]
    lines += [
        "Mean and, in brackets, least and largest seed; `p` is polysemanticity with experts without effect left",
        "out, then counted 1 and 0. Classes is `exp` of the entropy of an expert's effect over classes.",
        "",
        *RULES,
        f"Command: `python -m studies specialisation`; the {len(runs.all)} runs of this page took {seconds / 60:.0f}",
        "minutes of one thread each by the clock, on a machine that did much other work. A stopped command goes on",
        f"where itwas: of {len(planned):,} planned heads, {done:,} are done. Runs:",
        "`docs/studies/specialisation/*.jsonl`; every sentence above is made from them.",
        "",
    ]
    return "\n".join(lines)


RULES = [
    "## Rules",
    "",
    "- *Glosses*: nouns of WordNet 3.0 (its own free licence), to be sorted by 252 concepts far above them, 75 for",
    "  training and 25 for the test of each; embeddings of a frozen MiniLM. 50 and 10 classes are k-means of these",
    "  252, on the same inputs; with *every gloss for training*, up to 2,300 of a class, the test is the same.",
    "- *Glyphs*: 256 kanji in 40 faces of Debian, 20 for training and 20 for the test of each; features",
    "  of a frozen PP-OCRv4 reader, 192 principal directions. No kanji is tested in a face it was trained in.",
    "  *Fashion-MNIST*: a small network is trained together with the head.",
    "- CP of rank 128 with the library's defaults and an entmax gate where nothing else is said. TR has the parameters",
    "  of that CP. *Equal parameters*: those of a linear head, the gate counted. *Two linear maps*: a linear head in",
    "  two factors with the parameters of CP with 256 experts.",
    "- AdamW, weight decay 0.01, batches of 256, 5% warm-up, half a cosine; the best of three learning rates on",
    "  held-out training samples, one seed, 16 experts, for every contender; 10 and 50 classes take those of 252.",
    "  Glosses 8 epochs (every gloss 3), glyphs 30, Fashion-MNIST 2.",
    "- The null draws, for each expert, as many lost samples from all that are predicted correctly; ten draws. That of",
    "  mutual information shuffles the labels; three times.",
    "- The measure is this library's form of Oldfield et al. 2024 (arXiv 2402.12550); that the paper's own is the same",
    "  to the letter is not confirmed. The paper's range is 16 to 512 experts for ImageNet's 1,000 classes.",
    "",
    "## How far to trust it",
    "",
    "- One design was run. Training was shortened once for time, before any head of the study (glosses 12 to 8 epochs,",
    "  glyphs 40 to 30, Fashion-MNIST 3 to 2); weight decay was not tuned, and some chosen rates lie at the edge of",
    "  the three that were tried, so parity with each contender at its best is not tested.",
    "- The glyphs are easy (accuracies near .98): an expert costs few of them, and with softmax hardly any expert has",
    "  an effect. A more distorted set was begun for that reason after these results were seen, and no head was",
    "  trained on it. The glyphs' polysemanticity rests on few lost images.",
    "- Most cells have three seeds, so two standard errors is a weak test, and nothing is corrected for the many",
    "  comparisons. That 128 experts for 252 classes count as half is set by hand (at most .52).",
    "",
    "## What this cannot show",
    "",
    "The paper's models and data: ImageNet, CLIP and DINO, fine-tuned. Features are frozen here, with 20 to 75",
    "training samples of a class where ImageNet has 1,300.",
    "",
]


def _picture(name: str, drawn: list[str]) -> list[str]:
    return [f"![{FIGURES[name]}]({NAME}/{name})", "", f"*{FIGURES[name]}*", ""] if name in drawn else []


def _table(runs: Runs, data: str) -> list[str]:
    rows = []
    for name, like in HEADS.items():
        for size in runs.sizes(data, like):
            value = {
                measure: [runs.values(data, like, size, measure, part) for part in (0, 1)]
                for measure in ("mean", "mean_dead_one", "mean_dead_zero", "concentration", "effective_classes")
            }
            told = [runs.values(data, like, size, "mutual_information", part) for part in (0, 1)]
            one = [runs.values(data, like, size, m) for m in ("accuracy", "with_effect", "lost", "experts_per_input")]
            cells = [
                f"{size:,}",
                str(len(one[0])),
                spread(one[0]),
                spread(value["mean"][0]),
                _short(value["mean"][1], 3),
                f"{_short(value['mean_dead_one'][0], 2)} / {_short(value['mean_dead_zero'][0], 2)}",
                f"{_short(value['concentration'][0], 2)} ({_short(value['concentration'][1], 2)})",
                f"{_short(value['effective_classes'][0], 1)} ({_short(value['effective_classes'][1], 1)})",
                f"{_short(told[0], 2)} ({_short(told[1], 2)})",
                _short(one[3], 1),
                _short(one[1], 0),
                _short(one[2], 1),
            ]
            rows.append(f"| {name} | {' | '.join(cells)} |")
    for name, like in (("linear", LINEAR), ("two linear maps", TWO_MAPS)):
        for size in runs.sizes(data, like):
            found = runs.values(data, like, size, "accuracy")
            rows.append(f"| {name} | | {len(found)} | {spread(found)} |" + " |" * 8)
    if not rows:
        return []
    return [
        f"### {TITLES[data][0].upper()}{TITLES[data][1:]}",
        "",
        "| head | N | n | accuracy | p | null | dead 1 / 0 | concentration (null) | classes (null) | bits (null) "
        "| used by an input | with effect | lost by expert |",
        "|---|---:|---:|---|---|---:|---|---|---|---|---:|---:|---:|",
        *rows,
        "",
    ]


def _short(values: dict[int, float], digits: int) -> str:
    found = known(values)
    return f"{sum(found) / len(found):,.{digits}f}" if found else "none"


def write(out: Path, cache: Path) -> None:
    """Draw the figures and write the page from the runs that are there.

    Args:
        out: The folder of the page.
        cache: Where downloads and outcomes are kept; pictures of samples are drawn where it has what they need.
    """
    from studies.specialisation.samples import draw_samples

    folder = out / NAME
    runs = Runs([entry for file in sorted(folder.glob("*.jsonl")) for entry in read(file)])
    draw_all(runs, folder)
    draw_samples(runs, folder, cache)
    drawn = [name for name in FIGURES if (folder / name).exists()]
    write_files(out, {f"{NAME}.md": page(runs, drawn).encode()})
