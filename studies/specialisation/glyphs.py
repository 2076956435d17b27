"""256 kanji in forty real faces, as features of a trained reader of characters.

The faces are Debian's; the reader is PP-OCRv4's recogniser (Apache-2.0), from a package whose digest is kept beside
this file. Each kanji is drawn once in every face, slightly turned, stretched, moved, blurred and with noise; half of
its faces, drawn for each kanji, are for training and the others for the test, so a kanji is never tested in a face that
it was trained in.

Legend: ``n`` pictures, ``D`` features.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from studies.real_models.sources import Source, unpack

__all__ = ["FACES", "NUMBER", "characters", "draw", "faces_of", "features", "find_faces", "pictures"]

HERE = Path(__file__).parent
READER = Source("PP-OCRv4, recognition", "rapidocr_onnxruntime", "rapidocr_onnxruntime/models", "Apache-2.0")
READER_OUTPUT = "transpose_51.tmp_0"
"""What the reader's last matrix multiplies, ``(n, 6, 120)`` for a square picture."""

FACES = tuple(tuple(line.split()) for line in (HERE / "faces.txt").read_text(encoding="utf-8").splitlines())
"""Debian packages, and the file of a face in each."""
NUMBER = 256
SIDE = 48
"""Pixels: the height that the reader takes."""


def find_faces(folder: Path) -> list[Path]:
    """The files of `FACES`: installed ones, or unpacked from packages that ``apt-get download`` fetches (130 MB).

    Args:
        folder: Where packages are kept.

    Raises:
        FileNotFoundError: If a face is not installed and cannot be downloaded.
    """
    kept = folder / "fonts"
    places = [Path("/usr/share"), kept / "usr/share"]
    for package in sorted({package for package, file in FACES if not any((place / file).exists() for place in places)}):
        kept.mkdir(parents=True, exist_ok=True)
        if not list(kept.glob(f"{package}_*.deb")):
            subprocess.run(["apt-get", "download", "-q", package], cwd=kept, check=False, capture_output=True)
        for archive in kept.glob(f"{package}_*.deb"):
            subprocess.run(["dpkg", "-x", archive.name, "."], cwd=kept, check=True)
    found = [next((place / file for place in places if (place / file).exists()), None) for _, file in FACES]
    missing = sorted({package for (package, _), place in zip(FACES, found, strict=True) if place is None})
    if missing:
        raise FileNotFoundError(f"faces are missing; install Debian's {' '.join(missing)}")
    return [place for place in found if place is not None]


def characters(folder: Path) -> str:
    """The kanji: at equal distances among those of JIS X 0208's first level that every face has, by their radicals.

    Args:
        folder: Where packages are kept.
    """
    file = folder / "kanji.txt"
    if not file.exists():
        from fontTools.ttLib import TTFont

        common = {ord(sign) for sign in _first_level()}
        for face in find_faces(folder):
            common &= set(TTFont(face, fontNumber=0, lazy=True).getBestCmap())
        ordered = sorted(common)  # Unicode's order is that of radicals
        places = np.linspace(0, len(ordered) - 1, NUMBER).round().astype(int)
        file.write_text("".join(chr(ordered[place]) for place in places), encoding="utf-8")
    return file.read_text(encoding="utf-8")


def _first_level() -> list[str]:
    found = []
    for row in range(0xB0, 0xD0):
        for column in range(0xA1, 0xFF):
            try:
                found.append(bytes([row, column]).decode("euc_jp"))
            except UnicodeDecodeError:  # the last row is not full
                continue
    return found


def faces_of(kanji: int, faces: int) -> tuple[list[int], list[int]]:
    """The faces that a kanji is trained and tested in, a half each.

    Args:
        kanji: Its number.
        faces: How many faces there are.
    """
    order = np.random.default_rng(kanji).permutation(faces).tolist()
    return sorted(order[: faces // 2]), sorted(order[faces // 2 :])


def draw(sign: str, face: Path, seed: Sequence[int], side: int = SIDE) -> np.ndarray:
    """One picture of a sign, black on white, ``(side, side)``, from 0 to 255.

    Args:
        sign: A character.
        face: The file of a face.
        seed: The seed of what is done to the picture.
        side: Pixels.
    """
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    generator = np.random.default_rng(list(seed))
    canvas = Image.new("L", (2 * side, 2 * side), 255)
    font = ImageFont.truetype(str(face), int(1.5 * side))
    ImageDraw.Draw(canvas).text((side, side), sign, font=font, fill=0, anchor="mm")
    angle, shear = generator.normal(0, 0.06, 2)
    scale = np.exp(generator.normal(0, 0.07, 2))
    moved = generator.normal(0, 0.04 * side, 2)
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.array([[cos, -sin + shear], [sin, cos]]) * scale[:, None]
    offset = side - matrix @ np.array([side, side]) + moved
    canvas = canvas.transform(
        canvas.size,
        Image.Transform.AFFINE,
        (*matrix[0], offset[0], *matrix[1], offset[1]),
        fillcolor=255,
        resample=Image.Resampling.BILINEAR,
    )
    canvas = canvas.filter(ImageFilter.GaussianBlur(float(generator.uniform(0, 1.6)))).resize((side, side))
    noisy = np.asarray(canvas, dtype=np.float32) + generator.normal(0, generator.uniform(0, 25), (side, side))
    return np.asarray(noisy.clip(0, 255).astype(np.uint8))


def pictures(part: int, faces: int) -> list[tuple[int, int]]:
    """The number of each picture's kanji and face, in order.

    Args:
        part: 0 for training, 1 for the test.
        faces: How many faces there are.
    """
    return [(kanji, face) for kanji in range(NUMBER) for face in faces_of(kanji, faces)[part]]


def features(folder: Path) -> dict[str, Tensor]:
    """Features ``(n, D)`` and labels of the training and the test pictures; made once, in some minutes, and kept.

    Args:
        folder: Where packages and features are kept.
    """
    file = folder / "glyphs.safetensors"
    if not file.exists():
        signs, faces = characters(folder), find_faces(folder)
        session = _reader(folder)
        found: dict[str, Tensor] = {}
        for part, title in enumerate(("train", "test")):
            chosen = pictures(part, len(faces))
            rows = []
            for start in range(0, len(chosen), 64):
                drawn = [draw(signs[k], faces[face], (k, face)) for k, face in chosen[start : start + 64]]
                rows.append(torch.from_numpy(_read(session, np.stack(drawn))))
            found[title] = torch.cat(rows)
            found[f"{title}_labels"] = torch.tensor([k for k, _ in chosen])
        partial = file.with_suffix(".partial")
        save_file(found, partial)
        partial.replace(file)
    return load_file(file)


def _reader(folder: Path) -> Any:
    """The reader, with the features as an output."""
    import onnx
    import onnxruntime

    model = onnx.load(unpack(READER, folder, HERE / "packages.txt") / "ch_PP-OCRv4_rec_infer.onnx")
    model.graph.output.append(onnx.helper.make_tensor_value_info(READER_OUTPUT, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _read(session: Any, drawn: np.ndarray) -> np.ndarray:
    """The reader's features of all columns of each picture, ``(n, D)``."""
    inputs = np.repeat(drawn[:, None].astype(np.float32) / 127.5 - 1.0, 3, axis=1)
    (found,) = session.run([READER_OUTPUT], {"x": inputs})
    return np.asarray(found.reshape(len(found), -1), dtype=np.float32)
