"""What the experts of a trained layer do: measures of specialisation, from coefficients and predictions."""

from factorized_moe.interpret.specialisation import (
    ExpertLoad,
    Polysemanticity,
    class_accuracy,
    class_level_polysemanticity,
    counterfactual_outputs,
    expert_load,
)

__all__ = [
    "ExpertLoad",
    "Polysemanticity",
    "class_accuracy",
    "class_level_polysemanticity",
    "counterfactual_outputs",
    "expert_load",
]
