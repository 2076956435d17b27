"""Blocks of experts through the ``mlp_layer`` argument of timm's models. timm itself is not imported.

Legend: ``*batch`` any leading shape, ``I`` in_features, ``O`` out_features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from factorized_moe.layers import MuMoEBlock
from factorized_moe.surgery.config import MuMoEConfig

__all__ = ["timm_mlp_layer"]


def timm_mlp_layer(config: MuMoEConfig) -> Callable[..., nn.Module]:
    """What timm's `VisionTransformer` and `MlpMixer` take as ``mlp_layer``: blocks of experts, at random as timm's are.

    ``timm.models.VisionTransformer(.., mlp_layer=timm_mlp_layer(config))``. The block works on the last dimension.
    So as the token MLP of a Mixer, whose input is transposed, it mixes tokens, and its gate reads one channel of them.

    Args:
        config: The layers. ``fraction`` is a fraction of the parameters of the MLP that timm would have made;
            ``pretrained``, ``noise`` and ``seed`` mean nothing here.

    Returns:
        A function of the arguments that timm's `Mlp` takes.

    Examples:
        >>> make = timm_mlp_layer(MuMoEConfig(expert_dims=(4,), fraction=1.0))
        >>> mlp = make(in_features=32, hidden_features=64, act_layer=nn.GELU, drop=0.0)
        >>> mlp(torch.randn(2, 5, 32)).shape
        torch.Size([2, 5, 32])
    """
    if not isinstance(config, MuMoEConfig):
        raise TypeError(f"config is a MuMoEConfig, got {type(config).__name__}")

    def make(
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        norm_layer: Callable[..., nn.Module] | None = None,
        bias: bool | tuple[bool, bool] = True,
        drop: float | tuple[float, float] = 0.0,
        use_conv: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> nn.Module:
        if use_conv:
            raise ValueError("use_conv: layers of experts are linear; give use_conv=False")
        hidden, outputs = hidden_features or in_features, out_features or in_features
        biased = bias if isinstance(bias, bool) else any(bias)
        drops = drop if isinstance(drop, tuple) else (drop, drop)
        between: list[nn.Module] = [act_layer()]
        if drops[0]:
            between.append(nn.Dropout(drops[0]))
        if norm_layer is not None:
            between.append(norm_layer(hidden).to(device=device, dtype=dtype))
        replaced = (in_features + biased) * hidden + (hidden + biased) * outputs
        options: dict[str, Any] = {
            "bias": biased,
            "gate": config.gate,
            "gate_norm": config.gate_norm,
            "gate_temperature": config.gate_temperature,
            "gate_rank": config.gate_rank,
            "init": config.init,
        }
        block = MuMoEBlock(
            in_features,
            hidden,
            outputs,
            config.expert_dims,
            config.decomposition,
            config.size_for(replaced),
            activation=between[0] if len(between) == 1 else nn.Sequential(*between),
            device=device,
            dtype=dtype,
            **options,
        )
        return nn.Sequential(block, nn.Dropout(drops[1])) if drops[1] else block

    return make
