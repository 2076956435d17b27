"""The package's tests: every law of the conformance suite, for the decomposition by its name."""

from factorized_moe.testing import DecompositionContract


class TestTucker2(DecompositionContract):
    decomposition = "tucker2"
