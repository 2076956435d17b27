"""MkDocs hook: the arguments of the main classes side by side, where a page says `<!-- defaults -->`.

Read from the signatures. A difference needs a reason below, and a reason needs a difference: else the build fails.
"""

import inspect
from typing import Any

from factorized_moe import FactorizedExpertTensor, MuMoE, MuMoEBlock
from factorized_moe.gating import ExpertGate
from factorized_moe.layers import GatedMuMoEBlock
from factorized_moe.surgery import MuMoEConfig

MARK = "<!-- defaults -->"
CLASSES = {
    "FactorizedExpertTensor": FactorizedExpertTensor,
    "MuMoE": MuMoE,
    "MuMoEBlock": MuMoEBlock,
    "GatedMuMoEBlock": GatedMuMoEBlock,
    "ExpertGate": ExpertGate,
    "MuMoEConfig": MuMoEConfig,
}
SAME = {
    "ExpertGate": {"activation": "gate", "norm": "gate_norm", "temperature": "gate_temperature", "rank": "gate_rank"}
}
"""Arguments of a class that another name stands for in the other classes."""

REASONS = {
    "bias": (
        "A layer has a bias, as `torch.nn.Linear` has. The tensor alone is the bare weight, as in TensorLy. Gated MLPs "
        "(SwiGLU, GEGLU) have none."
    ),
    "decomposition": (
        'None means `"cp"` too; it lets `network=` be told from a decomposition that was asked for. A config is read '
        "from a file, where the name is written out."
    ),
    "expert_dims": "None where `network=` may say it instead.",
    "in_features": "None where `network=` may say it instead.",
    "out_features": "None where `network=` may say it instead.",
}


def table_of(classes: dict[str, type]) -> dict[str, dict[str, str]]:
    """For each argument, what each class that has it shows as its default; `required` where there is none."""
    found: dict[str, dict[str, str]] = {}
    for name, kind in classes.items():
        for argument, parameter in inspect.signature(kind).parameters.items():
            value = "required" if parameter.default is inspect.Parameter.empty else repr(parameter.default)
            found.setdefault(SAME.get(name, {}).get(argument, argument), {})[name] = value.replace("'", '"')
    return found


def check_reasons(table: dict[str, dict[str, str]], reasons: dict[str, str]) -> None:
    """Refuse a difference without a reason, and a reason without a difference."""
    differing = {argument for argument, values in table.items() if len(set(values.values())) > 1}
    if differing != reasons.keys():
        raise ValueError(
            f"defaults differ without a reason: {sorted(differing - reasons.keys())}; "
            f"reasons without a difference: {sorted(reasons.keys() - differing)}; see docs/hooks/defaults.py"
        )


def defaults() -> str:
    """The table, the reasons and the order of arguments, as Markdown."""
    table = table_of(CLASSES)
    check_reasons(table, REASONS)
    rows = ["| argument | " + " | ".join(f"`{name}`" for name in CLASSES) + " |", "|---" * (len(CLASSES) + 1) + "|"]
    for argument, values in table.items():
        cells = (f"`{values[name]}`" if name in values else "" for name in CLASSES)
        rows.append(f"| `{argument}` | {' | '.join(cells)} |")
    reasons = [f"- `{argument}`: {REASONS[argument]}" for argument in table if argument in REASONS]
    rows = ['<div class="names-first" markdown="1">', "", *rows, "", "</div>"]
    return "\n".join([*rows, "", "## Where they differ, and why", "", *reasons, "", *_orders()])


def _orders() -> list[str]:
    lines = ["## The order of positional arguments", "", "All others are given by name.", ""]
    for name, kind in CLASSES.items():
        parameters = inspect.signature(kind).parameters.values()
        order = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        lines.append(f"- `{name}({', '.join(order)})`")
    return lines


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the table where it is asked for."""
    return markdown.replace(MARK, defaults()) if MARK in markdown else markdown
