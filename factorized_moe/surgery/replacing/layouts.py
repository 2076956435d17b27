"""Where the parts of an MLP are, as data: a table of layouts, open to others.

A module is recognised by the children it has, not by the name of its class. No layout says how a weight is stored or
where the tokens lie: a linear layer says the former itself (`linears`), and a layer of experts, like the linear one it
stands for, works on the last dimension, whatever the others mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from factorized_moe.surgery.distillation.capturing import in_evaluation_mode
from factorized_moe.surgery.replacing.linears import is_linear, read_linears

__all__ = ["LAYOUTS", "MLPLayout", "Merged", "child", "find_layout", "register_layout"]

ROUNDING = 0.02
"""How far an MLP may be from its layout's formula, relatively: half precision rounds to 1/128."""


@dataclass(frozen=True)
class MLPLayout:
    """Where the parts of one family of MLPs are. Paths are relative to the module and have dots, as in a state dict.

    The MLP computes ``down(activation(up(x)))``, or ``down(activation(gate(x)) * up(x))`` if it is a gated one.

    Args:
        name: The family's name.
        up: The path of the linear layer that widens.
        activation: The paths of what is applied between the linear layers, in order.
        down: The path of the linear layer that narrows.
        gate: The path of the linear layer that the activation is applied to, of a gated MLP.
        block: The path of the part whose place the block takes; the module itself by default. The other parts then
            let their input pass, and what is not named, such as a dropout at the end, stays as it is.
        kept: The paths of the children that stay and come after the linear layers, if ``block`` is not the module.

    Examples:
        >>> layout = MLPLayout("plain", up="up", activation=("act",), down="down")
        >>> mlp = nn.ModuleDict({"up": nn.Linear(4, 8), "act": nn.ReLU(), "down": nn.Linear(8, 4)})
        >>> layout.fits(mlp)
        True
    """

    name: str
    up: str
    activation: tuple[str, ...]
    down: str
    gate: str | None = None
    block: str = ""
    kept: tuple[str, ...] = ()

    @property
    def linears(self) -> tuple[str, ...]:
        """The paths of the linear layers, the first of a gated MLP being its gate."""
        return (*((self.gate,) if self.gate else ()), self.up, self.down)

    @property
    def passed(self) -> tuple[str, ...]:
        """The paths of the parts that let their input pass once the block is in place."""
        inside = f"{self.block}."
        parts = (*self.linears, *self.activation)
        return tuple(path for path in parts if self.block and path != self.block and not path.startswith(inside))

    def fits(self, module: nn.Module) -> bool:
        """Whether a module has these parts and, beside them, no child that this layout does not know."""
        if not all(is_linear(child(module, path)) for path in self.linears):
            return False
        activation = [child(module, path) for path in self.activation]
        needed = callable if len(activation) == 1 else lambda part: isinstance(part, nn.Module)
        if not all(needed(part) and not _mixes_features(part) for part in activation):
            return False
        named = {*self.linears, *self.activation, *self.kept}
        for holder in {path.rpartition(".")[0] for path in named}:
            held = child(module, holder) if holder else module
            if not isinstance(held, nn.Module):
                return False
            prefix = f"{holder}." if holder else ""
            if any(prefix + name not in named for name, _ in held.named_children()):
                return False
        return True

    @torch.no_grad()
    def explains(self, module: nn.Module) -> bool:
        """Whether a module that is an MLP as a whole computes what this layout says, on a random input.

        Only what a module has is looked at when it is recognised; its own code may do more with it.
        """
        linears, activation = (
            [child(module, path) for path in self.linears],
            [child(module, p) for p in self.activation],
        )
        weight = read_linears(linears)[0].weight  # (I, H)
        if self.block or weight.is_meta:
            return True
        x = torch.randn(4, weight.shape[0], generator=torch.Generator().manual_seed(0)).to(weight)
        with in_evaluation_mode(module):
            hidden = linears[0](x)
            for part in activation:
                hidden = part(hidden)
            expected = linears[-1](hidden if self.gate is None else hidden * linears[1](x))
            try:
                found = module.forward(x)
            except (RuntimeError, TypeError, ValueError):  # it takes something else than one tensor of tokens
                return False
        if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
            return False
        if not torch.isfinite(expected).all():  # whoever reads the weights refuses them
            return True
        return bool((found - expected).norm() <= ROUNDING * expected.norm())


class Merged(nn.Identity):
    """Stands where a part of an MLP was that has gone into a block: lets its input pass."""


_LAYOUTS: dict[str, MLPLayout] = {}


def register_layout(layout: MLPLayout) -> None:
    """Add a family of MLPs. It is tried before those registered earlier.

    Raises:
        TypeError: If it is not an `MLPLayout`.
        ValueError: If its name is empty or taken.

    Examples:
        >>> register_layout(MLPLayout("two_layers", up="widen", activation=("nonlinearity",), down="narrow"))
    """
    if not isinstance(layout, MLPLayout):
        raise TypeError(f"register_layout takes an MLPLayout, got {layout!r}")
    if not layout.name or layout.name in _LAYOUTS:
        raise ValueError(f"a layout needs a name of its own, got {layout.name!r}; taken are {', '.join(_LAYOUTS)}")
    _LAYOUTS[layout.name] = layout


def _mixes_features(part: Any) -> bool:
    """Whether a part has a matrix of its own: layers between two linear ones are no activation."""
    return isinstance(part, nn.Module) and any(parameter.ndim > 1 for parameter in part.parameters())


def find_layout(module: nn.Module) -> MLPLayout | None:
    """The layout of a module's MLP, the one registered last if several fit, or `None`."""
    return next((layout for layout in reversed(_LAYOUTS.values()) if layout.fits(module)), None)


def child(module: nn.Module, path: str) -> Any:
    """The attribute at a path, `None` if there is none."""
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


LAYOUTS = (
    MLPLayout("gpt2", up="c_fc", activation=("act",), down="c_proj", block="c_fc", kept=("dropout",)),
    MLPLayout("llama", up="up_proj", gate="gate_proj", activation=("act_fn",), down="down_proj"),
    MLPLayout(
        "bert",  # the layer itself, as its MLP is split in two modules that it calls one after the other
        up="intermediate.dense",
        activation=("intermediate.intermediate_act_fn",),
        down="output.dense",
        block="intermediate",
        kept=("output.LayerNorm", "output.dropout"),
    ),
    MLPLayout("vit", up="fc1", activation=("activation_fn",), down="fc2"),
    MLPLayout("timm", up="fc1", activation=("act", "drop1", "norm"), down="fc2", block="fc1", kept=("drop2",)),
    MLPLayout("t5", up="wi", activation=("act", "dropout"), down="wo"),
    MLPLayout("distilbert", up="lin1", activation=("activation",), down="lin2", block="lin1", kept=("dropout",)),
    MLPLayout("sequential", up="0", activation=("1",), down="2"),
)
"""The layouts that come with the package: GPT-2, Llama (SmolLM2, Mistral), BERT, ViT (DINOv2, CLIP), timm, T5,
DistilBERT, and three layers in an `nn.Sequential`."""

for _layout in LAYOUTS:
    register_layout(_layout)
