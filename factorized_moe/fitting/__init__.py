"""From a dense tensor to a decomposition's parameters: TensorLy's algorithms, least squares for any network."""

from factorized_moe.fitting.approximation import fit
from factorized_moe.fitting.bounds import error_bound
from factorized_moe.fitting.least_squares import alternating_least_squares
from factorized_moe.fitting.result import Fit

__all__ = ["Fit", "alternating_least_squares", "error_bound", "fit"]
