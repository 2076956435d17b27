"""The pages of the example notebooks in docs/notebooks: `python -m benchmarks.notebook_pages`, a minute.

Executes each notebook of examples/notebooks, which are stored without outputs, and writes a page with its texts, its
code and its outputs: tables and drawings photographed with the system's Chromium, figures and printed text as they are.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "examples" / "notebooks"
PAGES = ROOT / "docs" / "notebooks"
WIDTH = 860
STYLE = (
    "<style>body { margin: 0; background: #fff; color: #222; font: 14px sans-serif }"
    "#output { display: inline-block; padding: 8px } table { border-collapse: collapse } p { margin: 4px 0 }"
    "td, th { padding: 2px 10px; border-bottom: 1px solid #ddd } caption { padding: 4px 10px }</style>"
)


def main() -> None:
    """Write all pages."""
    for notebook in sorted(NOTEBOOKS.glob("*.ipynb")):
        write_page(executed(notebook), page_of(notebook))


def page_of(notebook: Path) -> Path:
    """The page of a notebook."""
    return PAGES / f"{notebook.stem.replace('_', '-')}.md"


def executed(notebook: Path) -> Any:
    """A notebook with its outputs; the file is left as it is."""
    import nbformat
    from nbclient import NotebookClient

    content = nbformat.read(notebook, as_version=4)
    NotebookClient(content, timeout=300, kernel_name="python3").execute()
    return content


def write_page(content: Any, page: Path) -> None:
    """Write the page of an executed notebook, and its pictures beside it."""
    from playwright.sync_api import sync_playwright

    page.parent.mkdir(exist_ok=True)
    for old in page.parent.glob(f"{page.stem}-*.png"):
        old.unlink()
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        window = browser.new_page(viewport={"width": WIDTH, "height": 600})
        parts = list(_parts(content, page, window))
        browser.close()
    notebook = f"examples/notebooks/{page.stem.replace('-', '_')}.ipynb"
    parts.append(f"This is `{notebook}` of the repository, executed by `python -m benchmarks.notebook_pages`.")
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _parts(content: Any, page: Path, window: Any) -> Iterator[str]:
    pictures = 0
    for cell in content.cells:
        if cell.cell_type == "markdown":
            yield cell.source
            continue
        yield fenced(cell.source)
        printed = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
        if printed:
            yield f"```text\n{printed.rstrip()}\n```"
        for data in (output.data for output in cell.outputs if "data" in output):
            if (picture := _picture(data, window)) is None:
                yield f"```text\n{data['text/plain']}\n```"
                continue
            pictures += 1
            name = f"{page.stem}-{pictures}.png"
            (page.parent / name).write_bytes(picture)
            yield f"![What `{cell.source.splitlines()[-1]}` shows]({name})"
            print(f"{name}: {len(picture) / 1000:.0f} kB")


def fenced(source: str) -> str:
    """A cell's code; a page's blocks of `python` are run one by one as tests, these with the notebook."""
    return f"```ipython3\n{source}\n```"


def _picture(data: Any, window: Any) -> bytes | None:
    """An output as a PNG of few colours; None if it is text alone."""
    from PIL import Image

    if "image/png" in data:
        picture = base64.b64decode(data["image/png"])
    else:
        shown = data.get("text/html") or data.get("image/svg+xml")
        if shown is None:
            return None
        window.set_content(f'{STYLE}<div id="output">{shown}</div>')
        picture = window.locator("#output").screenshot()
    content = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as image:
        image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(content, "png", optimize=True)
    return content.getvalue()


if __name__ == "__main__":
    main()
