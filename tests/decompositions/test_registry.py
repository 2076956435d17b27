"""Names of decompositions."""

from typing import Any

import pytest

from factorized_moe import Decomposition, FactorizedExpertTensor, TensorNetwork, available_decompositions, register
from factorized_moe.decompositions import CP, get_decomposition, name_of, registry


class Dense(Decomposition):
    """One node: nothing is factorised."""

    def network(self, expert_dims: Any, in_features: int, out_features: int, rank: Any) -> TensorNetwork:
        labels = [*(f"expert_{k}" for k in range(len(expert_dims))), "in", "out"]
        return TensorNetwork.from_modes(expert_dims, in_features, out_features, nodes={"dense": labels}, bonds={})


@pytest.fixture
def empty_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setattr(registry, "_ALIASES", dict(registry._ALIASES))


def test_built_in_names() -> None:
    assert set(available_decompositions()) >= {"cp", "tr", "tt", "tucker"}
    assert list(available_decompositions()) == sorted(available_decompositions())


@pytest.mark.usefixtures("empty_places")
def test_a_third_party_registers_its_own() -> None:
    dense = Dense()
    register("My-Dense", dense, aliases=("plain",))
    assert "my_dense" in available_decompositions()
    assert "plain" not in available_decompositions()
    assert name_of(dense) == "my_dense"
    for name in ("my_dense", "MY DENSE", "Plain"):
        assert get_decomposition(name) is dense
    assert FactorizedExpertTensor((3,), 4, 5, decomposition="plain", rank=1).num_parameters == 60


def test_an_instance_needs_no_name() -> None:
    dense = Dense()
    assert get_decomposition(dense) is dense
    assert name_of(dense) == "Dense"


@pytest.mark.usefixtures("empty_places")
@pytest.mark.parametrize("name", ["cp", "CP", "Parafac", "tensor ring"])
def test_a_taken_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"decomposition name '\w+' is taken; choose another"):
        register(name, Dense())
    with pytest.raises(ValueError, match="is taken; choose another"):
        register("free", Dense(), aliases=(name,))
    assert "free" not in available_decompositions()


@pytest.mark.usefixtures("empty_places")
def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="a decomposition's name must not be empty, got ' '"):
        register(" ", Dense())
    with pytest.raises(
        TypeError, match=r"register takes an instance of Decomposition, got .*Dense.*; write MyClass\(\)"
    ):
        register("dense", Dense)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "near"), [("tuker", "tucker"), ("tensor_rin", "tensor_ring"), ("cpp", "cp"), ("TTT", "tt")]
)
def test_an_unknown_name_gets_the_nearest(name: str, near: str) -> None:
    message = rf"unknown decomposition '{name}'; did you mean '{near}'\? Registered: .*cp, .*tr, tt, .*tucker"
    with pytest.raises(ValueError, match=message):
        get_decomposition(name)


def test_a_decomposition_is_a_name_or_an_instance() -> None:
    with pytest.raises(TypeError, match="decomposition is a name or a Decomposition instance, got 3"):
        get_decomposition(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="decomposition is a name or a Decomposition instance, got <class"):
        get_decomposition(CP)  # type: ignore[arg-type]
