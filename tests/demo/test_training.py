"""Training: it learns, it is reproducible, and it leaves the process as it was."""

import pytest
import torch
from torch import nn

from factorized_moe.demo.classifier import HeadConfig, ImageClassifier, Trunk
from factorized_moe.demo.training import Schedule, predict, reproducible, train

from .conftest import make_images

pytestmark = pytest.mark.thorough

IMAGES = torch.from_numpy(make_images()).reshape(-1, 12, 12)
LABELS = torch.arange(3).repeat_interleave(15)


def trained(seed: int, epochs: int = 10) -> ImageClassifier:
    with reproducible(seed):
        model = ImageClassifier(Trunk(100.0, 80.0), HeadConfig(3, (4,), "cp", 4).build())
        train(model, IMAGES, LABELS, Schedule(epochs, batch_size=9), seed, after_step=lambda: None)
    return model


def test_learns_stripes() -> None:
    predictions = predict(trained(seed=0), torch.from_numpy(make_images(seed=1)).reshape(-1, 12, 12)).argmax(dim=-1)
    assert (predictions == LABELS).float().mean() > 0.95


def test_same_seed_same_parameters() -> None:
    first, again, other = (trained(seed, epochs=1).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_reproducible_leaves_threads_and_random_numbers_as_they_were() -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with reproducible(0):
        assert torch.get_num_threads() == 1
        torch.rand(5)
    with pytest.raises(ZeroDivisionError), reproducible(0):
        torch.rand(5) / (1 // 0)
    assert torch.equal(torch.rand(2), expected)
    assert torch.get_num_threads() == threads


class Recorder(nn.Linear):
    """Keeps its inputs."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.batches: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(x)
        return super().forward(x)


def test_every_model_sees_the_images_in_the_same_order() -> None:
    images = torch.arange(20.0)[:, None]
    models = [Recorder(1, 2), Recorder(1, 5)]
    for model in models:
        train(model, images, torch.zeros(20, dtype=torch.int64), Schedule(2, batch_size=7), 0, after_step=lambda: None)
    first, second = (torch.cat(model.batches) for model in models)
    assert torch.equal(first, second)
    assert not torch.equal(first[:20], first[20:])  # another order in each pass


@pytest.mark.parametrize(("num_images", "steps"), [(2, 1), (9, 1), (13, 1), (14, 2), (45, 5)])
def test_steps_of_an_epoch_share_its_images(num_images: int, steps: int) -> None:
    schedule = Schedule(epochs=2, batch_size=9)
    model, images = Recorder(4, 2), torch.randn(num_images, 4)
    calls: list[None] = []
    train(model, images, torch.zeros(num_images, dtype=torch.int64), schedule, 0, lambda: calls.append(None))
    assert schedule.steps_per_epoch(num_images) == steps
    sizes = [len(batch) for batch in model.batches]
    assert len(sizes) == len(calls) == 2 * steps
    assert sum(sizes) == 2 * num_images
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) > 1  # batch normalisation needs two


def test_predict_is_in_evaluation_mode_and_keeps_order() -> None:
    model = nn.BatchNorm1d(2)
    inputs = torch.randn(7, 2) + 5
    torch.testing.assert_close(predict(model, inputs, batch_size=3), inputs, rtol=1e-4, atol=1e-4)
    assert not predict(model, inputs).requires_grad
