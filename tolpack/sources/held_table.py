"""A table whose rows are computed once and held, for several builds of the same checkpoint."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tolpack.sources.table import LayerRows, TableSource

_Doubles = NDArray[np.float64]
# Rows computed together.
_BLOCK_TOKENS = 2048


class HeldTable:
    """Another `TableSource`, its layers held in memory as float32 from their first use on.

    Also keeps what is measured on a whole layer, by whatever `remembered` is given as its key.
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
        self._remembered: dict[tuple[object, ...], tuple[_Doubles, _Doubles]] = {}
        self._lock = threading.Lock()

    @staticmethod
    def nbytes(source: TableSource) -> int:
        """Bytes that holding `source` takes, and the second moments of its layers."""
        rows = 4 * source.vocab_size * source.hidden_size
        return source.num_layers * (rows + 8 * source.hidden_size**2)

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

    def remembered(
        self, key: tuple[object, ...], measure: Callable[[], tuple[_Doubles, _Doubles]]
    ) -> tuple[_Doubles, _Doubles]:
        """Return what `measure` gave when `key` was first asked for."""
        if key not in self._remembered:
            self._remembered[key] = measure()
        return self._remembered[key]

    def _computed(self, layer: int) -> NDArray[np.float32]:
        rows = self._source.layer(layer)
        held = np.empty((self.vocab_size, self.hidden_size), np.float32)
        for start in range(0, self.vocab_size, _BLOCK_TOKENS):
            part = held[start : start + _BLOCK_TOKENS]
            part[:] = rows(np.arange(start, start + len(part), dtype=np.int64))
        return held
