"""Flows: transforms, parameters and a base make a density: floor 3."""

from quarflow.flows.autoregressive import Autoregressive
from quarflow.flows.certificate import StepCertificate
from quarflow.flows.flow import Flow, FlowDistribution
from quarflow.flows.image_quar import ImageQuAR
from quarflow.flows.image_residual import ImageResidualDistribution, ImageResidualFlow
from quarflow.flows.images import ImageDistribution, ImageFlow
from quarflow.flows.planar import PlanarFlow
from quarflow.flows.quar import QuAR
from quarflow.flows.radial import RadialFlow
from quarflow.flows.residual import ResidualFlow, ResidualFlowDistribution
from quarflow.flows.sylvester import SylvesterFlow

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
