"""Entropy-coded reverse water-filling of a table, in the style of WaterSIC (arXiv 2603.04956).

Each layer's rows go to their principal components (KLT). One step rounds the coefficients of all
layers. Components whose variance is below the distortion of that step are left out (Cover and
Thomas, section 10.3). The codes are taken to cost their adaptive entropy
(`tolpack.codecs.code_entropy`), which no coder reaches. No model is run: there are no loss metrics
and no error compensation.

WaterSIC weighs the error of a column by the energy of the activation that multiplies it. A lookup
multiplies a table by one-hot rows, so the activations' covariance is diagonal and has the tokens'
frequencies in it. With `counts` the step of a row is therefore proportional to the square root of
one over its frequency; without, all rows have one step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from table_quantizers import Floats

from tolpack.codecs.code_entropy import code_bytes, gaussian_bytes

# Halvings of the interval between the steps that are tried: sizes end within a few bytes.
_HALVINGS = 16


@dataclass(frozen=True)
class Filled:
    """A table as a reader would get it, and bytes: in all, of them codes, and of ideal codes.

    ``gaussian_bytes`` is what Gaussian codes of the same variances take at R(D). ``values`` is the
    number of the codes.
    """

    table: Floats
    bytes: float
    code_bytes: float
    gaussian_bytes: float
    values: int


class WaterFilling:
    """The components of a table, of which each step makes another `Filled`.

    Parameters
    ----------
    table : ndarray
        float32 (rows, layers, width).
    counts : ndarray, optional
        int64 (rows,), how often each row is read.
    """

    def __init__(self, table: Floats, counts: NDArray[np.int64] | None = None) -> None:
        rows = len(table)
        seen = np.ones(rows) if counts is None else counts + 1.0
        self.order = np.argsort(-seen, kind="stable")
        self.row_steps = np.sqrt(seen.mean() / seen).astype(np.float32)[:, None]
        self.layers = [Components.of(part, self.row_steps) for part in table.swapaxes(0, 1)]

    def of_size(self, wanted: float) -> Filled:
        """Return the table with the smallest step that takes no more than `wanted` bytes."""
        high = max(float(np.sqrt(layer.variances.max())) for layer in self.layers) * 4
        low = high / 4096
        for _ in range(_HALVINGS):
            step = float(np.sqrt(low * high))
            low, high = (low, step) if self.bytes(step) <= wanted else (step, high)
        return self.filled(high)

    def bytes(self, step: float) -> float:
        """Return the bytes that a step leads to."""
        total = 0.0
        for layer in self.layers:
            codes = layer.codes(step)[self.order]
            total += layer.side_bytes(step) + code_bytes(codes, np.ones(len(codes))).sum()
        return total

    def filled(self, step: float) -> Filled:
        """Quantize with a step."""
        parts, coded, gaussian, values = [], 0.0, 0.0, 0
        for layer in self.layers:
            codes = layer.codes(step)
            parts.append(layer.read(codes, step, self.row_steps))
            ordered, ones = codes[self.order], np.ones(len(codes))
            coded += code_bytes(ordered, ones).sum()
            gaussian += gaussian_bytes(ordered, ones).sum()
            values += codes.size
        side = sum(layer.side_bytes(step) for layer in self.layers)
        return Filled(np.stack(parts, axis=1), side + coded, coded, gaussian, values)


@dataclass(frozen=True)
class Components:
    """One layer: its mean, its basis as stored (int8 with a scale a row), and coefficients.

    ``basis`` float32 (width, width), largest component first; ``coefficients`` float32 (rows,
    width), in steps of their row; ``variances`` float64 (width,), theirs.
    """

    mean: Floats
    basis: Floats
    coefficients: Floats
    variances: Floats

    @classmethod
    def of(cls, part: Floats, row_steps: Floats) -> Components:
        """Decompose rows (rows, width)."""
        weights = 1 / np.square(row_steps.astype(np.float64))
        mean = ((part * weights).sum(axis=0) / weights.sum()).astype(np.float16).astype(np.float32)
        units = (part - mean) / row_steps
        variances, vectors = np.linalg.eigh(units.T.astype(np.float64) @ units / len(units))
        vectors = np.ascontiguousarray(vectors[:, ::-1].T, np.float32)
        scale = (np.abs(vectors).max(axis=1, keepdims=True) / 127).astype(np.float16)
        scale = scale.astype(np.float32)
        return cls(mean, np.rint(vectors / scale) * scale, units @ vectors.T, variances[::-1])

    def kept(self, step: float) -> int:
        """Return how many components are above the water level, the distortion of the step."""
        return int((self.variances > step * step / 12).sum())

    def codes(self, step: float) -> Floats:
        """Return the codes of the kept components, float32 (rows, kept)."""
        codes: Floats = np.rint(self.coefficients[:, : self.kept(step)] / np.float32(step))
        return codes

    def read(self, codes: Floats, step: float, row_steps: Floats) -> Floats:
        """Return rows from codes; each component is shrunk to the least squared error."""
        own = self.coefficients[:, : codes.shape[1]]
        energy = np.square(codes).sum(axis=0)
        shrunk = (own * codes).sum(axis=0) / np.where(energy > 0, energy, 1)
        shrunk = shrunk.astype(np.float16).astype(np.float32)
        rows: Floats = (codes * shrunk) @ self.basis[: codes.shape[1]] * row_steps + self.mean
        return rows

    def side_bytes(self, step: float) -> int:
        """Return bytes of the mean, and of basis, scale and shrinkage of the kept components."""
        width = len(self.mean)
        return 2 * width + self.kept(step) * (width + 2 + 2)
