"""Error compensation: layers are quantized from the first to the last, and the error of each is
passed on to the layers above it, which store their rows less a part of it.

The part is ``e A`` of `tolpack.compress.entropy.compensation_matrices`. Rows are worked on in
blocks by several workers. Errors that were passed on wait in arrays for all rows in work, so no
result depends on the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.compress.entropy.quantizers import Quantizer
from tolpack.runtime.array_types import Doubles, Floats
from tolpack.runtime.scratch import SpilledArray
from tolpack.sources.protocol import FieldRows, TableSource
from tolpack.workspace.limits import block_tokens
from tolpack.workspace.workers import wait_for

# Receives a kept layer's number, which rows, their stored values, and the decoded rows.
Take = Callable[[int, slice, Floats, Floats], object]


@dataclass(frozen=True, slots=True)
class ErrorCompensation:
    """Which layers compensate for an error of one layer, and what it still costs then.

    ``metric``: ``S_l``, float64 (hidden, hidden), nats per squared unit, or ``None`` where every
    direction costs the same and nothing has to be multiplied by it; ``above``: the layers of
    ``W``; ``matrix``: ``A``, float32 (hidden, len(above) · hidden), or ``None`` without any.
    """

    metric: SpilledArray | None
    above: tuple[int, ...]
    matrix: SpilledArray | None

    def load_metric(self) -> Doubles:
        """Return ``S_l``, where it was measured."""
        if self.metric is None:
            raise ValueError("no metric was measured")
        return self.metric.load()

    def load_matrix(self) -> Floats | None:
        """Return ``A``."""
        return None if self.matrix is None else self.matrix.load()


@dataclass(frozen=True, slots=True)
class QuantizedLayer:
    """How one kept layer is quantized.

    ``mean`` float32 (hidden,), taken from its rows before; ``load`` gives the quantizer.
    """

    layer: int
    mean: Floats
    load: Callable[[], Quantizer]
    compensation: ErrorCompensation


def quantize_layers(
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
    hidden = len(layers[0].mean)
    block = block_tokens(hidden)
    incoming: dict[int, Floats] = {}
    for one in layers:
        rows, matrix = source.field_rows(one.layer), one.compensation.load_matrix()
        for above in one.compensation.above:
            if above not in incoming:
                incoming[above] = np.zeros((len(ids), hidden), np.float32)
        quantizer = one.load()
        work = partial(_quantize_block, one, rows, quantizer, matrix, incoming, ids, steps, take)
        spans = [slice(start, start + block) for start in range(0, len(ids), block)]
        wait_for(pool.map(work, spans), done)
        incoming.pop(one.layer, None)
        del rows, quantizer, matrix, work  # the next layer's weights must not meet these


def _quantize_block(
    one: QuantizedLayer,
    rows: FieldRows,
    quantizer: Quantizer,
    matrix: Floats | None,
    incoming: dict[int, Floats],
    ids: NDArray[np.int64],
    steps: Floats,
    take: Take,
    span: slice,
) -> int:
    wanted = rows(ids[span])
    if one.layer in incoming:
        wanted = wanted + incoming[one.layer][span]
    stored, error = quantizer.quantize(wanted - one.mean, steps[span])
    take(one.layer, span, stored, wanted + error)
    if matrix is not None:
        passed_on = (torch.from_numpy(error) @ torch.from_numpy(matrix)).numpy()
        hidden = wanted.shape[1]
        for n, above in enumerate(one.compensation.above):
            incoming[above][span] -= passed_on[:, n * hidden : (n + 1) * hidden]
    return len(wanted)


def decoded_rows(
    source: TableSource,
    layers: Sequence[QuantizedLayer],
    ids: NDArray[np.int64],
    steps: Floats,
    pool: ThreadPoolExecutor,
) -> Floats:
    """Return the rows of some tokens as a reader will see them: float32 (n, layers, hidden)."""
    out = np.zeros((len(ids), len(source.fields), len(layers[0].mean)), np.float32)

    def take(layer: int, span: slice, _: Floats, decoded: Floats) -> None:
        out[span, layer] = decoded

    quantize_layers(source, layers, ids, steps, pool, take)
    return out


def stored_rows(
    source: TableSource,
    layers: Sequence[QuantizedLayer],
    ids: NDArray[np.int64],
    steps: Floats,
    pool: ThreadPoolExecutor,
) -> dict[int, Floats]:
    """Return the stored values of some tokens, by kept layer: float32 (n, stored values)."""
    found: dict[int, list[tuple[int, Floats]]] = {}

    def take(layer: int, span: slice, stored: Floats, _: Floats) -> None:
        found.setdefault(layer, []).append((span.start, stored))

    quantize_layers(source, layers, ids, steps, pool, take)
    return {
        layer: np.concatenate([part for _, part in sorted(parts, key=lambda item: item[0])])
        for layer, parts in found.items()
    }
