"""Squared gradients of rows are fitted by a power of their counts."""

import numpy as np
import pytest

from tolpack.calibration.count_slope import CountSlope
from tolpack.compress.chunks import STEP_EXPONENT, step_exponent


def text_of(counts):
    """Return ids that occur so often each, in any order."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))


@pytest.mark.parametrize("power", [-0.7, 0.0, 0.3])
def test_a_power_of_the_count_is_found(power):
    """From batches of any size."""
    counts = np.repeat([2, 8, 30, 120, 500], 20)
    ids, fitted = text_of(counts), CountSlope()
    for start in range(0, len(ids), 999):
        part = ids[start : start + 999]
        fitted.add(part, 3.0 * counts[part] ** power)
    assert fitted.slope() == pytest.approx(power, abs=1e-9)


def test_few_rows_tell_nothing():
    """Three means of eight rows are the least."""
    counts = np.repeat([2, 30, 500], 8)
    fitted = CountSlope()
    assert fitted.slope() == 0.0
    fitted.add(text_of(counts[1:]), 1.0 / counts[text_of(counts[1:])])
    assert fitted.slope() == 0.0


def test_without_a_model_the_exponent_is_that_of_memoryllm():
    """Nothing is measured then."""
    assert step_exponent(None) == STEP_EXPONENT
