"""What a finished run leaves: the model in the library's format and in Hugging Face's, the page of its experts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from factorized_moe._writing import write_files
from factorized_moe.interpret.report import write_report
from factorized_moe.spread import gathered_state
from factorized_moe.surgery import save
from recipes.options import Options
from recipes.recipe import Recipe, has_experts

__all__ = ["finish", "save_model"]


def finish(recipe: Recipe, options: Options, accelerator: Any, model: nn.Module, found: dict[str, float]) -> None:
    """Write all of it, in the first process; the others wait.

    Args:
        recipe: The recipe.
        options: Those of the run.
        accelerator: Accelerate's.
        model: The trained model, not wrapped.
        found: The held-out loss and accuracy.

    Raises:
        OSError: If something cannot be written.
    """
    state = gathered_state(model)  # all processes have to ask for it
    if accelerator.is_main_process:
        trained = recipe.build().eval()
        trained.load_state_dict({name: value.cpu() for name, value in state.items()})
        save_model(trained, options.out)
        data = recipe.finish(trained, options.out)
        if data is not None:
            write_report(options.out / "report.html", data)
        summary = {"recipe": recipe.name, "source": dict(recipe.source), "options": options.fixed(), "held_out": found}
        summary["parameters"] = sum(parameter.numel() for parameter in trained.parameters())
        write_files(options.out, {"results.json": (json.dumps(summary, indent=2) + "\n").encode()})
    accelerator.wait_for_everyone()


def save_model(model: nn.Module, out: Path) -> None:
    """Write a trained model: ``model/`` for `factorized_moe.surgery.load`, ``huggingface/`` for transformers.

    The second has transformers' part of the model: all of a GPT, the backbone of a classifier, nothing of a Mixer. What
    has no experts has its plain state in the first, where it is the recipes' own.

    Args:
        model: The model.
        out: The folder of the run.
    """
    from safetensors.torch import save_file
    from transformers import PreTrainedModel

    theirs = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)
    if theirs is not None:
        theirs.save_pretrained(out / "huggingface")
    if has_experts(model):
        save(model, out / "model")
    elif theirs is not model:
        state = {name: value.contiguous() for name, value in model.state_dict().items()}
        write_files(out / "model", {"model.safetensors": lambda path: save_file(state, path, {"format": "pt"})})
