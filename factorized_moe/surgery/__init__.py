"""Layers of experts in existing models: started from pretrained weights, put in place, saved and loaded."""

from factorized_moe.surgery.config import MuMoEConfig
from factorized_moe.surgery.delta import MuMoEDelta
from factorized_moe.surgery.layouts import LAYOUTS, MLPLayout, register_layout
from factorized_moe.surgery.replacement import Replacement, ReplacementReport, replace
from factorized_moe.surgery.targets import is_mlp
from factorized_moe.surgery.upcycling import Upcycled, upcycle

__all__ = [
    "LAYOUTS",
    "MLPLayout",
    "MuMoEConfig",
    "MuMoEDelta",
    "Replacement",
    "ReplacementReport",
    "Upcycled",
    "is_mlp",
    "register_layout",
    "replace",
    "upcycle",
]
