"""Names of decompositions."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

import factorized_moe
from factorized_moe import Decomposition, FactorizedExpertTensor, TensorNetwork, available_decompositions, register
from factorized_moe.decompositions import CP, get_decomposition, name_of, registry
from factorized_moe.decompositions.registry import registered_decompositions


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
    with pytest.raises(
        TypeError, match=r"decomposition is a name or a Decomposition instance, got <class .*CP'>; write CP\(\)"
    ):
        get_decomposition(CP)  # type: ignore[arg-type]


class Offer(EntryPoint):
    """An entry point of a package that is not there; what it gives is passed by name."""

    values: ClassVar[dict[str, Any]] = {}
    dist = SimpleNamespace(name="tensor-shop", version="1.2")  # type: ignore[assignment]

    def load(self) -> Any:
        value = self.values[self.value]
        if isinstance(value, Exception):
            raise value
        return value


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch, empty_places: None) -> Callable[..., None]:
    """Makes installed packages offer decompositions, each under a name."""
    offers: list[Offer] = []
    asked: list[str] = []

    def entry_points(group: str) -> list[Offer]:
        assert group == "factorized_moe.decompositions"
        asked.append(group)
        return offers

    def add(**values: Any) -> None:
        for name, value in values.items():
            Offer.values[f"shop:{name}"] = value
            offers.append(Offer(name, f"shop:{name}", "factorized_moe.decompositions"))

    monkeypatch.setattr(registry, "entry_points", entry_points)
    monkeypatch.setattr(registry, "_LOADED", set())
    monkeypatch.setattr(Offer, "values", {})
    add.asked = asked  # type: ignore[attr-defined]
    return add


def test_an_installed_package_offers_a_class_or_an_instance(offer: Callable[..., None]) -> None:
    dense = Dense()
    offer(shop_class=Dense, shop_instance=dense)
    assert "shop_class" not in registered_decompositions()
    assert get_decomposition("Shop-Instance") is dense
    assert isinstance(get_decomposition("shop_class"), Dense)
    assert {"shop_class", "shop_instance"} <= set(available_decompositions())


def test_packages_are_looked_at_when_names_are_listed_or_unknown(offer: Callable[..., None]) -> None:
    offer(shop_class=Dense)
    get_decomposition("cp")
    get_decomposition("tensor_ring")
    assert not offer.asked  # type: ignore[attr-defined]
    assert "shop_class" in available_decompositions()
    assert name_of(get_decomposition("shop_class")) == "shop_class"


BROKEN = {
    "fails to import": (ImportError("No module named 'shop'"), "ImportError: No module named 'shop'"),
    "fails in its own way": (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    "no decomposition": (dict, r"TypeError: register takes an instance of Decomposition, got \{\}"),
    "abstract": (Decomposition, "TypeError: Can't instantiate abstract class Decomposition"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_package_is_named_once_and_left_out(case: str, offer: Callable[..., None]) -> None:
    value, reason = BROKEN[case]
    offer(broken=value, shop_class=Dense)
    message = "decomposition 'broken' of tensor-shop 1.2 is left out, as its entry point 'shop:broken' failed: "
    with pytest.warns(RuntimeWarning, match=message + reason):
        names = available_decompositions()
    assert "shop_class" in names
    assert "broken" not in names
    with pytest.raises(ValueError, match="unknown decomposition 'broken'"):
        get_decomposition("broken")


def test_a_package_cannot_take_a_name(offer: Callable[..., None]) -> None:
    offer(CP=Dense)
    with pytest.warns(RuntimeWarning, match="'CP' of tensor-shop 1.2 is left out, .* decomposition name 'cp' is taken"):
        available_decompositions()
    assert isinstance(get_decomposition("cp"), CP)


@pytest.mark.thorough
def test_import_loads_no_package() -> None:
    script = (
        "import importlib.metadata as metadata\n"
        "asked, entry_points = [], metadata.entry_points\n"
        "metadata.entry_points = lambda **options: asked.append(options.get('group')) or entry_points(**options)\n"
        "import factorized_moe\n"
        "factorized_moe.FactorizedExpertTensor((3,), 4, 5, 'cp', 2)\n"
        "assert 'factorized_moe.decompositions' not in asked, asked\n"
        "factorized_moe.available_decompositions()\n"
        "assert 'factorized_moe.decompositions' in asked, asked\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


NEW_FILE = """
from factorized_moe.decompositions.base import Decomposition
from factorized_moe.decompositions.registry import register
from factorized_moe.network import TensorNetwork


class SharedInput(Decomposition):
    def network(self, expert_dims, in_features, out_features, rank):
        experts = [f"expert_{k}" for k in range(len(expert_dims))]
        nodes = {"input": ["in", "rank"], "core": [*experts, "rank", "out"]}
        return TensorNetwork.from_modes(expert_dims, in_features, out_features, nodes=nodes, bonds={"rank": rank})


register("shared_input", SharedInput())
"""


@pytest.mark.thorough
def test_a_new_file_is_all_that_a_built_in_decomposition_needs(tmp_path: Path) -> None:
    package = Path(factorized_moe.__file__).parent
    shutil.copytree(package, tmp_path / "factorized_moe", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "factorized_moe" / "decompositions" / "shared_input.py").write_text(NEW_FILE, encoding="utf-8")
    code = (
        "import factorized_moe as fm; "
        "print(fm.__file__, fm.FactorizedExpertTensor((3,), 4, 5, decomposition='shared_input', rank=2).num_parameters)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tmp_path / "factorized_moe" / "__init__.py"), "38"]
