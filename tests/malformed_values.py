"""What no parameter of a kind may be: the wrong values, by kinds such as sizes, flags and coefficients."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from factorized_moe.interpret import Recording

NAN, INF = math.nan, math.inf
NESTED = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)], layout=torch.jagged)
THINGS: tuple[Any, ...] = (object(), nn.ReLU, {}, b"x", 1j, torch.ones(2, 2), NESTED)

WRONG: dict[str, tuple[Any, ...]] = {
    "size": (*THINGS, True, None, 0, -1, 2.0, 2.5, NAN, INF, "3", [3], 10**20),
    "count": (*THINGS, True, None, 0, -1, 2.5, NAN, INF, "3", [3]),
    "sizes": (object(), nn.ReLU, b"", 3, None, "34", [0], [-1], [2.5], [True], [NAN], ["3"], [None], [[3]], NESTED),
    "rank": (*THINGS, True, 0, -1, NAN, INF, "3", [], [0], (-1, 2, 3, 4, 5), 10**20),
    "flag": (*THINGS, None, 0, 1, 2.5, "no", "", []),
    "number": (*THINGS, True, None, NAN, INF, -INF, "1", [1.0]),
    "positive": (*THINGS, True, None, NAN, INF, 0, -1, 0.0, -0.5, "1", [1.0]),
    "seed": (*THINGS, True, None, NAN, 2.5, "1", [1], 2**64, -(2**64)),
    "device": (object(), nn.ReLU, {}, b"x", 2.5, "gpu", "", "cpu:x", [], torch.ones(2)),
    "dtype": (object(), nn.ReLU, "float32", float, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, 32),
    "name": (object(), nn.Module, 3, 2.5, True, b"cp", "", "no such", [], {}, NAN, torch.ones(2)),
    "module": (object(), nn.ReLU, None, 3, "x", [], {}, torch.ones(2)),
    "machine": (object(), nn.ReLU, 3, "x", [], {}, torch.ones(2)),
    "function": (object(), nn.ReLU, None, 3, "no such", [], {}, torch.ones(2), True, NAN),
    "matrix": (
        object(),
        nn.ReLU,
        None,
        3,
        "x",
        [[1.0]],
        torch.ones(()),
        torch.ones(5, 7),
        NESTED,
        {},
        torch.ones(5, 8, dtype=torch.int64),
        torch.ones(5, 8, dtype=torch.complex64),
        torch.ones(5, 8).double(),
        torch.ones(5, 8, device="meta"),
    ),
    "logits": (
        object(),
        nn.ReLU,
        None,
        3,
        "x",
        [[1.0]],
        torch.ones(()),
        NESTED,
        {},
        torch.ones(2, dtype=torch.int64),
        torch.ones(2, dtype=torch.bool),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(3, 0),
    ),
    "coefficients": (
        object(),
        None,
        3,
        "x",
        [],
        [None],
        torch.ones(5, 3),
        [torch.ones(5, 2)],
        [torch.ones(5)],
        [torch.ones(5, 3)] * 2,
        [torch.ones(5, 3, dtype=torch.int64)],
        [torch.ones(5, 3, device="meta")],
        [NESTED],
        {},
    ),
    "dense": (
        object(),
        nn.ReLU,
        None,
        3,
        "x",
        [[1.0]],
        torch.ones(()),
        torch.ones(3),
        NESTED,
        {},
        torch.ones(3, 4, 5, dtype=torch.int64),
        torch.ones(3, 4, 5, dtype=torch.complex64),
        torch.full((3, 4, 5), NAN),
        torch.full((3, 4, 5), INF),
        torch.ones(3, 4, 5, device="meta"),
        torch.ones(3, 4, 5).to_sparse(),
        torch.ones(3, 0, 5),
    ),
    "measured": (
        object(),
        nn.ReLU,
        None,
        3,
        "x",
        [[1.0]],
        torch.ones(()),
        NESTED,
        {},
        torch.full((5, 3), NAN),
        torch.full((5, 3), INF),
        torch.ones(5, 3, dtype=torch.int64),
        torch.ones(5, 3, dtype=torch.complex64),
        torch.ones(5, 3, device="meta"),
        torch.ones(5, 3).to_sparse(),
    ),
    "labels": (
        object(),
        nn.ReLU,
        None,
        3,
        "x",
        {},
        torch.ones(()),
        NESTED,
        torch.ones(4),
        torch.tensor([0, 1, -1, 0]),
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(4, 2, dtype=torch.int64),
        torch.zeros(4, dtype=torch.complex64),
        torch.zeros(4, dtype=torch.int64, device="meta"),
    ),
    "experts": (object(), nn.ReLU, None, "x", "12", [], [0, 0], [2.5], [True], 2.5, NAN, NESTED, [None], [[0]]),
    "layer": (object(), nn.ReLU, 3, "no such", "", b"x", [], {}, True, NAN),
    "mode": (object(), nn.ReLU, None, 5, -1, 2.5, "no such", True, NAN, [], {}),
    "recording": (object(), Recording, None, 3, "x", [], {}, torch.ones(2, 2)),
    "folder": (object(), nn.ReLU, None, 3, "no such/folder", "", 2.5, [], {}, b"x"),
    "text": (object(), nn.ReLU, None, 3, "", "in", "in a, b out; in=0", "((", b"in a, a out", [], "in a, a out; in=x"),
    "strings": (object(), nn.ReLU, 3, "ab", b"ab", [1], [None], {"a": 1}, NAN, True, torch.ones(2)),
    "share": (*THINGS, True, None, NAN, INF, -1, 2, "1", [1.0]),
}


def _without(kind: str, *taken: Any) -> tuple[Any, ...]:
    """A kind's wrong values without some that are right for another."""
    return tuple(value for value in WRONG[kind] if not any(value is one for one in taken))


WRONG["size or none"] = _without("count", None)
WRONG["count or none"] = _without("count", None)
WRONG["experts or none"] = _without("experts", None)
WRONG["rank of a config"] = (*(object(), nn.ReLU, {}, b"x", True, 0, -1, NAN, INF, "3", [], [0], (-1, 2)), None)
WRONG["threshold"] = (*THINGS, True, None, NAN, INF, -1, "1", [1.0])
WRONG["share but large"] = (*THINGS, True, NAN, INF, -1, "1", [1.0])
WRONG["amount"] = (object(), nn.ReLU, {}, None, NAN, INF, -INF, "1", NESTED, torch.tensor(NAN), 1j, b"x")
WRONG["mode of an intervention"] = (object(), nn.ReLU, None, 2.5, "0", True, NAN, [], {})
WRONG["index"] = (object(), nn.ReLU, 5, -9, 2.5, "0", True, NAN, [], {}, torch.ones(2))
WRONG["registered name"] = (object(), nn.ReLU, 3, b"cp", None, [], True, "cp", "tucker")
WRONG["binary"] = tuple(v for v in WRONG["labels"] if not (isinstance(v, torch.Tensor) and v.dtype == torch.float32))
WRONG["title"] = (object(), nn.ReLU, 3, None, b"x", [])
WRONG["iterable"] = (object(), nn.ReLU, None, 3, [])
WRONG["batches"] = (object(), nn.ReLU, None, 3, [None], [], [torch.ones(5, 7)], [torch.full((5, 8), NAN)], ["x"])
WRONG["function"] = _without("function", None)
WRONG["0 or 1"] = tuple(value for value in WRONG["flag"] if type(value) is not int)  # 0 and 1 are taken
WRONG["label"] = tuple(value for value in WRONG["name"] if not isinstance(value, dict))  # all tensors may be left out


def shown(value: Any) -> str:
    """A value in few letters."""
    if isinstance(value, torch.Tensor):
        return "nested" if value.is_nested else f"{value.dtype} {tuple(value.shape)} {value.device} {value.layout}"
    return repr(value)[:40]
