"""Every test: one thread, the same random numbers, hypothesis without deadlines."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "quarflow",
    deadline=None,
    max_examples=30,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("quarflow")
torch.set_num_threads(1)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a run in the background inherits this, and quarflow leaves ignored signals ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - scikit-learn's checks use it


@pytest.fixture
def without_kernels(monkeypatch):
    """As on a machine without a compiler."""
    monkeypatch.setattr("quarflow.ops.backend.BACKENDS", ())


@pytest.fixture
def kernels():
    """The kernels; tests of them are skipped where they cannot be had."""
    from quarflow.backends.cpu.build import library, status

    if library() is None:
        pytest.skip(f"no kernels: {status()}")
