"""Inner products, distances and bonds of whole networks, against the dense tensors."""

import pytest
import torch
from torch import Tensor

from factorized_moe import CPMuMoE, FactorizedExpertTensor
from factorized_moe.interpret import bond_contributions, distance, inner, scale_bond

TENSORS = {
    "cp": ("cp", 3),
    "tucker": ("tucker", (2, 2, 3, 3)),
    "tr": ("tr", 2),
    "tt": ("tt", 2),
    "sum of terms": ("shared_private", None),
    "kronecker": ("kronecker", None),
}


def tensor(name: str, seed: int, bias: bool = True) -> FactorizedExpertTensor:
    torch.manual_seed(seed)
    decomposition, rank = TENSORS[name]
    return FactorizedExpertTensor((4, 3), 6, 5, decomposition, 2 if rank is None else rank, bias=bias).double()


@pytest.mark.parametrize("second", TENSORS)
@pytest.mark.parametrize("first", TENSORS)
def test_inner_is_that_of_the_dense_tensors(first: str, second: str) -> None:
    a, b = tensor(first, 0), tensor(second, 1)
    with torch.no_grad():
        dense = a.to_dense(), b.to_dense()
    assert inner(a, b) == pytest.approx(float((dense[0] * dense[1]).sum()), rel=1e-9, abs=1e-12)
    assert distance(a, b) == pytest.approx(float((dense[0] - dense[1]).norm()), rel=1e-9)
    assert distance(a, b, relative=True) == pytest.approx(distance(a, b) / float(dense[1].norm()))


def test_the_dense_tensor_is_never_built(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (FactorizedExpertTensor((4096,), 512, 512, "cp", 4) for _ in range(2))  # 4 GiB each
    monkeypatch.setattr(FactorizedExpertTensor, "expert", None)
    assert inner(a, a) + inner(b, b) - 2 * inner(a, b) == pytest.approx(distance(a, b) ** 2, rel=1e-9)


def test_equal_tensors_have_no_distance() -> None:
    a = tensor("cp", 0)
    assert distance(a, a, relative=True) < 1e-7
    zero = tensor("cp", 0)
    for parameter in zero.parameters():
        parameter.data.zero_()
    assert (distance(zero, zero, relative=True), distance(a, zero, relative=True)) == (0.0, float("inf"))


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shapes \(4, 3, 7, 5\) with biases and \(4, 3, 6, 5\) without biases"):
        inner(tensor("cp", 0), tensor("cp", 0, bias=False))
    with pytest.raises(TypeError, match="second"):
        inner(tensor("cp", 0), torch.ones(4, 3, 7, 5))  # type: ignore[arg-type]


def some_inputs() -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    return x, [torch.rand(5, n, generator=generator, dtype=torch.float64) for n in (4, 3)]


@pytest.mark.parametrize("name", TENSORS)
def test_parts_of_a_bond_add_up_and_are_what_scaling_takes_away(name: str) -> None:
    w, (x, a) = tensor(name, 0), some_inputs()
    with torch.no_grad():
        whole = w(x, a)
        for bond in w.network.bonds:
            parts = bond_contributions(w, x, a, bond)
            assert parts.shape == (5, w.network.sizes[bond], 5)
            with scale_bond(w, bond, range(w.network.sizes[bond])):
                rest = w(x, a)
            assert torch.allclose(parts.sum(dim=1) + rest, whole)
            with scale_bond(w, bond, 0, 3.0):
                assert torch.allclose(w(x, a), whole + 2 * parts[:, 0])
            assert torch.equal(w(x, a), whole)  # to the bit


def test_one_part_of_cp_is_a_product() -> None:
    layer = CPMuMoE(6, 5, expert_dims=[4], rank=3, bias=False).eval()
    x, w = torch.randn(7, 6), layer.experts
    with torch.no_grad():
        (a,) = layer.gate(x)
        parts = bond_contributions(w, x, [a], "rank")
        weight = w.weight
        by_hand = (x @ weight.input)[:, :, None] * (a @ weight.expert_0)[:, :, None] * weight.output
    assert torch.allclose(parts, by_hand, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("out", 0), ValueError, "no bond of the network; its bonds are"),
        (("rank", 3), ValueError, "different numbers below 3"),
        (("rank", [1, 1]), ValueError, "different numbers below 3"),
        (("rank", 0.5), TypeError, "ints counted from 0"),
        (("rank", 0, "1"), TypeError, "factor is a number"),
        (("rank", 0, float("nan")), ValueError, "factor must be finite"),
    ],
)
def test_what_is_no_part_is_refused(arguments: tuple[object, ...], error: type[Exception], message: str) -> None:
    w = tensor("cp", 0)
    with pytest.raises(error, match=message):
        scale_bond(w, *arguments)  # type: ignore[arg-type]
