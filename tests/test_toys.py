"""Toy densities: samples, log-densities and entropies agree with each other."""

import math

import numpy as np
import pytest
import torch

from quarflow.data.toys import TOYS, Curves, toy

N = 20_000
every = pytest.mark.parametrize("name", TOYS)
WITH_DENSITY = [name for name, t in TOYS.items() if t.has_density]
every_density = pytest.mark.parametrize("name", WITH_DENSITY)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def grid(t, n):
    low, high = t.limits
    step = (high - low) / n
    axis = low + step * (torch.arange(n, dtype=torch.float64) + 0.5)
    points = torch.stack(torch.meshgrid(*[axis] * t.features, indexing="ij"), -1)

    return points.reshape(-1, t.features), step**t.features


@every
def test_samples(name):
    t = toy(name)
    x, labels = t.sample_labelled(N, seeded())

    assert x.shape == (N, t.features)
    assert x.dtype == torch.get_default_dtype()
    assert torch.equal(x, t.sample(N, seeded()))
    assert not torch.equal(x, t.sample(N, seeded(1)))
    assert ((x >= t.limits[0]) & (x <= t.limits[1])).all(-1).double().mean() > 0.999
    shares = labels.bincount(minlength=t.parts) / N
    assert len(shares) == t.parts
    assert ((shares - 1 / t.parts).abs() < 4 * (1 / t.parts / N) ** 0.5).all()
    assert t.sample(0).shape == (0, t.features)


@every_density
def test_density_integrates_to_one_and_has_the_entropy(name):
    t = toy(name)
    points, volume = grid(t, 1200 if t.features == 1 else 128)
    log_p = t.log_prob(points)
    p = log_p.exp() * volume

    assert float(p.sum()) == pytest.approx(1, abs=1e-3)
    entropy = -(p * log_p.clamp_min(-1e4)).sum()
    assert float(entropy) == pytest.approx(t.entropy, abs=1e-3)


@every_density
def test_samples_score_the_entropy(name):
    """Mean of -log p over samples, within 4 standard errors."""
    t = toy(name)
    nats = -t.log_prob(t.sample(N, seeded(1)).double())

    assert nats.isfinite().all()
    assert abs(nats.mean() - t.entropy) <= 4 * nats.std() / N**0.5 + 1e-4


@every_density
def test_samples_follow_the_density(name):
    """Counts in cells against the mass of the cells."""
    t = toy(name)
    cells, fine = 12, 10
    points, volume = grid(t, cells * fine)
    low, high = t.limits

    def cell(x):
        index = ((x - low) / (high - low) * cells).long().clamp(0, cells - 1)
        return (index * cells ** torch.arange(t.features)).sum(-1)

    mass = torch.zeros(cells**t.features, dtype=torch.float64)
    mass.index_add_(0, cell(points), t.log_prob(points).exp() * volume)
    counts = cell(t.sample(N, seeded(2)).double()).bincount(minlength=len(mass)).double()
    expected = N * mass
    used = expected > 5
    chi = ((counts - expected).square() / expected)[used].sum()
    degrees = int(used.sum()) - 1

    assert abs(chi - degrees) < 5 * math.sqrt(2 * max(degrees, 1)) + 1
    assert counts[~used].sum() <= expected[~used].sum() + 5 * expected[~used].sum() ** 0.5 + 2


@every_density
def test_shapes_and_types(name):
    t = toy(name)
    x = t.sample(6, seeded())

    assert t.log_prob(x).shape == (6,)
    assert t.log_prob(x).dtype == x.dtype
    assert t.log_prob(x.double()).dtype == torch.float64
    assert t.log_prob(x[0]).shape == ()
    assert t.log_prob(x.reshape(2, 3, -1)).shape == (2, 3)
    assert t.log_prob(x[:0]).shape == (0,)
    torch.testing.assert_close(t.log_prob(x.double()).float(), t.log_prob(x), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="shape"):
        t.log_prob(torch.zeros(3, 5))


@every_density
def test_far_away_is_never_nan(name):
    t = toy(name)
    far = torch.full((2, t.features), 50.0, dtype=torch.float64) * torch.tensor([[1.0], [-1.0]])
    log_p = t.log_prob(far)

    assert not log_p.isnan().any()
    assert (log_p < -100).all()


@pytest.mark.parametrize("name", [n for n, t in TOYS.items() if isinstance(t, Curves)])
def test_quadrature_along_curves_has_converged(name):
    from dataclasses import replace

    t = toy(name)
    x = torch.cat((t.sample(500, seeded()).double(), grid(t, 12)[0]))
    twice = replace(t, nodes=800)
    near = t.log_prob(x) > -30

    torch.testing.assert_close(t.log_prob(x)[near], twice.log_prob(x)[near], rtol=0, atol=1e-8)


def test_known_values():
    eight = toy("eight_gaussians")
    sd = 0.5 / 1.414
    at_mode = -math.log(8) - math.log(2 * math.pi * sd**2)
    assert float(eight.log_prob(torch.tensor([4 / 1.414, 0.0]))) == pytest.approx(
        at_mode, abs=1e-3
    )
    board = toy("checkerboard")
    assert float(board.log_prob(torch.tensor([-3.0, 1.0]))) == pytest.approx(-math.log(32))
    assert float(board.log_prob(torch.tensor([-3.0, -1.0]))) == -math.inf
    two = toy("two_uniforms")
    assert two.log_prob(torch.tensor([[-1.5], [0.5], [1.2]])).exp().tolist() == pytest.approx(
        [0.5, 0.0, 0.5]
    )


def test_checkerboard_is_that_of_the_literature():
    rng = np.random.default_rng(0)
    x1 = rng.random(1000) * 4 - 2
    x2 = rng.random(1000) - rng.integers(0, 2, 1000) * 2 + np.floor(x1) % 2
    theirs = 2 * torch.from_numpy(np.stack((x1, x2), 1))

    assert toy("checkerboard").log_prob(theirs).isfinite().all()


def test_two_spirals_are_those_of_the_literature():
    rng = np.random.default_rng(0)
    n = np.sqrt(rng.random((N // 4, 1))) * 540 * (2 * np.pi) / 360
    x = -np.cos(n) * n + rng.random((N // 4, 1)) * 0.5
    y = np.sin(n) * n + rng.random((N // 4, 1)) * 0.5
    theirs = np.vstack((np.hstack((x, y)), np.hstack((-x, -y)))) / 3
    theirs += rng.normal(size=theirs.shape) * 0.1
    t = toy("two_spirals")
    nats = -t.log_prob(torch.from_numpy(theirs))

    assert abs(nats.mean() - t.entropy) <= 4 * nats.std() / len(nats) ** 0.5


def test_names():
    assert toy("moons") is TOYS["two_moons"]
    with pytest.raises(ValueError, match="no toy density 'nine_gaussians'"):
        toy("nine_gaussians")
    with pytest.raises(ValueError, match="no closed form"):
        toy("pinwheel").log_prob(torch.zeros(2))
