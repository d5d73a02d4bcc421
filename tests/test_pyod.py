"""The detector for PyOD keeps the contract of its detectors; skipped where PyOD is missing."""

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from quarflow import QuARDensity

pytest.importorskip("pyod", reason="PyOD is not installed: pip install 'quarflow[pyod]'")

from pyod.models.base import BaseDetector
from pyod.utils.data import generate_data

from quarflow.pyod import QuARDetector

QUICK = {"transforms": 2, "hidden_features": (16,), "max_epochs": 20, "random_state": 0}


@pytest.fixture(scope="module")
def data():
    return generate_data(
        n_train=200, n_test=100, n_features=10, contamination=0.1, random_state=42
    )


@pytest.fixture(scope="module")
def detector(data):
    return QuARDetector(0.1, QuARDensity(**QUICK, contamination=0.1)).fit(data[0])


def test_attributes_of_a_fitted_detector(detector, data):
    assert isinstance(detector, BaseDetector)
    assert detector.decision_scores_.shape == (200,)
    assert set(detector.labels_) == {0, 1}
    assert detector.labels_.sum() == 20
    assert np.array_equal(detector.decision_scores_ > detector.threshold_, detector.labels_ == 1)
    assert np.array_equal(detector.decision_function(data[0]), detector.decision_scores_)


def test_scores_and_labels_of_new_rows(detector, data):
    _, X, _, y = data
    scores = detector.decision_function(X)
    assert scores.shape == (100,)
    assert roc_auc_score(y, scores) >= 0.8
    labels, confidence = detector.predict(X, return_confidence=True)
    assert np.array_equal(labels, scores > detector.threshold_)
    assert np.array_equal(detector.predict_confidence(X), confidence)
    assert confidence.min() >= 0
    assert confidence.max() <= 1


@pytest.mark.parametrize("method", ["linear", "unify"])
def test_probabilities(detector, data, method):
    found, confidence = detector.predict_proba(data[1], method=method, return_confidence=True)
    assert found.shape == (100, 2)
    assert found.min() >= 0
    assert found.max() <= 1
    assert np.allclose(found.sum(1), 1)
    assert confidence.shape == (100,)


def test_other_predictions(detector, data):
    _, X, _, y = data
    with pytest.raises(ValueError, match="something"):
        detector.predict_proba(X, method="something")
    assert detector.predict_with_rejection(X).shape == (100,)
    ranks = detector._predict_rank(X)
    assert ranks.max() <= 200
    assert ranks.min() >= 0
    assert set(np.unique(detector.predict(X))) <= {0, 1}
    again = clone(detector)
    assert again.fit_predict(data[0]).shape == (200,)
    again.fit_predict_score(X, y, scoring="prc_n_score")
    with pytest.raises(NotImplementedError):
        again.fit_predict_score(X, y, scoring="something")


def test_clone_and_parameters(detector):
    copy = clone(detector)
    assert not hasattr(copy, "density_")
    assert copy.get_params()["density__max_epochs"] == 20
    copy.set_params(density__max_epochs=3, contamination=0.2)
    assert copy.density.max_epochs == 3
    assert detector.density.max_epochs == 20
    for wrong in (0.0, 0.7):
        with pytest.raises(ValueError, match="contamination"):
            QuARDetector(contamination=wrong)


def test_saved_and_loaded(detector, data, tmp_path):
    joblib.dump(detector, tmp_path / "detector.joblib")
    loaded = joblib.load(tmp_path / "detector.joblib")
    assert np.array_equal(loaded.decision_function(data[1]), detector.decision_function(data[1]))


def test_its_own_density_sets_aside_what_contamination_says():
    made = QuARDetector(0.2, random_state=3)._made()
    assert made.contamination == 0.2
    assert made.random_state == 3


def test_an_impossible_row_has_a_finite_score(data):
    X = np.abs(data[0])
    density = QuARDensity(**QUICK | {"max_epochs": 2}, bounds={"x0": (0, None)})
    found = QuARDetector(0.1, density).fit(X)
    odd = X[:2] * [[-1, *[1] * 9]]
    assert np.isfinite(found.decision_function(odd)).all()
    assert (found.predict(odd) == 1).all()
    assert np.isfinite(found.predict_proba(odd)).all()
