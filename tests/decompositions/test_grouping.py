"""How a mode is split into factors."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factorized_moe.decompositions.grouping import factors, input_factors


@pytest.mark.parametrize(
    ("size", "count", "expected"),
    [
        (768, 2, (24, 32)),
        (13, 2, (1, 13)),
        (64, 3, (4, 4, 4)),
        (1000, 3, (10, 10, 10)),
        (30, 3, (2, 3, 5)),
        (7, 1, (7,)),
    ],
)
def test_factors(size: int, count: int, expected: tuple[int, ...]) -> None:
    assert factors(size, count) == expected


@given(size=st.integers(1, 5000), count=st.integers(1, 4))
def test_factors_multiply_to_the_size(size: int, count: int) -> None:
    found = factors(size, count)
    assert len(found) == count
    assert math.prod(found) == size
    assert list(found) == sorted(found)


@given(size=st.integers(1, 300))
def test_two_factors_are_as_even_as_can_be(size: int) -> None:
    one, two = factors(size, 2)
    assert not any(size % k == 0 for k in range(one + 1, math.isqrt(size) + 1))
    assert one <= two


@given(size=st.integers(1, 5000), count=st.integers(1, 4))
def test_padding_is_less_than_one_step_of_the_first_factor(size: int, count: int) -> None:
    found = input_factors(size, count)
    assert 0 <= math.prod(found) - size < math.prod(found[1:])
    assert found[-1] <= 3 * found[0]
