"""Lower bounds on the size of codes: empirical entropy, Gaussian rate–distortion function."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tolpack.runtime.array_types import Floats

_LARGEST = 2047
# Rows whose codes are counted together: tokens of similar frequency, as a coder would.
_RUN_ROWS = 2048


def code_bytes(
    codes: Floats, rows: NDArray[np.float64], sets: NDArray[np.uint8] | None = None
) -> NDArray[np.float64]:
    """Bytes of an ideal coder that learns every component's distribution in every run of tokens.

    Parameters
    ----------
    codes : ndarray
        float32 (n, components), whole numbers, tokens in the order of their frequency.
    rows : ndarray
        float64 (n,): how many rows each one stands for.
    sets : ndarray, optional
        uint8 (n, components), 0 or 1: which of two distributions the coder has for a code, as with
        levels along a trellis (`tolpack.codecs.ans.trellis`). Default: one distribution.

    Returns
    -------
    ndarray
        float64 (components,): the entropy, given the sets, and what an adaptive coder needs to
        learn it, half a ``log2`` of the number of rows for every code that occurs (Rissanen 1986).
    """
    total = np.zeros(codes.shape[1])
    for start in range(0, len(codes), _RUN_ROWS):
        part = np.clip(codes[start : start + _RUN_ROWS], -_LARGEST, _LARGEST).astype(np.int64)
        stands_for = float(rows[start : start + _RUN_ROWS].sum())
        if sets is not None:
            part += (2 * _LARGEST + 1) * sets[start : start + _RUN_ROWS].astype(np.int64)
        for n in range(part.shape[1]):
            counts = np.bincount(part[:, n] + _LARGEST)
            of_set = np.add.reduceat(counts, range(0, len(counts), 2 * _LARGEST + 1))
            of_set = np.repeat(of_set, 2 * _LARGEST + 1)[: len(counts)][counts > 0]
            counts = counts[counts > 0]
            share = counts / len(part)
            bits = -stands_for * float((share * np.log2(counts / of_set)).sum())
            total[n] += (bits + 0.5 * len(counts) * np.log2(max(stands_for, 2))) / 8
    return total


def gaussian_bytes(codes: Floats, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bytes that Gaussian components of the same variances need for the same distortion.

    Rounding to whole steps leaves an error of ``1/12``. A component whose codes have the mean
    square ``σ²`` in a run of tokens needs ``½ log2(1 + 12 σ²)`` bits a value (Cover and Thomas,
    Elements of Information Theory, theorem 10.3.2): of all sources with this variance the most, so
    that a heavy-tailed table may need less. Parameters and result as of `code_bytes`.
    """
    total = np.zeros(codes.shape[1])
    for start in range(0, len(codes), _RUN_ROWS):
        part = codes[start : start + _RUN_ROWS]
        square = np.square(part, dtype=np.float64).mean(axis=0)
        total += rows[start : start + _RUN_ROWS].sum() * 0.5 * np.log2(1 + 12 * square) / 8
    return total
