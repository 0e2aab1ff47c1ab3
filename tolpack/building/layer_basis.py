"""One layer's whitened basis in ``--bits auto``: as it is stored, read and projected onto."""

from __future__ import annotations

import numpy as np

from tolpack.building.components import Component
from tolpack.codecs.shaped import BasisRounder, weighted_projection
from tolpack.codecs.values import Bytes, Floats, decode_values, encode_values
from tolpack.container.encodings import Part
from tolpack.scratch import Kept, Scratch

MAX_CODE, MAX_WIDE_CODE = 127, 32767


def basis_part(hidden_size: int) -> Part:
    """Return how a row of a basis is stored."""
    return Part("int8", hidden_size, hidden_size + hidden_size % 2)


class LayerBasis:
    """A basis of which the leading rows are used.

    Parameters
    ----------
    mean : ndarray
        float32 (hidden,).
    rows, metric : Kept
        The basis, float32 (hidden, hidden), and what it is whitened by, float64 (hidden, hidden).
    scratch : Scratch
        Keeps the projection that was used last.
    """

    def __init__(self, mean: Floats, rows: Kept, metric: Kept, scratch: Scratch) -> None:
        self.mean = mean
        self._rows, self._metric, self._scratch = rows, metric, scratch
        self._part = basis_part(len(mean))
        self._rank = 0
        self._projection: Kept | None = None

    def coded(self, rank: int) -> Bytes:
        """Return the leading rows as they are stored: uint8 (rank, bytes of a row)."""
        rows = np.ascontiguousarray(self._rows.load()[:rank])
        return np.concatenate(encode_values(rows, self._part), axis=1)

    def rounder(self, component: Component) -> BasisRounder:
        """Return what rounds rows to coefficients of the basis as it will be read."""
        rank, at = component.rank, self._part.scale_bytes
        limits = np.full(rank, MAX_CODE, np.float32)
        limits[: component.leading] = MAX_WIDE_CODE
        coded = self.coded(rank)
        basis = decode_values(coded[:, :at], coded[:, at:], self._part)
        return BasisRounder(self._projected(basis), basis, limits)

    def _projected(self, basis: Floats) -> Floats:
        """Projection onto `basis`, solved once for a rank and not for every superblock."""
        rank, hidden = basis.shape
        if rank != self._rank or self._projection is None:
            whole = np.zeros((hidden, hidden), np.float32)  # of one shape, to be replaced in place
            whole[:rank] = weighted_projection(basis, self._metric.load()).T
            if self._projection is None:
                self._projection = self._scratch.keep(whole)
            else:
                self._projection.replace(whole)
            self._rank = rank
        return np.ascontiguousarray(self._projection.load()[:rank].T)
