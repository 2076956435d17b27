"""Put factorised experts into existing models, and train them to do what the original did."""

from factorized_moe.surgery.experts import ExpertsReport, FactorizedExperts, factorize_experts

__all__ = ["ExpertsReport", "FactorizedExperts", "factorize_experts"]
