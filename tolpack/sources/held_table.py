"""A table that several builds share: what one computed of it, the others need not.

Rows of a whole layer are computed together. In the last bit they may differ from those that a build
alone computes a few at a time (matrix products round by their shapes), and so may a byte of a pack.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tolpack.runtime.array_types import Doubles
from tolpack.runtime.forking import Locking
from tolpack.runtime.scratch import Scratch, SpilledArray
from tolpack.sources.protocol import LayerRows, TableSource

# Rows computed together.
_BLOCK_TOKENS = 2048


class HeldTable(Locking):
    """Another `TableSource`; keeps what is measured on whole layers (`remembered`).

    Parameters
    ----------
    source : TableSource
        The table.
    scratch : Scratch
        Where measurements are kept.
    hold : bool
        Whether to hold layers in memory too, as float32, from their first use on.
    """

    def __init__(self, source: TableSource, scratch: Scratch, *, hold: bool) -> None:
        self._source = source
        self._scratch = scratch
        self._hold = hold
        self.vocab_size = source.vocab_size
        self.num_layers = source.num_layers
        self.hidden_size = source.hidden_size
        self.inner_size = source.inner_size
        self.dtype = source.dtype
        self.ffn_bytes = source.ffn_bytes
        self._layers: dict[int, NDArray[np.float32]] = {}
        self._remembered: dict[tuple[int, bytes], tuple[SpilledArray, SpilledArray]] = {}
        super().__init__()

    @staticmethod
    def nbytes(source: TableSource) -> int:
        """Bytes that holding `source` takes."""
        return 4 * source.num_layers * source.vocab_size * source.hidden_size

    def layer(self, layer: int) -> LayerRows:
        """See `TableSource`."""
        if not self._hold:
            return self._source.layer(layer)
        with self._lock:
            if layer not in self._layers:
                self._layers[layer] = self._computed(layer)
        held = self._layers[layer]
        return lambda ids: held[ids]

    def fingerprint(self) -> bytes:
        """See `TableSource`."""
        return self._source.fingerprint()

    def describe(self) -> list[str]:
        """See `TableSource`."""
        return self._source.describe()

    def remembered(
        self, layer: int, weights: Doubles, measure: Callable[[], tuple[Doubles, Doubles]]
    ) -> tuple[Doubles, Doubles]:
        """Return what `measure` gave for a layer and token weights when that was first asked for:
        two arrays, not to be changed.
        """
        key = layer, hashlib.sha256(weights.tobytes()).digest()
        if key not in self._remembered:
            first, second = measure()
            self._remembered[key] = self._scratch.spill(first), self._scratch.spill(second)
        kept = self._remembered[key]
        return kept[0].load(), kept[1].load()

    def _computed(self, layer: int) -> NDArray[np.float32]:
        rows = self._source.layer(layer)
        held = np.empty((self.vocab_size, self.hidden_size), np.float32)
        for start in range(0, self.vocab_size, _BLOCK_TOKENS):
            part = held[start : start + _BLOCK_TOKENS]
            part[:] = rows(np.arange(start, start + len(part), dtype=np.int64))
        return held
