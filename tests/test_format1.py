"""Model folders that the first version of the format wrote load, and mean what they meant."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from quarflow import QuARDensity
from quarflow.store import load_flow

FOLDERS = Path(__file__).parent / "data" / "format1"


@pytest.fixture(scope="module")
def expected():
    return json.loads((FOLDERS / "expected.json").read_text())


def test_a_table(expected):
    known = expected["quar"]
    found = QuARDensity.load(FOLDERS / "quar").score_samples(
        known["rows"], context=known["context"]
    )
    np.testing.assert_allclose(found, known["log_prob"], rtol=1e-4)


def test_images(expected):
    flow = load_flow(FOLDERS / "image_quar").double()
    with torch.no_grad():
        found = flow().log_prob(torch.linspace(0.05, 0.95, 96).view(2, 3, 4, 4).double())
    # In float64 the slack of the bounds is now that of float32 too.
    np.testing.assert_allclose(found, expected["image_quar"]["log_prob"], rtol=1e-4)
