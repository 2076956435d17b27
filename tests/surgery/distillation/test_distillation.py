"""Distillation: it learns, resumes to the bit, keeps the last good state, and refuses what it cannot do."""

import builtins
import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from factorized_moe import CPMuMoE, MuMoEBlock
from factorized_moe.surgery.distillation.capturing import capture, output_error
from factorized_moe.surgery.distillation.distilling import DistillationSettings, DistillationStep, distill

SETTINGS = DistillationSettings(steps=12, learning_rate=1e-2, accumulate=2, weight_decay=0.01)


def model() -> nn.Module:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))
    return nn.Sequential(nn.Linear(6, 6), mlp, nn.LayerNorm(6), nn.Linear(6, 5))


class Noisy(nn.Module):
    """Draws random numbers and keeps running averages: both are part of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.block = MuMoEBlock(6, 12, 6, expert_dims=[4], decomposition="cp", rank=6, gate_norm="batch")
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.dropout(x))


def replacements() -> dict[str, nn.Module]:
    torch.manual_seed(1)
    return {"1": Noisy(), "3": CPMuMoE(6, 5, expert_dims=[3], rank=4, gate_norm=None)}


def batches(count: int = 24) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(2)
    for _ in range(count):
        yield torch.randn(16, 6, generator=generator)


def states(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{n}/{key}": v.clone() for n, m in modules.items() for key, v in m.state_dict().items()}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


class Stopped(Exception):
    """What a user's interruption stands for here."""


def stop_after(step: int) -> object:
    def on_step(found: DistillationStep) -> None:
        if found.step == step:
            raise Stopped

    return on_step


# -- it learns


def test_outputs_come_close_to_the_originals() -> None:
    original, modules = model(), replacements()
    calls = {name: list(capture(original, name, batches(4))) for name in modules}
    before = {name: output_error(module, calls[name]) for name, module in modules.items()}
    settings = DistillationSettings(steps=150, learning_rate=1e-2)
    losses = distill(original, modules, batches(150), settings)
    for name, module in modules.items():
        assert output_error(module, calls[name]) < 0.6 * before[name]
        assert len(losses[name]) == 150


def test_loss_is_the_normalised_error_and_batches_of_a_step_are_averaged() -> None:
    original = model()
    layer = CPMuMoE(6, 5, expert_dims=[3], rank=4, gate_norm=None)
    calls = list(capture(original, "3", batches(2)))
    errors = [output_error(layer, [call]) ** 2 for call in calls]
    losses = distill(original, {"3": layer}, batches(2), DistillationSettings(steps=1, accumulate=2))
    assert losses["3"][0] == pytest.approx(sum(errors) / 2, rel=1e-5)


def test_accumulated_gradients_are_those_of_one_large_batch() -> None:
    """With outputs of one size in each batch, which the loss is divided by."""
    original = nn.Sequential(nn.Linear(6, 5))
    one, two = (CPMuMoE(6, 5, expert_dims=[3], rank=4, gate_norm=None) for _ in range(2))
    two.load_state_dict(one.state_dict())
    x = torch.randn(8, 6)
    distill(original, {"0": one}, [x, x.flip(0)], DistillationSettings(steps=1, accumulate=2))
    distill(original, {"0": two}, [torch.cat([x, x.flip(0)])], DistillationSettings(steps=1))
    for left, right in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-6)


def test_layers_are_trained_alike_together_and_alone() -> None:
    original, together, alone = model(), replacements(), replacements()
    together["1"].dropout.p = alone["1"].dropout.p = 0.0  # type: ignore[union-attr]
    distill(original, together, batches(), SETTINGS)
    for name, module in alone.items():
        distill(original, {name: module}, batches(), SETTINGS)
    assert equal(states(together), states(alone))


def test_nothing_else_changes() -> None:
    original, modules = model(), replacements()
    before, random_state = copy.deepcopy(original.state_dict()), torch.get_rng_state()
    modules["3"].eval()
    seen: list[DistillationStep] = []
    with torch.no_grad():
        losses = distill(original, modules, batches(), SETTINGS, on_step=seen.append)
    assert equal(original.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert modules["1"].training
    assert not modules["3"].training
    assert all(parameter.grad is None for m in modules.values() for parameter in m.parameters())
    assert [found.step for found in seen] == list(range(1, 13))
    assert [found.losses["1"] for found in seen] == list(losses["1"])
    assert [found.learning_rate for found in seen] == [SETTINGS.rate(step) for step in range(12)]


def test_rates_rise_then_fall_to_zero() -> None:
    rates = [DistillationSettings(steps=100, learning_rate=0.5, warm_up=0.2).rate(step) for step in range(100)]
    top = rates.index(max(rates))
    assert 15 <= top <= 20
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert 0 < rates[-1] < 1e-3 < rates[0] < 0.05


# -- it resumes


@pytest.mark.parametrize("stop", [4, 7, 12], ids=str)
def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(stop: int, tmp_path: Path) -> None:
    original, whole = model(), replacements()
    expected = distill(original, whole, batches(), SETTINGS)
    file = tmp_path / "runs" / "state.safetensors"
    with pytest.raises(Stopped):
        distill(
            original, replacements(), batches(), SETTINGS, checkpoint=file, checkpoint_every=4, on_step=stop_after(stop)
        )
    resumed, steps = replacements(), []
    losses = distill(
        original, resumed, batches(), SETTINGS, checkpoint=str(file), on_step=lambda found: steps.append(found.step)
    )
    assert steps == list(range(stop - stop % 4 + 1, 13))  # what came after the last checkpoint is done again
    assert losses == expected
    assert equal(states(resumed), states(whole))


def test_stopped_run_would_differ_without_its_state() -> None:
    """The test above can fail: neither optimiser, running averages nor random numbers are where a new run has them."""
    original, whole, half = model(), replacements(), replacements()
    distill(original, whole, batches(), SETTINGS)
    with pytest.raises(Stopped):
        distill(original, half, batches(), SETTINGS, on_step=stop_after(4))
    distill(original, half, batches(), SETTINGS)
    assert not equal(states(half), states(whole))


def test_batches_already_seen_do_not_run_the_model(tmp_path: Path) -> None:
    original, ran = model(), []
    original.register_forward_hook(lambda *_: ran.append(1))
    file = tmp_path / "state"
    with pytest.raises(Stopped):
        distill(
            original, replacements(), batches(), SETTINGS, checkpoint=file, checkpoint_every=5, on_step=stop_after(5)
        )
    assert len(ran) == 10
    distill(original, replacements(), batches(), SETTINGS, checkpoint=file)
    assert len(ran) == 24
    distill(original, replacements(), batches(), SETTINGS, checkpoint=file)  # finished: nothing is left to do
    assert len(ran) == 24


def test_file_is_safetensors_with_json(tmp_path: Path) -> None:
    file = tmp_path / "state"
    distill(model(), replacements(), batches(), SETTINGS, checkpoint=file)
    content = file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    values = json.loads(header["__metadata__"]["values"])
    assert values["step"] == 12
    assert values["batches"] == 24
    assert list(values["losses"]) == ["1", "3"]
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "state"
    original, settings = model(), DistillationSettings(steps=2)
    distill(original, {"3": CPMuMoE(6, 5, expert_dims=[3], rank=4)}, batches(), settings, checkpoint=file)

    def again(name: str, layer: nn.Module, settings: DistillationSettings) -> None:
        distill(original, {name: layer}, batches(), settings, checkpoint=file)

    with pytest.raises(ValueError, match=r"state: of a run with \{'steps': 2\}; go on with these settings"):
        again("3", CPMuMoE(6, 5, expert_dims=[3], rank=4), DistillationSettings(steps=3))
    with pytest.raises(ValueError, match=r"state: of a run that trains \['3'\], not \['0'\]"):
        again("0", CPMuMoE(6, 6, expert_dims=[3], rank=4), settings)
    with pytest.raises(ValueError, match=r"of a run with other replacements: 'optimizer\.0\.exp_avg' .*\(3, 4\)"):
        again("3", CPMuMoE(6, 5, expert_dims=[3], rank=5), settings)


def test_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "state"
    for write in (lambda: file.write_bytes(b"no state"), lambda: save_file({"x": torch.ones(2)}, file)):
        write()
        with pytest.raises(ValueError, match=r"state: not (readable as )?the state of a run"):
            distill(model(), replacements(), batches(), SETTINGS, checkpoint=file)


# -- it keeps what was good


class Fragile(nn.Linear):
    """Once its weight has moved far enough, gives what is not finite."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y / 0.0 if float(self.weight.detach().abs().max()) > 1.0 else y


def test_loss_that_is_not_finite_leaves_the_last_good_state(tmp_path: Path) -> None:
    layer, file = Fragile(6, 5), tmp_path / "state"
    settings = DistillationSettings(steps=50, learning_rate=0.1)
    original, weights = model(), []
    original[3].weight.data.mul_(20.0)

    def note(found: DistillationStep) -> None:
        weights.append(layer.weight.detach().clone())

    with pytest.raises(FloatingPointError, match=r"the loss of '3' is not finite at step \d+ of 50; .* below 0\.1"):
        distill(original, {"3": layer}, batches(50), settings, checkpoint=file, checkpoint_every=1, on_step=note)
    assert len(weights) >= 2
    assert float(weights[-1].abs().max()) > 1.0  # with these the loss was not finite any more
    assert torch.equal(layer.weight, weights[-2])  # the last ones with which it was
    assert all(torch.isfinite(call.repeat(layer)).all() for call in capture(original, "3", batches(3)))


class InfiniteGradient(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        y.register_hook(lambda gradient: gradient * math.inf)
        return y


def test_gradient_that_is_not_finite_moves_nothing() -> None:
    layer = InfiniteGradient(6, 5)
    before = layer.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="the gradient of '3' is not finite at step 1 of 12"):
        distill(model(), {"3": layer}, batches(), SETTINGS)
    assert torch.equal(layer.weight, before)


def test_parameter_that_overflows_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def overflow(optimizer: torch.optim.AdamW) -> None:
        optimizer.param_groups[0]["params"][0].data.fill_(math.inf)

    monkeypatch.setattr(torch.optim.AdamW, "step", overflow)
    layer = nn.Linear(6, 5)
    before = layer.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="'weight' of a replacement is not finite at step 1"):
        distill(model(), {"3": layer}, batches(), SETTINGS)
    assert torch.equal(layer.weight, before)


def test_original_that_gives_nan_is_named() -> None:
    modules = replacements()
    before = states(modules)
    with pytest.raises(ValueError, match="the original's '1' gives a value that is not finite, batch 1 or later"):
        distill(model(), modules, [torch.full((4, 6), math.nan)] * 24, SETTINGS)
    assert equal(states(modules), before)


def test_zeros_can_be_learned() -> None:
    original = nn.Sequential(nn.Linear(6, 5))
    nn.init.zeros_(original[0].weight)
    nn.init.zeros_(original[0].bias)
    settings = DistillationSettings(steps=40, learning_rate=0.05)
    losses = distill(original, {"0": nn.Linear(6, 5)}, batches(40), settings)["0"]
    assert losses[-1] < 0.1 * losses[0]


def test_half_precision() -> None:
    original, layer = nn.Sequential(nn.Linear(6, 5)).bfloat16(), nn.Linear(6, 5).bfloat16()
    data = [x.bfloat16() for x in batches(40)]
    losses = distill(original, {"0": layer}, data, DistillationSettings(steps=40, learning_rate=0.05))["0"]
    assert losses[-1] < 0.1 * losses[0]


# -- what is refused


def test_batches_that_run_out() -> None:
    modules, seen = replacements(), []
    with pytest.raises(ValueError, match="the batches ran out after 3 of 12 steps; 12 steps of 2 need 24"):
        distill(model(), modules, batches(7), SETTINGS, on_step=lambda found: seen.append(states(modules)))
    assert equal(states(modules), seen[-1])  # the half step left no trace


def test_unsuitable_replacements_are_refused() -> None:
    original = model()
    with pytest.raises(ValueError, match="no replacements to train"):
        distill(original, {}, batches(), SETTINGS)
    with pytest.raises(ValueError, match="the replacement of '1' shares a parameter with the model"):
        distill(original, {"1": original[1]}, batches(), SETTINGS)
    with pytest.raises(ValueError, match="the replacement of '1' has no parameter to train"):
        distill(original, {"1": nn.GELU()}, batches(), SETTINGS)
    with pytest.raises(ValueError, match="Sequential has no module 'mlp'"):
        distill(original, {"mlp": nn.Linear(6, 6)}, batches(), SETTINGS)
    with pytest.raises(ValueError, match=r"Linear gives shape \(16, 7\), the original gives \(16, 6\)"):
        distill(original, {"1": nn.Linear(6, 7)}, batches(), SETTINGS)
    with pytest.raises(ValueError, match="checkpoint_every must be at least 1, got 0"):
        distill(original, replacements(), batches(), SETTINGS, checkpoint_every=0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", 0, "steps must be an int of at least 1, got 0"),
        ("steps", True, "steps must be an int of at least 1, got True"),
        ("accumulate", 1.5, r"accumulate must be an int of at least 1, got 1\.5"),
        ("learning_rate", 0.0, r"learning_rate must be positive, got 0\.0"),
        ("gradient_norm", math.nan, "gradient_norm must be positive, got nan"),
        ("warm_up", 1.5, r"warm_up is a share of the steps, from 0 to 1, got 1\.5"),
        ("weight_decay", -1.0, r"weight_decay must be finite and not negative, got -1\.0"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillationSettings(**{"steps": 1, name: value})  # type: ignore[arg-type]


# -- the progress bar


def test_progress_bar_shows_the_steps(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    distill(model(), replacements(), batches(), SETTINGS, progress=True)
    assert "12/12" in (shown := capsys.readouterr().err)
    assert "loss=" in shown


def test_progress_bar_without_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: object) -> object:
        if name == "tqdm":
            raise ModuleNotFoundError(name)
        return real(name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ModuleNotFoundError, match=r"needs tqdm: pip install 'factorized-moe\[progress\]'"):
        distill(model(), replacements(), batches(), SETTINGS, progress=True)
