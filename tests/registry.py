"""One line per transform and per flow; tests/test_truths.py and test_flows.py go over them all.

A flow family is a line of ``FAMILIES``, from which the cases of its step, of it, and of it with a
context follow, or of ``IMAGE_FAMILIES``. Further cases: ``TRANSFORMS["name"] =
TransformCase(constructor, features)`` or ``FLOWS["name"] = FlowCase(constructor, features)``.
Constructors take no argument and are called after ``torch.manual_seed``; they give float64 objects
with random, not too tame, weights.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch

import page
from quarflow import flows
from quarflow.data.columns import Column, Columns
from quarflow.density.data_units import DataUnits
from quarflow.flows import QuAR
from quarflow.flows.flow import FlowDistribution
from quarflow.nn import ACTIVATIONS, MADE, Branch, ConvBranch, LipschitzConvNet, LipschitzMLP
from quarflow.transforms import (
    Affine,
    AutoregressiveStep,
    Composed,
    Flatten,
    Inverse,
    LinearLU,
    LinearTriangular,
    LogDet,
    Logit,
    MultiScale,
    Permutation,
    QuARStep,
    ResidualStep,
)

__all__ = ["FLOWS", "SMALL", "TRANSFORMS", "FlowCase", "TransformCase", "branch", "shaken"]


@dataclass(frozen=True)
class TransformCase:
    """A transform: its constructor, and what may be expected of it.

    triangular: "lower" or "upper" Jacobian, or None.
    through_inverse: test points are taken from the codomain (the domain is not all of R^D).
    cast: the same transform in a given dtype, where it can be had.
    """

    make: Callable[[], Any]
    features: int
    triangular: str | None = None
    through_inverse: bool = False
    cast: Callable[[torch.dtype], Any] | None = None

    def build(self):
        torch.manual_seed(1)
        with torch.no_grad():
            return self.make()

    def points(self, transform, *batch, scale=1.5):
        x = scale * torch.randn(*batch, self.features, dtype=torch.float64)

        return transform.inv(x) if self.through_inverse else x


@dataclass(frozen=True)
class FlowCase:
    """A flow: its constructor (with weights), number of features and of context variables.

    columns: whether the data are in data units (float64 in, whatever the dtype of the weights).
    inside: whether densities are only on a part of R^D, so that points are samples.
    """

    make: Callable[[], Any]
    features: int
    context: int = 0
    columns: bool = False
    inside: bool = False

    def build(self):
        torch.manual_seed(1)

        return self.make()

    def points(self, flow, *batch):
        """Values, and a context or None."""
        c = self.contexts(*batch)
        if self.columns or self.inside:
            with torch.no_grad():
                return (flow().sample(batch) if c is None else flow(c).sample()), c
        return 1.5 * torch.randn(*batch, self.features, dtype=torch.float64), c

    def contexts(self, *batch):
        return torch.randn(*batch, self.context, dtype=torch.float64) if self.context else None


def shaken(module, size=0.4):
    """The module in float64, every parameter moved: nothing is at its tame initial value."""
    module = module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(size * torch.randn_like(p))

    return module


def branch(features=3, hidden=(8, 8), reverse=False, context=0, **options):
    """One bound branch, float64, context of shape (C)."""
    c = torch.randn(context, dtype=torch.float64) if context else None
    made = shaken(Branch(features, hidden, [reverse], context, **options))

    return made.bind(c)[0]


def _step(**options):
    return QuARStep(branch(**options))


def _composed(dtype=torch.float64):
    torch.manual_seed(2)
    D = 3
    parts = shaken(Branch(D, (9,), [False, True])).to(dtype).bind()
    shift, log_scale = torch.randn(2, D, dtype=dtype)

    return Composed(
        [
            Affine(shift, log_scale),
            QuARStep(parts[0]),
            Permutation(torch.tensor([1, 2, 0])),
            _linear(D, dtype),
            QuARStep(parts[1]),
        ]
    )


def _affine(D=3, dtype=torch.float64):
    return Affine(torch.randn(D, dtype=dtype), torch.randn(D, dtype=dtype))


def _linear(D=4, dtype=torch.float64):
    return LinearLU(
        torch.randn(D, D, dtype=dtype),
        torch.randn(D, D, dtype=dtype),
        torch.randn(D, dtype=dtype),
    )


def _triangular(D=4, dtype=torch.float64):
    return LinearTriangular(
        torch.randn(D, D, dtype=dtype),
        torch.randn(D, dtype=dtype),
        torch.randn(D, dtype=dtype),
    )


COLUMNS = (
    Column(name="plain", mean=3.0, scale=2.0),
    Column(name="whole", step=1.0, grid=1.0, mean=3.0, scale=2.0),
    Column(name="lower", lower=1.0, mean=0.5, scale=0.7),
    Column(name="upper", upper=4.0, mean=0.5, scale=0.7),
    Column(name="both", lower=-1.0, upper=2.0, mean=0.3, scale=1.4),
    Column(name="tails", center=0.5, spread=0.1, mean=0.2, scale=1.5),
    Column(name="lower tails", lower=0.0, center=-1.0, spread=0.4, mean=0.2, scale=0.6),
)

TRANSFORMS: dict[str, TransformCase] = {
    "affine": TransformCase(_affine, 3, "lower", cast=lambda t: _affine(dtype=t)),
    "affine 1": TransformCase(partial(_affine, 1), 1, "upper", cast=lambda t: _affine(1, t)),
    "permutation": TransformCase(
        lambda: Permutation(torch.tensor([2, 0, 1])),
        3,
        cast=lambda _: Permutation(torch.tensor([2, 0, 1])),
    ),
    "linear": TransformCase(_linear, 4, cast=lambda t: _linear(dtype=t)),
    "triangular": TransformCase(_triangular, 4, "lower", cast=lambda t: _triangular(dtype=t)),
    "composed": TransformCase(_composed, 3, cast=_composed),
    "composed nothing": TransformCase(
        lambda: Composed([]), 2, "lower", cast=lambda _: Composed([])
    ),
    "inverse affine": TransformCase(
        lambda: Inverse(_affine()), 3, "lower", cast=lambda t: Inverse(_affine(dtype=t))
    ),
    "inverse linear": TransformCase(lambda: Inverse(_linear()), 4),
    "inverse step": TransformCase(lambda: Inverse(_step()), 3, "lower"),
    "inverse composed": TransformCase(lambda: Inverse(_composed()), 3),
    "columns": TransformCase(
        lambda: Columns(COLUMNS).transform(), len(COLUMNS), "lower", through_inverse=True
    ),
    "inverse columns": TransformCase(
        lambda: Columns(COLUMNS).transform().inv, len(COLUMNS), "lower"
    ),
}
for _norm, _activation, _reverse, _context in product(
    ("dimension", "operator"), ACTIVATIONS, (False, True), (0, 2)
):
    _options = {
        "norm": _norm,
        "activation": _activation,
        "reverse": _reverse,
        "context": _context,
    }
    TRANSFORMS[
        f"step {_norm} {_activation}{' reversed' * _reverse}{' context' * (_context > 0)}"
    ] = TransformCase(partial(_step, **_options), 3, "upper" if _reverse else "lower")
for _name, _options in {
    "1 feature": {"features": 1, "hidden": (6, 5)},
    "one hidden layer": {"features": 4, "hidden": (8,)},
    "one unit per dimension": {"features": 5, "hidden": (5, 5, 5)},
    "four hidden layers": {"features": 2, "hidden": (6, 4, 8, 6)},
    "no trick": {"features": 3, "trick": False},
    "sigma 0.9999": {"features": 3, "sigma": 0.9999},
}.items():
    TRANSFORMS[f"step {_name}"] = TransformCase(
        partial(_step, **_options), _options["features"], "lower"
    )


def _numbers(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def _residual(D=3, hidden=(8, 8), context=0, **options):
    made = shaken(LipschitzMLP(D, hidden, 1, context, **options))

    return ResidualStep(made.bind(_numbers(context) if context else None)[0], LogDet("exact"))


def _autoregressive(D=4, reverse=False, context=0, method="sequential"):
    made = shaken(MADE(D, (8, 8), [reverse], context=context))
    network = made.bind(_numbers(context) if context else None)[0]

    return AutoregressiveStep(network, reverse, method=method)


TRANSFORMS |= {
    "residual": TransformCase(_residual, 3),
    "residual context": TransformCase(partial(_residual, context=2), 3),
    "residual 1": TransformCase(partial(_residual, 1, activation="sin"), 1, "lower"),
    "autoregressive": TransformCase(_autoregressive, 4, "lower"),
    "autoregressive reversed context": TransformCase(
        partial(_autoregressive, reverse=True, context=2), 4, "upper"
    ),
    "autoregressive newton": TransformCase(partial(_autoregressive, method="newton"), 4, "lower"),
    "inverse autoregressive": TransformCase(lambda: Inverse(_autoregressive()), 4, "lower"),
}


def _quar(features, context=0, transforms=3, hidden_features=(6, 6), **options):
    return shaken(
        QuAR(features, context, transforms=transforms, hidden_features=hidden_features, **options),
        0.15,
    )


def _data_units():
    columns = Columns((COLUMNS[0], COLUMNS[2], COLUMNS[5]))
    context = Columns((Column(name="c", mean=1.0, scale=2.0),))

    return DataUnits(_quar(3, 1), columns.transform(), context.transform())


FLOWS: dict[str, FlowCase] = {
    "data units": FlowCase(_data_units, 3, 1, columns=True),
}
for _i, (_norm, _mix, _features, _context) in enumerate(
    product(("dimension", "operator"), ("none", "lu"), (1, 2, 5), (0, 2))
):
    _options = {
        "norm": _norm,
        "mix": _mix,
        # these two take turns, so that each meets every other option
        "base": ("normal", "student-t")[(_i + _i // 2 + _i // 6) % 2],
        "order": ("alternate", "fixed")[(_i // 2 + _i // 12) % 2],
    }
    FLOWS[f"quar {_features} {' '.join(_options.values())}{' context' * (_context > 0)}"] = (
        FlowCase(partial(_quar, _features, _context, **_options), _features, _context)
    )
for _activation in ACTIVATIONS:
    FLOWS[f"quar 2 {_activation}"] = FlowCase(partial(_quar, 2, activation=_activation), 2)
for _features, _options in {
    1: {"mix": "lu"},
    2: {"base": "student-t"},
    5: {},
}.items():
    _options = {"context_features": (7, 4), **_options}
    FLOWS[f"quar {_features} context network"] = FlowCase(
        partial(_quar, _features, 2, **_options), _features, 2
    )
FLOWS["quar 2 no trick"] = FlowCase(partial(_quar, 2, trick=False), 2)


def _started(features, context=0, **options):
    """Before the first step a linear map, as a Gaussian in closed form would give it."""
    flow = _quar(features, context, start="gaussian", **options)
    flow.start_from(
        torch.randn(features, features).tril(-1) / features + torch.eye(features).mul(1.5),
        torch.randn(features),
        torch.randn(features, context) if context else None,
    )

    return flow


FLOWS |= {
    "quar started": FlowCase(partial(_started, 3), 3),
    "quar started context": FlowCase(partial(_started, 2, 2), 2, 2),
    "quar started context network": FlowCase(partial(_started, 3, 2, context_features=(6,)), 3, 2),
    "quar started lu": FlowCase(partial(_started, 3, mix="lu"), 3),
}


def _other(flow, features, context=0, **options):
    options = {"transforms": 3, "hidden_features": (6, 6)} | options

    return shaken(flow(features, context, **options), 0.15)


def _step_of(flow, features, **options):
    """The first step of the flow, its parameters far from where they start."""
    made = shaken(flow(features, transforms=1, **options), 0.5)

    return next(t for t in made.transforms(None) if not isinstance(t, Affine))


FAMILIES = (
    ("residual", flows.ResidualFlow, 2, {"logdet": "exact"}),
    ("residual student-t", flows.ResidualFlow, 3, {"logdet": "exact", "base": "student-t"}),
    ("autoregressive", flows.Autoregressive, 3, {"order": "fixed"}),
    ("autoregressive newton", flows.Autoregressive, 2, {"method": "newton"}),
    ("autoregressive inverse", flows.Autoregressive, 3, {"inverse": True}),
    ("planar", flows.PlanarFlow, 2, {}),
    ("radial", flows.RadialFlow, 2, {}),
    ("sylvester", flows.SylvesterFlow, 3, {"ridges": 2}),
    ("sylvester all directions", flows.SylvesterFlow, 3, {}),
    ("sinh-arcsinh", page.flow, 2, {}),
)
for _name, _flow, _features, _options in FAMILIES:
    if _name not in TRANSFORMS:  # of some there are cases above
        TRANSFORMS[_name] = TransformCase(
            partial(_step_of, _flow, _features, **_options), _features
        )
    for _context in (0, 2):
        FLOWS[f"{_name}{' context' * (_context > 0)}"] = FlowCase(
            partial(_other, _flow, _features, _context, **_options), _features, _context
        )


# Images, flattened to vectors


def flat(transform, shape):
    """An image transform as one of vectors."""
    return Composed([Flatten(shape).inv, transform, Flatten(shape)])


def conv_branch(shape=(1, 3, 3), hidden=5, reverse=False, preactivation=True, **options):
    """One bound convolutional branch, float64."""
    return shaken(ConvBranch(shape, hidden, [reverse], [preactivation], **options)).bind()[0]


def _conv_step(shape, **options):
    return flat(QuARStep(conv_branch(shape, **options)), shape)


def _conv_residual(shape, preactivation):
    bound = shaken(LipschitzConvNet(shape, 4, [preactivation])).bind()[0]

    return flat(ResidualStep(bound, LogDet("exact")), shape)


def _channel_affine(C):
    return Affine(_numbers(C), _numbers(C), event_dim=3)


def _multiscale(shape, factor_out):
    C = shape[0] * (2 if factor_out else 4)
    chains = [
        [Logit(0.05), QuARStep(conv_branch(shape)), _channel_affine(shape[0])],
        [QuARStep(conv_branch((C, 1, 2), reverse=True))],
    ]

    return Composed([Flatten(shape).inv, MultiScale(shape, chains, factor_out)])


TRANSFORMS |= {
    "conv step": TransformCase(
        partial(_conv_step, (1, 3, 3), preactivation=False),
        9,
        "lower",  # one channel: raster
    ),
    "conv step reversed": TransformCase(partial(_conv_step, (1, 3, 3), reverse=True), 9, "upper"),
    "conv step center": TransformCase(
        partial(_conv_step, (2, 2, 3), norm="center", activation="elu"), 12
    ),
    "conv step operator": TransformCase(
        partial(_conv_step, (3, 2, 2), norm="operator", activation="sin", reverse=True), 12
    ),
    "conv step paper": TransformCase(
        partial(_conv_step, (2, 2, 2), implementation="paper", activation="tanh"), 8
    ),
    "conv residual": TransformCase(partial(_conv_residual, (2, 2, 2), True), 8),
    "conv residual first": TransformCase(partial(_conv_residual, (1, 2, 3), False), 6),
    "logit": TransformCase(lambda: flat(Logit(0.05), (1, 2, 2)), 4, "lower", through_inverse=True),
    "channel affine": TransformCase(lambda: flat(_channel_affine(2), (2, 1, 3)), 6, "lower"),
    "multiscale": TransformCase(partial(_multiscale, (1, 2, 4), False), 8, through_inverse=True),
    "multiscale factored out": TransformCase(
        partial(_multiscale, (2, 2, 4), True), 16, through_inverse=True
    ),
}


class FlatImages(torch.nn.Module):
    """An image flow as one of vectors."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, c=None):
        p = self.flow(c)
        transform = Composed([Flatten(self.flow.shape).inv, p.transform])

        return FlowDistribution(transform, p.base)

    def initialize(self, x, c=None):
        return self.flow.initialize(x.unflatten(-1, self.flow.shape).clamp(0, 1), c)


def _image_flow(flow, shape, **options):
    options = {"scales": 2, "transforms": 2, "hidden_channels": 2} | options

    return FlatImages(shaken(flow(shape, **options), 0.1))


IMAGE_FAMILIES = (
    ("image quar", flows.ImageQuAR, (1, 2, 4), {}),
    (
        *("image quar factored out", flows.ImageQuAR, (1, 4, 2)),
        {"factor_out": True, "norm": "operator", "transforms": 1},
    ),
    ("image residual", flows.ImageResidualFlow, (1, 2, 2), {"logdet": "exact", "transforms": 1}),
)
for _name, _flow, _shape, _options in IMAGE_FAMILIES:
    FLOWS[_name] = FlowCase(
        partial(_image_flow, _flow, _shape, **_options), math.prod(_shape), inside=True
    )

# A small flow of each family, by its name.
SMALL = {
    "QuAR": partial(QuAR, 3, context=2, transforms=2, hidden_features=(6,)),
    **{f.__name__: partial(f, D, context=1, transforms=2, **o) for _, f, D, o in FAMILIES},
    **{
        f.__name__: partial(f, shape, **{"scales": 2, "transforms": 2, "hidden_channels": 4} | o)
        for _, f, shape, o in IMAGE_FAMILIES
    },
}
