"""Calls of modules inside a model: what is captured, and that nothing else changes."""

from collections import UserDict

import pytest
import torch
from torch import Tensor, nn

from factorized_moe.surgery.distillation.capturing import Call, capture, output_error


class Residual(nn.Module):
    """Calls one module twice, changes its output in place, and hands on a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Scaled()
        self.unused = nn.Linear(2, 2)
        self.pair = Pair()

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        y = self.inner(x, factor=factor)
        y += x
        return self.inner(y, factor=factor) + self.pair(x)[0]


class Scaled(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, factor: float) -> Tensor:
        return self.dropout(super().forward(x) * factor)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.fixture
def model() -> Residual:
    torch.manual_seed(0)
    return Residual()


def test_every_call_is_captured_as_it_was(model: Residual) -> None:
    """In evaluation mode, before anything changes an output in place, and with the keywords."""
    x = torch.randn(3, 4)
    first, second = capture(model, "inner", [(x, 2.0)])
    exact = nn.functional.linear(x, model.inner.weight, model.inner.bias) * 2.0
    assert torch.equal(first.arguments[0], x)
    assert first.keywords == {"factor": 2.0}
    torch.testing.assert_close(first.output, exact)
    torch.testing.assert_close(second.arguments[0], exact + x)
    assert not first.output.requires_grad


def test_nothing_of_the_model_changes(model: Residual) -> None:
    model.train()
    model.pair.eval()
    before = {name: module.training for name, module in model.named_modules()}
    list(capture(model, "inner", [torch.randn(3, 4)]))
    with pytest.raises(TypeError, match="module 'pair' gives tuple; expected one that gives a tensor"):
        list(capture(model, "pair", [torch.randn(3, 4)]))
    assert {name: module.training for name, module in model.named_modules()} == before
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ["tensor", "tuple", "list", "dict", "mapping"])
def test_batches_are_arguments(model: Residual, kind: str) -> None:
    x = torch.ones(3, 4)
    forms = {"tensor": x, "tuple": (x,), "list": [x], "dict": {"x": x}, "mapping": UserDict({"x": x})}
    call = next(capture(model, "inner", [forms[kind]]))
    assert torch.equal(call.arguments[0], x)


def test_batches_are_read_one_at_a_time(model: Residual) -> None:
    read = []

    def batches() -> object:
        for k in range(3):
            read.append(k)
            yield torch.randn(2, 4)

    calls = capture(model, "inner", batches())
    next(calls)
    assert read == [0]


def test_wrong_names_and_uncalled_modules_are_refused(model: Residual) -> None:
    with pytest.raises(ValueError, match=r"Residual has no module 'layers\.dropout'; .* \['inner\.dropout'\]"):
        next(capture(model, "layers.dropout", []))
    with pytest.raises(ValueError, match=r"no module 'mlp'; it has, for instance, \['inner', "):
        next(capture(model, "mlp", []))
    with pytest.raises(ValueError, match="the model did not call its module 'unused'"):
        next(capture(model, "unused", [torch.randn(2, 4)]))


def test_output_error_is_relative_to_the_outputs() -> None:
    x = torch.randn(2, 3)
    calls = [Call((x,), x), Call((3 * x,), 3 * x)]
    assert output_error(nn.Identity(), calls) == 0.0
    assert output_error(Times(0.0), calls) == pytest.approx(1.0)
    assert output_error(Times(1.25), calls) == pytest.approx(0.25)
    assert output_error(nn.Dropout(0.5), calls) == 0.0  # in evaluation mode
    zeros = [Call((x,), torch.zeros(2, 3))]
    assert output_error(Times(0.0), zeros) == 0.0
    assert output_error(nn.Identity(), zeros) == float("inf")


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def test_outputs_that_cannot_be_compared_are_refused() -> None:
    call = Call((torch.randn(2, 3),), torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"Identity gives shape \(2, 3\), the original gives \(2, 4\)"):
        output_error(nn.Identity(), [call])
    with pytest.raises(TypeError, match="Pair gives tuple where the original gives a tensor"):
        output_error(Pair(), [call])
    with pytest.raises(ValueError, match="no calls to compare"):
        output_error(nn.Identity(), [])
