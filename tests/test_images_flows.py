"""Image flows: bits per dimension, grey levels, samples as pictures, life as a module."""

import copy
import io
import json
import math

import pytest
import torch
from torch import nn

from quarflow import ImageQuAR, ImageResidualFlow
from quarflow.flows.bases import SCALAR, Base
from quarflow.flows.images import scale_shapes
from quarflow.transforms import Logit, MultiScale, Squeeze, dequantise, quantise
from registry import shaken

SMALL = {"shape": (1, 4, 4), "scales": 2, "transforms": 2, "hidden_channels": 8}
FLOWS = {
    "quar": lambda **o: ImageQuAR(**SMALL | o),
    "quar paper": lambda **o: ImageQuAR(
        **SMALL | {"norm": "center", "order": "fixed", "activation": "elu"} | o
    ),
    "quar factored out": lambda **o: ImageQuAR(
        **SMALL | {"shape": (3, 4, 4), "factor_out": True} | o
    ),
    "residual": lambda **o: ImageResidualFlow(**SMALL | {"logdet": "exact"} | o),
}
every = pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)


def grey(flow, n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, flow.levels, (n, *flow.shape), dtype=torch.uint8, generator=g)


class _UniformBase(Base):
    """Logistic, cut to where the logit puts pixels: then pixels are uniform on [0, 1]."""

    def __init__(self, like, alpha):
        super().__init__(like)
        self.alpha = alpha

    def log_prob(self, value):
        logistic = nn.functional.logsigmoid(value) + nn.functional.logsigmoid(-value)
        return (logistic - math.log1p(-2 * self.alpha)).sum(-1)


class _Uniform(nn.Module):
    def __init__(self, features, alpha):
        super().__init__()
        self.features, self.alpha = features, alpha

    def forward(self, batch_shape=SCALAR):
        return _UniformBase(torch.zeros(self.features, dtype=torch.float64), self.alpha)


@pytest.mark.parametrize("alpha", [0.0, 1e-6, 0.05])
@pytest.mark.parametrize("levels", [17, 256])
@pytest.mark.parametrize("make", [ImageQuAR, ImageResidualFlow])
def test_a_uniform_model_has_exactly_the_bits_of_its_levels(make, alpha, levels):
    flow = make(**SMALL, alpha=alpha, levels=levels).double()
    flow.base = _Uniform(flow.features, alpha)
    with torch.no_grad():
        for branch in flow.branches:  # identities: F = 0
            for p in branch.last.parameters():
                p.zero_()
    bits = flow.bits_per_dim(grey(flow, 5), draws=3)

    assert bits.shape == (5,)
    torch.testing.assert_close(bits, torch.full_like(bits, math.log2(levels)))
    if levels == 256:
        assert (bits - 8).abs().max() < 1e-9


@every
def test_bits_per_dim_is_the_mean_of_log_densities(make):
    flow = shaken(make(), 0.1)
    x = grey(flow, 4)
    found = flow.bits_per_dim(x, draws=3, generator=torch.Generator().manual_seed(5))
    g, p, total = torch.Generator().manual_seed(5), flow(), 0.0
    for _ in range(3):
        total = total - p.log_prob((x + torch.rand(x.shape, generator=g).double()) / 256)
    expected = total / 3 / math.log(2) / flow.features + 8

    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)  # other numbers u
    g = torch.Generator().manual_seed(5)
    total = -sum(p.log_prob(flow.dequantise(x, g)) for _ in range(3))
    torch.testing.assert_close(found, total / 3 / math.log(2) / flow.features + 8)


@every
def test_bits_per_dim_does_not_depend_on_the_batch(make):
    flow = make()
    x = grey(flow, 40)
    flow.initialize(x)
    y = flow.dequantise(x, torch.Generator().manual_seed(0))
    with torch.no_grad():
        at_once = flow().log_prob(y)
        one_by_one = torch.cat([flow().log_prob(part) for part in y.split(3)])
    bits = (at_once - one_by_one) / flow.features / math.log(2)

    assert bits.abs().max() < 1e-5


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_are_pictures(make, dtype):
    flow = make().to(dtype)
    flow.initialize(grey(flow, 50))
    x = flow().sample((2, 3), torch.Generator().manual_seed(1))
    again = flow().sample((2, 3), torch.Generator().manual_seed(1))
    images, evaluations = flow.sample_images(7, torch.Generator().manual_seed(1), batch=3)

    assert x.shape == (2, 3, *flow.shape)
    assert x.dtype == dtype
    assert 0 <= x.min() <= x.max() < 1
    assert torch.equal(x, again)
    assert images.shape == (7, *flow.shape)
    assert images.dtype == torch.uint8
    assert evaluations.shape == (4, 7)
    assert evaluations.min() >= 1
    assert torch.equal(images[:6].double(), quantise(x.reshape(6, *flow.shape)).double())
    assert flow.sample_images(0)[0].shape == (0, *flow.shape)


def test_evaluations_are_given_in_the_order_of_the_steps():
    flow = ImageQuAR((1, 4, 4), scales=1, transforms=3, hidden_channels=8).double()
    with torch.no_grad():
        last = flow.branches[0].last
        for p in (last.diagonal, last.off_center, last.bias):
            p[1:].zero_()  # only the first step does anything
    evaluations = flow.sample_images(4)[1]

    assert (evaluations[0] > 1).all()
    assert (evaluations[1:] == 1).all()


@every
def test_initialization_standardises_once_and_is_saved(make):
    flow = make()
    g = torch.Generator().manual_seed(0)
    dim = torch.randint(0, 100, (200, *flow.shape), dtype=torch.uint8, generator=g)

    assert flow.initialize(dim) is True
    z = flow().transform(dequantise(dim))
    assert z.mean().abs() < 0.1
    assert abs(z.std() - 1) < 0.1
    before = copy.deepcopy(flow.state_dict())
    assert flow.initialize(grey(flow, 9)) is False
    other = make()
    other.load_state_dict(before)
    for one in (flow, other, copy.deepcopy(flow)):
        assert one.initialize(grey(flow, 9)) is False
        assert all(torch.equal(v, before[k]) for k, v in one.state_dict().items())
    bad = torch.full((3, *flow.shape), float("nan"))
    with pytest.raises(ValueError, match="NaN or infinite"):
        make().initialize(bad)


@every
def test_arguments_make_the_same_flow(make):
    flow = shaken(make(), 0.1)
    arguments = json.loads(json.dumps(flow.arguments))
    other = type(flow)(**arguments).double()
    other.load_state_dict(flow.state_dict())
    x = dequantise(grey(flow, 3), dtype=torch.float64)

    assert torch.equal(other().log_prob(x), flow().log_prob(x))
    assert other.arguments == flow.arguments
    file = io.BytesIO()
    torch.save(flow, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)().log_prob(x), flow().log_prob(x))


@every
def test_certificates(make):
    flow = shaken(make(), 0.3)
    x = dequantise(grey(flow, 6), dtype=torch.float64)
    for given in (None, x):
        found = flow.certificate(given)
        assert [s.step for s in found] == [0, 1, 2, 3]
        for s in found:
            assert 0 < s.bound <= s.sigma < 1
            assert s.measured is None if given is None else 0 < s.measured <= s.bound
    assert f"scales={len(flow.shapes)}" in repr(flow)
    assert "tensor(" not in repr(flow()) + repr(flow)


@pytest.mark.parametrize(("shape", "hidden", "total"), [((3, 32, 32), 528, 12.5e6)])
def test_the_papers_network_has_as_many_weights_as_are_not_masked(shape, hidden, total):
    with torch.device("meta"):
        flow = ImageQuAR(shape, hidden_channels=hidden, first_preactivation=True)
    assert flow.shapes == [(3, 32, 32), (12, 16, 16), (48, 8, 8)]
    assert sum(p.numel() for p in flow.parameters()) == pytest.approx(total, rel=0.02)


def test_both_implementations_train_alike():
    losses = []
    for options in ({}, {"recompute": False}, {"implementation": "paper"}):
        torch.manual_seed(0)
        flow = ImageQuAR(**SMALL, **options).double()
        x = dequantise(grey(flow, 30), generator=torch.Generator().manual_seed(0)).double()
        flow.initialize(x)
        adam = torch.optim.Adam(flow.parameters(), lr=1e-2)
        for _ in range(5):
            adam.zero_grad()
            loss = -flow().log_prob(x).mean()
            loss.backward()
            adam.step()
        losses.append(float(loss.detach()))

    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert losses[0] == pytest.approx(losses[2], rel=1e-4)  # rounding, through Adam


def test_training_lowers_the_bits_of_real_digits():
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    images = torch.as_tensor(load_digits().images).to(torch.uint8)[:, None]
    assert int(images.max()) == 16
    bits = {}
    for name, make in (("quar", ImageQuAR), ("residual", ImageResidualFlow)):
        flow = make((1, 8, 8), scales=2, transforms=1, hidden_channels=16, levels=17)
        flow.initialize(images[:500])
        test = images[1500:]
        before = flow.bits_per_dim(test, generator=torch.Generator().manual_seed(0)).mean()
        adam = torch.optim.Adam(flow.parameters(), lr=5e-3)
        for _ in range(20):
            x = flow.dequantise(images[torch.randint(1500, (64,))])
            adam.zero_grad()
            (-flow().log_prob(x).mean() / flow.features).backward()
            adam.step()
        bits[name] = flow.eval().bits_per_dim(test, generator=torch.Generator().manual_seed(0))
        assert bits[name].mean() < before - 0.05
        assert bits[name].mean() < math.log2(17)  # uniform pixels


def test_residual_estimates_are_unbiased_and_repeatable():
    exact = shaken(ImageResidualFlow(**SMALL, logdet="exact"), 0.3)
    flow = ImageResidualFlow(**SMALL).double().eval()
    flow.load_state_dict(exact.state_dict())
    x = dequantise(grey(flow, 4), dtype=torch.float64)
    mean, error = flow().log_prob_and_error(x, 60, torch.Generator().manual_seed(0))

    assert ((mean - exact().log_prob(x)).abs() < 4.5 * error).all()
    one, two = (
        flow.bits_per_dim(grey(flow, 4), 2, torch.Generator().manual_seed(3)) for _ in "ab"
    )
    assert torch.equal(one, two)
    assert flow.logdet.terms == 20
    assert flow.train().logdet.terms == 2
    with pytest.raises(ValueError, match="at least 2"):
        flow().log_prob_and_error(x, 1)


# Plumbing


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dequantisation_stays_in_its_level(levels, dtype):
    x = torch.randint(0, levels, (50_000,), dtype=torch.uint8)
    y = dequantise(x, levels, dtype=dtype)

    assert y.dtype == dtype
    assert 0 <= y.min() <= y.max() < 1
    assert (y >= x.to(dtype) / levels).all()
    assert (y < (x.to(dtype) + 1) / levels).all()
    assert torch.equal(quantise(y, levels), x)
    one, two = (dequantise(x, levels, torch.Generator().manual_seed(0)) for _ in "ab")
    assert torch.equal(one, two)


def test_squeeze_and_scales_only_reorder():
    x = torch.arange(96.0).view(2, 3, 4, 4)
    z = Squeeze()(x)

    assert z.shape == (2, 12, 2, 2)
    assert torch.equal(z, nn.functional.pixel_unshuffle(x, 2))
    assert torch.equal(Squeeze().inv(z), x)
    for factor_out in (False, True):
        scales = MultiScale((3, 4, 4), [[], [], []], factor_out)
        assert torch.equal(scales(x).sort(-1).values, x.flatten(1))
        assert torch.equal(scales.inv(scales(x)), x)
        assert scales.forward_shape(x.shape) == (2, 48)
        assert scales.inverse_shape(torch.Size((2, 48))) == x.shape
    assert scale_shapes((3, 4, 4), 3, True) == [(3, 4, 4), (6, 2, 2), (12, 1, 1)]


def test_logit_is_exact_at_the_ends():
    logit = Logit(1e-6)
    x = torch.tensor([0.0, 1e-9, 0.5, 1 - 1e-9, 1.0], dtype=torch.float64).view(1, 1, 5)
    z, ladj = logit.call_and_ladj(x)

    assert z.isfinite().all()
    assert ladj.isfinite()
    torch.testing.assert_close(logit.inv(z), x)
    torch.testing.assert_close(z, -z.flip(-1))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"shape": (1, 4)}, "shape"),
        ({"shape": (0, 4, 4)}, "shape"),
        ({"shape": (1, 6, 6), "scales": 3}, "halved 2 times"),
        ({"scales": 0}, "scales"),
        ({"transforms": 0}, "transforms"),
        ({"hidden_channels": 0}, "hidden_channels"),
        ({"alpha": 0.5}, "alpha"),
        ({"levels": 1}, "levels"),
        ({"levels": 300}, "levels"),
        ({"base": "cauchy"}, "base"),
        ({"activation": "relu"}, "activation"),
    ],
)
@pytest.mark.parametrize("make", [ImageQuAR, ImageResidualFlow])
def test_bad_arguments(make, options, word):
    with pytest.raises(ValueError, match=word):
        make(**SMALL | options)


def test_messages():
    flow = ImageQuAR(**SMALL, levels=17)
    with pytest.raises(ValueError, match="order"):
        ImageQuAR(**SMALL, order="random")
    with pytest.raises(ValueError, match="sigma"):
        ImageResidualFlow(**SMALL, sigma=1.0)
    with pytest.raises(ValueError, match="without context"):
        flow(torch.zeros(2))
    with pytest.raises(ValueError, match="dequantise first"):
        flow().log_prob(grey(flow, 2))
    with pytest.raises(ValueError, match="must have shape"):
        flow().log_prob(torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match="whole grey levels"):
        flow.bits_per_dim(torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"from 0 to 16.*0 to 255"):
        flow.bits_per_dim(torch.tensor([0, 255], dtype=torch.uint8).repeat(8).view(1, 1, 4, 4))
    with pytest.raises(ValueError, match="draws"):
        flow.bits_per_dim(grey(flow, 1), draws=0)
    with pytest.raises(ValueError, match="levels"):
        quantise(torch.zeros(1), 1000)
