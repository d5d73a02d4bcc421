"""The flow families of this library, a line each: the exports, the store and the tests read it."""

from quarflow.flows.autoregressive import Autoregressive as Autoregressive
from quarflow.flows.image_quar import ImageQuAR as ImageQuAR
from quarflow.flows.image_residual import ImageResidualFlow as ImageResidualFlow
from quarflow.flows.mixed import MixedQuAR as MixedQuAR
from quarflow.flows.planar import PlanarFlow as PlanarFlow
from quarflow.flows.quar import QuAR as QuAR
from quarflow.flows.radial import RadialFlow as RadialFlow
from quarflow.flows.residual import ResidualFlow as ResidualFlow
from quarflow.flows.sylvester import SylvesterFlow as SylvesterFlow
