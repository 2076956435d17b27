"""The heads: sizes, budgets, and what is said about ranks that do not fit."""

import pytest
import torch

from factorized_moe import available_decompositions
from factorized_moe.demo.classifier import (
    FEATURES,
    HeadConfig,
    ImageClassifier,
    Trunk,
    count_parameters,
    dense_head,
    fit_head,
)

pytestmark = pytest.mark.thorough

BUILT_IN = ("cp", "tucker", "tt", "tr")


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (28, 28), (64, 64)])
def test_trunk_takes_images_of_any_size(size: tuple[int, int]) -> None:
    assert Trunk()(torch.zeros(2, *size)).shape == (2, FEATURES)


def test_classifier_takes_bytes_and_normalises_them() -> None:
    torch.manual_seed(0)
    head = HeadConfig(3, (4,), "cp", 2).build()
    plain, normalising = Trunk(), Trunk(pixel_mean=30.0, pixel_std=50.0)
    normalising.layers = plain.layers
    images = torch.randint(0, 256, (5, 12, 12), dtype=torch.uint8)
    expected = ImageClassifier(plain, head)((images.float() - 30) / 50)
    torch.testing.assert_close(ImageClassifier(normalising, head)(images), expected)


@pytest.mark.parametrize("decomposition", BUILT_IN)
@pytest.mark.parametrize("expert_dims", [(32,), (8, 4)])
@pytest.mark.parametrize("parameters", [3000, 5472, 20_000])
def test_head_stays_within_its_parameters(decomposition: str, expert_dims: tuple[int, ...], parameters: int) -> None:
    config = fit_head(10, expert_dims, decomposition, rank=None, parameters=parameters)
    assert 0.6 * parameters < count_parameters(config.build()) <= parameters


def test_gate_is_part_of_the_parameters() -> None:
    # gate 64 x 32, weights R (32 + 65 + 10)
    assert fit_head(10, (32,), "cp", rank=None, parameters=2048 + 107 * 20).rank == 20
    assert fit_head(10, (32,), "cp", rank=None, parameters=2048 + 107 * 20 - 1).rank == 19


def test_default_rank() -> None:
    assert fit_head(10, (32,), "cp", rank=None, parameters=None).rank == 32
    for decomposition in BUILT_IN:
        head = fit_head(10, (32,), decomposition, rank=None, parameters=None).build()
        assert head.experts.num_parameters <= 32 * (32 + 65 + 10)


def test_given_rank_is_brought_to_its_canonical_form() -> None:
    assert fit_head(10, (32,), "cp", rank=7, parameters=None).rank == 7
    assert fit_head(10, (32,), "tucker", rank=(4, 5, 6), parameters=None).rank == (4, 5, 6)
    assert fit_head(10, (8, 4), "TR", rank=3, parameters=None).rank == (3, 3, 3, 3, 3)


def test_heads_too_small_to_make() -> None:
    message = r"a budget of 2,154 parameters is too small for 'cp' .*: the smallest possible is 2,155"
    with pytest.raises(ValueError, match=message):
        fit_head(10, (32,), "cp", rank=None, parameters=2154)
    assert fit_head(10, (32,), "cp", rank=None, parameters=2155).rank == 1


def test_rank_and_parameters_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="both a rank and a number of parameters are given; give one of them"):
        fit_head(10, (32,), "cp", rank=3, parameters=5000)


@pytest.mark.parametrize(
    ("decomposition", "rank", "message"),
    [
        ("tukcer", 3, "unknown decomposition 'tukcer'; did you mean 'tucker'?"),
        ("cp", (3, 4), "rank of CP is one int"),
        ("tt", (2, 2), "rank of TensorTrain"),
        ("tr", (2, 2, 2, 3), "must be equal"),
        ("tucker", (2, 2), "rank of Tucker"),
    ],
)
def test_wrong_decomposition_and_rank(decomposition: str, rank: int | tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        fit_head(10, (32,), decomposition, rank=rank, parameters=None)


@pytest.mark.parametrize("decomposition", BUILT_IN)
def test_experts_of_every_mode_start_unequal(decomposition: str) -> None:
    experts = fit_head(10, (3, 4), decomposition, rank=3, parameters=None).build().experts
    first = experts.expert(0, 0)
    assert not torch.allclose(first, experts.expert(1, 0))
    assert not torch.allclose(first, experts.expert(0, 1))


def test_every_registered_decomposition_makes_a_head() -> None:
    for decomposition in available_decompositions():
        head = fit_head(4, (3,), decomposition, rank=None, parameters=None).build()
        assert head(torch.randn(6, FEATURES)).shape == (6, 4)


@pytest.mark.parametrize("parameters", [700, 2000, 5472, 100_000])
def test_dense_head_has_the_nearest_number_of_parameters(parameters: int) -> None:
    head = dense_head(10, parameters)
    assert abs(count_parameters(head) - parameters) <= (FEATURES + 1 + 10) / 2
    assert head(torch.randn(6, FEATURES)).shape == (6, 10)


def test_dense_head_has_at_least_one_hidden_feature() -> None:
    assert count_parameters(dense_head(10, 5)) == 85
