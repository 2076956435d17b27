"""What the layers are compared with: dense and sparse mixtures, TensorLy-Torch, the released code.

Legend: B samples, I in_features, O out_features, N experts.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import installed
from factorized_moe import MuMoE
from factorized_moe.gating import ExpertGate

__all__ = [
    "CHECKOUT",
    "Missing",
    "SoftMoE",
    "dense_mlp",
    "parameters",
    "released_code",
    "released_layer",
    "sparse_moe",
    "tltorch_linear",
]

CHECKOUT = "MUMOE_CHECKOUT"
"""The environment variable that names a checkout of the uMoE authors' released code."""


class Missing(Exception):
    """A contender is not there; the message says what to install or set."""


def parameters(module: nn.Module) -> int:
    """The number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def dense_mlp(in_features: int, hidden_features: int, out_features: int) -> nn.Sequential:
    """The MLP of a transformer."""
    return nn.Sequential(nn.Linear(in_features, hidden_features), nn.GELU(), nn.Linear(hidden_features, out_features))


class SoftMoE(nn.Module):
    """A dense mixture of linear experts, its weight tensor not factorised; all experts take part.

    Args:
        in_features: I.
        out_features: O.
        experts: N.

    Examples:
        >>> parameters(SoftMoE(6, 5, experts=4))  # 4 * (6 + 1) * 5, and 6 * 4 in the gate
        164
    """

    def __init__(self, in_features: int, out_features: int, experts: int) -> None:
        super().__init__()
        self.gate = ExpertGate(in_features, [experts], norm="layer")
        self.weight = nn.Parameter(torch.randn(experts, in_features, out_features) * in_features**-0.5)
        self.bias = nn.Parameter(torch.zeros(experts, out_features))

    def forward(self, x: Tensor) -> Tensor:
        """From ``(B, I)`` to ``(B, O)``."""
        (a,) = self.gate(x)  # (B, N)
        if len(x) == 1:  # mix the matrices: 2 I O FLOPs a sample more, but the experts' outputs take N O elements
            mixed = (a @ self.weight.flatten(1)).view(self.weight.shape[1:])  # (I, O)
            y = x @ mixed
        else:
            y = torch.einsum("bn,bno->bo", a, torch.einsum("bi,nio->bno", x, self.weight))
        biased: Tensor = y + a @ self.bias
        return biased


def sparse_moe(features: int, hidden_features: int, experts: int, implementation: str) -> nn.Module:
    """A sparse mixture with the two best experts for every token: the Mixtral block of transformers.

    Its experts are gated MLPs without biases, of ``3 * features * hidden_features`` parameters each.

    Args:
        features: I and O.
        hidden_features: The width inside an expert.
        experts: N.
        implementation: The library's name for how the experts are run: ``"eager"`` or ``"grouped_mm"``.

    Raises:
        Missing: If transformers is not installed.
    """
    if installed("transformers") is None:
        raise Missing("transformers is not installed (pip install 'factorized-moe[bench]')")
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    options: dict[str, Any] = {
        "hidden_size": features,
        "intermediate_size": hidden_features,
        "num_local_experts": experts,
        "num_experts_per_tok": 2,
        "experts_implementation": implementation,
    }
    make: Any = MixtralSparseMoeBlock
    block: nn.Module = make(MixtralConfig(**options))
    with torch.no_grad():
        for parameter in block.parameters():  # the library leaves them empty, for a checkpoint to fill
            parameter.normal_(0.0, 0.02)
    return WithSequence(block)


class WithSequence(nn.Module):
    """Gives a block that wants ``(sequences, tokens, I)`` its samples as one sequence."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """From ``(B, I)`` to ``(B, O)``."""
        y: Tensor = self.block(x.unsqueeze(0))
        return y.squeeze(0)


def tltorch_linear(modes: tuple[int, ...], limit: int) -> nn.Module:
    """TensorLy-Torch's CP linear layer, contracted in factorised form, with at most ``limit`` parameters.

    Args:
        modes: How the input's and the output's features are split, ``(768,)`` or ``(8, 8, 12)``.
        limit: The most parameters, bias included.
    """
    from tltorch import FactorizedLinear  # imported by factorized_moe already

    features = torch.Size(modes).numel()
    rank = (limit - features) // (2 * sum(modes) + 1)  # one factor for each mode, and the weights
    layer: nn.Module = FactorizedLinear(
        modes, modes, bias=True, factorization="cp", implementation="factorized", rank=rank
    )
    return layer


@cache
def released_code() -> ModuleType:
    """The released code's module, from the checkout that the environment names.

    Raises:
        Missing: If the variable is not set, or what the code needs is not installed.
    """
    checkout = os.environ.get(CHECKOUT)
    if not checkout:
        raise Missing(f"{CHECKOUT} names no checkout of the released code")
    missing = [name for name in ("einops", "entmax") if installed(name) is None]
    if missing:
        raise Missing(f"the released code needs {' and '.join(missing)} (pip install 'factorized-moe[bench]')")
    file = Path(checkout) / "MuMoE.py"
    if not file.exists():
        raise Missing(f"{CHECKOUT} is set, but there is no MuMoE.py in what it names")
    spec = importlib.util.spec_from_file_location("released_mumoe", file)
    assert spec is not None  # of a file that ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # torch.compile looks its functions up by name
    spec.loader.exec_module(module)
    return module


def released_layer(layer: MuMoE) -> nn.Module:
    """The released code's layer with the same parameters as ours, which has one expert mode and a layer-norm gate.

    Raises:
        Missing: As `released_code`.
    """
    code = released_code()
    experts = layer.experts
    tensors = {name: tensor.detach() for name, tensor in experts.weight.tensors.items()}
    kind: Any
    ranks: Any
    if isinstance(experts.rank, int):
        kind, ranks = code.CPMuMoE, experts.rank
        factors = [tensors["expert_0"], tensors["input"], tensors["output"].t()]
    else:
        kind = code.TRMuMoE
        ranks = [[left, 0, right] for left, right in zip(experts.rank[:-1], experts.rank[1:], strict=True)]
        cores = [tensors["expert_0"].transpose(0, 1), tensors["input"].transpose(0, 1)]
        factors = [*cores, tensors["output"].permute(1, 2, 0)]
    released: Any = code.MuMoE(
        MuMoE_layer=kind,
        input_dim=experts.in_features,
        output_dim=experts.out_features,
        expert_dims=list(experts.expert_dims),
        ranks=ranks,
        normalization="ln",
    )
    gate = layer.gate.projection
    assert isinstance(gate, nn.Linear)
    with torch.no_grad():
        for mine, theirs in zip(released.MuMoE.factors, factors, strict=True):
            mine.copy_(theirs)
        released.projs[0].copy_(gate.weight.t())
    return WithToken(released)


class WithToken(nn.Module):
    """Undoes the released code's extra axis: it returns ``(B, 1, O)`` for ``(B, I)``."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """From ``(B, I)`` to ``(B, O)``."""
        y: Tensor = self.block(x)
        return y.squeeze(1)
