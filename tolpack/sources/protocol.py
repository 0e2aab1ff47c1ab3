"""What a source of rows is, whatever it is made of.

A source gives float32 rows for any list of token ids, one layer at a time, and never holds the
whole table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import CheckpointError

LayerRows = Callable[[NDArray[np.int64]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Array:
    """An array on disk, whose first axis is the tokens.

    ``take(ids, start, stop)``: float32 (n, stop - start), those columns of the flattened rows `ids`
    int64 (n,). ``stored(start, stop)``: those rows as they are stored, little-endian, uint8 of any
    shape, contiguous; may be called from several threads. ``dtype``: name of the stored one.
    """

    path: Path
    take: Callable[[NDArray[np.int64], int, int], NDArray[np.float32]]
    stored: Callable[[int, int], NDArray[np.uint8]]
    shape: tuple[int, ...]
    dtype: str


class TableSource(Protocol):
    """A table of ``vocab_size`` rows of ``num_layers`` fields of ``hidden_size`` values.

    ``dtype`` is ``"float32"``, ``"float16"`` or ``"bfloat16"``: what the values are exact in.
    ``ffn_bytes`` are the bytes of the FFN weights that the table replaces, if there are any;
    ``inner_size`` is their inner width, 0 if there are none.
    """

    vocab_size: int
    num_layers: int
    hidden_size: int
    inner_size: int
    dtype: str
    ffn_bytes: int | None

    def layer(self, layer: int) -> LayerRows:
        """Return a function that maps int64 ids (n,) to layer `layer`'s rows, float32 (n, hidden).

        Weights are loaded here, once; the function may be called from several threads.
        """
        ...

    def fingerprint(self) -> bytes:
        """Return bytes that differ if any bit differs that rows depend on, and do not depend on how
        and under which names it is stored.
        """
        ...

    def describe(self) -> list[str]:
        """Return lines that say what was matched, with shapes."""
        ...


def check_finite(values: NDArray[np.float32], ids: NDArray[np.int64], layer: int) -> None:
    """Raise `CheckpointError` if rows `values` (n, hidden) of tokens `ids` hold NaN or Inf."""
    finite = np.isfinite(values)
    if not finite.all():
        token = ids[~finite.all(axis=1)][0]
        raise CheckpointError(
            f"the table holds NaN or Inf at token {token}, layer {layer}: repair the checkpoint"
        )
