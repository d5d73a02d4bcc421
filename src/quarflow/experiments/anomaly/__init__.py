"""Finding anomalies: quarflow against what people use for it, over sets with known answers."""

from quarflow.experiments.anomaly.run import compare
from quarflow.experiments.anomaly.tables import show, text_of

__all__ = ["compare", "show", "text_of"]
