"""A loop over any model."""

from airlam.training.batches import GroupedSamples, GroupSampler, Sampler, Samples
from airlam.training.loop import CHECKPOINT_FOLDER, METRICS_FILE, fit
from airlam.training.metrics import Progress, TrainingSummary, read_metrics
from airlam.training.optimiser import learning_rate

__all__ = [
    "CHECKPOINT_FOLDER",
    "METRICS_FILE",
    "GroupSampler",
    "GroupedSamples",
    "Progress",
    "Sampler",
    "Samples",
    "TrainingSummary",
    "fit",
    "learning_rate",
    "read_metrics",
]
