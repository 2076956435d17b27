"""Where the parts of an MLP are, as data: a table of layouts, open to others.

A module is recognised by the children it has, not by the name of its class. No layout says how a weight is stored or
where the tokens lie: a linear layer says the former itself (`linears`), and a layer of experts, like the linear one it
stands for, works on the last dimension, whatever the others mean.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe.surgery.distillation.capturing import in_evaluation_mode
from factorized_moe.surgery.replacing.linears import LinearWeights, is_linear, read_linears
from factorized_moe.surgery.replacing.swapping import replaced

__all__ = ["LAYOUTS", "MLPLayout", "Merged", "child", "find_layout", "near_layout", "register_layout"]

ROUNDING = 0.02
"""How far an MLP may be from its layout's formula, relatively: half precision rounds to 1/128."""

TINY = 1e-12
"""What rounding in float64 may make of a part that adds nothing."""

FAILURES = (AssertionError, AttributeError, LookupError, NameError, RuntimeError, TypeError, ValueError)
"""What a module's own code raises where it is called in another way than it wants."""


@dataclass(frozen=True)
class MLPLayout:
    """Where the parts of one family of MLPs are. Paths are relative to the module and have dots, as in a state dict.

    The MLP computes ``down(activation(up(x)))``, or ``down(activation(gate(x)) * up(x))`` if it is a gated one.

    Args:
        name: The family's name.
        up: The path of the linear layer that widens.
        activation: The paths of what is applied between the linear layers, in order.
        down: The path of the linear layer that narrows.
        gate: The path of the linear layer that the activation is applied to, of a gated MLP. If it is that of ``up``,
            the one layer makes both, the gate in the first half of its outputs.
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
        return tuple(dict.fromkeys((*((self.gate,) if self.gate else ()), self.up, self.down)))

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
        return self.unknown(module) == []

    def unknown(self, module: nn.Module) -> list[str] | None:
        """The children beside the named parts that this layout does not know; `None` if a part has none to look at."""
        named = {*self.linears, *self.activation, *self.kept}
        found = []
        for holder in sorted({path.rpartition(".")[0] for path in named}):
            held = child(module, holder) if holder else module
            if not isinstance(held, nn.Module):
                return None
            prefix = f"{holder}." if holder else ""
            found += [prefix + name for name, _ in held.named_children() if prefix + name not in named]
        return found

    def read(self, module: nn.Module) -> tuple[list[nn.Module], list[LinearWeights]]:
        """The linear layers of a module that fits, and their weights; one that makes gate and up is there twice."""
        linears = [child(module, path) for path in self.linears]
        weights = read_linears(linears)
        if self.gate != self.up:
            return linears, weights
        both, down = weights
        biases = (None, None) if both.bias is None else both.bias.chunk(2)
        halves = [LinearWeights(*half) for half in zip(both.weight.chunk(2, dim=1), biases, strict=True)]
        return [linears[0], *linears], [*halves, down]

    def explains(self, module: nn.Module) -> bool:
        """Whether a module computes what this layout says, on a random input.

        Only what a module has is looked at when it is recognised; its own code may do more with it.
        """
        return self.refusal(module) is None

    @torch.no_grad()
    def refusal(self, module: nn.Module) -> str | None:
        """Why a module that fits cannot be replaced by this layout; `None` if it computes what the layout says."""
        _, weights = self.read(module)
        if weights[0].weight.is_meta:
            return None
        if self.gate == self.up and self.gate is not None and child(module, self.up).out_features % 2:
            return f"has {self.up!r} with an odd number of outputs, which cannot be a gate and its equal"
        if not self.block:
            return self._refusal_of_whole(module, weights[0].weight)
        if not all(torch.isfinite(each.weight).all() for each in weights):  # whoever reads the weights refuses them
            return None
        return self._refusal_of_part(module, weights[0].weight)

    def _refusal_of_whole(self, module: nn.Module, weight: Tensor) -> str | None:
        otherwise = f"has the parts of the layout {self.name!r} but computes something else"
        x = torch.randn(4, weight.shape[0], generator=torch.Generator().manual_seed(0)).to(weight)
        with in_evaluation_mode(module):
            expected = self._formula(module)(x)
            try:
                found = module.forward(x)
            except (RuntimeError, TypeError, ValueError):  # it takes something else than one tensor of tokens
                return otherwise
        if not isinstance(found, Tensor) or found.shape != expected.shape:
            return otherwise
        if not torch.isfinite(expected).all():  # whoever reads the weights refuses them
            return None
        return None if (found - expected).norm() <= ROUNDING * expected.norm() else otherwise

    def _refusal_of_part(self, module: nn.Module, weight: Tensor) -> str | None:
        """Run a copy of the module with its own parts, with the formula in place of ``block``, and with zeros there."""
        otherwise = f"has the parts of the layout {self.name!r} but computes something else"
        try:
            copied = copy.deepcopy(module).to(_widest(weight)).eval()
        except FAILURES as error:
            return f"cannot be copied to try the layout {self.name!r} on it: {error}"
        formula = self._formula(copied)
        parts = {path: Merged() for path in self.passed}
        call = _call_of(copied, weight)
        if isinstance(call, str):
            return f"cannot be tried with the layout {self.name!r}: {call}"
        found = call()
        try:
            with replaced(copied, {self.block: StandIn(formula), **parts}):
                expected = call()
            with replaced(copied, {self.block: StandIn(lambda x: torch.zeros_like(formula(x))), **parts}):
                without = call()
        except FAILURES as error:
            return f"fails with a block in place of {self.block!r}, as the layout {self.name!r} says: {error}"
        if found.shape != expected.shape or found.shape != without.shape:
            return otherwise
        return None if (found - expected).norm() <= ROUNDING * (found - without).norm() + TINY else otherwise

    def _formula(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        linears, activation = (
            [child(module, path) for path in self.linears],
            [child(module, path) for path in self.activation],
        )

        def formula(x: Tensor) -> Tensor:
            first = linears[0](x)
            hidden, up = first.chunk(2, dim=-1) if self.gate == self.up else (first, None)
            for part in activation:
                hidden = part(hidden)
            if self.gate is not None:
                hidden = hidden * (linears[1](x) if up is None else up)
            result: Tensor = linears[-1](hidden)
            return result

        return formula


class Merged(nn.Identity):
    """Stands where a part of an MLP was that has gone into a block: lets its input pass."""


class StandIn(nn.Module):
    """A function in the place of a module, while a layout is tried."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Call the function."""
        return self.function(x)


def _widest(weight: Tensor) -> torch.dtype:
    return torch.float32 if weight.device.type == "mps" else torch.float64  # Apple's GPUs know no float64


def _call_of(module: nn.Module, weight: Tensor) -> Callable[[], Tensor] | str:
    """A way to call a module with random tokens that works, or why none does.

    Required arguments beside the first are `None`, the tokens too (a residual), or a mask. Tokens are tried in the
    shapes that layers take, at last as many as a window of local attention may ask for.
    """
    taken = list(inspect.signature(module.forward).parameters.values())
    needed = sum(one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD for one in taken)
    features = weight.shape[0]
    reasons: list[str] = []
    for shape in ((1, 4, features), (4, features), (1, features, 8, 8), (1, 512, features)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(weight.device, _widest(weight))
        for other in (None, x, torch.ones(1, 1, shape[1], shape[1])) if needed > 1 else (None,):

            def call(first: Tensor = x, rest: tuple[Tensor | None, ...] = (other,) * (needed - 1)) -> Tensor:
                result = module.forward(first, *rest)
                return result if isinstance(result, Tensor) else result[0]

            try:
                if isinstance(call(), Tensor):
                    return call
            except FAILURES as error:
                reasons.append(f"{type(error).__name__}: {error}")
    return reasons[0] if reasons else "it returns no tensor"


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


def near_layout(module: nn.Module) -> str | None:
    """Why a module that has the linear layers of a layout is none of its MLPs, if it has a part too much or too few."""
    misses: list[tuple[int, str]] = []
    for layout in _LAYOUTS.values():
        if not all(is_linear(child(module, path)) for path in layout.linears):
            continue
        more = layout.unknown(module) or []
        lacking = [path for path in layout.activation if not callable(child(module, path))]
        parts = [f"no {path}" for path in lacking] + [f"{part}, which the layout does not know" for part in more]
        name = f"{type(module).__name__} has the linear layers of the layout {layout.name!r}"
        if parts:
            misses.append((len(parts), f"{name}, but {' and '.join(parts)}"))
    return min(misses)[1] if misses else None


def child(module: nn.Module, path: str) -> Any:
    """The attribute at a path, `None` if there is none."""
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


_LAYER = ("self_attn", "self_attn_layer_norm", "encoder_attn", "encoder_attn_layer_norm", "final_layer_norm")

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
    MLPLayout("bart", up="fc1", activation=("activation_fn",), down="fc2", block="fc1", kept=_LAYER),
    MLPLayout("vit", up="fc1", activation=("activation_fn",), down="fc2"),
    MLPLayout("dinov2", up="fc1", activation=("activation",), down="fc2"),  # in early releases of transformers 5
    MLPLayout("timm", up="fc1", activation=("act", "drop1", "norm"), down="fc2", block="fc1", kept=("drop2",)),
    MLPLayout("t5", up="wi", activation=("act", "dropout"), down="wo"),
    MLPLayout("distilbert", up="lin1", activation=("activation",), down="lin2", block="lin1", kept=("dropout",)),
    MLPLayout("sequential", up="0", activation=("1",), down="2"),
    MLPLayout("gpt_neox", up="dense_h_to_4h", activation=("act",), down="dense_4h_to_h"),
    MLPLayout("gptj", up="fc_in", activation=("act",), down="fc_out", block="fc_in", kept=("dropout",)),
    MLPLayout(
        "bloom", up="dense_h_to_4h", activation=("gelu_impl",), down="dense_4h_to_h", block="dense_h_to_4h"
    ),  # its forward adds the residual
    MLPLayout(
        "albert",
        up="ffn",
        activation=("activation",),
        down="ffn_output",
        block="ffn",
        kept=("full_layer_layer_norm", "attention", "dropout"),
    ),
    MLPLayout(
        "wav2vec2",
        up="intermediate_dense",
        activation=("intermediate_act_fn", "intermediate_dropout"),
        down="output_dense",
        block="intermediate_dense",
        kept=("output_dropout",),
    ),
    MLPLayout(
        "convnext",
        up="pwconv1",
        activation=("act",),
        down="pwconv2",
        block="pwconv1",
        kept=("dwconv", "layernorm", "drop_path"),
    ),
    MLPLayout("mpt", up="up_proj", activation=("act",), down="down_proj", block="up_proj"),  # it adds the residual
    MLPLayout("xlm", up="lin1", activation=("act",), down="lin2"),
    MLPLayout(
        "dinov3_convnext",
        up="pointwise_conv1",
        activation=("activation_fn",),
        down="pointwise_conv2",
        block="pointwise_conv1",
        kept=("depthwise_conv", "layer_norm", "drop_path"),
    ),
    MLPLayout("dinov3", up="up_proj", activation=("act_fn",), down="down_proj"),
    MLPLayout("t5_gated", up="wi_1", gate="wi_0", activation=("act", "dropout"), down="wo"),
    MLPLayout("phi3", up="gate_up_proj", gate="gate_up_proj", activation=("activation_fn",), down="down_proj"),
    MLPLayout("modernbert", up="Wi", gate="Wi", activation=("act", "drop"), down="Wo"),
)
"""The layouts that come with the package: GPT-2, Llama (SmolLM2, Mistral), BERT, ViT (DINOv2, CLIP), timm, T5,
DistilBERT, three layers in an `nn.Sequential`, GPT-NeoX (Pythia) and Falcon, GPT-J, Bloom, BART (OPT, Whisper), ALBERT,
Wav2Vec2, ConvNeXt, MPT, XLM, DINOv3, T5 1.1, Phi-3 and ModernBERT. The page *Model families* lists what works."""

for _layout in LAYOUTS:
    register_layout(_layout)
