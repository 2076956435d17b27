"""What the experts of a trained layer do: measures of specialisation, from coefficients and predictions."""

from factorized_moe.interpret.chunks import Annotations, Chunk, StoredChunk
from factorized_moe.interpret.finding import find_layers
from factorized_moe.interpret.interventions import (
    Ablate,
    Add,
    Bias,
    CoefficientIntervention,
    Force,
    Intervention,
    InterventionHandle,
    Scale,
    Swap,
    intervene,
)
from factorized_moe.interpret.recorder import Recorder, record
from factorized_moe.interpret.recording import Recording, open_recording
from factorized_moe.interpret.rows import Rows
from factorized_moe.interpret.specialisation import (
    ExpertLoad,
    Polysemanticity,
    class_accuracy,
    class_level_polysemanticity,
    counterfactual_outputs,
    expert_load,
)

__all__ = [
    "Ablate",
    "Add",
    "Annotations",
    "Bias",
    "Chunk",
    "CoefficientIntervention",
    "ExpertLoad",
    "Force",
    "Intervention",
    "InterventionHandle",
    "Polysemanticity",
    "Recorder",
    "Recording",
    "Rows",
    "Scale",
    "StoredChunk",
    "Swap",
    "class_accuracy",
    "class_level_polysemanticity",
    "counterfactual_outputs",
    "expert_load",
    "find_layers",
    "intervene",
    "open_recording",
    "record",
]
