"""Interventions put in force on a model, and taken back to the bit."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

from torch import nn

from factorized_moe.interpret.finding import find_layers
from factorized_moe.interpret.interventions.addressing import named_layers
from factorized_moe.interpret.interventions.kinds import Intervention
from factorized_moe.layers import ExpertLayer

__all__ = ["InterventionHandle", "intervene"]


class InterventionHandle:
    """Interventions in force, until `undo` or the end of a ``with`` block.

    Args:
        undo: The callbacks that take them back.
    """

    def __init__(self, undo: ExitStack) -> None:
        self._undo = undo

    def undo(self) -> None:
        """Put the model back as it was, to the bit. Again, or after the ``with`` block, it does nothing."""
        self._undo.close()

    def __enter__(self) -> InterventionHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()


def intervene(model: nn.Module, *interventions: Intervention) -> InterventionHandle:
    """Put interventions in force: for a ``with`` block, or until the handle's ``undo``.

    Those on coefficients are applied in the order given, and after those already in force. Layers that share one gate
    module share its interventions. Everything is checked before the model is touched.

    Args:
        model: The model, or a single layer. It cannot be compiled: torch does not look at hooks that are added
            after compilation.
        interventions: What to do; one or several.

    Returns:
        The handle, also a context manager.

    Raises:
        TypeError: If the model is no module, or something else than an intervention is given.
        ValueError: If none is given, the model has no layer or is compiled, a layer's name is unknown or needed, or a
            mode, an expert or an output is out of range.

    Examples:
        >>> import torch
        >>> from factorized_moe import CPMuMoE
        >>> from factorized_moe.interpret import Ablate, Scale
        >>> model = nn.Sequential(nn.Linear(6, 8), CPMuMoE(8, 3, expert_dims=[4], rank=2, gate_norm=None))
        >>> x = torch.randn(5, 6)
        >>> with intervene(model, Ablate([0, 1]), Scale(2, 3.0)):
        ...     (coefficients,) = model[1].gate(model[0](x))
        >>> coefficients[0].tolist()
        [0.0, 0.0, 0.75, 0.25]
        >>> handle = intervene(model, Ablate(range(4), layer="1"))
        >>> model(x).abs().sum().item()
        0.0
        >>> handle.undo()
    """
    if not interventions:
        raise ValueError("intervene: no intervention is given; give one or several, for instance Ablate(3)")
    for given in interventions:
        if not isinstance(given, Intervention):
            raise TypeError(f"intervene: expected interventions such as Ablate(3), got {given!r}")
    find_layers(model)  # is it a model, and has it a layer?
    refuse_compiled(model, "intervene")
    chosen = [(layer, given) for given in interventions for layer in _layers_of(model, given).values()]
    with ExitStack() as undo:
        for layer, given in chosen:
            given.attach(layer, undo)
        return InterventionHandle(undo.pop_all())


def _layers_of(model: nn.Module, intervention: Intervention) -> dict[str, ExpertLayer]:
    """The layers that an intervention is for, by name, found to have what it wants to change."""
    found = named_layers(type(intervention).__name__, model, intervention.layer)
    for name, layer in found.items():
        intervention.check(name, layer)
    return found


def refuse_compiled(model: nn.Module, caller: str) -> None:
    """Refuse a model that would not run hooks; ``caller`` is what the message calls the function that needs them."""
    for module in model.modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise ValueError(
                f"{caller}: {type(module).__name__} is compiled, and torch ignores hooks that are added after "
                "compilation; give the model that is not compiled"
            )
