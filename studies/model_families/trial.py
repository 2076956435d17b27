"""One family put to the test: changed, compared, saved in two ways, loaded, and made to generate."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe.surgery import MuMoEConfig, factorize_experts, is_mlp, load, replace, save
from factorized_moe.surgery.replacing.experts_layouts import EXPERTS
from factorized_moe.surgery.saving.describing import described_modules
from studies.model_families.families import Family, inputs, make

__all__ = ["Trial", "attempt"]

FULL_RANK = MuMoEConfig(expert_dims=(2,), rank=24)
"""Every MLP here reads or gives 16 features, so its matrices have a rank of at most 17."""

CLOSE = 1e-4
"""How far outputs in float32 may be from those of the original, relatively."""


@dataclass(frozen=True)
class Trial:
    """What came of a family.

    Attributes:
        name: The family.
        takes: What it is given.
        parameters: How many parameters the tiny model has.
        changed: How many modules were changed.
        difference: How far the outputs then are from the original's, relatively.
        generates: Whether the changed and the loaded model generate what the original did; `None` if it does not.
        refused: Why it cannot be changed; empty if it can.
        failed: What went wrong, which nothing should; empty if nothing did.
    """

    name: str
    takes: str
    parameters: int
    changed: int = 0
    difference: float = 0.0
    generates: bool | None = None
    refused: str = ""
    failed: str = ""


def attempt(family: Family, sparse: bool) -> Trial:
    """Try a family.

    Args:
        family: The family.
        sparse: Whether its experts are factorised, or its MLPs replaced.
    """
    model = make(family)
    known: dict[str, Any] = {
        "name": family.name,
        "takes": family.takes,
        "parameters": sum(one.numel() for one in model.parameters()),
    }
    given = inputs(family)
    before, tokens = outputs(model, given), generated(family, model, given)
    try:
        if sparse:
            factorize_experts(model, "tt", **full_ranks(model))
        else:
            replace(model, is_mlp, FULL_RANK)
    except (TypeError, ValueError) as error:
        unchanged = torch.equal(outputs(model, given), before)
        return Trial(**known, refused=str(error), failed="" if unchanged else "a refused model was changed")
    known["changed"] = sum(1 for module in described_modules(model).values() if any(True for _ in module.parameters()))
    known["difference"] = relative(outputs(model, given), before)
    known["generates"] = None if tokens is None else torch.equal(generated(family, model, given), tokens)
    return Trial(**known, failed=_saved(family, model, given, known))


def full_ranks(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The ranks at which tensor trains hold a model's experts exactly; those of rank 1 if no layout knows them."""
    shapes = [(1, 1, 1), (1, 1, 1)]
    for module in model.modules():
        for layout in EXPERTS:
            read = layout.read(module) if layout.fits(module) else None
            if read is not None:
                shapes = [tuple(read.gate_up.shape), tuple(read.down.shape)]
    ranks = [(1, experts, min(experts * inputs, outputs), 1) for experts, inputs, outputs in shapes]
    return dict(zip(("rank", "down_rank"), ranks, strict=True))


def _saved(family: Family, model: nn.Module, given: dict[str, Tensor], known: dict[str, Any]) -> str:
    """What is wrong with a changed model, or with what is loaded of it; empty if nothing is."""
    if not known["difference"] <= CLOSE:
        return "it computes something else"
    if known["generates"] is False:
        return "it generates something else"
    before = outputs(model, given)
    ours = [one for module in described_modules(model).values() for one in module.parameters()]
    gradients = torch.autograd.grad(first(model(**given)).float().square().sum(), ours, allow_unused=True)
    if not any(one is not None and one.isfinite().all() and one.any() for one in gradients):
        return "no gradient reaches what was put in"
    with torch.no_grad():
        for parameter in ours:
            parameter.add_(0.1 * torch.randn_like(parameter))
    trained, tokens = outputs(model, given), generated(family, model, given)
    if relative(trained, before) < CLOSE:
        return "what was put in does not matter"
    with tempfile.TemporaryDirectory() as place:
        save(model, Path(place) / "ours")
        loaded = load(make(family, seed=1), Path(place) / "ours")
        model.save_pretrained(Path(place) / "theirs")
        found, report = type(model).from_pretrained(Path(place) / "theirs", output_loading_info=True)
    for name, other in (("load", loaded.eval()), ("from_pretrained", found)):
        if not torch.equal(outputs(other, given), trained):
            return f"{name} gives another model"
        if tokens is not None and not torch.equal(generated(family, other, given), tokens):
            return f"what {name} gives generates something else"
    wrong = {kind: names for kind, names in report.items() if names}
    return f"from_pretrained reports {wrong}" if wrong else ""


@torch.no_grad()
def outputs(model: nn.Module, given: dict[str, Tensor]) -> Tensor:
    """The logits, or the hidden states of a model without a head."""
    torch.manual_seed(0)
    return first(model(**given))


def first(found: Any) -> Tensor:
    """The tensor of a model's answer that counts."""
    names = [name for name in ("logits", "last_hidden_state") if found.get(name) is not None]
    tensor: Tensor = found[names[0]] if names else found[0]
    return tensor


def generated(family: Family, model: nn.Module, given: dict[str, Tensor]) -> Tensor | None:
    """Three tokens more, the most probable ones; `None` for a model that does not generate."""
    if not family.generates:
        return None
    prompt = {name: one for name, one in given.items() if name != "decoder_input_ids"}
    tokens: Tensor = model.generate(**prompt, max_new_tokens=3, do_sample=False, pad_token_id=1)
    return tokens


def relative(value: Tensor, exact: Tensor) -> float:
    """The relative difference in the Frobenius norm."""
    return float((value - exact).norm() / exact.norm())
