"""The rules of docs/architecture.md, read from the source with `ast`: nothing is imported.

Every rule is a function from the parsed modules to its violations. The package must have none; a small
made-up package, broken in one way at a time, must be caught each time, so the rules are known to bite.
"""

import ast
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

PACKAGE = "factorized_moe"
ROOT = Path(__file__).parents[1] / PACKAGE
LONGEST_FILE = 400
ROOMY = ("interpret", "surgery")
MOST_ROOMS = 6

# Top-level modules, lowest first: a module imports from its own line and the lines above it.
ORDER = (
    ("_bars", "parsing", "_scalars", "_text_tables", "_writing", "_reading"),
    ("network", "_validation", "spread", "_linear"),
    ("contraction",),
    ("decompositions",),
    ("budgets",),
    ("storage", "fitting", "drawing"),
    ("tensor",),
    ("folding", "entmax", "activations", "batch_statistics", "gating", "layers"),
    ("optimisation",),
    ("compat", "surgery", "interpret", "parallel", "testing"),
    ("demo",),
    ("cli", "__main__"),
)
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}

STANDARD_LIBRARY_ONLY = ("parsing", "_scalars", "network")

# What may be imported in one place only.
QUARANTINE = {
    "opt_einsum": "contraction.orders",
    "tltorch": "storage",
    "tensorly.decomposition": "fitting.tensorly_algorithms",
}

# The core knows decompositions through their contract and the registry alone.
CORE = {
    "parsing",
    "network",
    "_validation",
    "contraction",
    "storage",
    "fitting",
    "tensor",
    "activations",
    "entmax",
    "gating",
    "layers",
}
CONTRACT = {"decompositions.base", "decompositions.registry"}


@dataclass(frozen=True)
class Import:
    """One imported name: `from a.b import c` imports `a.b.c`, `import a.b` imports `a.b`."""

    target: str
    line: int


@dataclass(frozen=True)
class Module:
    """One source file; its name is relative to the package: `contraction.planning`, `tensor`."""

    path: Path
    name: str
    is_package: bool

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"))

    @property
    def component(self) -> str:
        """The top-level module it belongs to."""
        return self.name.split(".")[0]

    @cached_property
    def imports(self) -> list[Import]:
        return list(self._read_imports())

    @property
    def internal_imports(self) -> list[Import]:
        """The imports from the package itself, relative to it."""
        prefix = f"{PACKAGE}."
        return [Import(i.target[len(prefix) :], i.line) for i in self.imports if i.target.startswith(prefix)]

    def _read_imports(self) -> Iterator[Import]:
        for node in ast.walk(self.tree):  # imports inside functions and under TYPE_CHECKING count too
            if isinstance(node, ast.Import):
                yield from (Import(alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute(node)
                yield from (Import(f"{base}.{alias.name}", node.lineno) for alias in node.names)

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = [PACKAGE, *self.name.split(".")] if self.name else [PACKAGE]
        folder = parts if self.is_package else parts[:-1]
        folder = folder[: len(folder) - (node.level - 1)]
        return ".".join([*folder, *([node.module] if node.module else [])])


def read_package(root: Path) -> list[Module]:
    """Every source file under `root`, in order of name."""
    modules = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        modules.append(Module(path, ".".join(parts[:-1] if is_package else parts), is_package))
    return modules


def is_within(target: str, module: str) -> bool:
    return target == module or target.startswith(f"{module}.")


def every_module_has_a_place(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        if module.component and module.component not in LEVEL:
            yield f"{module.name}: has no place in the order of imports; give it one in ORDER"


def imports_point_one_way(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        if module.is_package or module.component not in LEVEL:
            continue  # an __init__ re-exports
        for found in module.internal_imports:
            component = found.target.split(".")[0]
            if component not in LEVEL:
                yield f"{module.name}:{found.line}: imports {component} from the package's own __init__"
            elif LEVEL[component] > LEVEL[module.component]:
                yield f"{module.name}:{found.line}: imports {component}, which is above {module.component}"


def no_import_cycles(modules: list[Module]) -> Iterator[str]:
    names = {module.name for module in modules if not module.is_package}
    edges = {
        module.name: {name for name in names for found in module.internal_imports if is_within(found.target, name)}
        for module in modules
        if not module.is_package
    }
    for start in sorted(edges):
        reached, frontier = set(), [start]
        while frontier:
            fresh = edges[frontier.pop()] - reached
            reached |= fresh
            frontier += fresh
        if start in reached:
            yield f"{start}: imports itself, through {', '.join(sorted(reached - {start})) or 'nothing else'}"


def quarantines_hold(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        for used in [*module.imports, *tensorly_attributes(module)]:
            for library, home in QUARANTINE.items():
                if is_within(used.target, library) and not is_within(module.name, home):
                    yield f"{module.name}:{used.line}: {library} is for {home} alone"


def tensorly_attributes(module: Module) -> Iterator[Import]:
    """`tl.decomposition.parafac` reaches the same code as an import of its own would."""
    nodes = list(ast.walk(module.tree))
    aliases = [alias for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names = {alias.asname or alias.name for alias in aliases if alias.name == "tensorly"}
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
            yield Import(f"tensorly.{node.attr}", node.lineno)


def core_knows_no_concrete_decomposition(modules: list[Module]) -> Iterator[str]:
    concrete = concrete_decompositions(modules)
    for module in modules:
        if module.is_package or not (module.component in CORE or module.name in CONTRACT):
            continue
        for found in module.internal_imports:
            for name, classes in concrete.items():
                through_package = {f"decompositions.{class_name}" for class_name in classes}
                if is_within(found.target, name) or found.target in through_package:
                    target = found.target
                    yield f"{module.name}:{found.line}: the core imports a concrete decomposition, {target}"


def concrete_decompositions(modules: list[Module]) -> dict[str, set[str]]:
    """Modules of `decompositions/` that define a `Decomposition` of their own, and those classes' names."""
    candidates = [
        module
        for module in modules
        if module.component == "decompositions" and not module.is_package and module.name not in CONTRACT
    ]
    known, concrete = {"Decomposition"}, {}
    for _ in candidates:  # a decomposition may extend another one: repeat until nothing is added
        for module in candidates:
            classes = {
                node.name
                for node in ast.walk(module.tree)
                if isinstance(node, ast.ClassDef)
                and known & {base.id if isinstance(base, ast.Name) else "" for base in node.bases}
            }
            if classes:
                concrete[module.name] = classes
                known |= classes
    return concrete


def network_needs_the_standard_library_only(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        if module.name in STANDARD_LIBRARY_ONLY:
            for found in module.imports:
                library = found.target.split(".")[0] not in sys.stdlib_module_names
                ours = any(is_within(found.target, f"{PACKAGE}.{name}") for name in STANDARD_LIBRARY_ONLY)
                if library and not ours:
                    yield f"{module.name}:{found.line}: imports {found.target}, outside the standard library"


def files_are_short(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        lines = len(module.path.read_text(encoding="utf-8").splitlines())
        if lines > LONGEST_FILE:
            yield f"{module.name}: {lines} lines, more than {LONGEST_FILE}: split it by reason to change"


def no_drawer_of_utilities(modules: list[Module]) -> Iterator[str]:
    for module in modules:
        if module.name.split(".")[-1] in {"utils", "util", "helpers"}:
            yield f"{module.name}: name the module after what it does"


def every_file_has_a_name_of_its_own(modules: list[Module]) -> Iterator[str]:
    homes: dict[str, str] = {}
    for module in modules:
        name = module.path.name
        if name != "__init__.py":
            other = homes.setdefault(name, module.name)
            if other != module.name:
                yield f"{module.name}: {other} has a file of this name too; two things of one name are looked for twice"


def large_packages_have_few_rooms(modules: list[Module]) -> Iterator[str]:
    for package in ROOMY:
        rooms = {module.name.split(".")[1] for module in modules if module.name.startswith(f"{package}.")}
        if len(rooms) > MOST_ROOMS:
            yield f"{package}: {len(rooms)} rooms, {', '.join(sorted(rooms))}; at most {MOST_ROOMS}"


Rule = Callable[[list[Module]], Iterator[str]]
RULES: tuple[Rule, ...] = (
    every_module_has_a_place,
    imports_point_one_way,
    no_import_cycles,
    quarantines_hold,
    core_knows_no_concrete_decomposition,
    network_needs_the_standard_library_only,
    files_are_short,
    no_drawer_of_utilities,
    every_file_has_a_name_of_its_own,
    large_packages_have_few_rooms,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_package_keeps_the_rule(rule: Rule) -> None:
    modules = read_package(ROOT)
    assert {"network", "tensor", "layers"} <= {module.name for module in modules}
    assert list(rule(modules)) == []


# A package that keeps every rule, and for each rule the one file that breaks it.
GOOD = {
    "__init__.py": "from factorized_moe.tensor import T\nfrom factorized_moe.decompositions.cp import CP\n",
    "network.py": "import math\nfrom dataclasses import dataclass\n",
    "contraction/orders.py": "import opt_einsum as oe\nfrom factorized_moe.network import Node\n",
    "decompositions/__init__.py": "from .base import Decomposition\nfrom .cp import CP\n",
    "decompositions/base.py": "from ..network import Node\nclass Decomposition: ...\n",
    "decompositions/cp.py": "from .base import Decomposition\nclass CP(Decomposition): ...\n",
    "decompositions/variant.py": "from .cp import CP\nclass Variant(CP): ...\n",
    "storage.py": "import tltorch\nimport tensorly as tl\ntl.backend_context('pytorch')\n",
    "fitting/tensorly_algorithms.py": "from tensorly.decomposition import parafac\n",
    "tensor.py": "from . import storage\nfrom factorized_moe.decompositions import Decomposition\n",
    "layers.py": "def f():\n    from factorized_moe.tensor import T\n",
}
BAD = {
    "an unknown module": ("extras.py", "", "extras: has no place"),
    "upwards": (
        "tensor.py",
        "from factorized_moe.layers import MuMoE\n",
        "tensor:1: imports layers, which is above",
    ),
    "upwards, relative": (
        "contraction/costs.py",
        "from ..storage import S\n",
        "contraction.costs:1: imports storage",
    ),
    "upwards, in a function": (
        "network.py",
        "def f():\n    import factorized_moe.cli\n",
        "network:2: imports cli",
    ),
    "through the package": (
        "layers.py",
        "from factorized_moe import CPMuMoE\n",
        "layers:1: imports CPMuMoE from",
    ),
    "a cycle": ("fitting.py", "from .storage import S\n", "fitting: imports itself, through storage"),
    "opt_einsum": ("layers.py", "from opt_einsum import contract\n", "layers:1: opt_einsum is for"),
    "tltorch": (
        "fitting.py",
        "import tltorch.factorized_tensors\n",
        "fitting:1: tltorch is for storage alone",
    ),
    "tensorly.decomposition": (
        "storage.py",
        "from tensorly import decomposition\n",
        "storage:1: tensorly.decomposition",
    ),
    "by attribute": (
        "storage.py",
        "import tensorly as tl\ntl.decomposition.tucker\n",
        "storage:2: tensorly.decomp",
    ),
    "a concrete module": (
        "tensor.py",
        "from .decompositions.cp import CP\n",
        "tensor:1: the core imports a concrete",
    ),
    "a concrete class": (
        "layers.py",
        "from .decompositions import Variant\n",
        "layers:1: the core imports a concrete",
    ),
    "base knows a child": (
        "decompositions/base.py",
        "from . import cp\n",
        "decompositions.base:1: the core imports",
    ),
    "torch in network": (
        "network.py",
        "import torch\n",
        "network:1: imports torch, outside the standard library",
    ),
    "a long file": ("layers.py", "x = 1\n" * (LONGEST_FILE + 1), "layers: 401 lines"),
    "two files of one name": ("contraction/layers.py", "", "layers: contraction.layers has a file of this name too"),
    "utilities": ("contraction/utils.py", "", "contraction.utils: name the module after"),
}


def test_a_package_of_many_rooms_is_told(tmp_path: Path) -> None:
    rooms = {f"interpret/room_{number}.py": "" for number in range(MOST_ROOMS + 1)}
    (violation,) = write_package(tmp_path, {**GOOD, **rooms})
    assert violation.startswith("interpret: 7 rooms, room_0, room_1")


def test_the_page_s_table_is_in_the_order_of_imports() -> None:
    page = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page[page.index("| module | what is in it |") :].split("\n\n")[0]
    names = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(names) == sorted(LEVEL)
    levels = [LEVEL[name] for name in names]
    assert levels == sorted(levels)
    assert "in the table\nbelow it, lowest first, from its own line's rank and the lines above it" in page


def write_package(root: Path, files: dict[str, str]) -> list[str]:
    """Write a made-up package and return all its violations."""
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    modules = read_package(root)
    return [violation for rule in RULES for violation in rule(modules)]


def test_rules_accept_a_good_package(tmp_path: Path) -> None:
    assert write_package(tmp_path, GOOD) == []


@pytest.mark.parametrize("case", BAD)
def test_rules_bite(case: str, tmp_path: Path) -> None:
    name, source, expected = BAD[case]
    extra = {"storage.py": "from .fitting import fit\n"} if case == "a cycle" else {}
    violations = write_package(tmp_path, {**GOOD, **extra, name: source})
    assert any(violation.startswith(expected) for violation in violations), violations
