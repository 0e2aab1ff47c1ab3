"""One layer's whitened basis in ``--bits auto``: as it is stored, read and projected onto.

A row is stored as 8-bit codes with one scale. What its error costs goes with the square of the
coefficients that it is multiplied by, so rows of small components have large scales, and an entropy
coder makes their codes small. Values of a row compensate for the errors of those ahead of them,
as the values of rows without a basis do (`DirectQuantizer`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.bfloat16 import from_bfloat16, to_bfloat16
from tolpack.compress.entropy.quantizers import (
    BasisQuantizer,
    DirectQuantizer,
    direct_quantizer,
    weighted_projection,
)
from tolpack.compress.entropy.rank_choice import Component
from tolpack.container.preamble import SMALL_SECTION_ALIGNMENT, align
from tolpack.runtime.array_types import Bytes, Doubles, Floats
from tolpack.runtime.scratch import Scratch, SpilledArray

MAX_CODE, MAX_WIDE_CODE = 127, 32767
# Square of a mean, in variances of the rows in its direction, that is taken out at any price.
_FAR = 64.0
# What the header says of a mean, in bytes.
_MEAN_ENTRY_BYTES = 120


# The error of a basis, in shares of the error that rounding its coefficients has, is the square of
# this. Of 0.12, 0.2, 0.3 and 0.45, the first two gave the smallest packs (docs/lab-notes.md).
_PRECISION = 0.15
# Coefficients count for so much at least, in root mean squares of codes; and a row's scale is no
# more than so many root mean squares of its values.
_LEAST_SIZE, _LARGEST_SCALE = 0.1, 2.0
# Bytes of a scale.
SCALE_BYTES = 2


def row_scales(basis: Floats, sizes: Doubles, metric: Doubles) -> Floats:
    """Return the scales that rows of a basis are stored with: float32 (rank,), bfloat16 numbers.

    Parameters
    ----------
    basis : ndarray
        float32 (rank, hidden).
    sizes : ndarray
        float64 (rank,): root mean squares of the coefficients' codes.
    metric : ndarray
        ``S``, float64 (hidden, hidden), by which the basis is whitened.
    """
    wanted = _PRECISION / (np.maximum(sizes, _LEAST_SIZE) * math.sqrt(np.trace(metric)))
    rms = np.sqrt(np.square(basis, dtype=np.float64).mean(axis=1))
    scales = np.clip(wanted, finest_scales(basis), _LARGEST_SCALE * rms)
    return from_bfloat16(to_bfloat16(scales.astype(np.float32)))


def finest_scales(basis: Floats) -> Floats:
    """Return the scales with which the largest value of each row has a code of 120 or nearly."""
    scales = np.maximum(np.abs(basis).max(axis=1) / 120, 1e-30)
    return from_bfloat16(to_bfloat16(scales.astype(np.float32)))


def mean_pays(second_moment: Doubles, mean: Doubles, metric: Doubles, rows: int) -> bool:
    """Whether a layer's mean is worth a section of its own.

    Without it the mean is one more direction for the basis, of codes that are large and alike.
    What taking it out saves is no more than the rate of a Gaussian that is so much narrower,
    ``½ log2(1 + m² / σ²)`` bits a row: ``m²`` the mean's square under the metric, ``σ²`` the
    variance in its direction. A mean far beyond it stays in any case, as codes have a limit.

    Parameters
    ----------
    second_moment, mean, metric : ndarray
        As of `tolpack.compress.entropy.quantizers.whitened_basis`.
    rows : int
        Rows of the table.
    """
    direction = metric @ mean
    square = float(mean @ direction)
    if square <= 0:
        return False
    variance = float(direction @ second_moment @ direction) / square - square
    ratio = square / max(variance, square * 1e-9)
    saved = rows / 8 * 0.5 * math.log2(1 + ratio)
    return ratio > _FAR or saved > align(4 * len(mean), SMALL_SECTION_ALIGNMENT) + _MEAN_ENTRY_BYTES


@dataclass(frozen=True, slots=True)
class CodedBasis:
    """A basis as it is stored: ``codes`` int8 (rank, hidden), ``scales`` float32 (rank,)."""

    codes: NDArray[np.int8]
    scales: Floats

    @property
    def records(self) -> Bytes:
        """Its rows as `tolpack.codecs.ans.basis_coder` takes them: uint8 (rank, 2 + hidden)."""
        scales = np.ascontiguousarray(to_bfloat16(self.scales)[:, None]).view(np.uint8)
        return np.concatenate([scales, self.codes.view(np.uint8)], axis=1)

    @property
    def decoded(self) -> Floats:
        """The basis as it will be read, float32 (rank, hidden)."""
        return self.codes * self.scales[:, None]


@dataclass(frozen=True, slots=True)
class StoredBasisQuantizer:
    """Arrays of a `BasisQuantizer`: fields as there."""

    projection: SpilledArray
    basis: SpilledArray
    limits: Floats
    lanes: int

    def load(self) -> BasisQuantizer:
        """Return the quantizer."""
        return BasisQuantizer(self.projection.load(), self.basis.load(), self.limits, self.lanes)


def _code_limits(component: Component) -> Floats:
    limits = np.full(component.rank, MAX_CODE, np.float32)
    limits[: component.leading] = MAX_WIDE_CODE
    return limits


class LayerBasis:
    """A basis of which the leading rows are used.

    Parameters
    ----------
    mean : ndarray
        float32 (hidden,).
    rows : SpilledArray
        The basis, float32 (hidden, hidden).
    metric : callable
        Gives what it is whitened by, float64 (hidden, hidden).
    scratch : Scratch
        Keeps what was made of it last.
    """

    def __init__(
        self, mean: Floats, rows: SpilledArray, metric: Callable[[], Doubles], scratch: Scratch
    ) -> None:
        self.mean = mean
        self._rows, self._metric, self._scratch = rows, metric, scratch
        self._factor: SpilledArray | None = None
        self._made_for = b""
        self._kept: dict[str, SpilledArray] = {}

    @property
    def has_mean(self) -> bool:
        """Whether anything is added to the basis' rows."""
        return bool(self.mean.any())

    def scales(self, sizes: Doubles) -> Floats:
        """Return the scales of the leading rows, float32 (rank,), given the root mean squares of
        their coefficients' codes.
        """
        return row_scales(self._rows.load()[: len(sizes)], sizes, self._metric())

    def row_bytes(self, scales: Floats) -> Doubles:
        """Predict what the leading rows take with such scales, float64 (rank,): as Gaussian codes
        do.
        """
        rows = self._rows.load()[: len(scales)]
        square = np.square(rows, dtype=np.float64).mean(axis=1)
        bits = 0.5 * np.log2(1 + 12 * square / np.square(scales, dtype=np.float64))
        found: Doubles = SCALE_BYTES + rows.shape[1] * bits / 8
        return found

    def coded(self, component: Component) -> CodedBasis:
        """Return the basis of a component as it is stored."""
        codes = self._loaded("codes", component).astype(np.int8)
        return CodedBasis(codes, self._scales_of(component))

    def quantizer(self, component: Component, lanes: int) -> BasisQuantizer:
        """Return the quantizer of rows to coefficients of the basis as it will be read; `lanes` of
        a trellis, or 0.
        """
        projection = np.ascontiguousarray(self._loaded("projection", component).T)
        basis = self.coded(component).decoded
        return BasisQuantizer(projection, basis, _code_limits(component), lanes)

    def stored(self, component: Component, lanes: int) -> StoredBasisQuantizer:
        """Return the same quantizer as arrays that may be spilled."""
        made = self.quantizer(component, lanes)
        projection, basis = map(self._scratch.spill, (made.projection, made.basis))
        return StoredBasisQuantizer(projection, basis, made.limits, lanes)

    def _scales_of(self, component: Component) -> Floats:
        if component.scales is None:
            return finest_scales(self._rows.load()[: component.rank])
        return component.scales

    def _loaded(self, name: str, component: Component) -> Floats:
        """Return codes or projection, (rank, hidden): made once for a component and not for every
        superblock.
        """
        scales = self._scales_of(component)
        if scales.tobytes() != self._made_for:
            self._make(scales)
            self._made_for = scales.tobytes()
        return self._kept[name].load()[: len(scales)]

    def _make(self, scales: Floats) -> None:
        rows = np.ascontiguousarray(self._rows.load()[: len(scales)])
        metric, found = self._metric(), {}
        stored, _ = self._quantizer(metric).quantize(rows, scales)
        codes = np.rint(stored / scales[:, None])
        basis = CodedBasis(codes.astype(np.int8), scales).decoded
        found = {"codes": codes, "projection": weighted_projection(basis, metric).T}
        for name, made in found.items():
            whole = np.zeros((len(self.mean),) * 2, np.float32)  # of one shape, to be replaced
            whole[: len(made)] = made
            if name in self._kept:
                self._kept[name].replace(whole)
            else:
                self._kept[name] = self._scratch.spill(whole)

    def _quantizer(self, metric: Doubles) -> DirectQuantizer:
        if self._factor is None:
            self._factor = self._scratch.spill(direct_quantizer(metric, MAX_CODE).factor)
        return DirectQuantizer(self._factor.load(), 1.0, MAX_CODE)
