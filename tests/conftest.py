"""Set-up for all tests: two threads in all, patient property tests, real data only where it is at hand."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is imported: idle threads sleep, and workers times threads stay within two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import pytest
from hypothesis import HealthCheck, settings

# A slow machine is no failure, so nothing is timed. CI draws the same examples every time; at home they vary.
settings.register_profile(
    "dpgm",
    deadline=None,
    max_examples=50,
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("dpgm")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets that DPGM_DATA names; tests that need it are skipped without it."""
    folder = os.environ.get("DPGM_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("DPGM_DATA names no folder of data sets")
    return Path(folder)
