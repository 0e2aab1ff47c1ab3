"""How the codes of a candidate are entropy-coded: classes, models, blocks, and what they take.

All is fitted to the codes of a sample, and to the codes of the bases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.ans.alphabets import SLOTS
from tolpack.codecs.ans.basis_coder import BasisCoder
from tolpack.codecs.ans.models import CodeModels
from tolpack.codecs.ans.row_coder import RowCoder
from tolpack.codecs.encodings import CoderSettings
from tolpack.codecs.frames import FRAMES
from tolpack.compress.chunks import ChunkSpan
from tolpack.compress.entropy.code_histograms import SampledCodes
from tolpack.compress.entropy.code_models import FittedClasses, costs_in_bits, fit_models
from tolpack.compress.entropy.layer_basis import SCALE_BYTES, CodedBasis
from tolpack.runtime.array_types import Bytes

# Rows share a block where they are shorter, in bytes: a block takes 6 bytes beside its codes.
_SHORT_ROW, _MAX_BLOCK_ROWS = 48, 64
# Bytes of codes from which on a block has several lanes, and how many: a processor takes values out
# of them at once.
_LONG_BLOCK, _LANES = 4096, 4
# Bytes of a lane beside its codes, where there are several.
_LANE_BYTES = 3
# Blocks that are coded to see what a single lane takes, and codes of each.
_TRIAL_BLOCKS, _TRIAL_CODES = 256, 256
# The golden ratio's part of the slots of a model, to an odd number.
_GOLDEN = 10_125
# Values from which on a row along a trellis has several lanes: they are searched one by one, so
# their number is decided before anything is known of the codes.
_LONG_ROW = 1 << 14


def trellis_lanes(values: int) -> int:
    """Return the lanes of a trellis through rows of so many stored values."""
    return _LANES if values >= _LONG_ROW else 1


@lru_cache(256)
def single_lane_bytes(model: bytes) -> float:
    """Return what a single lane takes beside its codes, in bytes.

    It begins with a state of no bits, and codes take more than their share while it is small: how
    much more depends on the model of the first ones, uint16 (W,). Codes are coded that are spread
    evenly over it (by multiples of the golden ratio), the same everywhere.
    """
    models = CodeModels.of(np.frombuffer(model, np.uint16)[None], "models")
    numbers = np.arange(_TRIAL_BLOCKS * _TRIAL_CODES).reshape(_TRIAL_BLOCKS, _TRIAL_CODES)
    slots = numbers * _GOLDEN % SLOTS
    symbols = models.alphabets.slots[0, slots].astype(np.int64)
    symbols[symbols == models.escape] = models.largest_symbol
    symbols -= models.largest_symbol
    shift = int(models.shifts[0])
    codes = (symbols << shift) + (numbers * _GOLDEN // SLOTS) % (1 << shift)
    classes = np.zeros(_TRIAL_CODES, np.uint8)
    coder = RowCoder((_TRIAL_CODES,), classes, models, 1, False)
    stored = sum(map(len, coder.encode(codes, 1)))
    return (stored - float(coder.cost_bits(codes).sum()) / 8) / _TRIAL_BLOCKS


@dataclass(frozen=True, slots=True)
class TableCoding:
    """See the module.

    ``models``: uint16 (M, W); ``rows``: classes of the rows' values; ``bases``: classes of the rows
    of all bases together, by kept layer in ``ranks``; ``trellis_lanes``: of the trellis that codes
    are along, or 0.
    """

    models: NDArray[np.uint16]
    rows: FittedClasses
    bases: FittedClasses | None
    ranks: dict[int, int]
    spans: Sequence[ChunkSpan]
    trellis_lanes: int

    @classmethod
    def of(
        cls,
        sampled: SampledCodes,
        spans: Sequence[ChunkSpan],
        bases: Mapping[int, CodedBasis],
        trellis_lanes: int = 0,
    ) -> TableCoding:
        """Fit the coding of rows of which a sample is given, chunk by chunk, and of all bases."""
        ranks = {layer: len(basis.codes) for layer, basis in bases.items()}
        if not bases:
            models, (rows,) = fit_models(sampled)
            return cls(models, rows, None, ranks, spans, trellis_lanes)
        codes = np.concatenate([basis.codes for basis in bases.values()]).T.astype(np.int16)
        models, (rows, of_bases) = fit_models(sampled, SampledCodes([codes], [1.0]))
        return cls(models, rows, of_bases, ranks, spans, trellis_lanes)

    @property
    def basis_classes(self) -> NDArray[np.uint8]:
        """Classes of the rows of each basis, uint8 (bases, widest rank)."""
        found = np.zeros((len(self.ranks), max(self.ranks.values())), np.uint8)
        for row, layer in zip(found, self.ranks):
            row[: self.ranks[layer]] = self._classes_of(layer)
        return found

    def row_bytes(self, chunk: int) -> float:
        """Return what the codes of a row of a chunk take, on average."""
        return self.rows.bits[chunk] / 8 / self.spans[chunk].rows

    def rows_per_block(self, chunk: int) -> int:
        """Return the rows of a block of a chunk: a power of two."""
        short = _SHORT_ROW / max(self.row_bytes(chunk), 1e-9)
        return int(min(_MAX_BLOCK_ROWS, 2 ** max(0, math.ceil(math.log2(short)))))

    def lanes(self, chunk: int) -> int:
        """Return the lanes of a block of a chunk."""
        if self.trellis_lanes:
            return self.trellis_lanes
        return _LANES if self.row_bytes(chunk) * self.rows_per_block(chunk) > _LONG_BLOCK else 1

    def chunk_settings(self, chunk: int, models: int, classes: int) -> CoderSettings:
        """Return a chunk's settings; `models` and `classes`: numbers of the sections."""
        class_row, trellis = self.rows.class_rows[chunk], self.trellis_lanes > 0
        return CoderSettings(models, classes, class_row, self.lanes(chunk), trellis)

    def basis_settings(self, layer: int, models: int, classes: int) -> CoderSettings:
        """As `chunk_settings`, for the basis of a layer."""
        return CoderSettings(models, classes, list(self.ranks).index(layer), _LANES)

    def chunk_bytes(self, chunk: int) -> float:
        """Predict what the blocks of a chunk take."""
        blocks = -(-self.spans[chunk].rows // self.rows_per_block(chunk))
        each = self._lane_bytes(chunk) + FRAMES["ans"].checksum_bytes
        return self.rows.bits[chunk] / 8 + blocks * each

    def basis_bytes(self, layer: int, basis: CodedBasis) -> int:
        """Predict what a layer's basis takes."""
        least = int(np.iinfo(np.int8).min)
        costs = costs_in_bits(self.models, least, -least)
        bits = costs[self._classes_of(layer)[:, None], basis.codes.astype(np.int64) - least].sum()
        return math.ceil(SCALE_BYTES * len(basis.codes) + float(bits) / 8 + _LANE_BYTES * _LANES)

    def coded_basis(self, layer: int, basis: CodedBasis) -> Bytes:
        """Return the stored bytes of a layer's basis, uint8 (n,)."""
        models, shape = CodeModels.of(self.models, "models"), basis.codes.shape
        coder = BasisCoder.of(shape, self._classes_of(layer), models, _LANES)
        return np.frombuffer(coder.encode(basis.records), np.uint8)

    def _lane_bytes(self, chunk: int) -> float:
        """Predict what the lanes of a block of a chunk take beside their codes."""
        lanes, classes = self.lanes(chunk), self.rows.classes[self.rows.class_rows[chunk]]
        if lanes > 1:
            return _LANE_BYTES * lanes
        last = classes[-1] if self.trellis_lanes else classes.max()
        return single_lane_bytes(self.models[last].tobytes())

    def _classes_of(self, layer: int) -> NDArray[np.uint8]:
        if self.bases is None:
            raise ValueError("rows are stored without bases")
        first = sum(rank for other, rank in self.ranks.items() if other < layer)
        return self.bases.classes[0, first : first + self.ranks[layer]]
