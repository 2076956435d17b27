"""The benchmark of dense measures: rows for every measure, plain torch that agrees, a stream from a folder."""

from pathlib import Path

import pytest
import torch

from benchmarks import measures
from benchmarks.measuring import Effort
from factorized_moe.interpret import (
    Recording,
    compare_duplicates,
    compare_recordings,
    count_labels,
    find_top_experts,
    find_top_samples,
    measure_coactivation,
    measure_histogram,
    measure_load,
    sample_active,
)

pytestmark = pytest.mark.thorough

ONCE = Effort(seconds=0.0, fewest=2, turn=0.0, compiled=False)


def test_rows() -> None:
    rows = list(measures.rows(ONCE, measures.Sizes(samples=40, experts=12, taken_out=4, images=20)))
    assert [row.baseline for row in rows] == [True, False] * 11
    assert all(row.forward is not None for row in rows)


def test_plain_torch_measures_the_same() -> None:
    torch.manual_seed(0)
    a = torch.softmax(3 * torch.randn(60, 12), dim=1)
    labels, ids = torch.randint(10, (60,)), torch.arange(60) // 3
    plain = {name: call() for name, call in measures.plain_measures(a, labels, ids).items()}
    found = Recording.from_coefficients(a, labels=labels, ids=ids)
    load, histogram = measure_load(found), measure_histogram(found)
    counts, means, largest = plain["load"]
    assert torch.equal(load.counts, counts)
    torch.testing.assert_close(load.means.float(), means)
    assert torch.equal(load.largest.float(), largest)
    assert int((histogram.counts - plain["histogram"][0].long()).abs().sum()) <= 2  # histc rounds at the edges
    assert torch.equal(measure_coactivation(found).counts, plain["co-activation"].long())
    assert torch.equal(find_top_samples(found).values, plain["top samples"].values.T)
    assert torch.equal(find_top_experts(found).experts, plain["top experts"].indices)
    for name, spread in (("random samples", False), ("samples at quantiles", True)):
        drawn = sample_active(found, spread=spread).samples
        assert drawn.shape == plain[name].T.shape
        assert all(len(set(column)) == 10 for column in plain[name].T.tolist())
    torch.testing.assert_close(drawn, plain[name].T)  # no expert has more samples than are drawn before the quantiles
    by_label = count_labels(found)
    torch.testing.assert_close((by_label.means * by_label.class_sizes).T.float(), plain["labels"][0])
    torch.testing.assert_close(compare_duplicates(found).similarities.float(), plain["duplicates"])
    torch.testing.assert_close(compare_recordings(found, found).similarities.float(), plain["two recordings"])


def test_streamed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measures._streamed(300, 16, tmp_path)
    printed = capsys.readouterr().out
    assert "recorded Recording(300 samples" in printed
    for title in ("load", "duplicates", "a report's summary"):
        assert f"  {title}: " in printed
