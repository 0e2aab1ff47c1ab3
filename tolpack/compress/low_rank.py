"""Truncated SVD of a tall table through its Gram matrix (docs/compression.md).

A table ``T`` (tokens × hidden) with token weights ``w`` (``Σ w = 1``) is approximated by
``μ + C·B`` of rank ``r`` with the smallest ``Σ_t w_t ‖e_t‖²``: with ``μ = Σ w_t T_t`` and
``S = Σ_t w_t (T_t-μ)ᵀ(T_t-μ)``, the rows of ``B`` are the leading eigenvectors of ``S``
(Eckart–Young), and what is left out is the sum of the other eigenvalues. ``S`` is streamed; ``T``
is never held, and the cost is one pass and a hidden × hidden eigenproblem instead of an SVD of
all rows.

Coefficients of a rounded basis ``B̃`` are the least-squares ones, ``C = (T-μ) B̃ᵀ (B̃ B̃ᵀ)⁻¹``,
so that the basis' rounding costs only what cannot be repaired.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from tolpack.runtime.array_types import Doubles


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Eigenvalues, float64 (hidden,) descending, and eigenvectors in columns, of ``S``.

    ``values[i]`` is the weighted energy ``Σ_t w_t c_{t,i}²`` of component ``i``.
    """

    values: Doubles
    vectors: Doubles


def spectrum(second_moment: Doubles, mean: Doubles) -> Spectrum:
    """Decompose ``S = Σ w TᵀT - μᵀμ``.

    Parameters
    ----------
    second_moment : ndarray
        ``Σ_t w_t T_tᵀ T_t``, float64 (hidden, hidden).
    mean : ndarray
        ``μ``, float64 (hidden,).
    """
    values, vectors = scipy.linalg.eigh(second_moment - np.outer(mean, mean))
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    # The sign of an eigenvector is arbitrary: fix it, so that equal inputs give equal bytes.
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(values))])
    return Spectrum(values, vectors * signs)


def projection(basis: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return ``P = B̃ᵀ (B̃ B̃ᵀ)⁻¹``, float32 (hidden, rank), for a stored basis (rank, hidden)."""
    rounded = basis.astype(np.float64)
    solved = scipy.linalg.solve(rounded @ rounded.T, rounded, assume_a="pos")
    return np.asarray(solved.T, dtype=np.float32)
