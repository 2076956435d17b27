"""Which positions of a model's call are padding, as the call itself says: Hugging Face's ``attention_mask``.

Legend: ``B`` sequences, ``W`` positions that the mask has, ``T`` positions that a layer runs on.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

__all__ = ["PaddingWatch"]


class PaddingWatch:
    """Sees the masks that a model's parts are called with, and tells a layer which of its positions count.

    It looks at the model itself, if its ``forward`` has an argument of that name, and at every `PreTrainedModel` of
    transformers that has recorded layers inside: an encoder and a decoder have masks of their own.

    Args:
        model: The model.
        layers: The recorded layers by name.
        name: The name of the argument that is the mask.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module], name: str) -> None:
        self._name = name
        chosen = {id(layer) for layer in layers.values()}
        model = getattr(model, "_orig_mod", model)
        pretrained = getattr(sys.modules.get("transformers"), "PreTrainedModel", None)
        self._watched = [
            module
            for module in model.modules()
            if (module is model or (pretrained is not None and isinstance(module, pretrained)))
            and id(module) not in chosen
            and name in inspect.signature(module.forward).parameters
            and _holds(module, chosen)
        ]
        self._masks: list[tuple[Tensor | None, bool]] = []

    def attach(self, undo: ExitStack, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Register the hooks.

        Args:
            undo: Takes the callbacks that remove them.
            wrap: What a hook becomes before it is registered.
        """
        for module in self._watched:
            undo.callback(module.register_forward_pre_hook(wrap(self._enter), with_kwargs=True).remove)
            undo.callback(module.register_forward_hook(wrap(self._leave), always_call=True).remove)

    def kept(self, lead: Sequence[int]) -> Tensor | None:
        """Which positions of a layer's leading shape count, in one row; ``None`` if all do.

        A mask ``(B, W)`` fits a layer that runs on ``(B, W)`` or on ``(B * W,)``; where keys and values of earlier
        positions are cached, the layer runs on the last ``T`` of them.
        """
        mask, cached = self._masks[-1] if self._masks else (None, False)
        if mask is None:
            return None
        sequences, width = mask.shape
        positions = math.prod(lead)
        if tuple(lead) in ((sequences, width), (sequences * width,)):
            return mask.reshape(-1)
        if cached and sequences and positions % sequences == 0 and 0 < positions // sequences < width:
            return mask[:, -(positions // sequences) :].reshape(-1)
        return None

    def _enter(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        try:
            given = inspect.signature(module.forward).bind_partial(*arguments, **named).arguments
        except TypeError:  # the call itself will say what is wrong
            given = named
        mask = given.get(self._name)
        before = self._masks[-1] if self._masks else (None, False)
        if mask is None:
            found: Tensor | None = None
        elif isinstance(mask, Tensor) and mask.ndim == 2 and not mask.is_meta and bool((mask >= 0).all()):
            found = (mask > 0).detach().cpu()
        else:  # a mask of attention proper, made from the one of padding further out
            found = before[0]
        self._masks.append((found, given.get("past_key_values") is not None))

    def _leave(self, module: nn.Module, arguments: Any, output: Any) -> None:
        self._masks.pop()


def _holds(module: nn.Module, chosen: Collection[int]) -> bool:
    return any(id(part) in chosen for part in module.modules())
