"""The model, transformers' own GPT-2, and what its run leaves: text sampled from it, a page of its experts.

Legend: ``B`` sequences, ``T`` tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe._writing import write_files
from factorized_moe.interpret import record
from factorized_moe.interpret.report import ReportData, Texts
from factorized_moe.surgery import is_mlp, replace
from recipes.gpt.prepare import prepare
from recipes.gpt.shards import DESCRIPTION, Shards, read_description
from recipes.gpt.tokens import Tokenizer, read_tokenizer
from recipes.options import Options, option
from recipes.recipe import Recipe, experts_of, has_experts

__all__ = ["GPTOptions", "build_gpt", "gpt", "sample"]

PROMPTS = ("def ", "class ", "import ", "    return ")
SHOWN = 64
"""Held-out sequences on the page of experts."""
KINDS = ("letters", "digits", "space", "new line", "signs", "other")


@dataclass(frozen=True, kw_only=True)
class GPTOptions(Options):
    """What this recipe is told beside `Options`."""

    out: Path = option(Path("results/gpt"), "the folder of the run; one that holds a run goes on", free=True)
    data: Path = option(
        Path("results/python-text"), "the folder of shards; made of Python's own text if missing", free=True
    )
    steps: int = option(800, "steps of the optimiser")
    tokens: int = option(128, "tokens of a sequence")
    dropout: float = option(0.0, "the share of values dropped")
    spread: float = option(0.0, "the standard deviation of first weights; 0 for GPT-2's, as it is at the width")

    @property
    def first_spread(self) -> float:
        """GPT-2's 0.02 is of 768 features; narrower models need more (python -m studies recipes, `gpt_narrow`)."""
        return self.spread or 0.02 * (768 / self.features) ** 0.5

    @property
    def largest_rate(self) -> float:
        """The largest learning rate: as told, else GPT-2's 6e-4 of 768 features, more for narrower models."""
        return self.learning_rate or 7.2e-3 * 64 / self.features


def gpt(options: GPTOptions) -> Recipe:
    """The recipe.

    Args:
        options: Those of the command line.

    Raises:
        ValueError: If the data are damaged.
    """
    if options.data == GPTOptions.data and not (options.data / DESCRIPTION).exists():
        prepare("stdlib", options.data, vocabulary=2048)
    training, held_out = (Shards(options.data, split, options.tokens, options.seed) for split in ("train", "held_out"))
    described, tokenizer = read_description(options.data), read_tokenizer(options.data)
    number = min(options.held_out, len(held_out))

    def finish(model: nn.Module, folder: Path) -> ReportData | None:
        texts = [prompt + sample(model, tokenizer, prompt, options) for prompt in PROMPTS]
        write_files(folder, {"sample.txt": ("\n\n-----\n\n".join(texts) + "\n").encode()})
        rows = torch.stack([held_out.spread(k, min(SHOWN, number))[0] for k in range(min(SHOWN, number))])
        return page(model, rows, tokenizer, options, described["source"])

    return Recipe(
        name="gpt",
        build=lambda: build_gpt(options, tokenizer),
        training=training.training,
        held_out=lambda k: held_out.spread(k, number),
        num_held_out=number,
        source={"shards": described["shards"], "vocabulary": described["vocabulary"]},
        learning_rate=options.largest_rate,
        unit="tokens",
        units=options.tokens,
        finish=finish,
    )


def build_gpt(options: GPTOptions, tokenizer: Tokenizer, device: str = "cpu") -> nn.Module:
    """GPT-2, its MLPs replaced by blocks of experts with as many parameters.

    Args:
        options: Those of the run.
        tokenizer: For the vocabulary.
        device: Where its parameters are.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(options.seed)
    config = GPT2Config(
        vocab_size=tokenizer.vocabulary,
        n_positions=options.tokens,
        n_embd=options.features,
        n_layer=options.depth,
        n_head=max(1, options.features // 64),
        resid_pdrop=options.dropout,
        embd_pdrop=options.dropout,
        attn_pdrop=options.dropout,
        bos_token_id=tokenizer.end,
        eos_token_id=tokenizer.end,
        initializer_range=options.first_spread,
        use_cache=False,
    )
    with torch.device(device):
        model = GPT2LMHeadModel(config)
    if (experts := experts_of(options)) is not None:
        replace(model, is_mlp, experts)
    return model


@torch.no_grad()
def sample(model: Any, tokenizer: Tokenizer, prompt: str, options: GPTOptions) -> str:
    """Text that goes on from a prompt, token by token, each of the 40 likeliest.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        prompt: How the text begins.
        options: Those of the run; twice as many tokens are drawn as the model sees at once.
    """
    generator = torch.Generator().manual_seed(options.seed)
    numbers = tokenizer.encode(prompt)
    begun = len(numbers)
    for _ in range(2 * options.tokens):
        logits = model(torch.tensor([numbers[-options.tokens :]])).logits[0, -1]
        best = logits.topk(min(40, len(logits)))
        chosen = torch.multinomial((best.values / 0.8).softmax(dim=0), 1, generator=generator)
        numbers.append(int(best.indices[chosen]))
    return tokenizer.decode(numbers[begun:])


@torch.no_grad()
def page(model: nn.Module, rows: Tensor, tokenizer: Tokenizer, options: GPTOptions, source: str) -> ReportData | None:
    """What the experts do with some sequences, ``(B, T)``; None for a dense model."""
    if not has_experts(model):
        return None
    texts = [[tokenizer.decode([number]) for number in row] for row in rows.tolist()]
    with record(model, class_names=KINDS) as log:
        for row, words in zip(rows, texts, strict=True):
            model(row.unsqueeze(0))
            log.annotate(labels=[kind_of(word) for word in words])
    modes = " x ".join(map(str, options.experts))
    facts = [("Text", source), ("Experts", f"{modes}, {options.form}"), ("Steps", f"{options.steps:,}")]
    return ReportData.from_recording(log.recording, "A GPT of experts", inputs=Texts(texts), facts=facts)


def kind_of(word: str) -> int:
    r"""The kind of a token, as a number of `KINDS`.

    Examples:
        >>> [KINDS[kind_of(word)] for word in (" self", "12", "  ", "\n", "):")]
        ['letters', 'digits', 'space', 'new line', 'signs']
    """
    inner = word.strip(" \t")
    if not inner:
        return 2
    if "\n" in inner:
        return 3
    if inner.isascii() and any(sign.isalpha() for sign in inner):
        return 0
    if inner.isdigit():
        return 1
    return 4 if inner.isascii() else 5
