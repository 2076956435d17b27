"""Telling a model of transformers that its parts were changed, so that its own way of saving keeps them."""

from __future__ import annotations

import sys
from importlib import import_module

from torch import nn

from factorized_moe.surgery.saving.describing import described_modules

__all__ = ["announce"]


def announce(model: nn.Module) -> None:
    """Let ``save_pretrained`` keep the layers of experts of a transformers model, or of one that is a part of a model.

    transformers is not imported here: a model of its classes can only come from where it is imported already.

    Raises:
        ValueError: If the model is quantised by another method, whose saving would lose the layers of experts.
    """
    modeling = sys.modules.get("transformers.modeling_utils")
    if modeling is None:
        return
    changed = [f".{path}" for path in described_modules(model)]
    for path, module in model.named_modules():
        prefix = f".{path}." if path else "."
        if isinstance(module, modeling.PreTrainedModel) and any(each.startswith(prefix) for each in changed):
            import_module("factorized_moe.surgery.hugging_face").attach(module)
