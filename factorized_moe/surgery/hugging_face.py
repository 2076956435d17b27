"""Layers of experts in transformers' own round trip: ``save_pretrained``, checkpoints of Trainer, ``from_pretrained``.

`replace`, `factorize_experts` and `load` attach what is needed to a model of transformers. Whoever loads one in a new
process imports this module first:

    import factorized_moe.surgery.hugging_face
    model = AutoModelForCausalLM.from_pretrained(folder)

It registers a *quantizer*, which is what transformers calls a part that changes a model before its weights are loaded.
The saved ``config.json`` says in its ``quantization_config`` which modules are layers of experts, and of which kind.
Where this module was not imported, transformers skips methods that it does not know and would go on with random MLPs.
So each parameter that the layers of experts have replaced is in the file too, as a few zeros of a wrong shape: then
transformers refuses the file.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from factorized_moe.spread import is_spread
from factorized_moe.storage import NetworkTensor
from factorized_moe.surgery.replacing.delta import MuMoEDelta, freeze_base
from factorized_moe.surgery.replacing.layouts import child
from factorized_moe.surgery.replacing.swapping import installed
from factorized_moe.surgery.saving.announcing import announce
from factorized_moe.surgery.saving.describing import describe, described_modules, rebuild

__all__ = ["METHOD", "ExpertsConfig", "ExpertsQuantizer", "attach"]

METHOD = "factorized_moe"
"""The ``quant_method`` in a ``config.json``."""

VERSION = 1
"""Of what ``config.json`` says beside it."""


@register_quantization_config(METHOD)
class ExpertsConfig(QuantizationConfigMixin):
    """What ``config.json`` says of a model's layers of experts.

    Args:
        version: Of this format.
        modules: The description of each, by path; `None` as long as the model has not been saved.
        replaced: The names of the parameters that the base model has and the changed one has not.
        dtype: The model's type when it was saved, as torch calls it.
        kept: What else a file says.

    Raises:
        ValueError: If ``modules`` or ``replaced`` is of another form, or the format one of a later release.
    """

    def __init__(
        self,
        version: int = VERSION,
        modules: Mapping[str, Any] | None = None,
        replaced: list[str] | None = None,
        dtype: str | None = None,
        **kept: Any,
    ) -> None:
        if version != VERSION:
            raise ValueError(
                f"a quantization_config of version {version!r} was written by a later release; this one reads {VERSION}"
            )
        if modules is not None and not (
            isinstance(modules, Mapping) and all(isinstance(each, Mapping) for each in modules.values())
        ):
            raise ValueError(f"modules of a quantization_config are descriptions by path, got {modules!r}")
        if not (replaced is None or (isinstance(replaced, list) and all(isinstance(name, str) for name in replaced))):
            raise ValueError(f"replaced of a quantization_config is a list of names, got {replaced!r}")
        self.quant_method = METHOD  # type: ignore[assignment]  # that of a registered method is a name
        self.version = version
        self.modules = modules
        self.replaced = replaced
        self.dtype = dtype

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON can hold it.

        Without a description there is no ``quant_method``, and transformers refuses to load a model of it: so it is if
        a model is saved in whose part layers of experts were put unknown to the whole.
        """
        values: dict[str, Any] = super().to_dict()
        return values if self.modules is not None else {"quant_method": None, "missing": MISSING}


MISSING = (
    "parts of this model were changed by factorized_moe, and it was not saved as a whole; call "
    "factorized_moe.surgery.hugging_face.attach on the whole model, then save_pretrained"
)


@register_quantizer(METHOD)
class ExpertsQuantizer(HfQuantizer):
    """Puts layers of experts into a model before transformers loads its weights, and describes them when it saves."""

    quantization_config: ExpertsConfig
    requires_calibration = True  # an unchanged model is changed by replace, not while it is loaded

    def is_serializable(self) -> bool:
        """True: a changed model can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True: layers of experts train as others do."""
        return True

    @property
    def is_compileable(self) -> bool:
        """True: they compile as others do."""
        return True

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **options: Any) -> PreTrainedModel:
        config = self.quantization_config
        if not config.modules:
            raise ValueError("the quantization_config of config.json describes no layers of experts; save again")
        changes: dict[str, nn.Module] = {}
        made: dict[str, nn.Module] = {}
        for path, description in config.modules.items():
            place = _place(model, path)
            if place is not None:
                first = description.get("same_as", path)  # one layer in several places stays one
                if first not in made:
                    made[first] = self._make(place, config.modules.get(first), child(model, place), model.dtype)
                changes[place] = made[first]
        if not changes:
            raise ValueError(
                f"{type(model).__name__} has none of the modules that are layers of experts in the file, such as "
                f"{next(iter(config.modules))!r}; load with the class that was saved"
            )
        with installed(model, changes):
            for place, module in changes.items():
                _mark_initialised(model.get_submodule(place.rpartition(".")[0]), module)
        prefix = f"{model.base_model_prefix}."
        ignored = [rf"(^|\.){re.escape(name.removeprefix(prefix))}$" for name in config.replaced or ()]
        present = model._keys_to_ignore_on_load_unexpected
        kind = list if present is None else type(present)  # a set in later releases of transformers
        model._keys_to_ignore_on_load_unexpected = kind([*(present or ()), *ignored])
        return model

    def _make(self, path: str, description: Mapping[str, Any] | None, old: Any, dtype: torch.dtype) -> nn.Module:
        try:
            module = rebuild(description or {}, old, torch.device("meta"))
        except (TypeError, ValueError) as error:
            raise ValueError(f"module {path!r}: {error}") from error
        kept = getattr(torch, str(self.quantization_config.dtype), None)
        if dtype != kept:  # another type was asked for
            (module.experts if isinstance(module, MuMoEDelta) else module).to(dtype)
        return module

    def postprocess_model(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        """Check that all layers of experts were filled; what transformers forbids to quantised models stays allowed."""
        modules = described_modules(model)
        for path, module in modules.items():
            ours = module.experts if isinstance(module, MuMoEDelta) else module
            for name, tensor in (*ours.named_parameters(), *_persistent_buffers(ours)):
                if not getattr(tensor, "_is_hf_initialized", False):
                    raise ValueError(f"{name!r} of the layer of experts {path!r} is not in the file: it is damaged")
            for part in ours.modules():
                if isinstance(part, NetworkTensor):
                    part._apply(lambda tensor: tensor)  # fixed nodes, which are in no file
        if any(isinstance(module, MuMoEDelta) for module in modules.values()):
            freeze_base(model)
        del model.is_quantized, model.quantization_method
        announce(model)
        return model

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """What transformers writes: the model's state, and a sign in the place of each parameter that is gone.

        Raises:
            ValueError: If a layer of experts cannot be described, or the model cannot be built from its config.
        """
        modules = described_modules(model)
        if not modules:  # all were taken out again
            self.remove_quantization_config(model)  # type: ignore[no-untyped-call]
            return None, {}
        if "" in modules:
            raise ValueError(f"a {type(model).__name__} on its own is no model of transformers")
        state = _unshared(model.state_dict(), modules)
        gone = {name: tensor for name, tensor in _base_state(model).items() if name not in state}
        first: dict[int, str] = {}
        for path, module in modules.items():
            first.setdefault(id(module), path)
        model.config.quantization_config = ExpertsConfig(
            VERSION,
            {
                path: describe(module) if first[id(module)] == path else {"same_as": first[id(module)]}
                for path, module in modules.items()
            },
            sorted(gone),
            str(model.dtype).removeprefix("torch."),
        )
        signs = {name: torch.zeros(_wrong_shape(tensor), dtype=tensor.dtype) for name, tensor in gone.items()}
        return {**state, **signs}, {METHOD: "layers of experts; import factorized_moe.surgery.hugging_face"}


def attach(model: PreTrainedModel) -> None:
    """Let a model's ``save_pretrained`` keep the layers of experts that are in it.

    `replace`, `factorize_experts` and `load` call it on the model they are given; call it yourself where you put layers
    of experts into a model by hand, or gave `replace` only a part of the model that you save.

    Args:
        model: A model of transformers.

    Raises:
        TypeError: If it is none.
        ValueError: If its weights are quantised by another method.

    Examples:
        >>> from transformers import GPT2Config, GPT2Model
        >>> from factorized_moe import MuMoEBlock
        >>> model = GPT2Model(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2))
        >>> model.h[0].mlp = MuMoEBlock(16, 64, 16, expert_dims=[4], rank=8)
        >>> attach(model)
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     same = GPT2Model.from_pretrained(folder)
        >>> type(same.h[0].mlp).__name__
        'MuMoEBlock'
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"attach takes a model of transformers, got {type(model).__name__}")
    present = getattr(model, "hf_quantizer", None)
    if present is not None and not isinstance(present, ExpertsQuantizer) and not _is_unpacked(present):
        raise ValueError(
            f"{type(model).__name__} is quantised by {present.quantization_config.quant_method}, and transformers "
            "saves a model by one method alone; dequantise it first"
        )
    config = ExpertsConfig()
    model.hf_quantizer = ExpertsQuantizer(config)  # type: ignore[assignment]  # no module
    model.config.quantization_config = config
    # Names are saved as the model has them: what they would be converted to and from is no longer there.
    model._weight_conversions = []  # type: ignore[assignment]


def _is_unpacked(method: HfQuantizer) -> bool:
    """Whether a GGUF file's weights were all dequantised when the model was loaded, and only its sign is left.

    So it is where transformers has no way to compute on the blocks of this kind of model.
    """
    return getattr(method, "packed_modules", None) == {}


def _place(model: PreTrainedModel, path: str) -> str | None:
    """Where a module of the model that was saved is in this one, which may have another head or none.

    `None` if this model lacks the whole part, as an encoder lacks the decoder.
    """
    prefix = f"{model.base_model_prefix}."
    shorter = path.removeprefix(prefix)
    for place in (path, shorter, prefix + path):
        holder, _, name = place.rpartition(".")
        held = child(model, holder) if holder else model
        if isinstance(held, nn.Module) and (name in held._modules or callable(vars(held).get(name))):
            return place  # a function may be an MLP's activation
    first, _, rest = shorter.partition(".")
    absent = child(model, first) is None and child(model, prefix + first) is None
    if absent and not any(f".{name}".endswith(f".{rest}") for name, _ in model.named_modules()):
        return None
    raise ValueError(f"{type(model).__name__} has no module {path!r}, which is a layer of experts in the file")


def _mark_initialised(holder: nn.Module, module: nn.Module) -> None:
    """Keep transformers from filling layers of experts at random, and from looking for what was in their place.

    That all of them come from the file is checked afterwards.
    """
    ours = module.experts if isinstance(module, MuMoEDelta) else module
    for part in (holder, *ours.modules()):
        part._is_hf_initialized = True  # type: ignore[assignment]  # transformers' own sign


def _persistent_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    state = module.state_dict(keep_vars=True)
    return [(name, buffer) for name, buffer in module.named_buffers() if name in state]


def _unshared(state: dict[str, Tensor], modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """A layer of experts in several places is written for each: transformers refuses tensors of two names."""
    prefixes = tuple(f"{path}." for path in modules)
    seen: set[int] = set()
    for name, tensor in state.items():
        if name.startswith(prefixes):
            if tensor.is_meta or is_spread(tensor):
                continue
            if tensor.untyped_storage().data_ptr() in seen:
                state[name] = tensor.clone()
            seen.add(tensor.untyped_storage().data_ptr())
    return state


def _base_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state of a model of this class and config without layers of experts; no memory is taken."""
    config = copy.deepcopy(model.config)
    del config.quantization_config
    try:
        with torch.random.fork_rng(devices=()), torch.device("meta"):
            base = type(model)(config)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{type(model).__name__} cannot be built from its config, as from_pretrained will do: {error}"
        ) from error
    state: dict[str, Tensor] = base.state_dict()
    return state


def _wrong_shape(tensor: Tensor) -> tuple[int, ...]:
    return (1,) if tensor.shape != (1,) else (2,)
