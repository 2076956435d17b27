"""The conformance suite as a test class: subclass it, name a decomposition, and pytest collects every law.

Legend: `N_k` experts of mode k, `I` in_features, `O` out_features.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from factorized_moe.decompositions import Decomposition, get_decomposition
from factorized_moe.decompositions.base import RankLike
from factorized_moe.testing import cost_laws, sharding_laws, torch_laws, training_laws, value_laws
from factorized_moe.testing.strategies import DrawInt, Structure, draw_rank, structures

__all__ = ["LAWS", "DecompositionContract", "Law"]

Check = Callable[[Decomposition, Structure], None]

Case = tuple[tuple[int, ...], bool]
"""Expert modes, and whether there is a bias."""

SMALL: tuple[Case, ...] = (((), True), ((4,), False), ((4, 3), True))
"""For laws that take long, or do not depend on sizes: no expert mode, one, two."""

EQUAL: Case = ((3, 3), False)
"""Two expert modes of one size, whose nodes may share a parameter."""

TINY: tuple[Case, ...] = (((), True), ((2,), False), ((2, 1, 2), True))
"""For finite differences, which take a call for every number that goes in."""

SEVERAL_MODES: tuple[Case, ...] = (((3, 3), False), ((2, 3, 2), True))
"""For laws about training: two expert modes and three."""

SEED = 0 if settings().derandomize else secrets.randbits(32)
"""All laws of a run draw the same structures, so that each is planned once."""


@dataclass(frozen=True)
class Law:
    """A law, and the structures that it is checked on.

    Args:
        check: Raises `AssertionError` if the law does not hold for a decomposition and a structure.
        cases: Expert modes and bias of its structures; `None` to draw structures of any number of modes.
        in_features: `I` of its structures, if they are not drawn.
        out_features: `O` of its structures, if they are not drawn.
        rank: The int that stands for each drawn one, if they are not drawn.
    """

    check: Check
    cases: tuple[Case, ...] | None = None
    in_features: int = 3
    out_features: int = 4
    rank: int = 2

    @property
    def name(self) -> str:
        """The name to opt out by; the test is `test_` and this."""
        return self.check.__name__


def _laws() -> dict[str, Law]:
    drawn = [
        value_laws.forward_equals_dense,
        value_laws.gradients_equal_dense,
        value_laws.leading_shape_is_kept,
        value_laws.forward_is_multilinear,
        value_laws.dense_equals_nodes,
        value_laws.dense_equals_tensorly,
        value_laws.tensorly_round_trip,
        value_laws.one_hot_selects_expert,
        value_laws.expert_slices_dense,
        value_laws.expert_never_builds_dense,
        value_laws.node_order_is_free,
        cost_laws.description_is_a_value,
        cost_laws.parameter_count,
        cost_laws.plan_costs_are_exact,
        cost_laws.rank_bound_holds,
        cost_laws.rank_bound_is_met,
        cost_laws.budget_is_kept,
        torch_laws.dtypes_agree,
        torch_laws.autocast_agrees,
        torch_laws.vmap_agrees,
        torch_laws.jacobians_agree,
    ]
    laws = [
        *(Law(check) for check in drawn),
        Law(cost_laws.initial_variance, (*SMALL[1:], EQUAL), in_features=20, out_features=15, rank=4),
        Law(training_laws.balanced_variance, SMALL[1:], in_features=20, out_features=15, rank=4),
        Law(training_laws.every_mode_learns, SEVERAL_MODES, in_features=12, out_features=6, rank=3),
        Law(cost_laws.fit_recovers, (*SMALL, EQUAL)),
        Law(cost_laws.plans_are_cheapest, SMALL, in_features=20, out_features=15, rank=4),
        Law(torch_laws.first_derivatives, TINY, in_features=2, out_features=2),
        Law(torch_laws.second_derivatives, TINY, in_features=2, out_features=2),
        Law(torch_laws.state_dict_round_trip, SMALL),
        Law(torch_laws.pickle_round_trip, SMALL),
        Law(torch_laws.deepcopy_is_independent, SMALL),
        Law(torch_laws.meta_device_is_filled_later, SMALL),
        Law(torch_laws.compiles_whole, SMALL[1:2]),
        Law(sharding_laws.sharded_equals_whole, SMALL[-1:], in_features=5, out_features=6, rank=3),
        Law(torch_laws.compiles_few_times, SMALL[-1:]),
        Law(torch_laws.exports_dynamic_batch, SMALL[::2]),
    ]
    return {law.name: law for law in laws}


LAWS: Mapping[str, Law] = MappingProxyType(_laws())
"""Every law by its name."""


class DecompositionContract:
    """Holds a decomposition to every law. Subclass it as `Test...` in a test file; pytest does the rest.

    A law that does not apply is opted out of by name, with a reason that pytest shows.

    Attributes:
        decomposition: The decomposition to test: an instance or a registered name.
        opt_out: Laws that do not apply, each with the reason.
        expert_modes: The numbers of expert modes for which structures are drawn.
        max_examples: Structures drawn for each law and number of expert modes.

    Raises:
        TypeError: If a subclass names no decomposition.
        ValueError: If `opt_out` names a law that does not exist, or gives no reason.

    Examples:
        >>> from factorized_moe.decompositions import CP
        >>> class TestCP(DecompositionContract):
        ...     decomposition = CP()
        >>> TestCP.test_parameter_count.__name__
        'test_parameter_count'
    """

    decomposition: ClassVar[str | Decomposition]
    opt_out: ClassVar[Mapping[str, str]] = MappingProxyType({})
    expert_modes: ClassVar[Sequence[int]] = range(6)
    max_examples: ClassVar[int] = 3

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not isinstance(getattr(cls, "decomposition", None), str | Decomposition):
            raise TypeError(f"{cls.__name__} names no decomposition; set decomposition to an instance or a name")
        unknown = sorted(cls.opt_out.keys() - LAWS.keys())
        if unknown:
            raise ValueError(f"opt_out of {cls.__name__} names no law: {unknown}; the laws are {sorted(LAWS)}")
        for name, reason in cls.opt_out.items():
            if not reason.strip():
                raise ValueError(f"opt_out of {cls.__name__} gives no reason for {name!r}; say why it does not apply")
        for name, law in LAWS.items():
            if f"test_{name}" not in cls.__dict__:  # each class has its own tests: hypothesis refuses inherited ones
                setattr(cls, f"test_{name}", _make_test(cls, law))

    def rank(self, shape: tuple[int, ...], draw: DrawInt) -> RankLike:
        """Hook: draw a rank; by default an int from 1 to 4, or a tuple of them where tuples are taken.

        Args:
            shape: The dense shape, `(*expert_dims, I (+1), O)`.
            draw: `draw(low, high)` gives an int between the two, both included.
        """
        return draw_rank(self.decomposition)(shape, draw)


def _make_test(cls: type[DecompositionContract], law: Law) -> Callable[..., None]:
    test: Callable[..., None]
    if law.cases is None:

        @pytest.mark.parametrize("expert_modes", cls.expert_modes)
        @seed(SEED)
        @settings(max_examples=cls.max_examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(data=st.data())
        def test(self: DecompositionContract, expert_modes: int, data: st.DataObject) -> None:
            drawn = structures(self.decomposition, self.rank, expert_modes)
            law.check(get_decomposition(self.decomposition), data.draw(drawn, label="structure"))
    else:

        @pytest.mark.parametrize(("expert_dims", "bias"), law.cases, ids=str)
        def test(self: DecompositionContract, expert_dims: tuple[int, ...], bias: bool) -> None:
            shape = (*expert_dims, law.in_features + bias, law.out_features)
            rank = self.rank(shape, lambda low, high: min(max(low, law.rank), high))
            structure = Structure(expert_dims, law.in_features, law.out_features, rank, bias)
            law.check(get_decomposition(self.decomposition), structure)

    test.__name__ = f"test_{law.name}"
    test.__qualname__ = f"{cls.__qualname__}.{test.__name__}"
    test.__module__ = cls.__module__
    test.__doc__ = law.check.__doc__
    if law.name in cls.opt_out:
        test = pytest.mark.skip(reason=cls.opt_out[law.name])(test)
    return test
