"""Every expert of a mode taken out in turn, in one pass over the data: which predictions change, and to what.

Where a model's output is a layer's output, or a function of it, the outputs without an expert come from the factors
(`factorized_moe.interpret.measures.contributions`). Elsewhere in a model the samples that use an expert
go through the model again. Both ways give what one `Ablate` after the other would, and skip the samples that do not use
an expert.

Legend: ``B`` samples of a batch, ``*positions`` further axes of a prediction (tokens, for instance), ``r`` predictions,
``p`` pairs of a prediction and an expert, ``N`` experts of the mode, ``C`` classes, ``O`` the layer's out_features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from factorized_moe._bars import if_slow
from factorized_moe._scalars import is_whole
from factorized_moe._validation import check_batches
from factorized_moe.interpret.interventions.addressing import check_experts, expert_numbers, named_layers
from factorized_moe.interpret.interventions.intervening import refuse_compiled
from factorized_moe.interpret.interventions.last_layer import LastLayer
from factorized_moe.interpret.interventions.tally import Counterfactuals, Tally
from factorized_moe.interpret.measures.contributions import Pairs
from factorized_moe.layers import ExpertLayer

__all__ = ["counterfactuals"]


@torch.no_grad()
def counterfactuals(
    model: nn.Module,
    batches: Iterable[Tensor | Sequence[Tensor]],
    layer: str | None = None,
    mode: int = 0,
    *,
    experts: Sequence[int] | Tensor | None = None,
    after: Callable[[Tensor], Tensor] | None = None,
    forward: Callable[[Tensor], Tensor] | None = None,
    ignore_index: int = -100,
) -> Counterfactuals:
    """Take every expert of a mode out in turn, its coefficient 0 and the others kept, and see what changes.

    The model runs once on every batch. If its output is a `MuMoE`'s, or ``after`` of it, that is all: the rest comes
    from the factors. Otherwise each sample goes through the model once more for each expert that it uses. Where almost
    nothing is left of an output without an expert, a difference would be rounding, and the experts run again on it.

    Args:
        model: The model, in evaluation mode. Its output is a tensor ``(B, *positions, C)`` whose largest entry is the
            prediction.
        batches: Batches of inputs ``(B, ...)``, or pairs of inputs and labels ``(B, *positions)`` as a data loader
            gives them. What comes from the factors is gathered over batches, so small ones cost no more.
        layer: The layer's name; not needed where the model has only one.
        mode: The expert mode, counted from 0.
        experts: The numbers of the experts to take out, one after the other; all of the mode by default.
        after: What follows the layer, where it is a function of each position's output ``(r, O)`` to ``(r, C)`` alone:
            a softmax, or a linear map.
        forward: From inputs to the output, where ``model(inputs)`` is not that tensor. It has to call the model:
            ``lambda ids: language_model(ids).logits``.
        ignore_index: The label of predictions that do not count, such as those at padding: as of torch's
            ``cross_entropy``. They are in none of the results. What they do to other predictions stays, as attention to
            an unmasked position may.

    Returns:
        Counts and means for each expert, in the order of ``experts`` where they are given; with labels also accuracies,
        and from them polysemanticity.

    Raises:
        TypeError: If batches, an output, labels or ``ignore_index`` are of the wrong type.
        ValueError: If the model is in training mode or compiled; there is no batch, or one in which no prediction
            counts; a name, the mode, a shape or a label does not fit; the layer or its gate does not run exactly once
            in a call; or ``after`` of the layer's output is not the model's output.

    Examples:
        >>> from factorized_moe import CPMuMoE
        >>> model = nn.Sequential(nn.Linear(6, 8), CPMuMoE(8, 3, expert_dims=[16], rank=4)).eval()
        >>> found = counterfactuals(model, [(torch.randn(50, 6), torch.randint(3, (50,)))])
        >>> found.remade.tolist() == [50] * 16  # an untrained gate gives every expert the same
        True
        >>> found.mean_effect.shape, found.accuracy_without.shape
        (torch.Size([16, 3]), torch.Size([16, 3]))
    """
    check_batches("counterfactuals: batches", batches)
    if not is_whole(ignore_index):
        raise TypeError(f"counterfactuals: ignore_index is an int, a label, got {ignore_index!r}")
    numbers = expert_numbers("counterfactuals", 0 if experts is None else experts, mode)
    found = named_layers("counterfactuals", model, layer)
    if len(found) > 1:
        raise ValueError(f"counterfactuals: {layer!r} names {len(found)} layers, {', '.join(found)}; give one of them")
    ((name, target),) = found.items()
    check_experts("counterfactuals", name, target, mode, numbers)
    refuse_compiled(model, "counterfactuals")
    if any(module.training for module in model.modules()):
        raise ValueError("counterfactuals: the model is in training mode; call eval() on it first")
    chosen = torch.arange(target.expert_dims[mode]) if experts is None else torch.tensor(numbers)
    tally: Tally | None = None
    last: LastLayer | None = None
    total = len(batches) if isinstance(batches, Sized) else None
    bar = if_slow("counterfactuals", total, "batch")
    with bar as shown, _Tap(name, target, mode, model if forward is None else forward) as tap:
        for batch in batches:
            inputs, labels = _parts(batch)
            outputs = tap.run(inputs)
            counted = _check(inputs, outputs, labels, ignore_index)
            if tally is None or last is None:
                chosen = chosen.to(outputs.device)
                tally = Tally(chosen, outputs.shape[-1], labels is not None)
                last = LastLayer(target, mode, chosen, after, tally)
            if tally.labelled != (labels is not None):
                raise ValueError("counterfactuals: some batches have labels and some have none")
            given = None if labels is None else labels.flatten()
            tally.add_predictions(*_those(counted, outputs.flatten(0, -2), given))
            if tap.is_linear and (after is not None or outputs is tap.layer_output):
                last.add(tap.x, tap.coefficients, tap.layer_output, outputs, labels, counted)
            else:
                _run_again(tap, mode, chosen, inputs, outputs, labels, counted, tally)
            shown.update()
        if tally is None or last is None:
            raise ValueError("counterfactuals: there is no batch")
        last.finish()
    return tally.result()


def _parts(batch: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """The inputs and the labels of a batch."""
    inputs, labels = batch if isinstance(batch, list | tuple) and len(batch) == 2 else (batch, None)
    if not isinstance(inputs, Tensor) or not isinstance(labels, Tensor | None):
        raise TypeError(
            f"counterfactuals: a batch is a tensor of inputs or a pair (inputs, labels), got {_kind(batch)}"
        )
    if inputs.ndim == 0 or not len(inputs):
        raise ValueError(f"counterfactuals: inputs of shape {tuple(inputs.shape)}, expected (B, ...) with a sample")
    return inputs, labels


def _check(inputs: Tensor, outputs: Tensor, labels: Tensor | None, ignore_index: int) -> Tensor | None:
    """Refuse outputs and labels that do not fit the inputs.

    Returns:
        Which predictions count, ``(B, *positions)``, bool; ``None`` where all do.
    """
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"counterfactuals: the model's output is {_kind(outputs)}, expected a tensor; give "
            "forward=lambda inputs: model(inputs).logits, or the like"
        )
    if outputs.ndim < 2 or len(outputs) != len(inputs):
        raise ValueError(
            f"counterfactuals: inputs of shape {tuple(inputs.shape)} and outputs of shape {tuple(outputs.shape)}, "
            "expected (B, ...) and (B, *positions, C)"
        )
    if not outputs.numel():
        raise ValueError(f"counterfactuals: outputs of shape {tuple(outputs.shape)} hold no prediction")
    counted = None if labels is None else _counted(labels, outputs, ignore_index)
    if outputs.isnan().any() if counted is None else outputs[counted].isnan().any():
        raise ValueError("counterfactuals: the model gives NaN for these inputs, which predicts no class")
    return counted


def _counted(labels: Tensor, outputs: Tensor, ignore_index: int) -> Tensor | None:
    """Which predictions count by their labels, ``(B, *positions)``; ``None`` where all do."""
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != outputs.shape[:-1]:
        raise ValueError(
            f"counterfactuals: labels of shape {tuple(labels.shape)} and type {labels.dtype}, expected integers of "
            f"shape {tuple(outputs.shape[:-1])}, one for each prediction"
        )
    counted = labels.long() != ignore_index  # as int64: of uint8, -100 would be 156
    classes = labels[counted]
    if not len(classes):
        raise ValueError(
            f"counterfactuals: all labels of a batch are {ignore_index}, the ignore_index, so that no prediction of it "
            "counts; leave the batch out, or give another ignore_index"
        )
    if int(classes.min()) < 0 or int(classes.max()) >= outputs.shape[-1]:
        raise ValueError(
            f"counterfactuals: labels are from {int(classes.min())} to {int(classes.max())}, expected 0 to "
            f"{outputs.shape[-1] - 1} for {outputs.shape[-1]} classes, or {ignore_index}, the ignore_index, for "
            "predictions that do not count"
        )
    return None if bool(counted.all()) else counted


def _those(counted: Tensor | None, *columns: Tensor | None) -> tuple[Any, ...]:
    """Of each column, one row for each prediction, the rows that count."""
    rows = None if counted is None else counted.flatten()
    return tuple(column if column is None or rows is None else column[rows] for column in columns)


def _kind(value: object) -> str:
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, list | tuple) else type(value).__name__


class _Tap:
    """Sees what goes in and out of a layer while a model runs, and takes an expert out of each sample if asked to."""

    def __init__(self, name: str, layer: ExpertLayer, mode: int, model: Callable[[Tensor], Tensor]) -> None:
        self._name, self._layer, self._mode, self._model = name, layer, mode, model
        self._experts = next(iter(layer.expert_tensors.values()))
        self._hooks = ExitStack()
        self._without: Tensor | None = None
        self._seen: dict[str, list[Any]] = {}

    def __enter__(self) -> _Tap:
        hooks = [
            self._layer.gate.register_forward_hook(self._at_gate),
            self._experts.register_forward_hook(lambda module, inputs, output: self._see("experts", (*inputs, output))),
            self._layer.register_forward_hook(lambda module, inputs, output: self._see("layer", output)),
        ]
        for hook in hooks:
            self._hooks.callback(hook.remove)
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.close()

    def run(self, inputs: Tensor, without: Tensor | None = None) -> Tensor:
        """The model's output.

        Args:
            inputs: ``(B, ...)``.
            without: For each sample the expert to take out, ``(B,)``.
        """
        self._without, self._seen = without, {"gate": [], "experts": [], "layer": []}
        outputs = self._model(inputs)
        calls = len(self._seen["layer"])
        if calls != 1:
            times = f"ran {calls} times" if calls else "did not run"
            raise ValueError(
                f"counterfactuals: layer {self._name!r} {times} in a call of the model; it has to run once"
            )
        if len(self._seen["gate"]) > 1:
            raise ValueError(
                f"counterfactuals: the gate of layer {self._name!r} ran {len(self._seen['gate'])} times in a call of "
                "the model; where layers share a gate, an expert is no expert of one layer alone"
            )
        return outputs

    @property
    def x(self) -> Tensor:
        """The experts' input, ``(B, *positions, I)``."""
        x: Tensor = self._seen["experts"][0][0]
        return x

    @property
    def coefficients(self) -> Sequence[Tensor]:
        """The coefficients that the layer computes with, for each mode ``(B, *positions, N_k)``."""
        coefficients: Sequence[Tensor] = self._seen["experts"][0][1]
        return coefficients

    @property
    def layer_output(self) -> Tensor:
        """``(B, *positions, O)``."""
        output: Tensor = self._seen["layer"][0]
        return output

    @property
    def is_linear(self) -> bool:
        """Whether the layer's output is what its experts return: no block, and changed by no hook."""
        return len(self._layer.expert_tensors) == 1 and self._seen["experts"][0][2] is self.layer_output

    def _see(self, what: str, value: object) -> None:
        self._seen[what].append(value)

    def _at_gate(self, module: nn.Module, inputs: object, output: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
        self._see("gate", None)
        if self._without is None:
            return None
        changed = list(output)
        a = changed[self._mode]
        index = self._without.reshape(-1, *(1 for _ in a.shape[1:])).expand(*a.shape[:-1], 1)
        changed[self._mode] = a.scatter(-1, index, 0.0)
        return tuple(changed)


def _run_again(
    tap: _Tap,
    mode: int,
    chosen: Tensor,
    inputs: Tensor,
    outputs: Tensor,
    labels: Tensor | None,
    counted: Tensor | None,
    tally: Tally,
) -> None:
    """Each sample through the model once for each expert that it uses, as many at a time as the batch has.

    An expert that a sample uses only where nothing counts is taken out too: other positions may depend on that one.
    """
    a = tap.coefficients[mode]
    if len(a) != len(inputs):
        raise ValueError(
            f"counterfactuals: {len(inputs)} samples, but coefficients of shape {tuple(a.shape)}; to take experts out "
            "of single samples, the coefficients' first axis has to be that of the inputs"
        )
    a = a.index_select(-1, chosen)
    used = (a != 0).flatten(1, -2).any(dim=1) if a.ndim > 2 else a != 0
    if counted is not None:
        used &= counted.reshape(len(a), -1).any(dim=1, keepdim=True)
    pairs = Pairs.of(used)
    predicted = outputs.argmax(dim=-1)
    with if_slow("samples without an expert", len(pairs.inputs), "sample") as bar:
        for samples, experts in zip(pairs.inputs.split(len(inputs)), pairs.experts.split(len(inputs)), strict=True):
            if not len(samples):  # no sample uses an expert
                continue
            without = tap.run(inputs[samples], without=chosen[experts])
            each = without[0, ..., 0].numel()  # predictions of one sample
            tally.add_pairs(
                *_those(
                    None if counted is None else counted[samples],
                    experts.repeat_interleave(each),
                    outputs[samples].flatten(0, -2),
                    predicted[samples].flatten(),
                    without.flatten(0, -2),
                    None if labels is None else labels[samples].flatten(),
                )
            )
            bar.update(len(samples))
