"""Rows that are odd: p-values, anomaly scores, and fits to rows that hold anomalies."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from quarflow import QuARDensity
from quarflow.cli import app
from quarflow.data.columns import Columns
from quarflow.density.held_out import HeldOut
from quarflow.density.trusted import share_set_aside, tail_ranks, trusted
from quarflow.store import StoreError

SMALL = {"transforms": 2, "hidden_features": (16,), "max_epochs": 8, "random_state": 0}


def ring(n, seed=0):
    """Two columns about a circle."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, n)
    radius = 3 + 0.3 * rng.normal(size=n)

    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1)


def with_clump(n=1000, odd=60, seed=0):
    """The ring, and a dense clump far outside; which rows are in the clump."""
    clump = np.array([9.0, 8.0]) + 0.05 * np.random.default_rng(seed + 1).normal(size=(odd, 2))
    order = np.random.default_rng(seed + 2).permutation(n + odd)

    return np.concatenate([ring(n, seed), clump])[order], order >= n


@pytest.fixture(scope="module")
def fitted():
    return QuARDensity(**SMALL).fit(ring(2000))


# p-values


def test_p_values_of_new_rows_are_as_rare_as_they_say(fitted):
    p = fitted.p_value(ring(5000, seed=5))
    held_out = len(fitted.held_out_.scores)
    assert held_out == fitted.metrics_["valid_rows"] == 200
    for a in (0.01, 0.05, 0.1, 0.3, 0.7):
        # of the held-out rows, of which there are few, and of the new ones
        error = np.sqrt(a * (1 - a) * (1 / held_out + 1 / len(p)))
        assert (p <= a).mean() < a + 3 * error


def test_p_values_are_valid_for_a_bad_model_too():
    X = ring(4000)
    density = QuARDensity(**SMALL | {"max_epochs": 1}, validation_fraction=0.5).fit(
        X[:2000] * [1, 0.1]
    )
    density.held_out_ = HeldOut.of(density.score_samples(X[2000:3000]), None)
    p = density.p_value(X[3000:])
    assert stats.kstest(p, "uniform", alternative="greater").pvalue > 1e-3


def test_p_values_are_ranks():
    ranks = HeldOut.of(np.array([-1.0, -2.0, -2.0, -np.inf]), None)
    found = ranks.p_values(np.array([-np.inf, -3.0, -2.0, -1.5, 0.0]))
    assert np.allclose(found, [2 / 5, 2 / 5, 4 / 5, 4 / 5, 1])

    weighted = HeldOut.of(np.array([-1.0, -3.0, -2.0]), np.array([1.0, 2.0, 3.0]))
    assert np.allclose(weighted.p_values(np.array([-9.0, -2.5, 0.0])), [3 / 9, 5 / 9, 1])


def test_whole_weights_rank_as_repeated_rows_do_but_for_the_new_row():
    rng = np.random.default_rng(0)
    scores, w = rng.normal(size=300), rng.integers(1, 4, 300).astype(float)
    at = rng.normal(size=50)
    one = HeldOut.of(scores, w).p_values(at)
    other = HeldOut.of(np.repeat(scores, w.astype(int)), None).p_values(at)
    assert np.abs(one - other).max() < 3 / w.sum()
    assert (one >= other).all()


def test_an_odd_row_has_a_low_one(fitted):
    assert fitted.p_value([[9.0, 8.0]])[0] == pytest.approx(1 / 201)
    assert fitted.p_value([[3.0, 0.0]])[0] > 0.1


def test_a_saved_model_keeps_them_and_an_old_one_says_so(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    rows = ring(50, seed=3)
    assert np.array_equal(QuARDensity.load(tmp_path / "model").p_value(rows), fitted.p_value(rows))

    kept = tmp_path / "model" / "held_out.safetensors"
    kept.write_bytes(kept.read_bytes()[:-8])
    with pytest.raises(StoreError, match="held_out"):
        QuARDensity.load(tmp_path / "model")
    kept.unlink()
    old = QuARDensity.load(tmp_path / "model")
    assert np.array_equal(old.score_samples(rows), fitted.score_samples(rows))
    with pytest.raises(ValueError, match="saved without the scores of held-out rows"):
        old.p_value(rows)
    old.save(tmp_path / "again")
    assert not (tmp_path / "again" / kept.name).exists()


@pytest.mark.parametrize(
    "tensors",
    [{"weights": [1.0]}, {"scores": [2.0, 1.0]}, {"scores": [1.0], "weights": [-1.0]}],
)
def test_held_out_scores_from_a_file_are_checked(tensors):
    with pytest.raises(StoreError, match="damaged"):
        HeldOut.from_tensors({k: torch.tensor(v).double() for k, v in tensors.items()})


def test_the_command_adds_them(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    rows = ring(20, seed=4)
    pd.DataFrame(rows, columns=["x0", "x1"]).to_csv(tmp_path / "t.csv", index=False)
    score = ["score", str(tmp_path / "model"), str(tmp_path / "t.csv"), "-o"]
    found = CliRunner().invoke(app, [*score, str(tmp_path / "s.csv"), "--p-value", "--keep"])
    assert found.exit_code == 0, found.output
    table = pd.read_csv(tmp_path / "s.csv")
    assert list(table) == ["x0", "x1", "log_prob", "p_value"]
    assert np.allclose(table["p_value"], fitted.p_value(rows))

    (tmp_path / "model" / "held_out.safetensors").unlink()
    found = CliRunner().invoke(app, [*score, str(tmp_path / "s.csv"), "--p-value"])
    assert found.exit_code == 2
    assert "fit it again" in found.stderr


# Anomaly scores


def test_anomaly_scores_are_nats_in_two_units(fitted):
    X = ring(30, seed=6)
    noise = stats.norm.logpdf(fitted.transform(X)).sum(1)
    assert np.allclose(fitted.anomaly_score(X), -(fitted.score_samples(X) + noise) / 2)


def test_values_never_seen_have_a_finite_one():
    X = np.column_stack([ring(300)[:, 0], np.random.default_rng(0).poisson(2, 300)])
    found = QuARDensity(**SMALL).fit(X).anomaly_score([[3.0, 2.0], [3.0, 50.0]])
    assert np.isfinite(found).all()
    assert found[1] > found[0] + 1


def test_anomaly_scores_are_infinite_where_the_density_is_zero():
    X = np.exp(ring(300))
    density = QuARDensity(**SMALL, bounds={"x0": (0, None)}).fit(X)
    found = density.anomaly_score([[-1.0, 1.0], [1.0, 1.0]])
    assert np.isposinf(found[0])
    assert np.isfinite(found[1])


# Fits to rows that hold anomalies


def test_a_clump_of_anomalies_is_not_learnt():
    X, odd = with_clump()
    options = SMALL | {"max_epochs": 40}
    naive = QuARDensity(**options).fit(X)
    robust = QuARDensity(**options, contamination=0.06).fit(X)
    assert robust.metrics_["set_aside"] == 64
    assert "set_aside" not in naive.metrics_
    assert roc_auc_score(odd, -robust.score_samples(X)) > 0.995
    assert np.median(robust.score_samples(X[odd])) < np.median(naive.score_samples(X[odd])) - 3
    ordinary = ring(500, seed=9)
    assert robust.score_samples(ordinary).mean() > naive.score_samples(ordinary).mean() - 0.3


def test_the_share_to_set_aside():
    X, _ = with_clump(200, 10)
    auto = QuARDensity(**SMALL | {"max_epochs": 1}, contamination="auto").fit(X)
    assert auto.metrics_["set_aside"] == pytest.approx(0.15 * 210, abs=1)
    assert auto.settings_["contamination"] == "auto"
    for wrong in (0, 0.6, -0.1, True, "some", None, float("nan")):
        with pytest.raises(ValueError, match="contamination must be"):
            share_set_aside(wrong)
    with pytest.raises(ValueError, match="contamination must be"):
        QuARDensity(**SMALL, contamination=2).fit(X)


def test_set_aside_by_weight():
    X, odd = with_clump()
    w = np.where(odd, 1.0, 3.0)
    density = QuARDensity(**SMALL | {"max_epochs": 1}, contamination=60 / 3060)
    assert density.fit(X, sample_weight=w).metrics_["set_aside"] <= 60


def test_a_row_may_be_odd_for_its_context_only():
    c = np.linspace(-5, 5, 400)[:, None]
    y = 10 * c + np.random.default_rng(0).normal(size=(400, 1))
    odd = np.arange(20, 400, 40)
    y[odd] = -y[odd]
    columns, context = (Columns.fit(part, ["a"], discrete="none") for part in (y, c))
    kept = trusted(y, c, columns, context, None, 0.03)
    assert set(np.flatnonzero(~kept)) >= set(odd[np.abs(c[odd, 0]) > 1])


def test_tail_ranks_do_not_break_ties():
    assert np.allclose(tail_ranks(np.array([1.0, 2.0, 2.0, 5.0])), -np.log([1, 0.75, 0.75, 0.25]))
    w = np.array([1.0, 1.0, 2.0, 4.0])
    assert np.allclose(
        tail_ranks(np.array([1.0, 2.0, 2.0, 5.0]), w), -np.log([1, 7 / 8, 7 / 8, 0.5])
    )
