"""Flows: transforms, parameters and a base make a density: floor 3."""

from quarflow.flows.certificate import StepCertificate as StepCertificate
from quarflow.flows.families import *  # noqa: F403
from quarflow.flows.flow import Flow as Flow
from quarflow.flows.flow import FlowDistribution as FlowDistribution
from quarflow.flows.image_residual import ImageResidualDistribution as ImageResidualDistribution
from quarflow.flows.images import ImageDistribution as ImageDistribution
from quarflow.flows.images import ImageFlow as ImageFlow
from quarflow.flows.register import FAMILIES as FAMILIES
from quarflow.flows.register import family as family
from quarflow.flows.residual import ResidualFlowDistribution as ResidualFlowDistribution
