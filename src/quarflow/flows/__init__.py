"""Flows: transforms, parameters and a base make a density: floor 3."""

from quarflow.flows.flow import Flow, FlowDistribution
from quarflow.flows.quar import QuAR, StepCertificate

__all__ = ["Flow", "FlowDistribution", "QuAR", "StepCertificate"]
