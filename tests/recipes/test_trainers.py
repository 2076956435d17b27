"""Models with experts in transformers' Trainer and in Lightning: what the guide says of them."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from factorized_moe import MuMoE, parameter_groups
from factorized_moe.surgery import MuMoEConfig, is_mlp, load, replace, save

pytestmark = pytest.mark.thorough


class Rows(Dataset[dict[str, Tensor]]):
    def __init__(self) -> None:
        self.rows = torch.randint(50, (64, 8), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {"input_ids": self.rows[number], "labels": self.rows[number]}


def base() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 8, "vocab_size": 50}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=1))


def model() -> nn.Module:
    made = base()
    replace(made, is_mlp, MuMoEConfig((3,), fraction=1.0, pretrained=False))
    return made


def trainer(out: Path, **others: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    given = {"max_steps": 8, "save_steps": 4, "per_device_train_batch_size": 8, "report_to": "none", "use_cpu": True}
    arguments = TrainingArguments(
        output_dir=str(out), disable_tqdm=True, learning_rate=1e-2, seed=1, logging_steps=1, **{**given, **others}
    )
    return Trainer(model(), arguments, train_dataset=Rows())


def states(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_trainer_goes_on_to_the_bit(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    whole.train()
    stopped = trainer(tmp_path / "stopped")
    stopped.train()
    again = trainer(tmp_path / "stopped")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-4"))
    expected, found = states(whole.model), states(again.model)
    assert again.state.global_step == 8
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    begun = states(model())
    assert not any(
        torch.equal(begun[name], value) for name, value in expected.items() if ".first." in name and value.ndim
    )
    assert any("first" in name for name in expected)


def test_trainers_decay_is_on_all_factors_and_gates(tmp_path: Path) -> None:
    made = trainer(tmp_path, weight_decay=0.1)
    decayed = set(made.get_decay_parameter_names(made.model))
    names = [name for name, _ in made.model.named_parameters() if ".first." in name or ".gate." in name]
    assert len(names) >= 8
    assert set(names) <= decayed


def test_trainer_takes_an_optimiser_of_groups(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    groups = parameter_groups(made.model, weight_decay=0.1, learning_rate=1e-2, gate_learning_rate=1e-3)
    made.optimizer = torch.optim.AdamW(groups)
    made.train()
    rates = {group["name"]: group["initial_lr"] for group in made.optimizer.param_groups}
    assert rates["factors"] == 1e-2
    assert rates["gates"] == 1e-3


def test_what_trainer_trained_is_saved_and_loaded(tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    made = trainer(tmp_path / "run")
    made.train()
    made.save_model(str(tmp_path / "huggingface"))
    save(made.model, tmp_path / "model")
    theirs = [GPT2LMHeadModel.from_pretrained(tmp_path / name) for name in ("huggingface", "run/checkpoint-8")]
    for same in (load(base(), tmp_path / "model"), *theirs):
        assert all(torch.equal(same.state_dict()[name], value) for name, value in states(made.model).items())


def test_lightning_trains_and_goes_on_to_the_bit(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning = pytest.importorskip("lightning", reason="Lightning is not installed")

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.layer = MuMoE(8, 3, [4], "cp", 4)

            def training_step(self, batch: list[Tensor], number: int) -> Tensor:
                return nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.AdamW(parameter_groups(self.layer), lr=1e-2)

        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(64, 8, generator=generator), torch.randint(3, (64,), generator=generator)
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16)
        quiet = {
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "accelerator": "cpu",
            "default_root_dir": tmp_path,
        }
        whole, stopped, again = Module(), Module(), Module()
        lightning.Trainer(max_epochs=4, **quiet, enable_checkpointing=False).fit(whole, data)
        first = lightning.Trainer(max_epochs=2, **quiet, enable_checkpointing=False)
        first.fit(stopped, data)
        first.save_checkpoint(tmp_path / "stopped.ckpt")
        lightning.Trainer(max_epochs=4, **quiet, enable_checkpointing=False).fit(
            again, data, ckpt_path=tmp_path / "stopped.ckpt"
        )
    expected = states(whole)
    assert not torch.equal(states(stopped)["layer.gate.projection.weight"], expected["layer.gate.projection.weight"])
    assert all(torch.equal(states(again)[name], value) for name, value in expected.items())
