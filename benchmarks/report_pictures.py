"""The pictures of the report page in docs/how-to/report-page.md: `python -m benchmarks.report_pictures`, a few minutes.

Trains the demonstration twice, and a model of the next word on this repository's own documentation; writes their pages
and photographs them with the system's Chromium.

Legend: ``n`` words, ``V`` words of the vocabulary, ``F`` features.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from factorized_moe import CPMuMoE
from factorized_moe.demo import DemoOptions, run_demo
from factorized_moe.interpret import record
from factorized_moe.interpret.report import ReportData, Texts, load_run, write_report

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "docs" / "assets"
FEATURES = 48
CONTEXT = 3
"""Words that the next one is told from."""

DESKTOP, PHONE = (1280, 860), (390, 844)

PICTURES = (
    ("report-overview", "images", "#/", DESKTOP, "light"),
    ("report-list", "images", "#/head?sort=-load", DESKTOP, "dark"),
    ("report-expert", "images", "#/head/expert/{busiest}?sort=-load", DESKTOP, "light"),
    ("report-text", "texts", "#/experts/expert/{busiest}?sort=-load", DESKTOP, "light"),
    ("report-text-dark", "texts", "#/experts?sort=-largest", DESKTOP, "dark"),
    ("report-comparison", "compared", "#/~compare", DESKTOP, "light"),
    ("report-phone", "images", "#/head/expert/{busiest}?sort=-load", PHONE, "light"),
)
"""For each picture its name, the page, the address in it, the size of the window and the colour scheme."""


class NextWord(nn.Module):
    """The next word from the last three, with the experts last."""

    def __init__(self, num_words: int) -> None:
        super().__init__()
        self.words = nn.Embedding(num_words, FEATURES)
        self.mix = nn.Sequential(nn.Linear(CONTEXT * FEATURES, FEATURES), nn.GELU(), nn.LayerNorm(FEATURES))
        self.experts = CPMuMoE(FEATURES, num_words, expert_dims=[64], rank=48)

    def forward(self, words: Tensor) -> Tensor:
        """``(n, 3)`` numbers of words -> ``(n, V)`` logits."""
        logits: Tensor = self.experts(self.mix(self.words(words).flatten(1)))
        return logits


def text_run() -> ReportData:
    """Train on the documentation's pages and record every word of them; a word's label is where it stands."""
    pages = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
    texts, places = [], []
    for page in pages:
        for paragraph, place in paragraphs(page.read_text(encoding="utf-8")):
            tokens = re.findall(r"\s*(?:\w+|[^\w\s])", paragraph)
            if len(tokens) > CONTEXT:
                texts.append(tokens)
                places.append(place)
    number: dict[str, int] = {}
    words = [torch.tensor([number.setdefault(t.strip().lower(), len(number)) for t in text]) for text in texts]
    padded = [nn.functional.pad(w, (CONTEXT - 1, 0)).unfold(0, CONTEXT, 1) for w in words]  # (n, 3) each
    inputs = torch.cat([w[:-1] for w in padded])
    targets = torch.cat([w[1:] for w in words])
    torch.manual_seed(0)
    model = NextWord(len(number))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for batch in torch.randperm(len(inputs)).repeat(6).split(256):
        loss = nn.functional.cross_entropy(model(inputs[batch]), targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    names = sorted(set(places))
    with record(model.eval(), class_names=names) as log, torch.no_grad():
        for part, place in zip(padded, places, strict=True):
            model(part)
            log.annotate(labels=[names.index(place)] * len(part))
    return ReportData.from_recording(
        log.recording,
        "The next word of this documentation",
        inputs=Texts(texts),
        facts=[
            ("Model", f"next word from the last {CONTEXT}"),
            ("Experts", "64, cp of rank 48"),
            ("Pages", str(len(pages))),
            ("Vocabulary", f"{len(number):,} words"),
            ("Loss at the end, nats", f"{sum(losses[-20:]) / 20:.2f}"),
            ("Labels", "where a word stands"),
        ],
    )


def paragraphs(page: str) -> Iterator[tuple[str, str]]:
    """The paragraphs of a page in Markdown, and what each one is."""
    for number, part in enumerate(page.split("```")):
        for paragraph in part.split("\n\n"):
            text = paragraph.strip()
            if number % 2:
                yield text, "code"
            elif text.startswith("|"):
                yield text, "table"
            elif text.startswith(("-", "1.")):
                yield text, "list"
            elif text.startswith("#"):
                yield text, "heading"
            else:
                yield text, "prose"


def main() -> None:
    """Make the runs, the pages and the pictures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_demo(DemoOptions(out=folder / "first"))
        run_demo(DemoOptions(out=folder / "second", expert_dims=(64,), seed=1))
        runs = {"images": load_run(folder / "first"), "texts": text_run()}
        runs["compared"] = runs["images"]
        for page, run in runs.items():
            other = load_run(folder / "second") if page == "compared" else None
            write_report(folder / f"{page}.html", run, compare=other)
        busiest = {page: int(run.layers[0].load.argmax()) for page, run in runs.items()}
        photograph(folder, busiest)


def photograph(folder: Path, busiest: dict[str, int]) -> None:
    """Take the pictures of the pages in a folder."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        for name, page, address, (width, height), scheme in PICTURES:
            window = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            window.goto(f"{(folder / page).with_suffix('.html').as_uri()}{address.format(busiest=busiest[page])}")
            window.wait_for_timeout(500)  # charts are drawn when their width is known
            with Image.open(io.BytesIO(window.screenshot())) as picture:
                few = picture.convert("RGB").quantize(96, dither=Image.Dither.NONE)
                few.save(ASSETS / f"{name}.png", optimize=True)
            print(f"{name}.png: {(ASSETS / f'{name}.png').stat().st_size / 1000:.0f} kB")
            window.close()
        browser.close()


if __name__ == "__main__":
    main()
