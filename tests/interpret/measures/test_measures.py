"""Measurements of recordings against the same from the dense matrix, in plain loops."""

import itertools
import json
import math
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from factorized_moe import MuMoE
from factorized_moe.interpret import (
    Load,
    Measurement,
    Recording,
    compare_duplicates,
    compare_recordings,
    count_labels,
    find_top_experts,
    find_top_samples,
    measure_coactivation,
    measure_histogram,
    measure_label_specialisation,
    measure_load,
    record,
    sample_active,
)
from factorized_moe.interpret.measures import coactivation, consistency
from factorized_moe.interpret.recording import coefficients as recorded_coefficients
from factorized_moe.interpret.recording import given as limits
from factorized_moe.interpret.recording.coefficients import Mode
from factorized_moe.interpret.recording.rows import Rows

SAMPLES, DIMS, CLASSES = 40, (5, 4), 3


class Given(nn.Module):
    """A gate that returns the coefficients it is told to."""

    def __init__(self, *coefficients: Tensor) -> None:
        super().__init__()
        self.coefficients = coefficients

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(a[x[:, 0].long()] for a in self.coefficients)


def recorded(
    *coefficients: Tensor,
    labels: Tensor | None = None,
    ids: Tensor | None = None,
    names: tuple[str, ...] = (),
    batch: int = 8,
) -> Recording:
    """A recording of matrices ``(n, N_k)``."""
    layer = MuMoE(1, 1, [a.shape[1] for a in coefficients], rank=1, gate=Given(*coefficients))
    with record(layer, class_names=names) as log:
        for numbers in torch.arange(len(coefficients[0])).split(batch):
            layer(numbers[:, None].float())
            if labels is not None or ids is not None:
                log.annotate(
                    labels=None if labels is None else labels[numbers], ids=None if ids is None else ids[numbers]
                )
    return log.recording


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks, and few products and groups at a time."""
    monkeypatch.setattr(limits, "CHUNK_ELEMENTS", 5 * 9)
    monkeypatch.setattr(recorded_coefficients, "PRODUCTS", 50)
    monkeypatch.setattr(consistency, "GROUP_ELEMENTS", 33)


def coefficients(form: str) -> list[Tensor]:
    """Of two modes; with ties, zeros, an expert that is never used and a sample without any."""
    torch.manual_seed(0)
    found = [torch.softmax(3 * torch.randn(SAMPLES, size), dim=-1) for size in DIMS]
    if form == "sparse":
        found = [a * (torch.rand_like(a) < 0.4) for a in found]
        found[0][7] = 0
        found[0][:, 3] = 0
        found[0][11:14, 1] = 0.75
    return found


CASES = [(form, mode) for form in ("sparse", "dense") for mode in (0, 1, "product")]


@pytest.fixture(params=CASES, ids=["-".join(map(str, case)) for case in CASES])
def case(request: pytest.FixtureRequest) -> Iterator[tuple[Recording, Mode, Tensor, Tensor]]:
    """A recording, a mode, the mode's coefficients and the labels."""
    form, mode = request.param
    modes = coefficients(form)
    labels = torch.arange(SAMPLES) % CLASSES
    dense = (modes[0][:, :, None] * modes[1][:, None, :]).flatten(1) if mode == "product" else modes[mode]
    return recorded(*modes, labels=labels), mode, dense, labels


Case = tuple[Recording, Mode, Tensor, Tensor]


@pytest.mark.parametrize("threshold", [0, 0.05, 0.75])
def test_load(case: Case, threshold: float) -> None:
    found, mode, dense, _ = case
    load = measure_load(found, threshold, mode=mode)
    active = (dense >= threshold) & (dense > 0)
    assert torch.equal(load.counts, active.sum(0))
    torch.testing.assert_close(load.means, dense.double().mean(0))
    torch.testing.assert_close(load.largest, dense.double().max(0).values)
    assert load.dead().tolist() == [n for n in range(dense.shape[1]) if not active[:, n].any()]
    assert load.dead(fewest=SAMPLES + 1).tolist() == list(range(dense.shape[1]))
    torch.testing.assert_close(load.shares, active.double().mean(0))


def test_histogram(case: Case) -> None:
    found, mode, dense, _ = case
    histogram = measure_histogram(found, bins=7, low=0.02, high=0.8, mode=mode)

    def count(values: list[float]) -> list[int]:
        counts = [0] * 7
        for value in values:
            if histogram.edges[0] <= value <= histogram.edges[-1]:
                counts[min(6, int((histogram.edges <= value).sum()) - 1)] += 1
        return counts

    inside = [v for v in dense.flatten().tolist() if v]
    assert histogram.counts.tolist() == count(inside)
    assert histogram.largest_counts.tolist() == count(dense.max(1).values.tolist())
    assert histogram.zeros == int((dense == 0).sum())
    assert histogram.outside + int(histogram.counts.sum()) + histogram.zeros == dense.numel()


def test_histogram_holds_its_edges_as_float32_has_them() -> None:
    found = recorded(torch.tensor([[0.7, 0.3, 0.0], [1.0, 0.69, 0.8]]))
    assert measure_histogram(found, bins=3, low=0.7, high=1.0).counts.tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("bins", "low", "high"),
    [(50, 0.0, 1.0), (7, 0.02, 0.8), (1, 0.3, 0.4), (3, -0.1, 0.1), (10, 0.3, 0.3001), (1000, 0.0, 1.0)],
)
def test_histogram_to_the_last_number_beside_an_edge(dtype: torch.dtype, bins: int, low: float, high: float) -> None:
    """The edges, the numbers next to them, halves of bins, zeros and ones: as a search among the edges finds them."""
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
    near = edges.to(dtype).numpy()
    values = np.concatenate(
        [near, np.nextafter(near, near.dtype.type(9)), np.nextafter(near, near.dtype.type(-9)), [0, 1, 0.3]]
    )
    values = np.concatenate([values, (low + (high - low) * np.random.default_rng(0).random(200)).astype(near.dtype)])
    values = values.astype(near.dtype)
    matrix = torch.from_numpy(values)[:, None].expand(-1, 2)
    found = measure_histogram(Recording.from_coefficients(matrix), bins, low=low, high=high)
    ends = near[[0, -1]].astype(np.float64)  # as the type has them
    inside = [v for v in values.astype(np.float64) if ends[0] <= v <= ends[1]]
    places = [int((edges[1:-1].numpy() <= v).sum()) for v in inside]
    largest = np.bincount(places, minlength=bins)
    assert found.largest_counts.tolist() == largest.tolist()
    zero = np.bincount([p for p, v in zip(places, inside, strict=True) if v == 0], minlength=bins)
    assert found.counts.tolist() == (2 * (largest - zero)).tolist()


@pytest.mark.parametrize("threshold", [0, 0.1])
def test_coactivation(case: Case, threshold: float) -> None:
    found, mode, dense, _ = case
    active = ((dense >= threshold) & (dense > 0)).long()
    together = measure_coactivation(found, threshold, mode=mode)
    assert torch.equal(together.counts, active.T @ active)
    expected = (active.T @ active).double() / active.sum(0)[:, None]
    torch.testing.assert_close(together.conditional, expected, equal_nan=True)


def test_coactivation_of_few_pairs_among_many_experts() -> None:
    torch.manual_seed(0)
    dense = torch.zeros(30, 200).scatter_(1, torch.randint(200, (30, 3)), 0.5)
    active = (dense > 0).long()
    assert torch.equal(measure_coactivation(recorded(dense)).counts, active.T @ active)


@pytest.mark.parametrize("k", [1, 3, 50])
def test_top_samples(case: Case, k: int) -> None:
    found, mode, dense, _ = case
    top = find_top_samples(found, k, mode=mode, seed=3)
    for expert, column in enumerate(dense.T):
        values = sorted((float(value) for value in column if value > 0), reverse=True)[:k]
        shown = top.samples[expert, : len(values)].tolist()
        assert len(set(shown)) == len(shown)
        torch.testing.assert_close(top.values[expert, : len(values)], torch.tensor(values, dtype=dense.dtype))
        torch.testing.assert_close(column[shown], top.values[expert, : len(values)])
        assert top.samples[expert, len(values) :].unique().tolist() in ([], [-1])
        last = values[-1] if values else math.nan
        assert int(top.equal[expert]) == int((column == last).sum())
        assert int(top.drawn[expert]) == values.count(last)
    assert torch.equal(top.ids, top.samples)


def test_the_draw_is_the_same_for_a_seed_whatever_the_chunks_and_their_form(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    tied = torch.randint(1, 4, (60, 3)) / 4
    found = find_top_samples(recorded(tied), 4, seed=5).samples
    monkeypatch.setattr(limits, "CHUNK_ELEMENTS", 1000)
    assert torch.equal(find_top_samples(recorded(tied), 4, seed=5).samples, found)
    sparse = recorded(torch.cat([tied, torch.zeros(60, 9)], dim=1))
    assert torch.equal(find_top_samples(sparse, 4, seed=5).samples[:3], found)
    assert not torch.equal(find_top_samples(recorded(tied), 4, seed=6).samples, found)


def test_every_equal_sample_has_the_same_chance() -> None:
    found = recorded(torch.cat([torch.ones(20, 1), torch.full((20, 1), 0.5)]))
    drawn = torch.cat([find_top_samples(found, 5, seed=seed).samples.flatten() for seed in range(400)])
    times = drawn.bincount(minlength=40)
    assert times[20:].sum() == 0
    # 100 times each on average, with a standard deviation of 8.7: all within 4.5 of them.
    assert 61 <= int(times[:20].min()) <= int(times[:20].max()) <= 139


# Two galleries as they were shown: experts that saturate at 1 for many images, recorded in the order of a sorted set.
BAGS = ["sandal"] * 12 + ["pullover"] * 16 + ["dress"] * 5 + ["bag"] * 168 + ["boot"] * 60
TROUSERS = ["t-shirt"] * 7 + ["trouser"] * 248


@pytest.mark.parametrize(("kinds", "shown_before"), [(BAGS, "sandal"), (TROUSERS, "t-shirt")], ids=["bags", "trousers"])
def test_galleries_that_misled(kinds: list[str], shown_before: str) -> None:
    """By order of recording a gallery showed what is rare; a draw shows what is common, and says of how many."""
    names = sorted(set(kinds))
    found = recorded(
        torch.ones(len(kinds), 1), labels=torch.tensor([names.index(kind) for kind in kinds]), names=tuple(names)
    )
    before = [kinds[sample] for sample in range(12)]  # of equal ones those recorded earlier
    assert before.count(shown_before) >= 7
    top = find_top_samples(found, 12)
    after = [kinds[sample] for sample in top.samples[0].tolist()]
    commonest = max(names, key=kinds.count)
    assert (int(top.drawn[0]), int(top.equal[0])) == (12, len(kinds))
    assert max(names, key=after.count) == commonest
    share = [
        sum(kinds[sample] == commonest for sample in find_top_samples(found, 12, seed=seed).samples[0].tolist()) / 12
        for seed in range(100)
    ]
    # The share of the commonest kind is that of all equal samples; the mean of 100 galleries is off by at most 0.015.
    assert sum(share) / 100 == pytest.approx(kinds.count(commonest) / len(kinds), abs=0.06)


@pytest.mark.parametrize("k", [1, 2, 5, 30])
def test_top_samples_among_many_equals_in_dense_rows(k: int) -> None:
    """Few different coefficients, in an order that makes every block's largest those of the recording so far."""
    torch.manual_seed(0)
    dense = (torch.randint(1, 6, (SAMPLES, 5)) / 5).sort(dim=0).values
    dense[:, 3] = 1.0
    dense[3:, 4] = 0.0
    top = find_top_samples(recorded(dense), k, seed=3)
    for expert, column in enumerate(dense.T.tolist()):
        values = sorted((value for value in column if value > 0), reverse=True)[:k]
        samples = [sample for sample in top.samples[expert].tolist() if sample >= 0]
        assert top.values[expert].tolist() == values + [0.0] * (k - len(values))
        assert [column[sample] for sample in samples] == values
        assert len(set(samples)) == len(samples)
        assert int(top.equal[expert]) == column.count(values[-1])
        assert int(top.drawn[expert]) == values.count(values[-1])


@pytest.mark.parametrize("threshold", [0, 0.1])
@pytest.mark.parametrize("k", [1, 4, 60])
def test_samples_drawn_among_the_active_ones(case: Case, k: int, threshold: float) -> None:
    found, mode, dense, _ = case
    active = (dense >= threshold) & (dense > 0)
    for spread in (False, True):
        drawn = sample_active(found, k, threshold, spread=spread, mode=mode, seed=2)
        assert drawn.samples.shape == (dense.shape[1], k)
        assert torch.equal(drawn.counts, active.sum(0))
        for expert, samples in enumerate(drawn.samples.tolist()):
            there = [sample for sample in samples if sample >= 0]
            assert len(set(there)) == len(there) == min(k, int(active[:, expert].sum()))
            assert active[there, expert].all()
            values = dense[there, expert]
            torch.testing.assert_close(drawn.values[expert, : len(there)], values)
            assert values.tolist() == sorted(values.tolist(), reverse=True)


def test_draws_are_even_and_quantiles_are_spread() -> None:
    torch.manual_seed(0)
    column = torch.rand(50, 1).sort(dim=0).values.flip(0).clamp(min=1e-3)
    found = recorded(torch.cat([column, 0 * column], dim=1))
    times = torch.cat([sample_active(found, 5, seed=seed).samples[0] for seed in range(400)]).bincount(minlength=50)
    assert 12 <= int(times.min()) <= int(times.max()) <= 68  # 40 on average, with a standard deviation of 6
    assert sample_active(found, 5, spread=True).samples.tolist() == [[5, 15, 25, 35, 45], [-1] * 5]


@pytest.mark.parametrize("k", [1, 3, 30])
def test_top_experts(case: Case, k: int) -> None:
    found, mode, dense, _ = case
    top = find_top_experts(found, k, mode=mode)
    for sample in range(SAMPLES):
        order = sorted(range(dense.shape[1]), key=lambda e, n=sample: (-float(dense[n, e]), e))
        order = [e for e in order if dense[sample, e] > 0][:k]
        assert top.experts[sample].tolist() == order + [-1] * (k - len(order))
        torch.testing.assert_close(top.values[sample, : len(order)], dense[sample, order])


@pytest.mark.parametrize("threshold", [0, 0.1])
def test_labels(case: Case, threshold: float) -> None:
    found, mode, dense, labels = case
    counts = count_labels(found, threshold, mode=mode)
    active = (dense >= threshold) & (dense > 0)
    for label in range(CLASSES):
        assert torch.equal(counts.counts[:, label], active[labels == label].sum(0))
        torch.testing.assert_close(counts.means[:, label], dense[labels == label].double().mean(0))
    assert counts.class_sizes.tolist() == [14, 13, 13]
    assert counts.class_names == ("0", "1", "2")
    special = measure_label_specialisation(counts, fewest=3)
    for expert, mine in enumerate(counts.counts.tolist()):
        if sum(mine) < 3:
            assert expert in special.dead.tolist()
            assert special.best_class[expert] == -1
            assert special.entropy[expert].isnan()
            continue
        shares = [count / sum(mine) for count in mine]
        entropy = -sum(p * math.log2(p) for p in shares if p)
        assert float(special.entropy[expert]) == pytest.approx(entropy)
        assert float(special.clarity[expert]) == pytest.approx(max(shares))
        best = shares.index(max(shares))
        assert int(special.best_class[expert]) == best
        assert float(special.lift[expert]) == pytest.approx(max(shares) / ([14, 13, 13][best] / 40))
        assert float(special.entropy_ratio[expert]) == pytest.approx(entropy / special.baseline_entropy)
    assert special.baseline_entropy == pytest.approx(-sum(n / 40 * math.log2(n / 40) for n in (14, 13, 13)))
    assert special.baseline_clarity == 14 / 40


def test_expert_of_one_class() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    dense = torch.tensor([[1.0, 0.5], [1.0, 0.5], [0.0, 0.5], [0.0, 0.5]])
    special = measure_label_specialisation(count_labels(recorded(dense, labels=labels)))
    assert special.entropy.tolist() == [0.0, 1.0]
    assert special.entropy_ratio.tolist() == [0.0, 1.0]
    assert (special.clarity.tolist(), special.lift.tolist()) == ([1.0, 0.5], [2.0, 1.0])
    alone = measure_label_specialisation(count_labels(recorded(dense, labels=torch.zeros(4, dtype=torch.int64))))
    assert alone.entropy_ratio.isnan().all()
    with pytest.raises(TypeError, match="counts is a LabelCounts, got Recording"):
        measure_label_specialisation(recorded(dense, labels=labels))


@pytest.mark.parametrize("batches", [(8, 8), (40, 3)], ids=str)
@pytest.mark.parametrize("mode", [0, 1, "product"])
def test_two_recordings(mode: Mode, batches: tuple[int, int]) -> None:
    ours, theirs = coefficients("sparse"), coefficients("dense")
    first, second = recorded(*ours, batch=batches[0]), recorded(*theirs, batch=batches[1])
    found = compare_recordings(first, second, mode=mode)
    modes = range(2) if mode == "product" else [mode]
    expected = torch.ones(SAMPLES, dtype=torch.float64)
    for k in modes:
        a, b = ours[k].double(), theirs[k].double()
        expected *= (a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)
    torch.testing.assert_close(found.similarities, expected, equal_nan=True)
    assert bool(found.similarities[7].isnan()) == (mode != 1)  # a sample without coefficients in mode 0
    assert found.mean == pytest.approx(float(expected.nanmean()))
    assert found.percentiles([0.5]) == pytest.approx([float(expected.nanquantile(0.5))])


@pytest.mark.parametrize("mode", [0, 1, "product"])
def test_duplicates(mode: Mode) -> None:
    modes = coefficients("sparse")
    ids = torch.arange(SAMPLES) * 7 % 15
    ids[0] = 99  # occurs once
    found = compare_duplicates(recorded(*modes, ids=ids), mode=mode)
    assert found.ids.tolist() == list(range(15))
    dense = (modes[0][:, :, None] * modes[1][:, None, :]).flatten(1) if mode == "product" else modes[mode]
    unit = dense.double() / dense.double().norm(dim=1, keepdim=True)
    for place, number in enumerate(found.ids.tolist()):
        members = (ids == number).nonzero().flatten().tolist()
        assert int(found.occurrences[place]) == len(members)
        pairs = [float(unit[a] @ unit[b]) for a, b in itertools.combinations(members, 2)]
        expected = sum(pairs) / len(pairs)
        assert float(found.similarities[place]) == pytest.approx(expected, nan_ok=True)


def results(found: Recording) -> list[Measurement]:
    counts = count_labels(found, mode="product")
    return [
        measure_load(found),
        measure_histogram(found),
        measure_coactivation(found),
        find_top_samples(found, mode="product"),
        sample_active(found, mode="product"),
        sample_active(found, spread=True),
        find_top_experts(found),
        counts,
        measure_label_specialisation(counts),
        compare_recordings(found, found),
        compare_duplicates(found),
    ]


def test_results_as_tables_and_json() -> None:
    labels = torch.arange(SAMPLES) % CLASSES
    found = recorded(*coefficients("sparse"), labels=labels, ids=labels, names=("cat", "dog", "hen"))
    for result in results(found):
        table = result.to_pandas()
        assert list(table.columns) == list(result.columns())
        assert len(table)
        content = json.loads(result.to_json())
        assert content.keys() == result.to_dict().keys()
    table = count_labels(found, mode="product").to_pandas()
    row = table.iloc[3 * 6 + 2].to_dict()
    counts = count_labels(found, mode="product")
    assert (row["expert"], row["expert_0"], row["expert_1"]) == (6, 1, 2)
    assert (row["class"], row["class_name"], row["count"]) == (2, "hen", int(counts.counts[6, 2]))
    assert row["mean"] == float(counts.means[6, 2])
    special = measure_label_specialisation(count_labels(found), fewest=100)
    assert json.loads(special.to_json())["entropy"] == [None] * 5


def test_no_samples_at_all() -> None:
    layer = MuMoE(1, 1, [3], rank=1, gate=Given(torch.zeros(1, 3)))
    with pytest.raises(ValueError, match="never ran"), record(layer) as log:
        pass
    found = log.recording
    assert measure_load(found).counts.tolist() == [0, 0, 0]
    assert measure_histogram(found).zeros == 0
    assert find_top_samples(found).samples.unique().tolist() == [-1]
    assert find_top_experts(found).experts.shape == (0, 5)
    assert count_labels(found).counts.shape == (3, 0)
    assert measure_label_specialisation(count_labels(found)).entropy.isnan().all()
    assert math.isnan(compare_recordings(found, found).mean)
    assert math.isnan(compare_recordings(found, found).percentiles([0.5])[0])


def test_measurements_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    found = recorded(torch.rand(6, 4))
    for threshold, error, message in [
        (-0.1, ValueError, "threshold must be 0 or more and finite, got -0.1"),
        (math.nan, ValueError, "threshold must be 0 or more and finite, got nan"),
        ("half", TypeError, "threshold is a number, got 'half'"),
    ]:
        for measure in (measure_load, measure_coactivation, count_labels):
            with pytest.raises(error, match=message):
                measure(found, threshold)
    with pytest.raises(ValueError, match="samples 0 to 5 were recorded without labels"):
        count_labels(found)
    with pytest.raises(ValueError, match="a sample has label 2, but there are 2 class names"):
        count_labels(recorded(torch.rand(3, 4), labels=torch.arange(3), names=("cat", "dog")))
    with pytest.raises(ValueError, match="fewest must be at least 1, got 0"):
        measure_label_specialisation(count_labels(recorded(torch.rand(3, 4), labels=torch.arange(3))), fewest=0)
    with pytest.raises(ValueError, match="fewest must be at least 1, got 0"):
        measure_load(found).dead(0)
    with pytest.raises(ValueError, match=r"at least one bin from low to a larger high, got 0 from 0\.0 to 1\.0"):
        measure_histogram(found, bins=0)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        find_top_samples(found, 0)
    with pytest.raises(TypeError, match=r"k must be an int, got 0.5"):
        find_top_experts(found, 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no id occurs twice in the recording"):
        compare_duplicates(found)
    with pytest.raises(ValueError, match=r"6 and 5 samples of experts \(4,\) and \(4,\); record the same samples"):
        compare_recordings(found, recorded(torch.rand(5, 4)))
    with pytest.raises(ValueError, match="sample 1 has id 1 in one recording and 7 in the other"):
        compare_recordings(*(recorded(torch.rand(2, 4), ids=torch.tensor([0, k])) for k in (1, 7)))
    broken = torch.rand(20, 4)
    broken[17, 2] = math.nan
    for measure in (measure_load, measure_histogram, measure_coactivation, find_top_samples, find_top_experts):
        with pytest.raises(ValueError, match=r"sample 17 of layer 'model' has the coefficient nan for expert 2"):
            measure(recorded(broken))
    for form in (broken, torch.where(broken > 0.9, broken, 0 * broken)):
        ids = torch.arange(20) // 2
        with pytest.raises(ValueError, match=r"sample 17 of layer 'model' has the coefficient nan for expert 2"):
            compare_duplicates(recorded(form, ids=ids))
        with pytest.raises(ValueError, match=r"sample 17 of layer 'model' has the coefficient nan for expert 2"):
            compare_recordings(recorded(torch.rand(20, 4)), recorded(form))
    monkeypatch.setattr(coactivation, "MOST_COACTIVE", 3)
    with pytest.raises(ValueError, match="co-activation of 4 experts takes 4 x 4 counts, 3 experts are the most"):
        measure_coactivation(found)


def test_tables_need_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    load = Load(torch.zeros(1, dtype=torch.int64), torch.zeros(1), torch.zeros(1), 0, 0.5, (1,))
    with pytest.raises(ImportError, match=r"to_pandas needs pandas: pip install 'factorized-moe\[tables\]'"):
        load.to_pandas()


def test_large_numbers_of_experts_stay_sparse() -> None:
    wide = torch.zeros(4, 100_000)
    wide[:, -1] = 1
    found = recorded(wide)
    assert all(isinstance(rows, Rows) and rows.is_sparse for _, rows in found.stream())
    assert measure_load(found).counts[-1] == 4
