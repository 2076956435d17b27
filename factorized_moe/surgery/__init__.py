"""Layers of experts in existing models: started from pretrained weights, put in place, distilled, saved and loaded."""

from factorized_moe.surgery.config import MuMoEConfig
from factorized_moe.surgery.distillation.capturing import Call, capture, output_error
from factorized_moe.surgery.distillation.covariances import ExpertCovariances, collect_covariances
from factorized_moe.surgery.distillation.distillation_settings import DistillationSettings, DistillationStep
from factorized_moe.surgery.distillation.distilling import distill
from factorized_moe.surgery.factorizing import ExpertsReport, FactorizedExperts, factorize_experts
from factorized_moe.surgery.replacing.delta import MuMoEDelta
from factorized_moe.surgery.replacing.layouts import LAYOUTS, MLPLayout, register_layout
from factorized_moe.surgery.replacing.nonlinearities import register_nonlinearity
from factorized_moe.surgery.replacing.replacement import Replacement, ReplacementReport, replace
from factorized_moe.surgery.replacing.targets import is_mlp
from factorized_moe.surgery.replacing.timm_layer import timm_mlp_layer
from factorized_moe.surgery.replacing.upcycling import Upcycled, upcycle
from factorized_moe.surgery.saving.saving import from_pretrained, load, save, save_pretrained

__all__ = [
    "LAYOUTS",
    "Call",
    "DistillationSettings",
    "DistillationStep",
    "ExpertCovariances",
    "ExpertsReport",
    "FactorizedExperts",
    "MLPLayout",
    "MuMoEConfig",
    "MuMoEDelta",
    "Replacement",
    "ReplacementReport",
    "Upcycled",
    "capture",
    "collect_covariances",
    "distill",
    "factorize_experts",
    "from_pretrained",
    "is_mlp",
    "load",
    "output_error",
    "register_layout",
    "register_nonlinearity",
    "replace",
    "save",
    "save_pretrained",
    "timm_mlp_layer",
    "upcycle",
]
