"""What a sharded module costs on each rank, as a table.

Legend: ``p`` ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from factorized_moe._text_tables import text_table
from factorized_moe.contraction import ContractionPlan
from factorized_moe.parallel.choosing import Choice, tensor_choices
from factorized_moe.parallel.machine import Machine
from factorized_moe.parallel.splitting import SplitPlan

__all__ = ["ShardReport", "describe_shards", "shard_rows"]


@dataclass(frozen=True)
class ShardReport:
    """How each expert tensor of a module is cut, and what that costs on the rank with most to do.

    FLOPs and bytes are counted from the description; the time is an estimate from the machine's figures.

    Attributes:
        choices: For each expert tensor its path, its label and its plan.
        machine: The figures that the choice was weighed by.

    Examples:
        >>> from factorized_moe import MuMoEBlock
        >>> from factorized_moe.parallel import shards_of
        >>> report = shards_of(MuMoEBlock(64, 256, 64, [16], "cp", rank=32, device="meta"), ranks=4, label="pair")
        >>> report.parameters, report.collectives
        (9280, {'all_reduce': 2, 'all_to_all': 2})
    """

    choices: tuple[Choice, ...]
    machine: Machine

    @property
    def parameters(self) -> int:
        """Parameters of the expert tensors on one rank."""
        return sum(choice.split.parameters for choice in self.choices)

    @property
    def flops(self) -> int:
        """FLOPs of a forward pass of the expert tensors on one rank."""
        return sum(choice.split.flops for choice in self.choices)

    @property
    def collectives(self) -> dict[str, int]:
        """How often each collective is called in a forward and a backward pass, if all operands need a gradient."""
        count: Counter[str] = Counter()
        for choice in self.choices:
            count.update(kind for back in (False, True) for kind, _ in choice.split.traffic(backward=back))
        return dict(count)

    @property
    def bytes_sent(self) -> tuple[int, int]:
        """Bytes that one rank sends in a forward pass, and in its backward pass."""
        both = [[_bytes(choice.split, self.machine, back) for choice in self.choices] for back in (False, True)]
        return sum(both[0]), sum(both[1])

    def __repr__(self) -> str:
        rows = [(choice.path or "(itself)", choice.label, choice.split) for choice in self.choices]
        ranks, tokens = rows[0][2].ranks, rows[0][2].plan.batch_size
        return f"{ranks} ranks, {tokens:,} tokens, per rank:\n{_table('tensor', rows, self.machine)}"


def describe_shards(plan: ContractionPlan, ranks: int, machine: Machine | None = None) -> str:
    """All ways to cut one tensor over ranks, as a table with their costs, cheapest first.

    Args:
        plan: The tensor's plan, at the batch size to count for.
        ranks: ``p``.
        machine: What the time is estimated from.
    """
    found = _ordered(plan, ranks, machine or Machine())
    return _table("", [("", label, split) for label, split in found], machine or Machine())


def shard_rows(plan: ContractionPlan, ranks: int, machine: Machine | None = None) -> list[dict[str, Any]]:
    """All ways to cut one tensor over ranks, as dictionaries: one for each label, with its costs."""
    machine = machine or Machine()
    return [_row(label, split, machine) for label, split in _ordered(plan, ranks, machine)]


def _ordered(plan: ContractionPlan, ranks: int, machine: Machine) -> list[tuple[str, SplitPlan]]:
    return sorted(tensor_choices(plan, ranks, machine).items(), key=lambda item: item[1].seconds(machine))


def _bytes(split: SplitPlan, machine: Machine, backward: bool) -> int:
    return sum(sent for _, sent in split.traffic(backward=backward)) * machine.bytes_per_element


def _row(label: str, split: SplitPlan, machine: Machine) -> dict[str, Any]:
    return {
        "label": label,
        "nodes": {name: where for name, where in split.stored if where is not None},
        "parameters": split.parameters,
        "flops": split.flops,
        "bytes_forward": _bytes(split, machine, False),
        "bytes_backward": _bytes(split, machine, True),
        "collectives": len(split.traffic()) + len(split.traffic(backward=True)),
        "seconds": split.seconds(machine),
    }


def _table(first: str, rows: Sequence[tuple[str, str, SplitPlan]], machine: Machine) -> str:
    cells: list[tuple[str, ...]] = [
        (first, "label", "parameters", "FLOPs", "bytes forward", "bytes backward", "collectives", "est. ms")
    ]
    for name, label, split in rows:
        row = _row(label, split, machine)
        counts = [f"{row[key]:,}" for key in ("parameters", "flops", "bytes_forward", "bytes_backward", "collectives")]
        if label.startswith("each"):
            label += ": " + ", ".join(f"{node} by {where}" for node, where in row["nodes"].items())
        cells.append((name, label, *counts, f"{row['seconds'] * 1e3:.2f}"))
    if not first:
        cells = [row[1:] for row in cells]
    return text_table(cells, left=2 if first else 1, indent="  ")
