"""What a fit starts from: Gaussians in closed form, and that no fit ends up worse than them."""

import json

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from quarflow import QuAR, QuARDensity
from quarflow.data.columns import Columns
from quarflow.density.data_units import data_units
from quarflow.density.defaults import choose_defaults
from quarflow.density.gaussian import best_gaussian, gaussians, marginal_entropies
from quarflow.density.rows import TableRows
from quarflow.density.starting import Judge, Start, fall_back, find_start
from quarflow.store import load_model
from quarflow.store.schema import least_numbers
from quarflow.training import TrainingResult, TrainingSettings

QUICK = {"transforms": 2, "hidden_features": (8,), "max_epochs": 3, "random_state": 0}


def low_rank(n, D, factors=5, seed=0):
    rng = np.random.default_rng(seed)

    return rng.normal(size=(n, factors)) @ rng.normal(size=(factors, D)) + rng.normal(size=(n, D))


def curved(n, seed=0):
    """Two columns, one the square of the other: what no Gaussian can describe."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=n)

    return np.stack((a, a**2 + 0.1 * rng.normal(size=n)), axis=1)


# Gaussians


def test_each_gaussian_is_the_density_it_says():
    x, c = low_rank(50, 4), np.random.default_rng(1).normal(size=(50, 2))
    for context in (None, c):
        for found in gaussians(x, context):
            covariance = np.linalg.inv(found.matrix.T @ found.matrix)
            mean = -np.linalg.solve(found.matrix, found.shift)
            means = (
                mean
                if context is None
                else mean - c @ np.linalg.solve(found.matrix, found.context).T
            )
            left = x - means
            expected = 0.5 * np.einsum("ni,ij,nj->n", left, np.linalg.inv(covariance), left)
            expected += 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
            assert np.allclose(found.nats(x, context), expected, rtol=1e-8)
            assert np.array_equal(found.matrix, np.tril(found.matrix))


def test_shrinkage_is_that_of_ledoit_and_wolf():
    x = low_rank(80, 30)
    x = (x - x.mean(0)) / x.std(0)
    shrunk = next(g for g in gaussians(x) if g.kind == "shrunk")

    assert shrunk.nats(x).mean() == pytest.approx(-LedoitWolf().fit(x).score(x), abs=1e-2)


def test_factors_are_found_where_there_are_factors():
    x, new = np.split(low_rank(4000, 40), 2)
    kinds = {g.kind: g.nats(new).mean() for g in gaussians(x)}

    assert kinds["factors"] < kinds["shrunk"] - 0.1 < kinds["independent"] - 1
    alone = np.random.default_rng(0).normal(size=(2000, 40))
    assert [g.kind for g in gaussians(alone)] == ["independent", "shrunk"]


def test_a_mean_that_is_linear_in_the_context():
    rng = np.random.default_rng(0)
    c = rng.normal(size=(2000, 3))
    x = 2 + c @ rng.normal(size=(3, 2)) + 0.1 * rng.normal(size=(2000, 2))
    found, nats = best_gaussian(x[:1000], c[:1000], x[1000:], c[1000:])

    assert nats == pytest.approx(2 * (0.5 * np.log(2 * np.pi * np.e) + np.log(0.1)), abs=0.05)
    assert found.nats(x[1000:], c[1000:]).mean() == pytest.approx(nats)


def test_copies_of_columns_have_a_density():
    x = np.random.default_rng(0).normal(size=(300, 1)) * [1, 1, 2]
    for found in gaussians(x):
        assert np.isfinite(found.nats(x)).all()


def test_marginal_entropies_of_what_is_known():
    rng = np.random.default_rng(0)
    x = np.stack((rng.normal(size=20_000), 3 * rng.uniform(size=20_000)), axis=1)

    assert np.allclose(marginal_entropies(x), [1.419, np.log(3)], atol=0.05)


# The flow that starts from one


def test_a_calm_flow_is_the_gaussian_it_starts_from():
    x = torch.randn(20, 3, dtype=torch.float64)
    matrix = torch.tensor([[2.0, 0, 0], [1, 1, 0], [-3, 0.5, 0.5]], dtype=torch.float64)
    shift = torch.tensor([1.0, 0, -2], dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(
        -torch.linalg.solve(matrix, shift), precision_matrix=matrix.mT @ matrix
    )
    for options in ({}, {"norm": "operator"}, {"mix": "lu"}, {"trick": False}):
        flow = QuAR(3, transforms=2, hidden_features=(6,), start="gaussian", **options).double()
        flow.start_from(matrix, shift)
        flow.branches.calm()
        assert not flow.initialize(x)  # it has its start
        assert torch.allclose(flow().log_prob(x), exact.log_prob(x))
        assert torch.allclose(flow().transform.inv(flow().transform(x)), x)
        loss = -flow().log_prob(x).mean()
        loss.backward()
        gradients = [p.grad for p in flow.parameters() if p.grad is not None]
        assert all(g.isfinite().all() for g in gradients)
        assert max(g.abs().max() for g in gradients) > 0  # it can leave it


def test_a_start_is_asked_for_when_the_flow_is_made():
    with pytest.raises(ValueError, match="start='gaussian'"):
        QuAR(2).start_from(torch.eye(2), torch.zeros(2))
    with pytest.raises(ValueError, match="start must be"):
        QuAR(2, start="mixture")


# Fits


@pytest.fixture(scope="module")
def wide():
    """Fitted to 120 rows of 60 columns, with 500 rows more."""
    x, new = np.split(low_rank(620, 60), [120])

    return QuARDensity(random_state=0, max_epochs=8).fit(x), x, new


def test_a_fit_is_no_worse_than_a_gaussian(wide):
    density, x, new = wide
    nats = -density.score_samples(new).mean()

    assert density.metrics_["valid_nats"] <= density.metrics_["gaussian_nats"] + 1e-3
    assert nats < -LedoitWolf().fit(x).score(new)
    mean, std = x.mean(0), x.std(0)
    alone = 0.5 * ((new - mean) / std) ** 2 + np.log(std * (2 * np.pi) ** 0.5)
    assert nats < alone.sum(1).mean()


def test_few_rows_start_at_the_gaussian_itself(wide):
    density, _, _ = wide
    start = density.history_[0]

    assert start["step"] == 0
    assert start["train_nats"] is None
    assert start["valid_nats"] == density.metrics_["start_nats"]
    assert start["valid_nats"] == pytest.approx(density.metrics_["gaussian_nats"], abs=1e-2)
    assert density.metrics_["valid_nats"] <= min(r["valid_nats"] for r in density.history_) + 1e-3


def test_what_is_no_better_than_a_gaussian_is_a_gaussian(tmp_path, capsys):
    x = np.random.default_rng(0).normal(size=(300, 3)) * [1, 10, 100]
    density = QuARDensity(**QUICK | {"learning_rate": 1e-6, "verbose": True}).fit(x)

    assert density.metrics_["kept"] == "gaussian"
    assert "Gaussian is kept" in density.metrics_["stopped"]
    assert "Gaussian is kept" in capsys.readouterr().err
    assert density.metrics_["valid_nats"] == density.metrics_["gaussian_nats"]
    assert all(step.bound < 1e-8 for step in density.flow_.certificate())
    z = density.transform(x)
    assert np.linalg.matrix_rank(np.c_[x, np.ones(300), z], tol=1e-6 * np.abs(x).max()) == 4
    density.save(tmp_path / "m")
    loaded = QuARDensity.load(tmp_path / "m")
    assert np.array_equal(loaded.score_samples(x), density.score_samples(x))


@pytest.mark.parametrize(("nats", "kept"), [(2.9, "gaussian"), (3.1, "flow")])
@pytest.mark.parametrize("rows", [20, 2000])
def test_a_flow_has_to_be_clearly_better_on_all_validation_rows_together(rows, nats, kept):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(rows, 1)))
    flow = QuAR(1, start="gaussian").double()
    model = data_units(flow, Columns.fit(x.numpy(), ["x0"]), None)
    with torch.no_grad():
        alike = -model().log_prob(x).numpy()
    judge = Judge(x, None, alike + nats / rows)
    start = Start(next(gaussians(x.numpy())), 1.4, pays=False, gently=False, valid=judge)
    result = TrainingResult([], 1.4, 0, "", False, 0, 0.0, 1, 1, "cpu", None, [])
    found, told = fall_back(flow, start, result, model)

    assert judge.evidence(model) == pytest.approx(nats)
    assert (found is flow) == (kept == "flow") == (told == "")


def test_standardised_columns_are_not_estimated_once_more():
    x = np.random.default_rng(0).normal(size=(500, 2))
    x = (x - x.mean(0)) / x.std(0)
    found = next(gaussians(x[:450]))
    moved = next(gaussians(2 * x[:450] + 1))

    assert np.array_equal(found.matrix, np.eye(2))
    assert np.array_equal(found.shift, [0, 0])
    assert np.allclose(moved.matrix, np.diag(0.5 / x[:450].std(0)), rtol=1e-6)


def test_what_follows_its_reference_at_a_bound_is_left_to_it():
    x = np.random.default_rng(0).exponential(size=(5000, 1))
    density = QuARDensity(**QUICK | {"max_epochs": 1}, bounds={"x0": (0, None)}).fit(x)
    at = np.r_[np.logspace(-12, -2, 9), np.linspace(0.1, 6.9, 50)]
    scale = x.mean()  # the best that can be known

    assert density.metrics_["kept"] == "gaussian"
    scores = density.score_samples(at[:, None])
    assert np.allclose(scores, -np.log(scale) - at / scale, rtol=0, atol=1e-3)


def test_what_is_better_than_a_gaussian_is_kept():
    density = QuARDensity(**QUICK | {"max_epochs": 25, "learning_rate": 0.03}).fit(curved(400))

    assert density.metrics_["kept"] == "flow"
    assert density.metrics_["valid_nats"] < density.metrics_["gaussian_nats"] - 0.1


def test_validation_nats_are_those_of_the_gaussian_on_the_same_rows_and_noise():
    rng = np.random.default_rng(0)
    x = np.stack((rng.poisson(3, size=400), rng.normal(size=400)), axis=1).astype(float)
    density = QuARDensity(**QUICK | {"learning_rate": 1e-7}).fit(x)
    again = QuARDensity(**QUICK | {"learning_rate": 1e-7}).fit(x)

    assert density.metrics_["kept"] == "gaussian"
    assert density.metrics_["gaussian_nats"] == again.metrics_["gaussian_nats"]
    assert Columns.fit(x, ["x0", "x1"]).columns[0].step is not None


def test_without_a_start():
    x = low_rank(120, 6)
    density = QuARDensity(**QUICK | {"start": "none"}).fit(x)

    assert density.settings_["start"] == "none"
    assert density.flow_.start is None
    assert density.metrics_["gaussian_nats"] is None
    assert density.metrics_["kept"] == "flow"


def start_of(x):
    columns = Columns.fit(x, [f"x{i}" for i in range(x.shape[1])])
    held_out, kept = np.split(np.arange(len(x)), [len(x) // 10])
    rows = [TableRows(x, None, columns, index) for index in (kept, held_out)]

    return find_start(*rows, columns, None, TrainingSettings())


def test_starts_that_mix_pay_unless_columns_have_spikes():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3000, 1)) + 0.2 * rng.normal(size=(3000, 4))
    close = np.random.default_rng(0).random(x.shape) < 0.6
    spiky = np.where(close, 1e-3 * x, x)  # most values of every column are close to 0

    assert start_of(x).pays
    assert not start_of(spiky).pays
    assert not start_of(x + 2 * rng.normal(size=x.shape)).pays  # depends little
    assert not start_of(np.random.default_rng(0).normal(size=(3000, 4))).pays
    assert not start_of(x).gently
    assert start_of(x[:35]).gently


def test_a_context_takes_part():
    rng = np.random.default_rng(0)
    c = rng.normal(size=(400, 2)) * [1, 50] + 7
    x = c @ np.array([[1.0, 2.0], [0.1, 0.0]]) + 0.1 * rng.normal(size=(400, 2))
    density = QuARDensity(**QUICK | {"max_epochs": 1}).fit(x, context=c)
    residual = 2 * (0.5 * np.log(2 * np.pi * np.e) + np.log(0.1))

    assert -density.score_samples(x, context=c).mean() < residual + 0.2
    shifted = density.sample(500, random_state=0, context=[20.0, 7.0])  # far outside: linear
    assert np.allclose(shifted.mean(0), [20.7, 40.0], atol=0.3)


def test_saved_starts(tmp_path):
    density = QuARDensity(**QUICK).fit(low_rank(3000, 4, factors=1))
    density.save(tmp_path / "m")
    loaded = QuARDensity.load(tmp_path / "m")
    x = low_rank(100, 4, factors=1, seed=1)

    assert np.array_equal(loaded.score_samples(x), density.score_samples(x))
    config = load_model(tmp_path / "m").config.flow
    assert config.arguments.start == "gaussian"
    numbers = sum(t.numel() for t in density.flow_.state_dict().values())
    assert least_numbers(config) == numbers
    path = tmp_path / "m" / "config.json"
    content = json.loads(path.read_text())
    del content["flow"]["arguments"]["start"]  # as in models of earlier versions
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="start"):
        QuARDensity.load(tmp_path / "m")


def test_widths_follow_rows_and_columns():
    ordinary, wide = choose_defaults(15_000, 10), choose_defaults(1350, 1000)

    assert ordinary.hidden_features == (128, 128)
    assert wide.hidden_features == (1000, 1000)
    assert wide.transforms < choose_defaults(15_000, 1000).transforms
    assert wide.weight_decay > ordinary.weight_decay
