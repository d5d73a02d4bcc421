"""Layers that carry (value, diagonal): floor 1."""

from quarflow.nn.activations import ACTIVATIONS, activation, elu, lipswish, sin, tanh
from quarflow.nn.branch import BoundBranch, Branch
from quarflow.nn.linear import BlockTriangularLinear
from quarflow.nn.norms import spectral_bound

__all__ = [
    "ACTIVATIONS",
    "BlockTriangularLinear",
    "BoundBranch",
    "Branch",
    "activation",
    "elu",
    "lipswish",
    "sin",
    "spectral_bound",
    "tanh",
]
