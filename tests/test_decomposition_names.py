"""No code but a decomposition's own file knows its name: what works for one works for those that are still to come.

Read from the source with `ast`. A name is a registered name or an alias as a string, a class, or the module that
defines it; docstrings and comments may give examples, and a parameter called `decomposition` may have a default.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from factorized_moe.decompositions import registration_of
from factorized_moe.decompositions.registry import registered_decompositions

ROOT = Path(__file__).parents[1]
BUILT_IN = [
    known
    for known in map(registration_of, registered_decompositions())
    if known.source.startswith("factorized_moe.decompositions.")
]
WORDS = {word for known in BUILT_IN for word in (known.name, *known.aliases)}
MODULES = {known.source.split(":")[0] for known in BUILT_IN}
CLASSES = {known.source.split(":")[1] for known in BUILT_IN}

ALLOWED = {
    "decompositions/__init__.py": "imports each, so that it registers itself, and offers the classes",
    "layers/mumoe.py": "the thin adapters that carry a name in theirs (`CPMuMoE`, ..), which the released code has too",
    "compat/neurips.py": "the released layers, of which each has one decomposition",
    "compat/v1.py": "the released layers, of which each has one decomposition",
    "compat/weights.py": "how the released code stores each decomposition's parameters",
    "tensor.py": "the default, where neither a decomposition nor a network is given",
    "demo/job.py": "the head called dense is a plain one of two linear layers",
}


def names_in(source: str) -> Iterator[str]:
    """The names of decompositions in code, with their lines."""
    tree = ast.parse(source)
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args]
            defaults = dict(zip(reversed(arguments), reversed(node.args.defaults), strict=False))
            defaults |= dict(zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True))
            skipped |= {id(value) for argument, value in defaults.items() if argument.arg == "decomposition"}
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "decomposition":
            skipped.add(id(node.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            if node.value.strip().casefold() in WORDS:
                yield f"{node.lineno}: {node.value!r}"
        elif isinstance(node, ast.ImportFrom):
            found = [alias.name for alias in node.names if alias.name in CLASSES]
            found += [node.module] if node.module in MODULES else []
            found += [alias.name for alias in node.names if f"{node.module}.{alias.name}" in MODULES]
            yield from (f"{node.lineno}: {name}" for name in found)
        elif isinstance(node, ast.Import):
            yield from (f"{node.lineno}: {alias.name}" for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.Name) and node.id in CLASSES:
            yield f"{node.lineno}: {node.id}"
        elif isinstance(node, ast.Attribute) and node.attr in CLASSES:
            yield f"{node.lineno}: {node.attr}"


def findings() -> dict[str, list[str]]:
    own = {f"{module.replace('.', '/')}.py" for module in MODULES}
    found = {}
    for path in sorted((ROOT / "factorized_moe").rglob("*.py")):
        if path.relative_to(ROOT).as_posix() not in own:
            names = list(names_in(path.read_text(encoding="utf-8")))
            if names:
                found[path.relative_to(ROOT / "factorized_moe").as_posix()] = names
    return found


def test_names_occur_only_where_there_is_a_reason() -> None:
    assert {path: names for path, names in findings().items() if path not in ALLOWED} == {}


def test_every_exception_is_needed() -> None:
    assert set(ALLOWED) == set(findings())


@pytest.mark.parametrize(
    "code",
    [
        "if name == 'tucker': pass",
        "table = {'LoRA': 1}",
        "match name:\n    case 'tt': pass",
        "from factorized_moe.decompositions import CP",
        "from factorized_moe.decompositions.cp import replicate_with_noise",
        "from factorized_moe.decompositions import tucker",
        "import factorized_moe.decompositions.cp",
        "isinstance(decomposition, base.TensorRing)",
        "isinstance(decomposition, Kronecker)",
        "def f(name='cp'): pass",
    ],
)
def test_a_name_is_found(code: str) -> None:
    assert list(names_in(code))


@pytest.mark.parametrize(
    "code",
    [
        '"""Takes "cp"."""\nx = 1  # as for "cp"',
        "def f(decomposition='cp', *, rank=1): 'tucker'",
        "def f(*, decomposition='cp'): pass",
        "class C:\n    decomposition: str = 'cp'",
        "help = 'a registered name; default: cp'",
    ],
)
def test_examples_and_defaults_are_no_names(code: str) -> None:
    assert not list(names_in(code))
