"""Row weights: what a row of weight 3 means is three rows, and one of weight 0 is not there."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from quarflow import QuARDensity
from quarflow.cli import app
from quarflow.data.columns import Columns
from quarflow.density.gaussian import gaussians
from quarflow.density.rows import TableRows
from quarflow.density.weights import effective_rows, read_weights
from quarflow.flows import QuAR
from quarflow.training import CheckpointError, NegativeLogLikelihood, TrainingSettings, train
from quarflow.training.rows import Plan, Sampler

SMALL = {"transforms": 2, "hidden_features": (8,), "max_epochs": 3, "random_state": 0}


def two_groups(n, seed=0):
    """As many rows about -3 as about 3, in the first column."""
    rng = np.random.default_rng(seed)
    side = np.where(rng.random(n) < 0.5, -3, 3)

    return rng.normal(size=(n, 2)) + np.stack((side, 0.5 * side), axis=1)


def wholes(n, seed=0):
    return np.random.default_rng(seed).integers(0, 4, n).astype(float)


# What users give


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ([1, 2, 3], "has 3 numbers and X has 5 rows"),
        ([1, 2, -1, 1, 1], "is -1 in row 2"),
        ([1, np.nan, 1, 1, 1], "is nan in row 1"),
        ([1, 1, 1, np.inf, 1], "is inf in row 3"),
        ([0, 0, 0, 0, 0], "above 0 in 0 rows"),
        ([0, 0, 1, 2, 1], "above 0 in 3 rows"),
        (np.ones((5, 2)), "must be 1D"),
        ([1e308] * 4 + [1.5e308], "too large to be summed"),
        (["a", "b", "c", "d", "e"], "sample_weight"),
    ],
)
def test_other_weights_are_refused_in_a_sentence(weights, told):
    with pytest.raises(ValueError, match=told):
        read_weights(weights, 5)


def test_weights_come_in_any_make():
    w = np.array([1.0, 2.0, 3.0, 4.0])
    frame = pd.DataFrame({"w": w})
    for some in (w, list(w), torch.from_numpy(w), frame["w"], frame, w.astype(np.float32)):
        assert np.array_equal(read_weights(some, 4), w)


@given(st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=20), st.floats(1e-6, 1e6))
def test_effective_rows_do_not_depend_on_the_unit_of_weights(weights, unit):
    w = np.array(weights)
    found = effective_rows(w)
    assert 1 <= found <= len(w) * (1 + 1e-9)
    assert effective_rows(w * unit) == pytest.approx(found)


def test_metadata_routing_knows_of_them():
    assert "sample_weight" in QuARDensity().get_metadata_routing().fit.requests


# What they mean


def test_gaussians_of_whole_weights_are_those_of_repeated_rows():
    rng = np.random.default_rng(0)
    x = 5 + rng.normal(size=(4000, 3)) @ np.array([[2.0, 1, 0], [0, 3, 1], [0, 0, 0.3]])
    c, w = rng.normal(size=(4000, 1)), wholes(4000)
    again = np.repeat(np.arange(4000), w.astype(int))
    for context in (None, c):
        one = gaussians(x, context, w)
        other = gaussians(x[again], None if context is None else c[again])
        for a, b in zip(one, other, strict=True):
            # how far to shrink, and the ridge of the slopes, depend on how many rows there are
            exact = a.kind != "shrunk" and context is None
            covariances = [np.linalg.inv(g.matrix.T @ g.matrix) for g in (a, b)]
            assert np.allclose(*covariances, rtol=1e-9 if exact else 0.02)
            means = [np.linalg.solve(g.matrix, g.shift) for g in (a, b)]
            assert np.allclose(*means, rtol=1e-9 if exact else 1e-3)


def test_the_loss_is_that_of_repeated_rows():
    flow = QuAR(2, 0, transforms=2, hidden_features=(8,)).double()
    x, w = torch.from_numpy(two_groups(60)), torch.from_numpy(wholes(60))
    loss = NegativeLogLikelihood(flow)
    again = x.repeat_interleave(w.long(), 0)
    assert torch.allclose(loss(x, None, w / w.mean()), loss(again), rtol=1e-12)


def rows_of(x, w):
    columns = Columns.fit(x, ["a", "b"], tails="none")

    return TableRows(x, None, columns, np.arange(len(x)), weights=w)


def test_batches_of_an_epoch_have_the_loss_of_all_rows_on_average():
    flow = QuAR(2, 0, transforms=2, hidden_features=(8,)).double()
    rows = rows_of(two_groups(60), wholes(60) + 1)
    loss, plan = NegativeLogLikelihood(flow), Plan.of(60, TrainingSettings(batch_size=10))
    sampler = Sampler(rows, plan, seed=0)
    parts = [loss(*sampler.batch(step), sampler.weights(step)) for step in range(6)]
    assert torch.allclose(torch.stack(parts).mean(), loss(rows.x, None, rows.weights), rtol=1e-12)


def test_validation_nats_are_weighted_too():
    x, w = two_groups(200), wholes(200) + 1
    flow = QuAR(2, 0, transforms=1, hidden_features=(4,)).double()
    settings = TrainingSettings(batch_size=16, max_epochs=1, evaluate_start=True)
    result = train(flow, rows_of(x, w), rows_of(x, w), settings, device="cpu")
    with torch.no_grad():
        nats = -flow().log_prob(torch.from_numpy(x)).numpy()
    assert result.best == pytest.approx(float(np.average(nats, weights=w)), rel=1e-9)


def test_rows_of_weight_0_are_as_good_as_absent():
    x, w = two_groups(300), wholes(300)
    one = QuARDensity(**SMALL).fit(x, sample_weight=w)
    other = QuARDensity(**SMALL).fit(x[w > 0], sample_weight=w[w > 0])
    assert np.array_equal(one.score_samples(x), other.score_samples(x))
    assert one.metrics_["rows"] == (w > 0).sum()
    assert one.metrics_["effective_rows"] < one.metrics_["train_rows"]

    mask = (w > 0).astype(float)
    one, other = (
        QuARDensity(**SMALL).fit(x, sample_weight=mask),
        QuARDensity(**SMALL).fit(x[w > 0]),
    )
    assert np.array_equal(one.score_samples(x), other.score_samples(x))


def test_equal_weights_change_nothing():
    x = two_groups(300)
    one, other = (QuARDensity(**SMALL).fit(x, sample_weight=w) for w in (np.full(300, 7), None))
    assert np.array_equal(one.score_samples(x), other.score_samples(x))
    assert "effective_rows" not in one.metrics_


def test_samples_follow_the_weighted_rows():
    x = two_groups(1500)
    w = np.where(x[:, 0] > 0, 9.0, 1.0)
    density = QuARDensity(**SMALL | {"max_epochs": 25, "hidden_features": (32,)})
    samples = density.fit(x, sample_weight=w).sample(4000, random_state=0)
    expected = w[x[:, 0] > 0].sum() / w.sum()
    assert abs((samples[:, 0] > 0).mean() - expected) < 0.03
    assert np.abs(samples.mean(0) - np.average(x, axis=0, weights=w)).max() < 0.2


def test_columns_are_standardised_by_weight():
    x, w = two_groups(2000), np.linspace(0, 5, 2000)[np.random.default_rng(0).permutation(2000)]
    x = np.column_stack([x, np.random.default_rng(1).integers(0, 3, 2000)])
    columns = QuARDensity(**SMALL).fit(x, sample_weight=w).columns_
    z = columns.transform()(torch.from_numpy(x[w > 0])).numpy()[:, :2]
    share = w[w > 0] / w.sum()
    assert np.abs(share @ z).max() < 1e-6
    assert np.abs(share @ z**2 - 1).max() < 1e-6
    levels = columns.columns[2]
    found = [w[x[:, 2] == level].sum() / w.sum() for level in levels.levels]
    assert np.allclose(levels.masses, found, atol=1e-3)


def test_a_run_is_not_resumed_with_other_weights(tmp_path):
    x, w = two_groups(200), wholes(200) + 1
    options = SMALL | {"checkpoint": tmp_path / "run"}
    first = QuARDensity(**options).fit(x, sample_weight=w)
    again = QuARDensity(**options, resume=True).fit(x, sample_weight=w)
    assert np.array_equal(first.score_samples(x), again.score_samples(x))
    w[7] += 1
    with pytest.raises(CheckpointError, match="weights"):
        QuARDensity(**options, resume=True).fit(x, sample_weight=w)


# The command


def test_the_command_takes_a_column_of_weights(tmp_path):
    x, w = two_groups(200), wholes(200)
    pd.DataFrame({"a": x[:, 0], "w": w, "b": x[:, 1]}).to_csv(tmp_path / "t.csv", index=False)
    fit = ["fit", str(tmp_path / "t.csv"), "-o", str(tmp_path / "m"), "--max-epochs", "2"]
    found = CliRunner().invoke(app, [*fit, "--weights", "w"])
    assert found.exit_code == 0, found.output
    density = QuARDensity.load(tmp_path / "m")
    assert density.columns_.names == ["a", "b"]
    assert density.metrics_["rows"] == (w > 0).sum()

    for more, told in (
        (["--weights", "w", "--columns", "a,w"], "in --columns and in --weights"),
        (["--weights", "w", "--context", "w"], "in --context and in --weights"),
        (["--weights", "weight"], "weight"),
        (["--weights", "a"], "weights are finite numbers of at least 0"),
    ):
        found = CliRunner().invoke(app, [*fit, "--force", *more])
        assert found.exit_code == 2
        assert told in found.stderr
