"""Programs of other libraries that run a model with layers of experts: a trainer, a compiler ahead of time."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from factorized_moe import GatedMuMoEBlock
from factorized_moe.surgery import MuMoEConfig, is_mlp, replace


class Tokens(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = torch.randint(50, (6,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_trainer_trains_experts_and_gate(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=12, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    model = GPT2LMHeadModel(config)
    replace(model, is_mlp, MuMoEConfig(expert_dims=(4,), rank=16), last=1)
    experts = {name: value.clone() for name, value in model.transformer.h[1].mlp.state_dict().items()}
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        dataloader_pin_memory=False,
    )
    result = Trainer(model, arguments, train_dataset=Tokens()).train()
    assert 0 < result.training_loss < float("inf")
    after = model.transformer.h[1].mlp.state_dict()
    trained = {name for name, value in after.items() if not torch.equal(value, experts[name])}
    assert {name for name, _ in model.transformer.h[1].mlp.named_parameters()} <= trained


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_aot_inductor_runs_the_package(tmp_path: Path) -> None:
    torch.manual_seed(0)
    block = GatedMuMoEBlock(8, 12, 8, [4, 3], "tr", rank=3, gate_norm="layer", gate="softmax").eval()
    torch.nn.init.normal_(block.gate.projection.weight)
    x, other = torch.randn(6, 8), torch.randn(9, 8)
    batch = torch.export.Dim("batch", min=2, max=64)
    with torch.no_grad():
        program = torch.export.export(block, (x,), dynamic_shapes=({0: batch},))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "block.pt2"))
        package = torch._inductor.aoti_load_package(path)
        torch.testing.assert_close(package(other), block(other))
