"""What trained gates say beyond random ones, in the first layer, in the last, and from one to the other.

Gates of random weights on the same inputs say something too, and say more or less of it with depth. So a trained gate's
bits, and their change with depth, are judged less a random gate's, paired by seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from studies.common.paired import paired
from studies.pretraining.parity import CLAIM, NAMES, TITLES, Parity, gathered

__all__ = ["Depth", "beyond_table", "by_form", "depths", "experts_verdicts"]

Looks = Sequence[Mapping[str, Any]]
FOLLOWED = {"gpt": ("kind", "next token"), "mixer": ("look", "class", "position")}
"""The labels whose bits are compared between the first and the last layer."""
MEANT = {"kind": "the kind of a token", "next token": "the next token"}
ONE_SEED = CLAIM["unknown"]
MORE = {"better": "more", "worse": "less", "not told apart": "no clear difference", "unknown": ONE_SEED}
MOVED = {"better": "a rise", "worse": "a fall", "not told apart": "no clear change", "unknown": ONE_SEED}
SHOWN = {
    "reproduced": "show it too",
    "not reproduced": "do not show it",
    "not told apart": "do not clearly show it",
    ONE_SEED: ONE_SEED,
}
AS_MUCH = {
    "better": "more than by look",
    "worse": "less than by look",
    "not told apart": "as much as by look, as far as can be told",
    "unknown": ONE_SEED,
}


@dataclass(frozen=True, eq=False)
class Depth:
    """The bits about one label in a model's first and in its last layer, a result for each seed.

    Attributes:
        first: What was measured in the first layer.
        last: In the last, of the same seeds.
    """

    first: Sequence[Mapping[str, float]]
    last: Sequence[Mapping[str, float]]

    def level(self, end: str) -> Parity:
        """The bits of trained gates less those of random ones.

        Args:
            end: ``"first"`` or ``"last"``.
        """
        found = {"first": self.first, "last": self.last}[end]
        return Parity(paired(_of(found, "bits"), _of(found, "random_gate")), lower_is_better=False)

    def change(self, gate: str) -> Parity:
        """The bits of the last layer less those of the first.

        Args:
            gate: ``"bits"`` for trained gates, ``"random_gate"`` for random ones.
        """
        return Parity(paired(_of(self.last, gate), _of(self.first, gate)), lower_is_better=False)

    def sharing(self, end: str) -> Parity:
        """Among how many experts trained gates divide a token, less random ones; fewer, so sharper, is better.

        Args:
            end: ``"first"`` or ``"last"``.
        """
        found = {"first": self.first, "last": self.last}[end]
        return Parity(paired(_of(found, "shared"), _of(found, "random_shared")), lower_is_better=True)

    @property
    def change_beyond(self) -> Parity:
        """The change of trained gates less that of random ones."""
        first, last = (
            [a - b for a, b in zip(_of(end, "bits"), _of(end, "random_gate"), strict=True)]
            for end in (self.first, self.last)
        )
        return Parity(paired(last, first), lower_is_better=False)


def _of(found: Sequence[Mapping[str, float]], name: str) -> list[float]:
    return [one[name] for one in found]


def by_form(looks: Looks) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """What was found in the models of each problem and form, a result for each seed.

    Args:
        looks: The table of experts.
    """
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in looks:
        found.setdefault((entry["settings"]["problem"], entry["settings"]["form"]), []).append(entry["result"])
    return found


def depths(looks: Looks) -> dict[str, dict[str, dict[str, Depth]]]:
    """By problem, label and form.

    Args:
        looks: The table of experts.
    """
    found: dict[str, dict[str, dict[str, Depth]]] = {}
    for (problem, form), results in by_form(looks).items():
        for label in FOLLOWED[problem]:
            first, last = ([_measured(result["layers"][k], label) for result in results] for k in (0, -1))
            found.setdefault(problem, {}).setdefault(label, {})[form] = Depth(first, last)
    return found


def _measured(layer: Mapping[str, Any], label: str) -> dict[str, float]:
    shared = layer["sharing"]
    return {**layer["labels"][label], "shared": shared["trained"], "random_shared": shared["random_gate"]}


def experts_verdicts(looks: Looks) -> list[str]:
    """The sentences of result about experts: of the GPT's, and of the paper's claim about a Mixer's layers.

    Args:
        looks: The table of experts.
    """
    found = depths(looks)
    return [
        *(_told(label, found["gpt"][label]) for label in FOLLOWED["gpt"] if "gpt" in found),
        *(_mixer(found["mixer"]) if "mixer" in found else []),
    ]


def _told(label: str, forms: Mapping[str, Depth]) -> str:
    """What a GPT's experts say about a label beyond random gates."""
    first, last = (_word({form: depth.level(end) for form, depth in forms.items()}, MORE) for end in ("first", "last"))
    where = f"{first} in the first layer and in the last" if first == last else f"first layer {first}, last {last}"
    return (
        f"- **GPT, bits about {MEANT[label]} beyond a random gate's: {where}{_sharp(forms, 'first', 'last')}.** From "
        f"the first layer to the last that difference changes by {_moves(forms)}."
    )


def _sharp(forms: Mapping[str, Depth], *ends: str) -> str:
    """A caution where a difference may come of a gate that divides a token among fewer experts."""
    sharper = {depth.sharing(end).verdict == "better" for depth in forms.values() for end in ends}
    return ", where trained gates are sharper too" if sharper == {True} else ""


def _mixer(labels: Mapping[str, Mapping[str, Depth]]) -> list[str]:
    look, kind, place = labels["look"], labels["class"], labels["position"]
    pattern, drawn = (
        {form: _pattern(look[form].change(gate), kind[form].change(gate)) for form in look}
        for gate in ("bits", "random_gate")
    )
    control = gathered({NAMES[form]: SHOWN[word] for form, word in drawn.items()})
    told = gathered({NAMES[form]: word for form, word in pattern.items()})
    early, late = ({f: d.level(end) for f, d in by.items()} for by, end in ((look, "first"), (kind, "last")))
    changed = {name: {form: d.change("bits") for form, d in by.items()} for name, by in labels.items()}
    return [
        f"- **Early layers divide patches by look, late ones by class, as a pattern: {told}; random gates "
        f"{control}.** Bits of the last layer minus the first: look {_listed(changed['look'])}; class "
        f"{_listed(changed['class'])}.",
        f"- **Early layers divide patches by look beyond a random gate: {_word(early, CLAIM)}.** First layer, trained "
        f"minus random: {_listed(early)}. To the last layer that difference changes by {_moves(look)}.",
        f"- **Late layers divide patches by class beyond a random gate: {_word(late, CLAIM)}{_sharp(kind, 'last')}.** "
        f"Last layer, trained minus random: {_listed(late)}. From the first layer on that difference changes by "
        f"{_moves(kind)}.",
        _by_place(look, place),
    ]


def _pattern(look: Parity, kind: Parity) -> str:
    """Whether bits about look fall and those about class rise."""
    words = {Parity(look.difference, lower_is_better=True).verdict, kind.verdict}
    worst = next(word for word in ("unknown", "worse", "not told apart", "better") if word in words)
    return CLAIM[worst]


def _by_place(look: Mapping[str, Depth], place: Mapping[str, Depth]) -> str:
    """How much early layers divide by place, and whether place explains what they say about look."""
    against = {
        form: Parity(paired(_of(place[form].first, "bits"), _of(look[form].first, "bits")), lower_is_better=False)
        for form in look
    }
    alone = {
        form: Parity(paired(_of(depth.first, "bits"), _of(depth.first, "permuted")), lower_is_better=False)
        for form, depth in look.items()
    }
    bits = [
        f"{NAMES[form]} {statistics.fmean(_of(place[form].first, 'bits')):.2f} and "
        f"{statistics.fmean(_of(look[form].first, 'bits')):.2f}"
        for form in look
    ]
    left = [f"{NAMES[form]} {statistics.fmean(_of(depth.first, 'permuted')):.2f}" for form, depth in look.items()]
    beyond = {form: depth.level("first") for form, depth in place.items()}
    return (
        f"- **Early layers divide patches by place: {_word(against, AS_MUCH)}.** Bits about position and about look "
        f"in the first layer: {', '.join(bits)}; about position, trained minus random gates: "
        f"{_listed(beyond)}, {_word(beyond, MORE)}. The two labels go together, borders being dark, but look told "
        f"through place alone would have {', '.join(left)} bits (labels exchanged between whole images); gates tell "
        f"{_word(alone, MORE)}: {_listed(alone)}."
    )


def _word(forms: Mapping[str, Parity], words: Mapping[str, str]) -> str:
    return gathered({NAMES[form]: words[parity.verdict] for form, parity in forms.items()})


def _listed(forms: Mapping[str, Parity]) -> str:
    return ", ".join(f"{NAMES[form]} {parity.text(digits=2)}" for form, parity in forms.items())


def _moves(forms: Mapping[str, Depth]) -> str:
    return ", ".join(
        f"{NAMES[form]} {depth.change_beyond.text(digits=2)}, {MOVED[depth.change_beyond.verdict]}"
        for form, depth in forms.items()
    )


def _cell(parity: Parity, words: Mapping[str, str]) -> str:
    """The difference, and what it is if that can be told."""
    told = "" if parity.verdict == "not told apart" else f" {words[parity.verdict]}"
    return f"{parity.text(digits=2)}{told}"


def beyond_table(looks: Looks) -> list[str]:
    """Trained gates less random ones, and the changes from the first to the last layer, as a table.

    Args:
        looks: The table of experts.
    """
    lines = [
        "| | form | bits about | first layer, minus random | last layer, minus random | change, trained gate "
        "| change, random gate | change beyond random |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for problem, labels in depths(looks).items():
        for label, forms in labels.items():
            for form, depth in forms.items():
                cells = [
                    *(_cell(depth.level(end), MORE) for end in ("first", "last")),
                    *(_cell(depth.change(gate), MOVED) for gate in ("bits", "random_gate")),
                    _cell(depth.change_beyond, MOVED),
                ]
                lines.append(f"| {TITLES[problem]} | {NAMES[form]} | {label} | {' | '.join(cells)} |")
    return lines
