"""Training by maximum likelihood: resumable, stoppable, with averaged weights."""

from quarflow.training.checkpoint import CheckpointError, has_checkpoint, remove_checkpoint
from quarflow.training.events import Event, Listener
from quarflow.training.interrupt import StopSignals
from quarflow.training.learner import NegativeLogLikelihood
from quarflow.training.lock import LockedError, locked
from quarflow.training.loop import train
from quarflow.training.progress import TrainingProgress
from quarflow.training.rows import Plan, Rows
from quarflow.training.settings import TrainingError, TrainingResult, TrainingSettings

__all__ = [
    "CheckpointError",
    "Event",
    "Listener",
    "LockedError",
    "NegativeLogLikelihood",
    "Plan",
    "Rows",
    "StopSignals",
    "TrainingError",
    "TrainingProgress",
    "TrainingResult",
    "TrainingSettings",
    "has_checkpoint",
    "locked",
    "remove_checkpoint",
    "train",
]
