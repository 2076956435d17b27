"""The command: ``python -m studies real_models``, see its ``--help``."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks import machine
from factorized_moe._writing import write_files
from factorized_moe.surgery import DistillationSettings
from studies.real_models import language, report, sentences
from studies.real_models.report import Study
from studies.real_models.sources import LANGUAGE_MODEL, SENTENCE_MODEL, Source, prose, unpack
from studies.real_models.study import VARIANTS, Ablated, Place, Row, Variant, rows

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "results" / "models" / "packages"
FILE = "real-models.json"


@dataclass(frozen=True)
class Effort:
    """How much is done.

    Attributes:
        window: Tokens of a window of the language model.
        train_windows: Windows to distil on.
        held_out_windows: Windows to measure on.
        train_sentences: Sentences to distil on.
        held_out_sentences: Sentences to measure on.
        batch_size: Tokens of a batch in distillation.
        settings: How to distil.
        variants: The forms of the MLP.
    """

    window: int = 128
    train_windows: int = 24
    held_out_windows: int = 4
    train_sentences: int = 192
    held_out_sentences: int = 128
    batch_size: int = 256
    settings: DistillationSettings = field(default_factory=lambda: DistillationSettings(steps=32, learning_rate=2e-3))
    variants: Sequence[Variant] = VARIANTS

    @property
    def distillation(self) -> str:
        """How it is distilled, in words."""
        return (
            f"{self.settings.steps} steps of {self.batch_size} tokens, learning rate {self.settings.learning_rate:g}: "
            "seconds for each form, far from converged."
        )


FULL = Effort()
QUICK = Effort(
    train_windows=2,
    held_out_windows=1,
    train_sentences=32,
    held_out_sentences=32,
    settings=DistillationSettings(steps=3, learning_rate=2e-3),
    variants=(Variant("cp", 16, 1.0),),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Study the models, and write the page and the file of results anew after each form."""
    parser = argparse.ArgumentParser(prog="python -m studies real_models", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(STUDIES), metavar="MODEL", help=", ".join(STUDIES))
    parser.add_argument("--quick", action="store_true", help="one form and a few steps, to see that it runs")
    parser.add_argument("--out", type=Path, help="the folder to write to; docs, with --quick results/models")
    shares = sorted({variant.fraction for variant in VARIANTS}, reverse=True)
    parser.add_argument("--shares", nargs="+", type=float, choices=shares, help="of the parameters; all by default")
    parser.add_argument("--missing", action="store_true", help="only the forms that the file of results lacks")
    options = parser.parse_args(arguments)
    effort = QUICK if options.quick else FULL
    # A quick run's figures are no results: they never replace the ones in docs/ unless asked to.
    out = options.out or (ROOT / "results" / "models" if options.quick else ROOT / "docs" / "studies")
    flags = ["--only", *options.only] if options.only else []
    flags += ["--shares", *map(str, options.shares)] if options.shares else []
    flags += ["--missing"] if options.missing else []
    flags += ["--quick"] if options.quick else []
    command = shlex.join(["python", "-m", "studies", "real_models", *flags])
    torch.set_num_threads(1)  # sums then come out the same on any number of cores
    for name in options.only or STUDIES:
        stored = report.load(out / FILE).get(name) if options.missing else None
        done = {row.variant for row in stored.rows} if stored else set()
        chosen = [v for v in effort.variants if v.fraction in (options.shares or shares) and v not in done]
        if not chosen:
            continue
        for found in STUDIES[name](effort, chosen, command):
            write(out, name, found)
    print(out / "real-models.md")


def study_language(effort: Effort, chosen: Sequence[Variant], command: str) -> Iterator[Study]:
    """The language model."""
    text = prose()
    model, tokenizer = language.load(unpack(LANGUAGE_MODEL, CACHE))
    train = language.windows(tokenizer, text.train, effort.train_windows, effort.window)
    held_out = language.windows(tokenizer, text.held_out, effort.held_out_windows, effort.window)
    at = language.place(model, train, held_out)
    change = language.relative_change_at_full_rank(at, held_out[:1])
    amounts = (text.source, f"{train.numel():,} tokens", f"{held_out.numel():,} tokens in windows of {effort.window}")
    yield from study(LANGUAGE_MODEL, at, effort, chosen, amounts, command, change)


def study_sentences(effort: Effort, chosen: Sequence[Variant], command: str) -> Iterator[Study]:
    """The sentence encoder."""
    text = prose()
    model, tokenizer = sentences.load(unpack(SENTENCE_MODEL, CACHE))
    train = sentences.encode(tokenizer, sentences.split_sentences(text.train, effort.train_sentences))
    held_out = sentences.encode(tokenizer, sentences.split_sentences(text.held_out, effort.held_out_sentences))
    at = sentences.place(model, train, held_out)
    amounts = (text.source, f"{effort.train_sentences} sentences", f"{effort.held_out_sentences} sentences")
    yield from study(SENTENCE_MODEL, at, effort, chosen, amounts, command)


STUDIES: dict[str, Callable[[Effort, Sequence[Variant], str], Iterator[Study]]] = {
    "language": study_language,
    "sentences": study_sentences,
}


def study(
    source: Source,
    at: Place,
    effort: Effort,
    chosen: Sequence[Variant],
    amounts: tuple[str, str, str],
    command: str,
    full_rank_change: float | None = None,
) -> Iterator[Study]:
    """Measure the original, the model without the MLP, and forms of it; what is known so far after each form."""
    original = at.measure()
    with at.holding(Ablated()):
        ablated = at.measure()
    print(f"{source.name}: {original}, without the MLP {ablated}", flush=True)
    parameters = sum(parameter.numel() for parameter in at.mlp.parameters())
    found: list[Row] = []
    for row in rows(at, chosen, effort.settings, effort.batch_size):
        found.append(row)
        print(f"  {row.variant}: {row.upcycled}, {row.fitted}, {row.distilled}, {row.seconds:.0f} s", flush=True)
        yield Study(
            source.name,
            source.package,
            source.licence,
            at.name,
            parameters,
            *amounts,
            effort.distillation,
            original,
            ablated,
            tuple(found),
            len(effort.variants),
            effort.settings.seed,
            (command,),
            machine.describe(),
            full_rank_change,
        )


def write(out: Path, name: str, found: Study) -> None:
    """Put one study into the file, beside other forms of the same study, and make the page from the file."""
    file = out / FILE
    stored = report.load(file)
    stored[name] = found.merged(stored.get(name))
    report.save(file, {known: stored[known] for known in STUDIES if known in stored})
    write_files(out, {"real-models.md": report.markdown(report.load(file)).encode()})
