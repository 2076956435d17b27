"""The demonstration: an image classifier with a head of experts, trained beside a linear and a dense head.

``factorized-moe demo`` runs it; `load_model` rebuilds the classifier from the folder it writes.
"""

from factorized_moe.demo.job import DemoOptions, DemoReport, HeadReport, ModeReport, run_demo
from factorized_moe.demo.results import LoadedModel, load_model

__all__ = ["DemoOptions", "DemoReport", "HeadReport", "LoadedModel", "ModeReport", "load_model", "run_demo"]
