"""Quantizing a layer's rows to one step under a metric of the loss: arrays in, arrays out.

`BasisQuantizer` rounds coefficients of a basis in whose coordinates the metric ``S`` is the
identity (`whitened_basis`): there errors of all coefficients cost the same, one step serves all,
and plain rounding is best. Components smaller than the step become zeros and cost an entropy coder
next to nothing: reverse water-filling by itself.

`DirectQuantizer` rounds the values as they are. ``S`` couples them: with ``S⁻¹ = UᵀU``, ``U`` upper
triangular, the values behind value ``i`` compensate for its error (GPTQ, arXiv 2210.17323), and
the rest costs ``1 / U_ii²``, nearly the same for all values of a layer.

`RoundingQuantizer` rounds values one by one, where no metric is known.

With ``lanes`` each of them chooses codes along a trellis instead
(`tolpack.compress.entropy.trellis_search`): a field's values are then cut into that many runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray

from tolpack.codecs.ans.trellis import run_length
from tolpack.compress.entropy.trellis_search import search_block, search_codes, subset_tops
from tolpack.compress.low_rank import Spectrum, spectrum
from tolpack.runtime.array_types import Doubles, Floats
from tolpack.runtime.scratch import SpilledArray

_COLUMNS = 32
# Paths of a trellis are decided at the end of so many: their errors reach no farther before.
_TRELLIS_COLUMNS = 64


class Quantizer(Protocol):
    """Quantizes rows of one layer."""

    @property
    def stored_values(self) -> int:
        """Values stored per row."""
        ...

    def quantize(self, rows: Floats, steps: Floats) -> tuple[Floats, Floats]:
        """Quantize `rows` float32 (n, hidden), row ``t`` to steps of ``steps[t]``.

        Returns
        -------
        stored, error : ndarray
            float32 (n, stored values), whole multiples of the step, and float32 (n, hidden):
            decoded rows less `rows`.
        """
        ...


@dataclass(frozen=True, slots=True)
class BasisQuantizer:
    """See the module.

    ``projection`` float32 (hidden, rank); ``basis`` float32 (rank, hidden), as it will be read;
    ``limits`` float32 (rank,): the largest code of each coefficient; ``lanes``: of a trellis, or 0.
    """

    projection: Floats
    basis: Floats
    limits: Floats
    lanes: int = 0

    @property
    def stored_values(self) -> int:
        """Values stored per row."""
        return len(self.basis)

    def quantize(self, rows: Floats, steps: Floats) -> tuple[Floats, Floats]:
        """See `Quantizer`."""
        whole = torch.from_numpy(rows)
        step, limit = torch.from_numpy(steps)[:, None], torch.from_numpy(self.limits)
        codes = (whole @ torch.from_numpy(self.projection)).div_(step)
        if self.lanes:
            codes = torch.from_numpy(_trellis_codes(codes.numpy(), self.limits, self.lanes))
        else:
            codes = torch.clamp(codes.round_(), -limit, limit)
        stored = codes.mul_(step)
        error = (stored @ torch.from_numpy(self.basis)).sub_(whole)
        return stored.numpy(), error.numpy()


@dataclass(frozen=True, slots=True)
class DirectQuantizer:
    """See the module.

    ``factor``: ``U``, float32 (hidden, hidden); ``unit``: what a step of 1 is in units of the
    table; ``limit``: the largest code; ``lanes``: of a trellis, or 0.
    """

    factor: Floats
    unit: float
    limit: int
    lanes: int = 0

    @property
    def stored_values(self) -> int:
        """Values stored per row."""
        return len(self.factor)

    def quantize(self, rows: Floats, steps: Floats) -> tuple[Floats, Floats]:
        """See `Quantizer`."""
        step = layer_steps(steps, self.unit)
        if self.lanes:
            result = self._codes_of(rows / step[:, None])
            result *= step[:, None]
            return result, result - rows
        left = np.ascontiguousarray(rows.T)
        errors = np.empty((_COLUMNS, len(rows)), np.float32)
        code = np.empty(len(rows), np.float32)
        stored = np.empty_like(left)
        for start in range(0, len(left), _COLUMNS):
            stop = min(start + _COLUMNS, len(left))
            for n in range(start, stop):
                np.divide(left[n], step, out=code)
                np.clip(np.rint(code, out=code), -self.limit, self.limit, out=code)
                np.multiply(code, step, out=stored[n])
                error = np.subtract(left[n], stored[n], out=errors[n - start])
                error /= self.factor[n, n]
                if n + 1 < stop:
                    left[n + 1 : stop] -= self.factor[n, n + 1 : stop, None] * error
            if stop < len(left):
                behind = torch.from_numpy(left[stop:])
                factor = torch.from_numpy(self.factor[start:stop, stop:])
                behind.addmm_(factor.T, torch.from_numpy(errors[: stop - start]), alpha=-1)
        result = np.ascontiguousarray(stored.T)
        return result, result - rows

    def _codes_of(self, values: Floats) -> Floats:
        """Return codes along a trellis of values in steps, float32 (n, hidden): every path through
        a block has its own compensated values, and the best one's errors go to those behind.
        """
        left, tops = (
            np.ascontiguousarray(values.T),
            subset_tops(np.full(1, self.limit, np.float32))[0],
        )
        codes, states = np.empty_like(left), np.zeros(len(values), np.int64)
        errors = np.empty((_TRELLIS_COLUMNS, len(values)), np.float32)
        length = run_length(len(left), self.lanes)
        start = 0
        while start < len(left):
            if start % length == 0:
                states[:] = 0
            stop = min(start + _TRELLIS_COLUMNS, start - start % length + length, len(left))
            within, found = self.factor[start:stop, start:stop], errors[: stop - start]
            search_block(left[start:stop], within, tops, states, codes[start:stop], found)
            if stop < len(left):
                factor = torch.from_numpy(self.factor[start:stop, stop:])
                behind = torch.from_numpy(left[stop:])
                behind.addmm_(factor.T, torch.from_numpy(found), alpha=-1)
            start = stop
        return np.ascontiguousarray(codes.T)


@dataclass(frozen=True, slots=True)
class RoundingQuantizer:
    """Rounds ``width`` values one by one: what is best where all errors cost the same.

    ``limit``: the largest code; ``lanes``: of a trellis, or 0.
    """

    width: int
    limit: int
    lanes: int = 0

    @property
    def stored_values(self) -> int:
        """Values stored per row."""
        return self.width

    def quantize(self, rows: Floats, steps: Floats) -> tuple[Floats, Floats]:
        """See `Quantizer`."""
        step = layer_steps(steps, 1.0)[:, None]
        stored = rows / step
        if self.lanes:
            limits = np.full(self.width, self.limit, np.float32)
            stored = _trellis_codes(stored, limits, self.lanes)
        else:
            np.clip(np.rint(stored, out=stored), -self.limit, self.limit, out=stored)
        stored *= step
        return stored, stored - rows


@dataclass(frozen=True, slots=True)
class StoredDirectQuantizer:
    """Arrays of a `DirectQuantizer`, fields as there; without a ``factor``, a `RoundingQuantizer`
    of ``width`` values.
    """

    factor: SpilledArray | None
    unit: float
    width: int
    limit: int = 0
    lanes: int = 0

    def coding_to(self, limit: int, lanes: int) -> StoredDirectQuantizer:
        """Return it with another largest code and other lanes."""
        return replace(self, limit=limit, lanes=lanes)

    def load(self) -> DirectQuantizer | RoundingQuantizer:
        """Return the quantizer."""
        if self.factor is None:
            return RoundingQuantizer(self.width, self.limit, self.lanes)
        return DirectQuantizer(self.factor.load(), self.unit, self.limit, self.lanes)


def _trellis_codes(values: Floats, limits: Floats, lanes: int) -> Floats:
    """Return codes of values in steps, float32 (n, stored values)."""
    found = search_codes(np.ascontiguousarray(values.T), limits, lanes)
    return np.ascontiguousarray(found.T)


def short_step(step: float) -> float:
    """Return `step` in four decimal digits: it stands in the header, once in every part."""
    return float(f"{step:.4g}")


def layer_step(step: float, unit: float) -> float:
    """Return the step of a layer whose values are in units of `unit`, as the header will say it."""
    return short_step(float(np.float32(step)) * unit)


def layer_steps(steps: Floats, unit: float) -> Floats:
    """As `layer_step`, for every row: float32 (n,)."""
    distinct, where = np.unique(steps, return_inverse=True)
    return np.array([layer_step(step, unit) for step in distinct.tolist()], np.float32)[where]


def direct_quantizer(metric: Doubles, limit: int) -> DirectQuantizer:
    """Prepare direct quantization under `metric` ``S``, float64 (hidden, hidden), positive
    definite.
    """
    inverse = scipy.linalg.inv(metric)
    factor = scipy.linalg.cholesky((inverse + inverse.T) / 2)
    # A step of 1 costs what it costs in whitened coordinates: the geometric mean of 1 / U_ii² is 1.
    unit = float(np.exp(np.log(np.diag(factor)).mean()))
    return DirectQuantizer(factor.astype(np.float32), unit, limit)


@dataclass(frozen=True, slots=True)
class WhitenedBasis:
    """The basis of the loss-weighted SVD, all components.

    ``rows`` float64 (hidden, hidden): component ``i``'s row; ``values`` float64 (hidden,), falling:
    ``Σ_t w_t c_{t,i}²`` of its coefficients.
    """

    rows: Doubles
    values: Doubles


def whitened_basis(second_moment: Doubles, mean: Doubles, metric: Doubles) -> WhitenedBasis:
    """Take the SVD of ``diag(√w)·(T - μ)·S^½`` through its Gram matrix.

    Parameters
    ----------
    second_moment : ndarray
        ``Σ_t w_t T_tᵀ T_t``, float64 (hidden, hidden).
    mean : ndarray
        ``μ = Σ_t w_t T_t``, float64 (hidden,).
    metric : ndarray
        ``S``, float64 (hidden, hidden), positive definite.
    """
    values, vectors = scipy.linalg.eigh(metric)
    roots = np.sqrt(np.maximum(values, values[-1] * 1e-9))
    root, inverse = (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
    found: Spectrum = spectrum(root @ second_moment @ root, root @ mean)
    return WhitenedBasis(found.vectors.T @ inverse, found.values)


def weighted_projection(basis: NDArray[np.floating], metric: Doubles) -> Floats:
    """Return ``S B̃ᵀ (B̃ S B̃ᵀ)⁻¹``, float32 (hidden, rank): coefficients of least loss for the
    basis (rank, hidden) as it is stored.
    """
    rounded = basis.astype(np.float64)
    weighted = rounded @ metric
    solved = scipy.linalg.solve(weighted @ rounded.T, weighted, assume_a="pos")
    return np.asarray(solved.T, dtype=np.float32)
