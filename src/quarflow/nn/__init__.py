"""Layers that carry (value, diagonal): floor 1."""

from quarflow.nn.activations import ACTIVATIONS, activation, elu, lipswish, sin, tanh
from quarflow.nn.branch import BoundBranch, Branch
from quarflow.nn.conv import CausalConv2d
from quarflow.nn.conv_branch import BoundConvBranch, ConvBranch
from quarflow.nn.conv_lipschitz import BoundConvNet, LipschitzConvNet
from quarflow.nn.linear import BlockTriangularLinear
from quarflow.nn.lipschitz import LipschitzBranch, LipschitzLinear, LipschitzMLP
from quarflow.nn.made import MADE, MaskedLinear
from quarflow.nn.mlp import BoundMLP, Linearization
from quarflow.nn.norms import convolution_bound, spectral_bound

__all__ = [
    "ACTIVATIONS",
    "MADE",
    "BlockTriangularLinear",
    "BoundBranch",
    "BoundConvBranch",
    "BoundConvNet",
    "BoundMLP",
    "Branch",
    "CausalConv2d",
    "ConvBranch",
    "Linearization",
    "LipschitzBranch",
    "LipschitzConvNet",
    "LipschitzLinear",
    "LipschitzMLP",
    "MaskedLinear",
    "activation",
    "convolution_bound",
    "elu",
    "lipswish",
    "sin",
    "spectral_bound",
    "tanh",
]
