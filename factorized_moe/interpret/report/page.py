"""One HTML file with everything in it: the page's template, style and scripts, and the runs as JSON.

The page loads nothing and runs nothing but its own script: its content security policy names the script and the style
by their digests and allows no address but images in the page itself.
"""

from __future__ import annotations

import base64
import hashlib
import html
from importlib import resources
from pathlib import Path
from typing import Any

from factorized_moe._writing import write_files
from factorized_moe.interpret.report.comparison import match_experts
from factorized_moe.interpret.report.data import ReportData
from factorized_moe.interpret.report.encoding import script_json
from factorized_moe.interpret.report.payload import run_payload

__all__ = ["report_page", "write_report"]

SCRIPTS = (
    "elements.js",
    "data.js",
    "state.js",
    "charts.js",
    "inputs.js",
    "overview.js",
    "table.js",
    "expert.js",
    "compare.js",
    "export.js",
    "keyboard.js",
    "main.js",
)
"""In the order in which they define what the next ones use."""


def write_report(path: Path | str, data: ReportData, compare: ReportData | None = None) -> Path:
    """Write a report page: one file, to be opened in a browser, kept or sent.

    Args:
        path: The file; what was there is replaced. Missing folders are made.
        data: The run.
        compare: Another run to compare it with.

    Returns:
        The path.

    Raises:
        OSError: If the file cannot be written.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> data = ReportData(title="A run", layers=[])
        >>> with TemporaryDirectory() as folder:
        ...     write_report(Path(folder) / "report.html", data).name
        'report.html'
    """
    path = Path(path)
    write_files(path.parent, {path.name: report_page(data, compare).encode("ascii")})
    return path


def report_page(data: ReportData, compare: ReportData | None = None) -> str:
    """The report page as text, in ASCII.

    Args:
        data: The run.
        compare: Another run to compare it with.
    """
    runs = [data] if compare is None else [data, compare]
    payload: dict[str, Any] = {"runs": [run_payload(run) for run in runs]}
    if compare is not None:
        payload["matches"] = match_experts(data, compare)
    style = _read("style.css")
    script = "(() => {\n'use strict';\n" + "\n".join(map(_read, SCRIPTS)) + "\n})();\n"
    parts = {
        "title": html.escape(data.title),
        "policy": f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'",
        "style": style,
        "script": script,
        "data": script_json(payload),
    }
    page, *pieces = _read("template.html").split("{{")
    for piece in pieces:
        name, _, rest = piece.partition("}}")
        page += parts[name] + rest
    return page.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _read(name: str) -> str:
    return (resources.files(__package__) / "static" / name).read_text(encoding="ascii")


def _digest(content: str) -> str:
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
