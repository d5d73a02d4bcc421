"""The peers of benchmarks/speed.py: zuko, nflows and normflows, made as their own pages show."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from quarflow.experiments.speed.contestants import OURS, TRANSFORMS, Contestant

__all__ = ["CONTESTANTS", "STARTS"]

STARTS = {
    "import zuko": "import zuko",
    "import nflows": "from nflows import distributions, flows, transforms",
    "import normflows": "import normflows",
}
POWER_ITERATIONS = 50  # of update_lipschitz, as normflows' own example of a residual flow


def _call(model: Any) -> Any:
    return model()


def _maf(features: int, width: int) -> nn.Module:
    import zuko

    return zuko.flows.MAF(features, transforms=TRANSFORMS, hidden_features=(width, width))


def _nsf(features: int, width: int) -> nn.Module:
    import zuko

    return zuko.flows.NSF(features, transforms=5, hidden_features=(width, width))


def _naf(features: int, width: int) -> nn.Module:
    import zuko

    # Each feature has a monotonic network of its own: at zuko's 64 x 64 units these alone would
    # have more weights than the other models have in all.
    return zuko.flows.NAF(
        features,
        transforms=3,
        hidden_features=(width, width),
        network={"hidden_features": (16, 16)},
    )


def _nflows_maf(features: int, width: int) -> nn.Module:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import (
        CompositeTransform,
        MaskedAffineAutoregressiveTransform,
        ReversePermutation,
    )

    steps: list[Any] = []
    for _ in range(TRANSFORMS):
        steps += [
            MaskedAffineAutoregressiveTransform(
                features, width, num_blocks=1, use_residual_blocks=False
            ),
            ReversePermutation(features),
        ]

    return Flow(CompositeTransform(steps), StandardNormal([features]))


def _normflows_residual(features: int, width: int) -> nn.Module:
    import normflows as nf

    steps: list[Any] = []
    for _ in range(TRANSFORMS):
        network = nf.nets.LipschitzMLP([features, width, width, features], lipschitz_const=0.9)
        steps += [nf.flows.Residual(network), nf.flows.ActNorm(features)]

    return nf.NormalizingFlow(nf.distributions.DiagGaussian(features, trainable=False), steps)


def _negative_mean(model: Any, x: Tensor) -> Tensor:
    return -model.log_prob(x).mean()


def _forward_kld(model: Any, x: Tensor) -> Tensor:
    return model.forward_kld(x)


def _sample_nflows(model: Any, number: int) -> Tensor:
    return model.sample(number)


def _sample_normflows(model: Any, number: int) -> Tensor:
    return model.sample(number)[0]


def _update_lipschitz(model: Any) -> None:
    import normflows as nf

    nf.utils.update_lipschitz(model, POWER_ITERATIONS)


CONTESTANTS: tuple[Contestant, ...] = (
    *OURS,
    Contestant("zuko MAF", "zuko", _maf, bind=_call),
    Contestant("zuko NSF", "zuko", _nsf, bind=_call),
    Contestant("zuko NAF", "zuko", _naf, bind=_call),
    Contestant("nflows MAF", "nflows", _nflows_maf, loss=_negative_mean, sample=_sample_nflows),
    Contestant(
        "normflows Residual",
        "normflows",
        _normflows_residual,
        loss=_forward_kld,
        sample=_sample_normflows,
        after_step=_update_lipschitz,
    ),
)
