"""The laws on one network that somebody wrote by hand, as a report to read."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import pytest

from factorized_moe.decompositions import GivenNetwork
from factorized_moe.network import TensorNetwork
from factorized_moe.testing.contract import LAWS
from factorized_moe.testing.strategies import Structure

__all__ = ["LawResult", "NetworkReport", "check_network"]

BATCH_SHAPES: tuple[tuple[int, ...], ...] = ((3,), (), (2, 3), (0,))
"""Leading shapes of inputs that each law is checked on, unless it takes long."""

KEPT, BROKEN, SKIPPED = "kept", "broken", "skipped"


@dataclass(frozen=True)
class LawResult:
    """Whether one law was kept, broken or skipped.

    Attributes:
        law: Its name, as in `LAWS`.
        outcome: ``"kept"``, ``"broken"`` or ``"skipped"``.
        message: Why it is broken or was skipped.
    """

    law: str
    outcome: str
    message: str = ""


@dataclass(frozen=True)
class NetworkReport:
    """The outcome of all laws on one network; print it.

    Attributes:
        network: The network that was checked, with the sizes that it was checked at.
        results: One for each law.
    """

    network: TensorNetwork
    results: tuple[LawResult, ...]

    @property
    def ok(self) -> bool:
        """Whether no law is broken."""
        return all(result.outcome != BROKEN for result in self.results)

    def __str__(self) -> str:
        counts = {kind: sum(result.outcome == kind for result in self.results) for kind in (KEPT, BROKEN, SKIPPED)}
        lines = [
            str(self.network),
            "",
            "laws: " + ", ".join(f"{count} {kind}" for kind, count in counts.items() if count),
        ]
        for result in self.results:
            if result.outcome != KEPT:
                message = textwrap.fill(result.message, 100, initial_indent="    ", subsequent_indent="    ")
                lines += [f"{result.outcome}: {result.law}", message]
        return "\n".join(lines)


def check_network(
    network: TensorNetwork,
    *,
    laws: Sequence[str] | None = None,
    opt_out: Mapping[str, str] = MappingProxyType({}),
    largest: int = 4,
) -> NetworkReport:
    """Hold a network to the laws of the conformance suite, with and without a bias.

    The laws are about nodes and labels, not about sizes, and some take a call for every number: so every size is
    reduced to a small one first, but for those of a node whose fixed entries are given. A few dozen seconds, most of
    them for `torch.compile`.

    Args:
        network: The network.
        laws: The names of the laws to check; all of `LAWS` by default.
        opt_out: Laws that do not apply, each with the reason.
        largest: The largest size of any label.

    Returns:
        The report; its ``ok`` says whether all is well.

    Raises:
        ValueError: If a name is not that of a law.

    Examples:
        >>> sizes = {"expert_0": 8, "in": 16, "out": 32, "a": 4, "b": 5}
        >>> network = TensorNetwork.parse("expert_0 a, in b, a b out", sizes)
        >>> print(check_network(network, laws=["forward_equals_dense", "parameter_count", "dense_equals_tensorly"]))
        expert_0: expert_0 a, input: in b, output: a b out; expert_0=4 in=4 out=4 a=4 b=4
        <BLANKLINE>
        laws: 2 kept, 1 skipped
        skipped: dense_equals_tensorly
            TensorLy has no tensor type for GivenNetwork
    """
    names = tuple(LAWS) if laws is None else tuple(laws)
    unknown = sorted({*names, *opt_out} - LAWS.keys())
    if unknown:
        raise ValueError(f"{unknown} are no laws; the laws are {sorted(LAWS)}")
    reasons = {**_reasons_to_skip(network), **opt_out}
    small = _resized(network, {label: min(size, largest) for label, size in network.sizes.items()})
    results = [
        LawResult(name, SKIPPED, reasons[name]) if name in reasons else _check_law(name, small) for name in names
    ]
    return NetworkReport(small, tuple(results))


def _reasons_to_skip(network: TensorNetwork) -> dict[str, str]:
    reasons: dict[str, str] = {}
    if network.shares_parameters:
        reason = "two nodes share a parameter, so the tensor is not linear in it"
        reasons |= dict.fromkeys(("fit_recovers", "initial_variance"), reason)
    if any(isinstance(node.fixed, tuple) for node in network.nodes):
        reasons["budget_is_kept"] = "a node's fixed entries are given, for one size only"
    return reasons


def _resized(network: TensorNetwork, sizes: Mapping[str, int]) -> TensorNetwork:
    given = {label for node in network.nodes if isinstance(node.fixed, tuple) for label in node.labels}
    label_sizes = tuple((label, network.sizes[label] if label in given else size) for label, size in sizes.items())
    sized = replace(network, label_sizes=label_sizes, in_padding=0)
    return replace(sized, in_padding=min(network.in_padding, sized.size_of(sized.in_labels[1:]) - 1))


def _check_law(name: str, network: TensorNetwork) -> LawResult:
    law = LAWS[name]
    if name == "initial_variance":  # an estimate, which needs many entries
        external = set(network.external_labels)
        network = _resized(network, {label: 12 if label in external else 4 for label in network.sizes})
    try:
        for structure in _structures(network, BATCH_SHAPES if law.cases is None else BATCH_SHAPES[:1]):
            law.check(GivenNetwork(network), structure)
    except pytest.skip.Exception as skipped:
        return LawResult(name, SKIPPED, str(skipped))
    except Exception as failure:  # noqa: BLE001  # whatever a law raises is what the report is for
        kind = "" if isinstance(failure, AssertionError) else f"{type(failure).__name__}: "
        return LawResult(name, BROKEN, f"{kind}{failure} (bias={structure.bias}, batch {structure.batch_shape})")
    return LawResult(name, KEPT)


def _structures(network: TensorNetwork, batch_shapes: Sequence[tuple[int, ...]]) -> Iterator[Structure]:
    *expert_dims, rows, out_features = network.shape
    rank = tuple(network.sizes[bond] for bond in network.bonds)
    for bias in (False, True) if rows > 1 else (False,):
        for seed, batch_shape in enumerate(batch_shapes):
            yield Structure(tuple(expert_dims), rows - bias, out_features, rank, bias, batch_shape, seed)
