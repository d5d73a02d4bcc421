"""Layers that carry (value, diagonal): floor 1."""

from quarflow.nn.activations import ACTIVATIONS, activation, elu, lipswish, sin, tanh
from quarflow.nn.branch import BoundBranch, Branch
from quarflow.nn.linear import BlockTriangularLinear
from quarflow.nn.lipschitz import LipschitzBranch, LipschitzLinear, LipschitzMLP
from quarflow.nn.made import MADE, MaskedLinear
from quarflow.nn.mlp import BoundMLP, Linearization
from quarflow.nn.norms import spectral_bound

__all__ = [
    "ACTIVATIONS",
    "MADE",
    "BlockTriangularLinear",
    "BoundBranch",
    "BoundMLP",
    "Branch",
    "Linearization",
    "LipschitzBranch",
    "LipschitzLinear",
    "LipschitzMLP",
    "MaskedLinear",
    "activation",
    "elu",
    "lipswish",
    "sin",
    "spectral_bound",
    "tanh",
]
