"""Changed models export whole, with a dynamic batch, and compute the same there."""

from pathlib import Path

import pytest
import torch
from torch import nn

from factorized_moe.surgery import MuMoEConfig, replace

from .small_models import MODELS, SmallModel

# The exporters of torch use parts of Python that are going away; nothing of ours can change that.
pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]


class FirstOutput(nn.Module):
    """A model as a function from one tensor to one tensor."""

    def __init__(self, small: SmallModel, **changes: object) -> None:
        super().__init__()
        self.model = small.make(**changes)
        (self.name,) = small.example()
        self.options = {} if small.pictures else {"use_cache": False}

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.model(**{self.name: inputs}, **self.options)[0]
        return output


ONE_LAYER = {"bert": "num_hidden_layers", "gpt2": "n_layer", "vit": "num_hidden_layers"}


@pytest.mark.parametrize("name", ONE_LAYER)
def test_exports_with_a_dynamic_batch(name: str, tmp_path: Path) -> None:
    import onnxruntime

    small = MODELS[name]
    model = FirstOutput(small, **{ONE_LAYER[name]: 1}).eval()
    replace(model, small.target, MuMoEConfig(expert_dims=(3, 2), decomposition="tr", rank=4))
    (inputs,), (others,) = small.example().values(), small.example(batch=5).values()

    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (inputs,), dynamic_shapes=({0: batch},))
    assert torch.allclose(program.module()(others), model(others), atol=1e-6)

    path = tmp_path / "model.onnx"
    torch.onnx.export(program, (inputs,), path, dynamo=True, verbose=False, optimize=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {session.get_inputs()[0].name: others.numpy()})
    assert torch.allclose(torch.from_numpy(expected), model(others), atol=1e-5)
