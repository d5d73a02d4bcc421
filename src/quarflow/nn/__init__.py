"""Layers that carry (value, diagonal): floor 1."""

from quarflow.nn.bound import BoundBranch, BoundBranches
from quarflow.nn.branch import Branch, ConvBranch
from quarflow.nn.context import ContextNetwork
from quarflow.nn.lipschitz import (
    LipschitzBranch,
    LipschitzConvNet,
    LipschitzLinear,
    LipschitzMLP,
)
from quarflow.nn.lipschitz_trick import lipschitz_trick
from quarflow.nn.made import MADE, MaskedLinear
from quarflow.nn.mlp import BoundMLP
from quarflow.nn.triangular import TriangularLayer
from quarflow.ops.activations import ACTIVATIONS, activation, elu, lipswish, sin, tanh
from quarflow.ops.bounds import convolution_bound, spectral_bound
from quarflow.ops.linearization import Linearization

__all__ = [
    "ACTIVATIONS",
    "MADE",
    "BoundBranch",
    "BoundBranches",
    "BoundMLP",
    "Branch",
    "ContextNetwork",
    "ConvBranch",
    "Linearization",
    "LipschitzBranch",
    "LipschitzConvNet",
    "LipschitzLinear",
    "LipschitzMLP",
    "MaskedLinear",
    "TriangularLayer",
    "activation",
    "convolution_bound",
    "elu",
    "lipschitz_trick",
    "lipswish",
    "sin",
    "spectral_bound",
    "tanh",
]
