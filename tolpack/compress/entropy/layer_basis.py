"""One layer's whitened basis in ``--bits auto``: as it is stored, read and projected onto."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tolpack.codecs.encodings import Part
from tolpack.codecs.part_values import decode_values, encode_values
from tolpack.compress.entropy.quantizers import BasisQuantizer, weighted_projection
from tolpack.compress.entropy.rank_choice import Component
from tolpack.container.preamble import SECTION_ALIGNMENT, align
from tolpack.runtime.array_types import Bytes, Doubles, Floats
from tolpack.runtime.scratch import Scratch, SpilledArray

MAX_CODE, MAX_WIDE_CODE = 127, 32767
# Square of a mean, in variances of the rows in its direction, that is taken out at any price.
_FAR = 64.0


def basis_part(hidden_size: int) -> Part:
    """Return how a row of a basis is stored."""
    return Part("int8", hidden_size, hidden_size + hidden_size % 2)


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
    return ratio > _FAR or saved > align(4 * len(mean), SECTION_ALIGNMENT)


@dataclass(frozen=True, slots=True)
class StoredBasisQuantizer:
    """Arrays of a `BasisQuantizer`: ``projection`` and ``limits`` as there, and the ``coded`` basis
    as it is stored, uint8 (rank, bytes of a row), each row by ``part``.
    """

    projection: SpilledArray
    coded: SpilledArray
    part: Part
    limits: Floats

    def load(self) -> BasisQuantizer:
        """Return the quantizer."""
        basis = decoded_basis(self.coded.load(), self.part)
        return BasisQuantizer(self.projection.load(), basis, self.limits)


def decoded_basis(coded: Bytes, part: Part) -> Floats:
    """Return a coded basis as it will be read, float32 (rank, hidden)."""
    at = part.scale_bytes
    return decode_values(coded[:, :at], coded[:, at:], part)


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
        Keeps the projection that was used last.
    """

    def __init__(
        self, mean: Floats, rows: SpilledArray, metric: Callable[[], Doubles], scratch: Scratch
    ) -> None:
        self.mean = mean
        self._rows, self._metric, self._scratch = rows, metric, scratch
        self._part = basis_part(len(mean))
        self._rank = 0
        self._projection: SpilledArray | None = None

    @property
    def has_mean(self) -> bool:
        """Whether anything is added to the basis' rows."""
        return bool(self.mean.any())

    def coded(self, rank: int) -> Bytes:
        """Return the leading rows as they are stored: uint8 (rank, bytes of a row)."""
        rows = np.ascontiguousarray(self._rows.load()[:rank])
        return np.concatenate(encode_values(rows, self._part), axis=1)

    def quantizer(self, component: Component) -> BasisQuantizer:
        """Return the quantizer of rows to coefficients of the basis as it will be read."""
        basis = decoded_basis(self.coded(component.rank), self._part)
        return BasisQuantizer(self._projected(basis), basis, _code_limits(component))

    def stored(self, component: Component) -> StoredBasisQuantizer:
        """Return the same quantizer as arrays that may be spilled."""
        coded = self.coded(component.rank)
        projection = self._projected(decoded_basis(coded, self._part))
        return StoredBasisQuantizer(
            self._scratch.spill(projection), self._scratch.spill(coded), self._part,
            _code_limits(component),
        )  # fmt: skip

    def _projected(self, basis: Floats) -> Floats:
        """Projection onto `basis`, solved once for a rank and not for every superblock."""
        rank, hidden = basis.shape
        if rank != self._rank or self._projection is None:
            whole = np.zeros((hidden, hidden), np.float32)  # of one shape, to be replaced in place
            whole[:rank] = weighted_projection(basis, self._metric()).T
            if self._projection is None:
                self._projection = self._scratch.spill(whole)
            else:
                self._projection.replace(whole)
            self._rank = rank
        return np.ascontiguousarray(self._projection.load()[:rank].T)
