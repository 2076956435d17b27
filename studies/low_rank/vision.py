"""A pretrained vision transformer: the backbone of a network for salience, read from its ONNX file.

Legend: ``n`` images, ``S`` pixels of a side, ``D`` features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["coloured", "features", "load", "pixels"]

FILE = "models/vit_s_focus.onnx"
PREFIX = "backbone."
HEADS, SIDE, PATCH = 6, 518, 14
MEANS, SPREADS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load(folder: Path, side: int = SIDE) -> Any:
    """The backbone as transformers' `Dinov2Model`, in evaluation mode.

    A matrix that the file multiplies by has no name there: it is the weight of the bias that is added next.

    Args:
        folder: What `studies.real_models.sources.unpack` gives.
        side: Pixels of a side of the images whose patches have positions.

    Raises:
        RuntimeError: If a parameter is missing.
    """
    import onnx
    from onnx import numpy_helper
    from transformers import Dinov2Config, Dinov2Model

    graph = onnx.load(str(folder / FILE)).graph
    found = {part.name: torch.from_numpy(numpy_helper.to_array(part).copy()) for part in graph.initializer}
    state = {name.removeprefix(PREFIX): value for name, value in found.items() if name.startswith(PREFIX)}
    biased = {
        value: name
        for node in graph.node
        if node.op_type == "Add"
        for name in node.input
        if name.startswith(PREFIX) and name.endswith(".bias")
        for value in node.input
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in found and node.output[0] in biased:
            name = biased[node.output[0]].removeprefix(PREFIX).removesuffix("bias") + "weight"
            state[name] = found[node.input[1]].T.contiguous()
    first, *others = [value for name, value in found.items() if value.ndim == 3 and not name.startswith(PREFIX)]
    state["embeddings.position_embeddings"] = torch.cat([first, *others], dim=1)  # of the first token, of the patches
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layer."))
    width = state["layernorm.weight"].numel()
    config = Dinov2Config(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=HEADS, image_size=side, patch_size=PATCH
    )
    model, report = Dinov2Model.from_pretrained(  # gives older names of parameters their new ones
        None, config=config, state_dict=state, output_loading_info=True
    )
    unexpected, missing = report["unexpected_keys"], set(report["missing_keys"]) - {"embeddings.mask_token"}
    if unexpected or missing:
        raise RuntimeError(f"{folder / FILE}: missing {sorted(missing)[:3]}, not expected {sorted(unexpected)[:3]}")
    return model.eval()


def pixels(images: Tensor, side: int) -> Tensor:
    """Grey images as the model takes them, ``(n, 3, S, S)``.

    Args:
        images: ``(n, 28 * 28)``, of any scale.
        side: ``S``, a multiple of the patches' 14.
    """
    low, high = images.min(), images.max()
    grey = ((images - low) / (high - low)).view(-1, 1, 28, 28)
    return coloured(nn.functional.interpolate(grey, size=(side, side), mode="bilinear"))


def coloured(grey: Tensor) -> Tensor:
    """Three equal channels, each with the mean and the spread that the model was trained with, ``(n, 3, S, S)``.

    Args:
        grey: ``(n, 1, S, S)``, from 0 to 1.
    """
    return (grey.expand(-1, 3, -1, -1) - torch.tensor(MEANS).view(3, 1, 1)) / torch.tensor(SPREADS).view(3, 1, 1)


@torch.no_grad()
def features(model: Any, images: Tensor, batch: int = 50) -> Tensor:
    """The last layer's first token, ``(n, D)``.

    Args:
        model: The model.
        images: What `pixels` gives.
        batch: How many at once.
    """
    return torch.cat([model(pixel_values=part).pooler_output for part in images.split(batch)])
