"""The conformance suite: the laws that every decomposition must keep, as tests for pytest and hypothesis.

A decomposition of your own is held to every law by two lines in a test file; the class's name starts with `Test`, so
that pytest collects it:

```python
class TestMine(DecompositionContract):
    decomposition = MyDecomposition()
```

The suite needs pytest and hypothesis: `pip install 'factorized-moe[conformance]'`.
"""

try:
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
except ImportError as missing:
    raise ImportError(
        f"factorized_moe.testing needs {missing.name}, which is not installed; "
        "install the suite's requirements with: pip install 'factorized-moe[conformance]'"
    ) from missing

from factorized_moe.testing.contract import LAWS, DecompositionContract, Law
from factorized_moe.testing.network_check import LawResult, NetworkReport, check_network
from factorized_moe.testing.oracles import contract_dense, count_flops, dense_from_nodes, least_costs, plan_cost
from factorized_moe.testing.strategies import Structure, draw_rank, networks, structures

__all__ = [
    "LAWS",
    "DecompositionContract",
    "Law",
    "LawResult",
    "NetworkReport",
    "Structure",
    "check_network",
    "contract_dense",
    "count_flops",
    "dense_from_nodes",
    "draw_rank",
    "least_costs",
    "networks",
    "plan_cost",
    "structures",
]
