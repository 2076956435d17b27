"""Networks as text: ``"expert_0 rank, in rank, rank out; expert_0=8 in=16 out=32 rank=4"``.

The grammar:

- A node is a list of labels, with a name before it (``core: a b c`` or ``core = a b c``) or without. A node without a
  name is called after its modes (``expert_0``, ``input``, ``output``), or ``core``.
- Nodes are separated by commas, the terms of a sum of networks by plus signs.
- The labels ``expert_0``, ``expert_1``, ..., ``in`` and ``out`` are the modes; a mode that is split into a group has
  ``in_0``, ``in_1``, ... instead. All other labels are bonds.
- Sizes follow after a semicolon (``in=16 rank=4``) or are given apart. Beside a group, ``in=17`` is the size of the
  whole input mode, if the group is larger: padded.
- ``second@first: a b`` is a node that reads the parameter of another name.
- ``link(identity): a b`` is a fixed node, no parameter; in the brackets, a rule or all entries: ``mask(1 0 1 1): a b``.

This module knows nothing of `TensorNetwork`, which takes its fields from here.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["FIXED_RULES", "ParsedNetwork", "ParsedNode", "check_fixed", "parse_network", "write_fixed"]

FIXED_RULES = ("identity", "ones")
"""What a fixed node may hold by a rule: 1 where all its indices are equal and 0 elsewhere, or 1 everywhere."""

NODE = re.compile(
    r"(?:(?P<name>[^:=@()]*)(?:@(?P<parameter>[^:=@()]*))?(?:\((?P<fixed>[^:=@()]*)\)\s*)?[:=])?(?P<labels>[^:=@]*)"
)
MODE = re.compile(r"(?P<mode>expert|in|out)(?:_(?P<number>0|[1-9]\d*))?")


@dataclass(frozen=True)
class ParsedNode:
    """A node's name, its labels, the parameter that it reads if that has another name, and what it is fixed to."""

    name: str
    labels: tuple[str, ...]
    parameter: str
    fixed: str | tuple[float, ...] | None = None


@dataclass(frozen=True)
class ParsedNetwork:
    """What a text says; the fields are those of `TensorNetwork`."""

    terms: tuple[tuple[ParsedNode, ...], ...]
    label_sizes: tuple[tuple[str, int], ...]
    expert_labels: tuple[str, ...]
    in_labels: tuple[str, ...]
    out_labels: tuple[str, ...]
    in_padding: int


def parse_network(text: str, sizes: Mapping[str, int] | None = None) -> ParsedNetwork:
    """Read a network from a text.

    Args:
        text: The nodes, as in the module's description.
        sizes: The sizes of labels that the text gives none for. ``"in"`` beside labels ``in_0``, ``in_1``, ... is the
            size of the whole input mode, where the group is padded.

    Raises:
        TypeError: If the text is not a string.
        ValueError: If it cannot be read, or a size is missing or not used.

    Examples:
        >>> parsed = parse_network(
        ...     "expert_0 a, in b, b out c, a c", {"expert_0": 8, "in": 16, "out": 32, "a": 4, "b": 3, "c": 5}
        ... )
        >>> [node.name for node in parsed.terms[0]]
        ['expert_0', 'input', 'output', 'core']
    """
    if not isinstance(text, str):
        raise TypeError(f"a network is parsed from a string such as 'in rank, rank out', got {text!r}")
    if "->" in text:
        raise ValueError(
            f"an arrow has no place in {text!r}: the modes' labels are kept, all others are summed; remove it"
        )
    body, *rest = text.split(";")
    if len(rest) > 1:
        raise ValueError(f"{len(rest)} semicolons in {text!r}; one, before the sizes")
    names: set[str] = set()
    terms = tuple(
        tuple(_parse_node(node, f"node {k} of term {t}", names) for k, node in enumerate(term.split(",")))
        for t, term in enumerate(body.split("+"))
    )
    used = list(dict.fromkeys(label for term in terms for node in term for label in node.labels))
    groups = _find_modes(used)
    known = _read_sizes(rest[0] if rest else "", sizes or {})
    group = groups["in"]
    whole = known.pop("in", None) if group != ("in",) else None
    _compare(used, known)
    inputs = math.prod(known[label] for label in group)
    if whole is not None and whole > inputs:
        raise ValueError(f"the input labels {list(group)} multiply to {inputs}, fewer than in={whole}")
    padding = 0 if whole is None else inputs - whole
    return ParsedNetwork(terms, tuple(known.items()), groups["expert"], group, groups["out"], padding)


def _parse_node(text: str, where: str, names: set[str]) -> ParsedNode:
    match = NODE.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"{where}, {text.strip()!r}, has two prefixes or a bracket out of place; write one name, a colon, "
            "and the labels"
        )
    labels = tuple(match["labels"].split())
    if match["name"] is None and not labels:
        raise ValueError(
            f"{where} is empty; write its labels, or remove the comma, plus or semicolon before or after it"
        )
    for label in labels:
        if not label.isidentifier():
            raise ValueError(f"label {label!r} of {where} is not a word; separate labels by spaces, nodes by commas")
    name = _derived_name(labels, names) if match["name"] is None else match["name"].strip()
    names.add(name)
    parameter = name if match["parameter"] is None else match["parameter"].strip()
    for word in (name, parameter):
        if not word.isidentifier():
            raise ValueError(f"name {word!r} of {where} is not a word; a name is letters, digits and underscores")
    return ParsedNode(name, labels, parameter, None if match["fixed"] is None else _read_fixed(match["fixed"].split()))


def _read_fixed(words: Sequence[str]) -> str | tuple[float, ...]:
    """The entries, or the words as they are: whether they are a rule's name is for the node to say."""
    try:
        return tuple(map(float, words))
    except ValueError:
        return " ".join(words)


def check_fixed(name: str, fixed: str | Sequence[float] | None) -> str | tuple[float, ...]:
    """What a fixed node holds, checked: a rule, or all entries as floats.

    Args:
        name: The node's name, for the error.
        fixed: A rule's name, or numbers.

    Raises:
        ValueError: If it is neither.

    Examples:
        >>> check_fixed("mask", [1, 0, 1, 1])
        (1.0, 0.0, 1.0, 1.0)
    """
    if fixed in FIXED_RULES:
        return str(fixed)
    try:
        entries = () if fixed is None or isinstance(fixed, str) else tuple(map(float, fixed))
    except (TypeError, ValueError):
        entries = ()
    if not entries or not all(map(math.isfinite, entries)):
        raise ValueError(
            f"node {name!r} is fixed to {fixed!r}; expected one of {FIXED_RULES}, or all its entries, finite "
            "numbers in memory order"
        )
    return entries


def write_fixed(fixed: str | Sequence[float] | None) -> str:
    """What stands after a fixed node's name; no number has a plus sign, which separates terms.

    Examples:
        >>> write_fixed("identity"), write_fixed((1.0, 0.5, 1e300)), write_fixed(None)
        ('(identity)', '(1 0.5 1e300)', '')
    """
    if fixed is None or isinstance(fixed, str):
        return f"({fixed})" if fixed else ""
    words = (str(int(entry)) if entry.is_integer() and abs(entry) < 1e15 else repr(entry) for entry in fixed)
    return f"({' '.join(words).replace('+', '')})"


def _derived_name(labels: Sequence[str], taken: set[str]) -> str:
    """The modes' names, ``input`` and ``output`` among them, or ``core``; numbered from the second of a name on."""
    modes = [label for label in labels if MODE.fullmatch(label)]
    words = [re.sub(r"^(in|out)", r"\1put", label) for label in modes]
    name = "_".join(words) or "core"
    return next(found for k in range(len(taken) + 1) if (found := f"{name}_{k + 1}" if k else name) not in taken)


def _find_modes(used: Sequence[str]) -> dict[str, tuple[str, ...]]:
    groups: dict[str, tuple[str, ...]] = {}
    for mode in ("expert", "in", "out"):
        matches = [m for m in map(MODE.fullmatch, used) if m is not None and m["mode"] == mode]
        numbers = sorted(int(m["number"]) for m in matches if m["number"] is not None)
        if mode == "expert" and any(m["number"] is None for m in matches):
            raise ValueError("label 'expert' has no number; expert modes are expert_0, expert_1, ..")
        if mode != "expert" and not matches:
            raise ValueError(
                f"no node carries the label {mode!r} (or {mode}_0, {mode}_1, ..); the labels are {list(used)}"
            )
        if numbers and len(numbers) < len(matches):
            raise ValueError(
                f"labels {mode!r} and '{mode}_{numbers[0]}' are both used; a mode is one label or a numbered group"
            )
        if numbers != list(range(len(numbers))):
            missing = next(k for k, number in enumerate([*numbers, -1]) if k != number)
            raise ValueError(
                f"label '{mode}_{numbers[-1]}' is used, '{mode}_{missing}' is not; numbers start at 0 without a gap"
            )
        groups[mode] = tuple(f"{mode}_{number}" for number in numbers) or tuple(m[0] for m in matches)
    return groups


def _read_sizes(text: str, given: Mapping[str, int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in text.replace(",", " ").split():
        label, equals, number = part.partition("=")
        if not (label.isidentifier() and equals and number.isascii() and number.isdigit()):
            raise ValueError(
                f"size {part!r} cannot be read; sizes are written as in 'in=16 rank=4', without spaces around ="
            )
        if label in found:
            raise ValueError(f"label {label!r} has two sizes in the text, {found[label]} and {number}")
        found[label] = int(number)
    for label, size in given.items():
        if found.setdefault(label, size) != size:
            raise ValueError(f"label {label!r} has size {found[label]} in the text and {size} in sizes")
    return found


def _compare(used: Sequence[str], sizes: Mapping[str, int]) -> None:
    unused = [label for label in sizes if label not in used]
    if unused:
        near = difflib.get_close_matches(unused[0], used, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the labels are {list(used)}"
        raise ValueError(f"label {unused[0]!r} has a size, but no node carries it; {hint}")
    missing = [label for label in used if label not in sizes]
    if missing:
        raise ValueError(f"labels {missing} have no size; add them to sizes, or to the text after a semicolon")
