"""Passes over a table that is never held: moments, sampled rounding loss, and the records.

Both cores work on token blocks of a fixed size, each with one BLAS thread, and results are summed
in the order of the blocks. So the bytes of a pack depend neither on the number of threads nor on
timing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.building.limits import BLOCK_TOKENS
from tolpack.codecs.lowrank import Doubles, spectrum
from tolpack.codecs.record import RecordLayout, record_layout
from tolpack.codecs.values import Floats
from tolpack.container.encodings import FieldEncoding
from tolpack.scratch import Kept, Scratch
from tolpack.sources.table import LayerRows, TableSource

# Blocks whose second moments are summed in float32 before they go into the float64 sum.
_MOMENT_BLOCKS = 4


@contextmanager
def worker_threads(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Yield `threads` workers with one torch thread in each."""
    with torch_threads(1), ThreadPoolExecutor(threads) as pool:
        yield pool


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let torch use `threads` threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, slots=True)
class Moments:
    """One layer's weighted mean, float64 (hidden,), and the spectrum around it: eigenvalues,
    float64 (hidden,) descending, and eigenvectors, which may have to be read back.
    """

    mean: Doubles
    values: Doubles
    kept_vectors: Kept

    @property
    def vectors(self) -> Floats:
        """Eigenvectors in columns, float32 (hidden, hidden)."""
        return self.kept_vectors.load()

    def basis(self, rank: int) -> NDArray[np.float16]:
        """Return the leading eigenvectors as they are stored, float16 (rank, hidden)."""
        return self.vectors[:, :rank].T.astype(np.float16)


def measure_moments(
    source: TableSource,
    layer: int,
    weights: Doubles,
    pool: ThreadPoolExecutor,
    scratch: Scratch,
    done: Callable[[int], object],
) -> Moments:
    """Stream one layer of the table once and decompose it.

    Parameters
    ----------
    source : TableSource
        The table.
    layer : int
        Which layer.
    weights : ndarray
        float64 (vocab_size,), summing to 1.
    pool, scratch : ThreadPoolExecutor, Scratch
        Workers, and where the eigenvectors are kept.
    done : callable
        Called with the number of rows done since the last call.
    """
    rows = source.layer(layer)
    roots = np.sqrt(weights).astype(np.float32)

    def moments(ids: NDArray[np.int64]) -> tuple[Doubles, Doubles]:
        parts = [torch.from_numpy(rows(part)) for part in _cut(ids, BLOCK_TOKENS)]
        root = torch.from_numpy(roots[ids])[:, None]
        weighted = torch.cat(parts).mul_(root)
        second, mean = weighted.T @ weighted, (weighted * root).sum(0)
        return second.double().numpy(), mean.double().numpy()

    second = np.zeros((source.hidden_size, source.hidden_size))
    mean = np.zeros(source.hidden_size)
    blocks = _cut(np.arange(source.vocab_size, dtype=np.int64), _MOMENT_BLOCKS * BLOCK_TOKENS)
    for ids, (block_second, block_mean) in zip(blocks, pool.map(moments, blocks)):
        second += block_second
        mean += block_mean
        done(len(ids))
    found = spectrum(second, mean)
    return Moments(mean, found.values, scratch.keep(found.vectors.astype(np.float32)))


@dataclass(frozen=True, slots=True)
class FieldProjection:
    """How a kept layer's rows become stored values: ``(row - mean) @ matrix``; ``None``: as is.

    ``mean`` float32 (hidden,); ``matrix`` gives `tolpack.codecs.lowrank.projection`, float32
    (hidden, rank), which may have to be read back or computed.
    """

    layer: int
    rank: int | None = None
    mean: Floats | None = None
    matrix: Callable[[], Floats] | None = None

    def __call__(self, rows: Floats) -> Floats:
        """Map float32 (n, hidden) to float32 (n, stored values)."""
        if self.matrix is None or self.mean is None:
            return rows
        centred = torch.from_numpy(rows - self.mean)
        return np.asarray((centred @ torch.from_numpy(self.matrix())).numpy())


def encode_records(
    source: TableSource,
    fields: Sequence[FieldProjection],
    layout: RecordLayout,
    token_ids: NDArray[np.int64],
    superblock: int,
    pool: ThreadPoolExecutor,
    done: Callable[[int], object],
) -> Iterator[NDArray[np.uint8]]:
    """Yield records of `token_ids` in order, uint8 (n, record_bytes), a superblock at a time.

    Layers are computed one after the other for `superblock` tokens, whose records are held.
    """
    for ids in _cut(token_ids, superblock):
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
            del rows, encode  # the next layer's weights must not meet these
        yield records


def sample_tokens(weights: Doubles, count: int) -> NDArray[np.int64]:
    """Draw `count` tokens with probability `weights` by systematic sampling: no randomness."""
    points = (np.arange(count) + 0.5) / count
    drawn = np.searchsorted(np.cumsum(weights), points * weights.sum())
    return np.asarray(np.minimum(drawn, len(weights) - 1), dtype=np.int64)


def encoded_sample(
    rows: NDArray[np.float32],
    fields: Sequence[FieldProjection],
    encoding: tuple[FieldEncoding, ...],
) -> NDArray[np.uint8]:
    """Return the records of a few tokens, uint8 (n, record_bytes).

    `rows` are the table's, float32 (n, kept fields, hidden).
    """
    layout = record_layout(encoding)
    records = np.zeros((len(rows), layout.record_bytes), np.uint8)
    for kept, field in enumerate(fields):
        layout.encode(records, kept, field(rows[:, kept]))
    return records


def _cut(ids: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [ids[start : start + size] for start in range(0, len(ids), size)]


def _drain(results: Iterable[int], done: Callable[[int], object]) -> None:
    for count in results:
        done(count)
