"""Every registered decomposition keeps every law; one that is registered later is tested without an edit here."""

import pytest

from factorized_moe import available_decompositions
from factorized_moe.testing import DecompositionContract

pytestmark = pytest.mark.thorough

for name in available_decompositions():
    title = "Test" + name.title().replace("_", "")
    globals()[title] = type(title, (DecompositionContract,), {"decomposition": name, "__module__": __name__})
