"""What the constructors of all flows check."""

from __future__ import annotations

from collections.abc import Sequence

from quarflow.nn.lipschitz import MAX_COEFF

__all__ = ["check_sigma", "check_sizes"]


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


def check_sigma(sigma: float) -> None:
    """Refuse bounds on the norms of layers that do not make a contraction.

    Raises:
        ValueError: if it is not in (0, 1), or so close to 1 that rounding matters.
    """
    if not 0 < sigma <= MAX_COEFF:
        raise ValueError(f"sigma must be above 0 and at most {MAX_COEFF}, not {sigma}.")
