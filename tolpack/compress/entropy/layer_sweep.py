"""The second pass of ``--bits auto``: layers are rounded from the first to the last, and what
rounding adds to one is carried into the layers above it
(`tolpack.compress.entropy.error_compensation`).

Rows are worked on in blocks by several workers; what is carried waits in arrays for all rows in
work, so no result depends on the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.codecs.record import RecordLayout
from tolpack.compress.entropy.error_compensation import ErrorCompensation
from tolpack.compress.entropy.quantizers import Quantizer
from tolpack.compress.limits import block_tokens
from tolpack.compress.table_passes import cut, drain
from tolpack.runtime.array_types import Floats
from tolpack.sources.protocol import LayerRows, TableSource

# Receives a kept layer's number, which rows, what is stored of them, and what is read back.
Take = Callable[[int, slice, Floats, Floats], object]


@dataclass(frozen=True, slots=True)
class QuantizedLayer:
    """How one kept layer is rounded.

    ``mean`` float32 (hidden,); ``load`` gives the rounder.
    """

    layer: int
    mean: Floats
    load: Callable[[], Quantizer]
    shaping: ErrorCompensation


def round_layers(
    source: TableSource,
    layers: Sequence[QuantizedLayer],
    ids: NDArray[np.int64],
    steps: Floats,
    pool: ThreadPoolExecutor,
    take: Take,
    done: Callable[[int], object] = lambda _: None,
) -> None:
    """Round the rows of some tokens in all layers.

    Parameters
    ----------
    source : TableSource
        The table.
    layers : sequence of QuantizedLayer
        All kept layers, ascending.
    ids : ndarray
        int64 (n,).
    steps : ndarray
        float32 (n,), each token's step.
    pool : ThreadPoolExecutor
        Workers.
    take : callable
        Receives a kept layer's number, the slice of `ids`, and float32 (block, stored values) and
        (block, hidden), which it may keep.
    done : callable, optional
        Called with the number of rows done since the last call.
    """
    hidden, block = source.hidden_size, block_tokens(source.hidden_size)
    carried: dict[int, Floats] = {}
    for one in layers:
        rows, carry = source.layer(one.layer), one.shaping.load_carry()
        for above in one.shaping.above:
            if above not in carried:
                carried[above] = np.zeros((len(ids), hidden), np.float32)
        rounder = one.load()
        work = partial(_round_block, one, rows, rounder, carry, carried, ids, steps, take)
        spans = [slice(start, start + block) for start in range(0, len(ids), block)]
        drain(pool.map(work, spans), done)
        carried.pop(one.layer, None)
        del rows, rounder, carry, work  # the next layer's weights must not meet these


def _round_block(
    one: QuantizedLayer,
    rows: LayerRows,
    rounder: Quantizer,
    carry: Floats | None,
    carried: dict[int, Floats],
    ids: NDArray[np.int64],
    steps: Floats,
    take: Take,
    span: slice,
) -> int:
    wanted = rows(ids[span])
    if one.layer in carried:
        wanted = wanted + carried[one.layer][span]
    stored, error = rounder.round(wanted - one.mean, steps[span])
    take(one.layer, span, stored, wanted + error)
    if carry is not None:
        passed_on = (torch.from_numpy(error) @ torch.from_numpy(carry)).numpy()
        hidden = wanted.shape[1]
        for n, above in enumerate(one.shaping.above):
            carried[above][span] -= passed_on[:, n * hidden : (n + 1) * hidden]
    return len(wanted)


def encode_rounded(
    source: TableSource,
    layers: Sequence[QuantizedLayer],
    layout: RecordLayout,
    ids: NDArray[np.int64],
    step: float,
    superblock: int,
    pool: ThreadPoolExecutor,
    done: Callable[[int], object],
) -> Iterator[NDArray[np.uint8]]:
    """Yield the records of `ids` in order, uint8 (n, record_bytes), a superblock at a time."""
    kept = [one.layer for one in layers]
    for part in cut(ids, superblock):
        records = np.zeros((len(part), layout.record_bytes), np.uint8)

        def take(
            layer: int, span: slice, stored: Floats, _: Floats, records: NDArray[np.uint8] = records
        ) -> None:
            layout.encode(records[span], kept.index(layer), stored)

        steps = np.full(len(part), step, np.float32)
        round_layers(source, layers, part, steps, pool, take, done)
        yield records


def decoded_rows(
    source: TableSource,
    layers: Sequence[QuantizedLayer],
    ids: NDArray[np.int64],
    steps: Floats,
    pool: ThreadPoolExecutor,
) -> Floats:
    """Return the rows of some tokens as a reader will see them: float32 (n, layers, hidden)."""
    out = np.zeros((len(ids), source.num_layers, source.hidden_size), np.float32)

    def take(layer: int, span: slice, _: Floats, decoded: Floats) -> None:
        out[span, layer] = decoded

    round_layers(source, layers, ids, steps, pool, take)
    return out


def stored_rows(
    source: TableSource,
    layers: Sequence[QuantizedLayer],
    ids: NDArray[np.int64],
    steps: Floats,
    pool: ThreadPoolExecutor,
) -> dict[int, Floats]:
    """Return what is stored of some tokens, by kept layer: float32 (n, stored values)."""
    found: dict[int, list[tuple[int, Floats]]] = {}

    def take(layer: int, span: slice, stored: Floats, _: Floats) -> None:
        found.setdefault(layer, []).append((span.start, stored))

    round_layers(source, layers, ids, steps, pool, take)
    return {
        layer: np.concatenate([part for _, part in sorted(parts, key=lambda item: item[0])])
        for layer, parts in found.items()
    }
