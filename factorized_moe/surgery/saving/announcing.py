"""Telling a model of transformers that its parts were changed, so that its own way of saving keeps them."""

from __future__ import annotations

import sys
from importlib import import_module

from torch import nn

__all__ = ["announce"]


def announce(model: nn.Module) -> None:
    """Let `save_pretrained` of a transformers model keep its layers of experts; any other model is left alone.

    transformers is not imported here: a model of its classes can only come from where it is imported already.

    Raises:
        ValueError: If the model is quantised by another method, whose saving would lose the layers of experts.
    """
    modeling = sys.modules.get("transformers.modeling_utils")
    if modeling is not None and isinstance(model, modeling.PreTrainedModel):
        import_module("factorized_moe.surgery.hugging_face").attach(model)
