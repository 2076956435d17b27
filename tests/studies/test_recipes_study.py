"""The study of the recipes runs from nothing to its page, and its sentences follow the figures."""

import re
from pathlib import Path

import pytest

from studies.recipes import run
from studies.recipes.page import curves, page

pytestmark = pytest.mark.thorough


def test_it_runs_to_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not run.options_of.__globals__["MixerOptions"]().data.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    monkeypatch.setattr(run, "CACHE", tmp_path)
    run.main(["--quick", "--only", "mixer", "--out", str(tmp_path)])
    text = (tmp_path / "recipes.md").read_text()
    assert re.search(r"\| Mixer \| CP \| [\d,]+ \| \d\.\d{3} ± \d\.\d{3} \| \d\.\d{3}, \d\.\d{3} \| [+-]", text)
    assert re.search(r"\| Mixer \| tensor ring \| [\d,]+ images \| \d\.\d\d \(", text)
    assert (tmp_path / "recipes.svg").read_bytes().startswith(b"<?xml")
    done = (tmp_path / "recipes.jsonl").read_text()
    run.main(["--quick", "--only", "mixer", "--out", str(tmp_path)])
    assert (tmp_path / "recipes.jsonl").read_text() == done


def made_up(losses: dict[str, list[float]]) -> list[dict[str, object]]:
    return [
        {
            "settings": {"problem": "gpt", "form": form, "seed": seed},
            "result": {
                "loss": loss,
                "parameters": 100,
                "steps": [1, 2],
                "curve": [loss + 1, loss],
                "experts": [[3, 4]] if form != "dense" else [],
            },
            "seconds": 60.0,
        }
        for form, values in losses.items()
        for seed, loss in enumerate(values)
    ]


def test_the_sentences_follow_the_figures() -> None:
    runs = made_up({"dense": [2.0, 2.1, 2.2], "cp": [1.9, 1.99, 2.1], "tr": [2.5, 2.0, 2.3]})
    speeds = [
        {"settings": {"form": "cp", "processes": n}, "result": {"tokens_per_second": 100.0 * n - 20}, "seconds": 0.0}
        for n in (1, 2)
    ]
    text = page(runs, speeds, {})
    assert "- GPT: CP is better than the dense form (-0.103 ± 0.003); tensor ring is within two standard errors" in text
    assert "| CP | 80 tokens per second | 180 | 2.25 |" in text
    assert "GPT, CP, 9 of 12" in text
    assert b"svg" in curves(runs)
    tried = [
        {**run, "settings": {**run["settings"], "tried": "layer gate"}} for run in made_up({"cp": [2.5, 2.5, 2.5]})
    ]
    text = page([*runs, *tried], [], {})
    assert "| GPT | layer gate | +0.400 ± 0.058 |" in text
    assert "CP is better than the dense form (-0.103 ± 0.003)" in text
    assert "CP is worse than the dense form" in page(made_up({"dense": [1.0, 1.1], "cp": [1.2, 1.3001]}), [], {})
