"""MkDocs hook: a public name in code font, such as `MuMoE`, becomes a link to its entry in the reference.

In the reference every mention links, since entries are read one at a time; in a guide the first on each page does.
"""

import importlib
import pkgutil
import re
from functools import cache
from types import ModuleType
from typing import Any

import factorized_moe

UNTOUCHED = re.compile(r"<(pre|a|h[1-6]|figure|svg|autoref)\b.*?</\1>", re.DOTALL)
HEADING = re.compile(r'(?P<tag><span class="doc doc-object-name [\w -]*">)(?P<name>[\w.]+)</span>')
CODE = re.compile(r"<code>(?P<name>[A-Za-z_]\w*)(?P<call>\(\))?</code>")
INNER = ("interpret.report", "interpret.report.plots")


def _modules() -> list[ModuleType]:
    found = [m.name for m in pkgutil.iter_modules(factorized_moe.__path__, "factorized_moe.")]
    names = [name for name in found if not name.rpartition(".")[2].startswith("_")]
    return [importlib.import_module(name) for name in [*names, *(f"factorized_moe.{inner}" for inner in INNER)]]


@cache
def identifiers() -> dict[str, str]:
    """Where each public name is, if it stands for one object only and cannot be taken for an ordinary word.

    A name that the package itself offers stands for that object; `factorized_moe.compat` has a `MuMoE` of its own.
    """
    homes: dict[str, list[tuple[int, str]]] = {}
    for module in _modules():
        for name in module.__all__:
            homes.setdefault(name, []).append((id(getattr(module, name)), f"{module.__name__}.{name}"))
    for name in factorized_moe.__all__:
        whole = id(getattr(factorized_moe, name))
        homes[name] = [place for place in homes.get(name, []) if place[0] == whole]
    return {
        name: places[0][1]
        for name, places in homes.items()
        if len({identity for identity, _ in places}) == 1 and (not name.islower() or "_" in name)
    }


def linked(page_html: str, every: bool) -> str:
    """The page with its names as cross-references; what is code, a heading or a link already stays as it is."""
    seen: set[str] = set()

    def link(found: re.Match[str]) -> str:
        name = found["name"]
        target = identifiers().get(name)
        if target is None or (name in seen and not every):
            return found[0]
        seen.add(name)
        return f'<autoref identifier="{target}" optional>{found[0]}</autoref>'

    parts, end = [], 0
    for kept in UNTOUCHED.finditer(page_html):
        parts += [CODE.sub(link, page_html[end : kept.start()]), kept[0]]
        end = kept.end()
    return "".join([*parts, CODE.sub(link, page_html[end:])])


def breakable(page_html: str) -> str:
    """Let long names in headings break after a dot, on narrow screens."""
    return HEADING.sub(lambda found: f"{found['tag']}{found['name'].replace('.', '.<wbr>')}</span>", page_html)


def on_page_content(page_html: str, page: Any, **_: Any) -> str:
    """Link the names of a page; the plug-in for cross-references finds their addresses when all pages are there."""
    return breakable(linked(page_html, every=page.file.src_uri.startswith("api/")))
