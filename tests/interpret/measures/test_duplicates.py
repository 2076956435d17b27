"""Groups of samples with one id: their similarity in float64, whatever the order, and how often a recording is read."""

import math
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from factorized_moe.interpret import Recording, compare_duplicates
from factorized_moe.interpret.measures import consistency
from factorized_moe.interpret.recording import given
from factorized_moe.interpret.recording.streaming import Block

MODULE = sys.modules["factorized_moe.interpret.measures.consistency"]
SAMPLES, EXPERTS, PLACES = 120, 6, 8


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 16 samples, pieces of three, and sums of eight groups at a time."""
    monkeypatch.setattr(given, "CHUNK_ELEMENTS", 16 * EXPERTS)
    monkeypatch.setattr(consistency, "CACHED_ELEMENTS", 3 * EXPERTS)
    monkeypatch.setattr(consistency, "GROUP_ELEMENTS", PLACES * EXPERTS)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each time that a recording is read."""
    found: list[str] = []
    blocks = MODULE.finite_blocks

    def counted(*arguments: object, **options: object) -> Iterator[Block]:
        found.append("read")
        return blocks(*arguments, **options)

    monkeypatch.setattr(MODULE, "finite_blocks", counted)
    return found


def some_coefficients(form: str) -> Tensor:
    torch.manual_seed(1)
    a = torch.softmax(3 * torch.randn(SAMPLES, EXPERTS), dim=1)
    return a if form == "dense" else torch.where(torch.rand(SAMPLES, EXPERTS) < 0.3, a, 0.0)


ORDERS = {
    "neighbours": torch.arange(SAMPLES) // 3,
    "overlapping windows": torch.arange(SAMPLES) % 8 + torch.arange(SAMPLES) // 8 * 4,
    "far apart": torch.arange(SAMPLES) % 40,
    "of many sizes": torch.randint(SAMPLES, (SAMPLES,), generator=torch.Generator().manual_seed(2)).square() // SAMPLES,
    "all the same": torch.zeros(SAMPLES, dtype=torch.int64),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_similarities_are_those_of_all_pairs_in_float64(form: str, order: str) -> None:
    a, ids = some_coefficients(form), ORDERS[order]
    found = compare_duplicates(Recording.from_coefficients(a, ids=ids))
    units = a.double() / torch.linalg.vector_norm(a.double(), dim=1, keepdim=True)
    cosines = units @ units.T
    known, sizes = ids.unique(return_counts=True)
    assert torch.equal(found.ids, known[sizes > 1])
    assert torch.equal(found.occurrences, sizes[sizes > 1])
    for number, similarity in zip(found.ids.tolist(), found.similarities.tolist(), strict=True):
        members = (ids == number).nonzero()[:, 0]
        pairs = cosines[members][:, members][torch.ones(len(members), len(members)).triu(1) > 0]
        assert similarity == pytest.approx(float(pairs.mean()), rel=1e-12, nan_ok=True)


def test_neighbours_are_read_once_however_many_there_are(passes: list[str]) -> None:
    a = some_coefficients("dense")
    compare_duplicates(Recording.from_coefficients(a, ids=ORDERS["neighbours"]))
    assert len(passes) == 1
    passes.clear()
    compare_duplicates(Recording.from_coefficients(a, ids=ORDERS["far apart"]))
    assert len(passes) == 40 // PLACES


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_a_sample_without_coefficients_leaves_other_groups_alone(form: str) -> None:
    a = some_coefficients("dense") if form == "dense" else 1.0 * (torch.arange(EXPERTS) < 1).expand(SAMPLES, -1)
    a = a.clone()
    a[4] = 0
    found = compare_duplicates(Recording.from_coefficients(a, ids=ORDERS["neighbours"]))
    assert found.similarities.isnan().nonzero().tolist() == [[1]]


@pytest.mark.parametrize("place", [0, 1, SAMPLES - 1])
def test_every_sample_is_looked_at_for_infinity_those_that_occur_once_too(place: int) -> None:
    a, ids = some_coefficients("dense"), ORDERS["far apart"].clone()
    ids[0] = 99
    a[place, 2] = math.inf
    with pytest.raises(ValueError, match=f"sample {place} of layer 'model' has the coefficient inf for expert 2"):
        compare_duplicates(Recording.from_coefficients(a, ids=ids))
