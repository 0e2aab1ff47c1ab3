"""A table whose layers are held in memory, for several builds.

Rows of a whole layer are computed together. In the last bit they may differ from those that a build
alone computes a few at a time (matrix products round by their shapes), and so may a byte of a pack.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tolpack.runtime.forking import Locking
from tolpack.sources.protocol import LayerRows, TableSource

# Rows computed together.
_BLOCK_TOKENS = 2048


class HeldTable(Locking):
    """Another `TableSource`, each layer in memory as float32 from its first use on.

    Parameters
    ----------
    source : TableSource
        The table.
    """

    def __init__(self, source: TableSource) -> None:
        self._source = source
        self.vocab_size = source.vocab_size
        self.num_layers = source.num_layers
        self.hidden_size = source.hidden_size
        self.inner_size = source.inner_size
        self.dtype = source.dtype
        self.ffn_bytes = source.ffn_bytes
        self._layers: dict[int, NDArray[np.float32]] = {}
        super().__init__()

    @staticmethod
    def nbytes(source: TableSource) -> int:
        """Bytes that holding `source` takes."""
        return 4 * source.num_layers * source.vocab_size * source.hidden_size

    def layer(self, layer: int) -> LayerRows:
        """See `TableSource`."""
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

    def _computed(self, layer: int) -> NDArray[np.float32]:
        rows = self._source.layer(layer)
        held = np.empty((self.vocab_size, self.hidden_size), np.float32)
        for start in range(0, self.vocab_size, _BLOCK_TOKENS):
            part = held[start : start + _BLOCK_TOKENS]
            part[:] = rows(np.arange(start, start + len(part), dtype=np.int64))
        return held
