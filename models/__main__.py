"""The command: ``python -m models [--quick] [--out FOLDER]``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks import machine
from factorized_moe.surgery import DistillationSettings
from models import language, report, sentences
from models.report import Results, Study
from models.sources import LANGUAGE_MODEL, SENTENCE_MODEL, Source, prose, unpack
from models.study import VARIANTS, Ablated, Place, Row, Variant, rows

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "results" / "models" / "packages"


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
    train_windows: int = 48
    held_out_windows: int = 6
    train_sentences: int = 512
    held_out_sentences: int = 192
    batch_size: int = 256
    settings: DistillationSettings = field(default_factory=lambda: DistillationSettings(steps=60, learning_rate=2e-3))
    variants: Sequence[Variant] = VARIANTS


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
    """Study both models, and write the page and the file of results."""
    parser = argparse.ArgumentParser(prog="python -m models", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one form and a few steps, to see that it runs")
    parser.add_argument("--out", type=Path, help="the folder to write to; docs, with --quick results/models")
    options = parser.parse_args(arguments)
    effort = QUICK if options.quick else FULL
    out = options.out or (ROOT / "results" / "models" if options.quick else ROOT / "docs")
    torch.set_num_threads(1)  # sums then come out the same on any number of cores
    results = run(effort, f"python -m models{' --quick' if options.quick else ''}")
    write(out, results)
    print(f"{results.seconds:.0f} s in all; {out / 'real-models.md'}")


def run(effort: Effort, command: str) -> Results:
    """Download, study and gather."""
    begun = time.perf_counter()
    text = prose()
    model, tokenizer = language.load(unpack(LANGUAGE_MODEL, CACHE))
    train = language.windows(tokenizer, text.train, effort.train_windows, effort.window)
    held_out = language.windows(tokenizer, text.held_out, effort.held_out_windows, effort.window)
    at = language.place(model, train, held_out)
    change = language.relative_change_at_full_rank(at, held_out[:1])
    print(f"at full rank the logits change by {change:.1e}", flush=True)
    amounts = (f"{train.numel():,} tokens", f"{held_out.numel():,} tokens in windows of {effort.window}")
    of_language = study(LANGUAGE_MODEL, f"model.layers.{len(model.model.layers) // 2}.mlp", at, effort, amounts)

    encoder, tokenizer = sentences.load(unpack(SENTENCE_MODEL, CACHE))
    known = sentences.encode(tokenizer, sentences.split_sentences(text.train, effort.train_sentences))
    unknown = sentences.encode(tokenizer, sentences.split_sentences(text.held_out, effort.held_out_sentences))
    at = sentences.place(encoder, known, unknown)
    amounts = (f"{effort.train_sentences} sentences", f"{effort.held_out_sentences} sentences")
    module = f"encoder.layer.{len(encoder.encoder.layer) // 2}"
    of_sentences = study(SENTENCE_MODEL, module, at, effort, amounts)

    settings = effort.settings
    words = (
        f"`distill` on what the MLP is given and gives, {settings.steps} steps of {effort.batch_size} tokens, learning "
        f"rate {settings.learning_rate:g}: seconds for each form, far from converged."
    )
    seconds = time.perf_counter() - begun
    return Results(
        command, settings.seed, text.source, machine.describe(), words, change, of_language, of_sentences, seconds
    )


def study(source: Source, module: str, at: Place, effort: Effort, amounts: tuple[str, str]) -> Study:
    """Measure the original, the model without the MLP, and every form of it."""
    begun = time.perf_counter()
    original = at.measure()
    with at.holding(Ablated()):
        ablated = at.measure()
    print(f"{source.name}: {original}, without the MLP {ablated}", flush=True)
    found: list[Row] = []
    for row in rows(at, effort.variants, effort.settings, effort.batch_size):
        found.append(row)
        print(f"  {row.variant}: {row.upcycled}, {row.fitted}, {row.distilled}, {row.seconds:.0f} s", flush=True)
    seconds = time.perf_counter() - begun
    parameters = sum(parameter.numel() for parameter in at.mlp.parameters())
    names = source.name, source.package, source.licence, module
    return Study(*names, parameters, *amounts, original, ablated, found, seconds)


def write(out: Path, results: Results) -> None:
    """Write the file, and the page from what the file says."""
    file = out / "real-models.json"
    report.save(file, results)
    (out / "real-models.md").write_text(report.markdown(report.load(file)), encoding="utf-8")


if __name__ == "__main__":
    main()
