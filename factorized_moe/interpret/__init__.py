"""What the experts of a trained layer do: measures of specialisation, from coefficients and predictions."""

from factorized_moe.interpret.finding import find_layers
from factorized_moe.interpret.interventions.attributing import attribute_to_experts
from factorized_moe.interpret.interventions.bonds import bond_contributions, scale_bond
from factorized_moe.interpret.interventions.counterfactuals import counterfactuals
from factorized_moe.interpret.interventions.editing import ExpertThreshold, choose_strength
from factorized_moe.interpret.interventions.intervening import InterventionHandle, intervene
from factorized_moe.interpret.interventions.kinds import (
    Ablate,
    Add,
    Bias,
    CoefficientIntervention,
    Force,
    Intervention,
    Scale,
    Swap,
)
from factorized_moe.interpret.interventions.tally import Counterfactuals
from factorized_moe.interpret.measures.activity import Load, measure_load
from factorized_moe.interpret.measures.coactivation import Coactivation, measure_coactivation
from factorized_moe.interpret.measures.consistency import Consistency, compare_duplicates, compare_recordings
from factorized_moe.interpret.measures.contributions import Contribution, expert_contributions
from factorized_moe.interpret.measures.fairness import GroupMeasures, balancing_weights, measure_groups
from factorized_moe.interpret.measures.histogram import Histogram, measure_histogram
from factorized_moe.interpret.measures.information import LabelInformation, measure_label_information
from factorized_moe.interpret.measures.inner_products import distance, inner
from factorized_moe.interpret.measures.labelling import (
    LabelCounts,
    LabelSpecialisation,
    count_labels,
    measure_label_specialisation,
)
from factorized_moe.interpret.measures.measurement import Measurement
from factorized_moe.interpret.measures.nulls import BesideNull
from factorized_moe.interpret.measures.polysemanticity import Polysemanticity, PolysemanticitySummary
from factorized_moe.interpret.measures.probing import LabelProbes, probe_labels
from factorized_moe.interpret.measures.ranking import TopExperts, TopSamples, find_top_experts, find_top_samples
from factorized_moe.interpret.measures.sampling import ActiveSamples, sample_active
from factorized_moe.interpret.measures.specialisation import class_accuracy, class_level_polysemanticity
from factorized_moe.interpret.measures.spectra import (
    ExpertSimilarity,
    ExpertSpectra,
    measure_similarity,
    measure_spectra,
)
from factorized_moe.interpret.measures.usage import (
    ModeUsage,
    Usage,
    UsageWatcher,
    experts_in_use,
    measure_usage,
    watch_usage,
)
from factorized_moe.interpret.measures.vocabulary import WrittenTokens, average_inputs, find_written_tokens
from factorized_moe.interpret.recording.chunks import Annotations, Chunk
from factorized_moe.interpret.recording.label_sets import LabelSet
from factorized_moe.interpret.recording.opening import open_recording
from factorized_moe.interpret.recording.recorder import Recorder, record
from factorized_moe.interpret.recording.recording import Recording

__all__ = [
    "Ablate",
    "ActiveSamples",
    "Add",
    "Annotations",
    "BesideNull",
    "Bias",
    "Chunk",
    "Coactivation",
    "CoefficientIntervention",
    "Consistency",
    "Contribution",
    "Counterfactuals",
    "ExpertSimilarity",
    "ExpertSpectra",
    "ExpertThreshold",
    "Force",
    "GroupMeasures",
    "Histogram",
    "Intervention",
    "InterventionHandle",
    "LabelCounts",
    "LabelInformation",
    "LabelProbes",
    "LabelSet",
    "LabelSpecialisation",
    "Load",
    "Measurement",
    "ModeUsage",
    "Polysemanticity",
    "PolysemanticitySummary",
    "Recorder",
    "Recording",
    "Scale",
    "Swap",
    "TopExperts",
    "TopSamples",
    "Usage",
    "UsageWatcher",
    "WrittenTokens",
    "attribute_to_experts",
    "average_inputs",
    "balancing_weights",
    "bond_contributions",
    "choose_strength",
    "class_accuracy",
    "class_level_polysemanticity",
    "compare_duplicates",
    "compare_recordings",
    "count_labels",
    "counterfactuals",
    "distance",
    "expert_contributions",
    "experts_in_use",
    "find_layers",
    "find_top_experts",
    "find_top_samples",
    "find_written_tokens",
    "inner",
    "intervene",
    "measure_coactivation",
    "measure_groups",
    "measure_histogram",
    "measure_label_information",
    "measure_label_specialisation",
    "measure_load",
    "measure_similarity",
    "measure_spectra",
    "measure_usage",
    "open_recording",
    "probe_labels",
    "record",
    "sample_active",
    "scale_bond",
    "watch_usage",
]
