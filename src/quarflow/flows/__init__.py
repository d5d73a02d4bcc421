"""Flows: transforms, parameters and a base make a density: floor 3."""

from quarflow.flows.autoregressive import Autoregressive
from quarflow.flows.flow import Flow, FlowDistribution
from quarflow.flows.image_quar import ImageQuAR
from quarflow.flows.image_residual import ImageResidualDistribution, ImageResidualFlow
from quarflow.flows.images import ImageDistribution, ImageFlow
from quarflow.flows.planar import PlanarFlow, RadialFlow, SylvesterFlow
from quarflow.flows.quar import QuAR, StepCertificate
from quarflow.flows.residual import ResidualFlow, ResidualFlowDistribution

__all__ = [
    "Autoregressive",
    "Flow",
    "FlowDistribution",
    "ImageDistribution",
    "ImageFlow",
    "ImageQuAR",
    "ImageResidualDistribution",
    "ImageResidualFlow",
    "PlanarFlow",
    "QuAR",
    "RadialFlow",
    "ResidualFlow",
    "ResidualFlowDistribution",
    "StepCertificate",
    "SylvesterFlow",
]
