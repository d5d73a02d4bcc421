"""What is compared: how each model is made, scored and sampled from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["OURS", "TRANSFORMS", "Contestant", "default_width"]

TRANSFORMS = 8
TOLERANCE = 1e-5  # of samples


def default_width(features: int) -> int:
    """Hidden width that the estimator would take: it sets the number of weights of all models.

    Example:
        >>> default_width(8), default_width(512)
        (128, 1024)
    """
    return max(128, 2 * features)


def _as_it_is(model: Any) -> Any:
    return model


def _flow_log_prob(bound: Any, x: Tensor) -> Tensor:
    return bound.log_prob(x)


def _flow_loss(model: nn.Module, x: Tensor) -> Tensor:
    return -model().log_prob(x).mean()


def _flow_sample(bound: Any, number: int) -> Tensor:
    return bound.sample((number,))


@dataclass(frozen=True)
class Contestant:
    """One model of a library, over vectors, without context.

    Attributes:
        name: As the tables show it.
        library: Module to import; models of one library share a process.
        build: (features, width) -> a module with fresh weights.
        bind: From the module to what scores and samples, once for many batches.
        loss: (module, x (N, D)) -> mean nats, differentiable.
        log_prob: (bound, x (N, D)) -> (N).
        sample: (bound, N) -> (N, D), at a tolerance of 1e-5 where there is one to set.
        more: Further kinds of sampling, by the name of the quantity.
        prepare: (module, x), once before training.
        after_step: What the library requires after each step of the optimiser.
        width: The width by the number of features, if it is not matched in weights.
        compiled: Whether the loss goes through ``torch.compile``.
    """

    name: str
    library: str
    build: Callable[[int, int], nn.Module]
    bind: Callable[[Any], Any] = _as_it_is
    loss: Callable[[Any, Tensor], Tensor] = _flow_loss
    log_prob: Callable[[Any, Tensor], Tensor] = _flow_log_prob
    sample: Callable[[Any, int], Tensor] = _flow_sample
    more: dict[str, Callable[[Any, int], Tensor]] = field(default_factory=dict)
    prepare: Callable[[Any, Tensor], Any] | None = None
    after_step: Callable[[Any], Any] | None = None
    width: Callable[[int], int] | None = None
    compiled: bool = False


def _quar(features: int, width: int) -> nn.Module:
    from quarflow import QuAR

    return QuAR(features, transforms=TRANSFORMS, hidden_features=(width, width))


def _residual(features: int, width: int) -> nn.Module:
    from quarflow import ResidualFlow

    return ResidualFlow(features, transforms=TRANSFORMS, hidden_features=(width, width))


def _at_tolerance(distribution: Any, number: int) -> Tensor:
    """Samples whose steps are inverted, in float32, to a residual of 1e-5."""
    from copy import copy

    from quarflow.transforms import Composed

    steps = []
    for step in distribution.transform.transforms:
        if hasattr(step, "solver"):
            step = copy(step)
            step.solver = {**step.solver, "tolerance": TOLERANCE}
        steps.append(step)

    return Composed(steps).inv(distribution.base.sample((number,)))


def _initialize(model: Any, x: Tensor) -> None:
    model.initialize(x)


def _call(model: Any) -> Any:
    return model()


def _ours(name: str, build: Callable[[int, int], nn.Module], **options: Any) -> Contestant:
    return Contestant(
        name,
        "quarflow",
        build,
        bind=_call,
        sample=_at_tolerance,
        more={"sample (default)": _flow_sample},
        prepare=_initialize,
        **options,
    )


OURS: tuple[Contestant, ...] = (
    _ours("QuAR", _quar),
    _ours("ResidualFlow", _residual),
    # Two units per dimension whatever D is: this is how cost grows with D alone.
    _ours("QuAR (k = 2)", _quar, width=lambda features: 2 * features),
    _ours("QuAR (compiled)", _quar, compiled=True),
)
