"""What the constructors of all flows check."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["check_sizes"]


def check_sizes(
    features: int, context: int, transforms: int, hidden_features: Sequence[int] | None = None
) -> None:
    """Refuse sizes that no flow can have.

    Raises:
        ValueError: if there is no feature, no transform or no hidden layer.
    """
    if features < 1:
        raise ValueError(f"features must be at least 1, not {features}.")
    if context < 0:
        raise ValueError(f"context must be at least 0, not {context}.")
    if transforms < 1:
        raise ValueError(f"transforms must be at least 1, not {transforms}.")
    if hidden_features is not None and (not hidden_features or min(hidden_features) < 1):
        raise ValueError(
            f"hidden_features must be one or more positive widths, not {tuple(hidden_features)}."
        )
