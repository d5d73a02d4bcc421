"""Bijections over tensors: floor 2."""

from quarflow.transforms.base import Inverse, Transform, call_and_ladj
from quarflow.transforms.compose import Composed
from quarflow.transforms.elementwise import Affine, Permutation
from quarflow.transforms.linear import LinearLU
from quarflow.transforms.quar import QuARStep

__all__ = [
    "Affine",
    "Composed",
    "Inverse",
    "LinearLU",
    "Permutation",
    "QuARStep",
    "Transform",
    "call_and_ladj",
]
