"""Why a name of `interpret` and `surgery` is public: it is called, or a call takes or gives it, or a reason is here."""

import inspect
import re
from collections.abc import Iterator
from types import ModuleType

import pytest

from factorized_moe import interpret, surgery

REASONS = {
    "Intervention": "the base of the interventions, and of one of your own",
    "CoefficientIntervention": "the base of an intervention of your own that changes coefficients",
    "Measurement": "the base of every result: `to_pandas`, JSON",
    "Chunk": "what `Recording.chunks` yields",
    "Annotations": "what a `Chunk` holds beside coefficients",
    "LabelSet": "what `Recording.label_set` gives and `with_labels` takes",
    "Usage": "what `UsageWatcher.usage` holds",
    "PolysemanticitySummary": "what `Polysemanticity.summary` gives",
    "BesideNull": "a figure of `LabelInformation` and `PolysemanticitySummary`",
    "ModeUsage": "what a `Usage` holds of each mode",
    "ExpertThreshold": "an intervention, the paper's correction",
    "MuMoEDelta": "what stands in a model where `replace` keeps the base",
    "Replacement": "what a `ReplacementReport` holds of each module",
    "FactorizedExperts": "what stands in a model after `factorize_experts`",
    "LAYOUTS": "the layouts of MLPs that are known, to look up or to vary one",
}
"""Of names that are neither functions nor seen in the signature of one."""


def reason_for(module: ModuleType, name: str) -> str | None:
    """Why a name is public; None if nothing says it."""
    thing = getattr(module, name)
    if inspect.isfunction(thing):
        return "it is called"
    for other, function in functions(module):
        text = str(inspect.signature(function))
        if re.search(rf"\b{name}\b", text):
            gives = re.search(rf"\b{name}\b", text.rpartition("->")[2])
            return f"{'given by' if gives else 'taken by'} `{other}`"
    if inspect.isclass(thing) and issubclass(thing, interpret.Intervention) and thing not in BASES:
        return "an intervention, taken by `intervene`"
    return REASONS.get(name)


BASES = (interpret.Intervention, interpret.CoefficientIntervention)


def functions(module: ModuleType) -> Iterator[tuple[str, object]]:
    for name in sorted(module.__all__):
        if inspect.isfunction(thing := getattr(module, name)):
            yield name, thing


@pytest.mark.parametrize("module", [interpret, surgery], ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_public_name_has_a_reason(module: ModuleType) -> None:
    reasons = {name: reason_for(module, name) for name in sorted(module.__all__)}
    assert [name for name, reason in reasons.items() if reason is None] == []


def test_a_reason_is_of_a_public_name_that_has_no_other() -> None:
    public = {*interpret.__all__, *surgery.__all__}
    assert REASONS.keys() <= public


def test_a_name_without_a_reason_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surgery, "Stray", type("Stray", (), {}), raising=False)
    assert reason_for(surgery, "Stray") is None
