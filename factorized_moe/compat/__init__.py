"""The names, arguments and checkpoints of the released uMoE code, computed by this library.

Only the import line changes: `from MMoE import CPMMoE, TuckerMMoE, TTMMoE` (the first release, v1) and `from MuMoE
import MuMoE, CPMuMoE, TRMuMoE` (the NeurIPS version) become imports from `factorized_moe.compat`. Parameters have the
released names and layouts (`factors.K`, `core`, `projs.K`, `bn.K.*`, `MuMoE.factors.K`, `input_ln.*`) in the released
order, so released state dicts load as they are, and so do the states of their optimisers. Initial values have the
distributions of the released code's, by each release's own rules; the same seed gives other values, because random
numbers are drawn in another order. `to_native()` copies a layer into a native one.

What differs, each time where the released code fails or surprises:

- The output keeps the input's leading shape. The released NeurIPS version gives a 2-D input a 3-D output, and v1 drops
  a token axis of length 1.
- There may be any number of expert modes; v1 stops at four, the NeurIPS version at two.
- Arguments that contradict each other raise `ValueError`.
- A Tucker layer without bias has `input_dim` rows in its input factor. The released one always has one row more, and
  without bias every call of it fails.
- `forward` stores nothing: `coefficients(x)` gives what the NeurIPS version leaves in an attribute `a`.

Source: Oldfield et al., "Multilinear Mixture of Experts: Scalable Expert Specialization through Factorization",
NeurIPS 2024, arXiv 2402.12550.

Examples:
    >>> import torch
    >>> layer = CPMMoE(4, 8, expert_dims=[32], rank=6)
    >>> {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}
    {'factors.0': (32, 6), 'factors.1': (5, 6), 'factors.2': (8, 6), 'projs.0': (4, 32)}
    >>> x = torch.randn(5, 4)
    >>> torch.allclose(layer.to_native().eval()(x), layer.eval()(x))
    True
"""

from factorized_moe.compat.neurips import CPMuMoE, MuMoE, TRMuMoE
from factorized_moe.compat.v1 import CPMMoE, TTMMoE, TuckerMMoE

__all__ = ["CPMMoE", "CPMuMoE", "MuMoE", "TRMuMoE", "TTMMoE", "TuckerMMoE"]
