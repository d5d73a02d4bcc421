"""Bijections over tensors: floor 2."""

from quarflow.transforms.autoregressive import AutoregressiveStep
from quarflow.transforms.base import Inverse, Transform, call_and_ladj
from quarflow.transforms.compose import Composed
from quarflow.transforms.elementwise import Affine, Permutation
from quarflow.transforms.linear import LinearLU
from quarflow.transforms.logdet import LogDet
from quarflow.transforms.planar import PlanarStep
from quarflow.transforms.quar import QuARStep
from quarflow.transforms.radial import RadialStep
from quarflow.transforms.residual import ResidualStep
from quarflow.transforms.sylvester import SylvesterStep

__all__ = [
    "Affine",
    "AutoregressiveStep",
    "Composed",
    "Inverse",
    "LinearLU",
    "LogDet",
    "Permutation",
    "PlanarStep",
    "QuARStep",
    "RadialStep",
    "ResidualStep",
    "SylvesterStep",
    "Transform",
    "call_and_ladj",
]
