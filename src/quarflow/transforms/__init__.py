"""Bijections over tensors: floor 2."""

from quarflow.transforms.autoregressive import AutoregressiveStep
from quarflow.transforms.base import Inverse, Transform, call_and_ladj
from quarflow.transforms.compose import Composed
from quarflow.transforms.elementwise import Affine, Centred, Only, Permutation
from quarflow.transforms.image import (
    Flatten,
    ImageTransform,
    Logit,
    Squeeze,
    dequantise,
    quantise,
)
from quarflow.transforms.linear import LinearLU, LinearTriangular
from quarflow.transforms.logdet import LogDet
from quarflow.transforms.multiscale import MultiScale
from quarflow.transforms.planar import PlanarStep
from quarflow.transforms.quar import QuARStep
from quarflow.transforms.quar_chain import QuARChain
from quarflow.transforms.radial import RadialStep
from quarflow.transforms.residual import ResidualStep
from quarflow.transforms.solved import SolvedStep
from quarflow.transforms.sylvester import SylvesterStep

__all__ = [
    "Affine",
    "AutoregressiveStep",
    "Centred",
    "Composed",
    "Flatten",
    "ImageTransform",
    "Inverse",
    "LinearLU",
    "LinearTriangular",
    "LogDet",
    "Logit",
    "MultiScale",
    "Only",
    "Permutation",
    "PlanarStep",
    "QuARChain",
    "QuARStep",
    "RadialStep",
    "ResidualStep",
    "SolvedStep",
    "Squeeze",
    "SylvesterStep",
    "Transform",
    "call_and_ladj",
    "dequantise",
    "quantise",
]
