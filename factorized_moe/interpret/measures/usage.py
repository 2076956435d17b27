"""Whether every expert of every mode takes part, measured on a few batches while a model trains.

The gate's coefficients are read by hooks, so ``forward`` is as it was, and nothing is left on the model.

Legend: ``n`` samples, ``N`` experts of one mode, ``a`` an expert's coefficient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe._validation import check_values
from factorized_moe.interpret.finding import find_layers
from factorized_moe.interpret.measures.measurement import Measurement
from factorized_moe.interpret.recording.hooks import WatchingHook
from factorized_moe.layers import ExpertLayer
from factorized_moe.spread import whole
from factorized_moe.tensor import FactorizedExpertTensor

__all__ = ["LEAST_SPREAD", "ModeUsage", "Usage", "UsageWatcher", "experts_in_use", "measure_usage", "watch_usage"]

LEAST_SPREAD = 1e-2
"""The standard deviation of a coefficient over inputs above which an expert reacts to its input."""

DISTANCE_ROWS = 1024
"""Experts whose distances to all others are computed at once."""


def experts_in_use(means: Tensor, spreads: Tensor) -> Tensor:
    """Which experts of a mode are *in use*: their coefficient varies with the input, and is not negligible on average.

    An expert is in use if the standard deviation of its coefficient over inputs is above 0.01 and its mean above a
    tenth of the uniform one, ``1 / (10 N)``. This is what *in use* means everywhere in this library. A mean alone would
    call a mode perfect whose gate never left the uniform mixture.

    Args:
        means: The mean of each expert's coefficients, ``(N,)``.
        spreads: Their standard deviation over inputs, ``(N,)``.

    Returns:
        ``(N,)``, bool.

    Raises:
        ValueError: If a value is not finite.

    Examples:
        >>> experts_in_use(torch.tensor([0.5, 0.25, 0.25, 0.0]), torch.tensor([0.3, 0.2, 0.0, 0.0])).tolist()
        [True, True, False, False]
    """
    for name, values in (("means", means), ("spreads", spreads)):
        check_values(name, values)
    if means.ndim == 0 or means.shape != spreads.shape:
        raise ValueError(
            f"means have shape {tuple(means.shape)} and spreads {tuple(spreads.shape)}, expected (N,) for both"
        )
    if not (means.isfinite().all() and spreads.isfinite().all()):
        raise ValueError("means and spreads have a value that is not finite, of which no expert is in use or not")
    return (spreads > LEAST_SPREAD) & (means > 0.1 / means.shape[-1])


@dataclass(frozen=True, eq=False)
class ModeUsage(Measurement):
    """Which experts of one mode of one layer are used, how evenly, and how much that depends on the input.

    Attributes:
        layer: The layer's name.
        mode: The number of the expert mode.
        means: The mean of each expert's coefficients over the samples, ``(N,)``, float64.
        spreads: Their standard deviation over the samples, ``(N,)``, float64.
        perplexity: ``2 ** H`` of the mean coefficients: between 1, one expert takes all, and ``N``, all take the same.
            A gate that mixes uniformly whatever the input has the perfect value, so it says nothing on its own.
        mutual_information: ``H(mean) - mean H`` in bits, between input and expert: 0 if all inputs are mixed alike.
        distance: The root mean square distance of two experts' rows of the parameters, relative to the rows' root mean
            square length; 0 if all are equal, about 1.4 if they are independent.
        nearest: The least such distance of any two experts; infinite for one expert.
        num_samples: ``n``.
    """

    layer: str
    mode: int
    means: Tensor
    spreads: Tensor
    perplexity: float
    mutual_information: float
    distance: float
    nearest: float
    num_samples: int

    @property
    def num_experts(self) -> int:
        """``N``."""
        return self.means.shape[0]

    @property
    def num_in_use(self) -> int:
        """How many experts are in use, as `experts_in_use` defines it."""
        return int(experts_in_use(self.means, self.spreads).sum())

    def columns(self) -> dict[str, list[Any]]:
        """One row."""
        return {name: [value] for name, value in self.to_record().items()}

    def to_record(self) -> dict[str, Any]:
        """The numbers of the mode as one flat record, for a log."""
        return {
            "layer": self.layer,
            "mode": self.mode,
            "experts": self.num_experts,
            "in_use": self.num_in_use,
            "perplexity": self.perplexity,
            "mutual_information": self.mutual_information,
            "spread": float(self.spreads.mean()),
            "distance": self.distance,
            "nearest": self.nearest,
        }

    def __repr__(self) -> str:
        return (
            f"ModeUsage({self.layer!r}, mode {self.mode}: {self.num_in_use} of {self.num_experts} in use, perplexity "
            f"{self.perplexity:.1f}, information {self.mutual_information:.2f} bits, spread "
            f"{float(self.spreads.mean()):.3f}, distance {self.distance:.2f}, nearest {self.nearest:.2f})"
        )


@dataclass(frozen=True, eq=False)
class Usage(Measurement):
    """Which experts a model uses: a `ModeUsage` for each expert mode of each layer.

    Attributes:
        modes: One entry for each expert mode of each layer, in the model's order.
    """

    modes: tuple[ModeUsage, ...]

    def __iter__(self) -> Iterator[ModeUsage]:
        return iter(self.modes)

    def columns(self) -> dict[str, list[Any]]:
        """One row for each mode of each layer."""
        records = [mode.to_record() for mode in self.modes]
        return {name: [record[name] for record in records] for name in records[0]}

    def to_dict(self) -> dict[str, Any]:
        """The modes, each as a dictionary."""
        return {"modes": [mode.to_dict() for mode in self.modes]}

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.modes))


class UsageWatcher:
    """Adds up what the gates return: what `watch_usage` gives to the ``with`` block.

    Args:
        layers: The layers by name.
    """

    def __init__(self, layers: dict[str, ExpertLayer]) -> None:
        self._layers = layers
        self._sums: dict[str, list[_Sums]] = {}

    @property
    def usage(self) -> Usage:
        """What was seen so far.

        Raises:
            ValueError: If a layer has not run, or on no samples.
        """
        silent = [name for name in self._layers if name not in self._sums]
        if silent:
            raise ValueError(f"the layers {silent} have not run within the with block; call the model in it")
        empty = [name for name in self._layers if not self._sums[name][0].samples]
        if empty:
            raise ValueError(f"the layers {empty} have run on no samples; give inputs with at least one position")
        return Usage(
            tuple(
                sums.result(name, mode, *_row_distances(layer, mode))
                for name, layer in self._layers.items()
                for mode, sums in enumerate(self._sums[name])
            )
        )

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def add(_module: nn.Module, _arguments: Any, coefficients: Sequence[Tensor]) -> None:
            seen = self._sums.setdefault(name, [_Sums(a.shape[-1]) for a in coefficients])
            for sums, a in zip(seen, coefficients, strict=True):
                sums.add(a.detach())

        return add


class _Sums:
    """Sums over samples of one mode's coefficients."""

    def __init__(self, experts: int) -> None:
        self.samples = 0
        self.first = torch.zeros(experts, dtype=torch.float64)
        self.second = torch.zeros(experts, dtype=torch.float64)
        self.shares = torch.zeros(experts, dtype=torch.float64)
        self.entropy = 0.0

    def add(self, coefficients: Tensor) -> None:
        rows = coefficients.reshape(-1, coefficients.shape[-1]).double()  # (n, N)
        shares = rows.clamp(min=0)
        shares = shares / shares.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        self.samples += rows.shape[0]
        self.first += rows.sum(dim=0).cpu()
        self.second += rows.square().sum(dim=0).cpu()
        self.shares += shares.sum(dim=0).cpu()
        self.entropy += float(torch.special.entr(shares).sum())

    def result(self, layer: str, mode: int, distance: float, nearest: float) -> ModeUsage:
        samples = self.samples
        means = self.first / samples
        spreads = (self.second / samples - means.square()).clamp(min=0).sqrt()
        entropy = float(torch.special.entr(self.shares / samples).sum())
        information = max(0.0, entropy - self.entropy / samples) / math.log(2.0)
        return ModeUsage(layer, mode, means, spreads, math.exp(entropy), information, distance, nearest, self.samples)


@contextmanager
def watch_usage(model: nn.Module, layers: str | Sequence[str] | None = None) -> Iterator[UsageWatcher]:
    """Watch which experts a model uses in the calls within a ``with`` block, a training step for instance.

    It reads what the gates return: a hundredth step costs one pass over the coefficients. In training mode a gate that
    normalises by the batch gives other coefficients than in evaluation; what is seen is what the step used. Calls of a
    deep copy made within the block are not watched.

    Args:
        model: The model, or a single layer. A model compiled before the block runs on without hooks.
        layers: Names of layers, or patterns, as for `find_layers`; all by default.

    Yields:
        The watcher, whose ``usage`` may be read within and after the block.

    Raises:
        TypeError: If ``model`` is not a module.
        ValueError: If there is no such layer.

    Examples:
        >>> from factorized_moe import CPMuMoE
        >>> model = CPMuMoE(8, 3, [4, 4], rank=2)
        >>> with watch_usage(model) as watcher:
        ...     y = model(torch.randn(64, 8))
        >>> [(mode.num_in_use, round(mode.perplexity, 3)) for mode in watcher.usage]  # a fresh gate mixes uniformly
        [(0, 4.0), (0, 4.0)]
    """
    chosen = find_layers(model, layers)
    watcher = UsageWatcher(chosen)
    handles = [layer.gate.register_forward_hook(WatchingHook(watcher._hook(name))) for name, layer in chosen.items()]
    try:
        yield watcher
    finally:
        for handle in handles:
            handle.remove()


def measure_usage(model: nn.Module, *arguments: Any, layers: str | Sequence[str] | None = None) -> Usage:
    """Measure which experts of every mode a model uses on one batch, in evaluation mode and without gradients.

    Args:
        model: The model, or a single layer; its mode is as before afterwards.
        arguments: What the model is called with.
        layers: Names of layers, or patterns, as for `find_layers`; all by default.

    Raises:
        TypeError: If ``model`` is not a module.
        ValueError: If there is no such layer, or one does not run, or on no samples.

    Examples:
        >>> from factorized_moe import CPMuMoE
        >>> layer = CPMuMoE(8, 3, [4], rank=2)
        >>> torch.nn.init.normal_(layer.gate.projection.weight).shape
        torch.Size([4, 8])
        >>> [mode.num_in_use for mode in measure_usage(layer, torch.randn(64, 8))]
        [4]
    """
    with watch_usage(model, layers) as watcher:
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with torch.no_grad():
                model(*arguments)
        finally:
            for module, training in modes:
                module.training = training
    return watcher.usage


@torch.no_grad()
def _row_distances(layer: ExpertLayer, mode: int) -> tuple[float, float]:
    """The root mean square and the least distance of experts' rows, in the tensor where experts are closest."""
    if layer.expert_dims[mode] < 2:
        return 0.0, math.inf
    tensors = [part for part in layer.modules() if isinstance(part, FactorizedExpertTensor)]
    found = [_distances(_rows(tensor, mode)) for tensor in tensors]
    return min(distance for distance, _ in found), min(nearest for _, nearest in found)


def _rows(tensor: FactorizedExpertTensor, mode: int) -> Tensor:
    """What the parameters hold of each expert of a mode, ``(N, features)``, each node's part of unit mean square."""
    label = tensor.network.expert_labels[mode]
    parts = []
    for node, operand in zip(tensor.network.nodes, tensor.weight.operands, strict=True):
        if label in node.labels:
            entries = whole(operand).detach().float()
            rows = entries.movedim(node.labels.index(label), 0).flatten(1)
            parts.append(rows / rows.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny))
    return torch.cat(parts, dim=1)


def _distances(rows: Tensor) -> tuple[float, float]:
    length = float(rows.square().sum(dim=1).mean().sqrt())
    if length == 0.0:
        return 0.0, 0.0
    number = rows.shape[0]
    spread = float((rows - rows.mean(dim=0)).square().sum()) / (number - 1)
    nearest = math.inf
    for start in range(0, number, DISTANCE_ROWS):
        block = torch.cdist(rows[start : start + DISTANCE_ROWS], rows, compute_mode="donot_use_mm_for_euclid_dist")
        block.diagonal(start).fill_(math.inf)
        nearest = min(nearest, float(block.min()))
    return math.sqrt(2.0 * spread) / length, nearest / length
