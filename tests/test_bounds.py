"""Compiled loops with numba's checks of bounds, as CI runs them once (see ``.ci/run``)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")
SCRIPT = """
import numpy as np
from tolpack.codecs import kernels

records, out = np.zeros((1, 8), np.uint8), np.zeros((1, 8), np.float32)
places, columns = np.array([PLACE]), np.zeros(1, np.int64)
try:
    steps = np.ones(1, np.float32)
    kernels.load().decoders["step8"](records, 0, 0, 8, 8, steps, places, columns, out)
    print("inside")
except IndexError:
    print("outside")
"""


@pytest.mark.parametrize(("place", "expected"), [(0, "inside"), (1, "outside")])
def test_checks_of_bounds_are_on_where_they_are_asked_for(place, expected, tmp_path):
    """With NUMBA_BOUNDSCHECK=1 a write outside an array is an error: that run of CI can fail."""
    cache = str(tmp_path)
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": cache}
    command = [sys.executable, "-c", SCRIPT.replace("PLACE", str(place))]
    folder = Path(__file__).parents[1]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, cwd=folder
    )
    assert done.stdout == f"{expected}\n"
