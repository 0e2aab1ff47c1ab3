"""Outlier keys: those that far fewer tokens use than use the layer's other keys.

The paper counts outlier keys by layer (arXiv 2602.00398 §3). Here the kurtosis of a key's
coefficients over the vocabulary tells how few tokens it is for: if one token in n has all of it,
the kurtosis is about n. A key is an outlier if the logarithm of its kurtosis is beyond the upper
fence of Tukey (1977) over the layer's keys: the third quartile and 1.5 times the distance of the
quartiles. Normal values have 0.35 % beyond it.
"""

from __future__ import annotations

import numpy as np

from tolpack.runtime.array_types import Doubles, Ints

_FENCE = 1.5
# Keys of a few tokens have one kurtosis, up to rounding: none is an outlier there.
_LEAST_SPREAD = 1e-6


def find_outliers(kurtosis: Doubles) -> Ints:
    """Return the outlier keys, of the largest kurtosis first: int64 (outliers,).

    Parameters
    ----------
    kurtosis : ndarray
        float64 (keys,), at least 1.
    """
    logs = np.log(kurtosis)
    low, high = np.quantile(logs, (0.25, 0.75))
    if high - low < _LEAST_SPREAD:
        return np.empty(0, np.int64)
    found = np.flatnonzero(logs > high + _FENCE * (high - low))
    return found[np.argsort(-kurtosis[found], kind="stable")]
