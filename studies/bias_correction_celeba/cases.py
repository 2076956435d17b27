"""What is predicted of faces, and for whom it is corrected."""

from __future__ import annotations

from studies.bias_correction.correcting import Case

__all__ = ["CASES", "MODELS"]

CASES = (
    Case("Young by sex", "Young", 1, None, False, ("not young", "young")),
    Case("Old women", "Young", 0, 0, True, ("young", "not young")),
    Case("Blond hair by sex", "Blond_Hair", 1, None, False, ("not blond", "blond")),
    Case("Blond men", "Blond_Hair", 1, 1, True, ("not blond", "blond")),
)
MODELS = ("linear", "two-layer linear", "CP")
