"""Passes over a table that is never held: moments, sampled rounding loss, and the records.

Both cores work on token blocks of a fixed size, each with one BLAS thread, and results are summed
in the order of the blocks. So the bytes of a pack depend neither on the number of threads nor on
timing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.codecs.lowrank import Doubles, Spectrum, projection, spectrum
from tolpack.codecs.record import RecordLayout, record_layout
from tolpack.codecs.values import Floats
from tolpack.container.encodings import FieldEncoding
from tolpack.progress import Reporter
from tolpack.sources.table import LayerRows, TableSource

# Tokens that one worker computes together: fixed, because matrix products of other shapes round
# differently.
BLOCK_TOKENS = 512
# Tokens whose records are held while the layers are computed one after the other.
SUPERBLOCK_TOKENS = 4096

_T = TypeVar("_T")
_R = TypeVar("_R")


@contextmanager
def worker_threads() -> Iterator[ThreadPoolExecutor]:
    """Yield one worker per core, with one torch thread in each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        with ThreadPoolExecutor(workers or 1) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, slots=True)
class Moments:
    """One layer's weighted mean, float64 (hidden,), and the spectrum around it."""

    mean: Doubles
    spectrum: Spectrum


def measure_moments(
    source: TableSource, layers: Sequence[int], weights: Doubles, reporter: Reporter
) -> dict[int, Moments]:
    """Stream the table once and decompose each layer.

    Parameters
    ----------
    source : TableSource
        The table.
    layers : sequence of int
        Layers to measure.
    weights : ndarray
        float64 (vocab_size,), summing to 1.
    """
    result = {}
    blocks = _cut(np.arange(source.vocab_size, dtype=np.int64), BLOCK_TOKENS)
    roots = np.sqrt(weights).astype(np.float32)
    total = len(layers) * source.vocab_size
    with reporter.phase("Gram matrices", total, "rows") as done, worker_threads() as pool:
        for layer in layers:
            rows = source.layer(layer)

            def moments(ids: NDArray[np.int64], rows: LayerRows = rows) -> tuple[Doubles, Doubles]:
                root = torch.from_numpy(roots[ids])[:, None]
                weighted = torch.from_numpy(rows(ids)) * root
                return (weighted.T @ weighted).double().numpy(), (weighted * root).sum(0).numpy()

            second = np.zeros((source.hidden_size, source.hidden_size))
            mean = np.zeros(source.hidden_size)
            for ids, (block_second, block_mean) in zip(blocks, pool.map(moments, blocks)):
                second += block_second
                mean += block_mean
                done(len(ids))
            result[layer] = Moments(mean, spectrum(second, mean))
    return result


@dataclass(frozen=True, slots=True)
class FieldProjection:
    """How a kept layer's rows become stored values: ``(row - mean) @ matrix``; ``None``: as is."""

    layer: int
    mean: Floats | None
    matrix: Floats | None

    @classmethod
    def onto(cls, layer: int, basis: NDArray[np.generic] | None, mean: Floats | None) -> (
        FieldProjection
    ):  # fmt: skip
        """Project onto a stored basis (rank, hidden) around a stored mean (hidden,)."""
        matrix = None if basis is None else np.asarray(projection(basis))
        return cls(layer, mean, matrix)

    def __call__(self, rows: Floats) -> Floats:
        """Map float32 (n, hidden) to float32 (n, stored values)."""
        if self.matrix is None or self.mean is None:
            return rows
        centred = torch.from_numpy(rows - self.mean)
        return np.asarray((centred @ torch.from_numpy(self.matrix)).numpy())


def encode_records(
    source: TableSource,
    fields: Sequence[FieldProjection],
    layout: RecordLayout,
    token_ids: NDArray[np.int64],
    pool: ThreadPoolExecutor,
    done: Callable[[int], object],
) -> Iterator[NDArray[np.uint8]]:
    """Yield records of `token_ids` in order, uint8 (n, record_bytes), a superblock at a time."""
    for ids in _cut(token_ids, SUPERBLOCK_TOKENS):
        records = np.zeros((len(ids), layout.record_bytes), np.uint8)
        for kept, field in enumerate(fields):
            rows = source.layer(field.layer)

            def encode(
                start: int,
                ids: NDArray[np.int64] = ids,
                records: NDArray[np.uint8] = records,
                kept: int = kept,
                field: FieldProjection = field,
                rows: LayerRows = rows,
            ) -> int:
                part = ids[start : start + BLOCK_TOKENS]
                target = records[start : start + BLOCK_TOKENS]
                layout.encode(target, kept, field(rows(part)))
                return len(part)

            _drain(pool.map(encode, range(0, len(ids), BLOCK_TOKENS)), done)
        yield records


def sample_tokens(weights: Doubles, count: int) -> NDArray[np.int64]:
    """Draw `count` tokens with probability `weights` by systematic sampling: no randomness."""
    points = (np.arange(count) + 0.5) / count
    drawn = np.searchsorted(np.cumsum(weights), points * weights.sum())
    return np.asarray(np.minimum(drawn, len(weights) - 1), dtype=np.int64)


def encoded_sample(
    source: TableSource,
    fields: Sequence[FieldProjection],
    encoding: tuple[FieldEncoding, ...],
    token_ids: NDArray[np.int64],
) -> NDArray[np.uint8]:
    """Return the records of a few tokens in `encoding`, uint8 (n, record_bytes)."""
    layout = record_layout(encoding)
    with worker_threads() as pool:
        parts = encode_records(source, fields, layout, token_ids, pool, lambda _: None)
        return np.concatenate(list(parts))


def _cut(ids: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [ids[start : start + size] for start in range(0, len(ids), size)]


def _drain(results: Iterable[int], done: Callable[[int], object]) -> None:
    for count in results:
        done(count)
