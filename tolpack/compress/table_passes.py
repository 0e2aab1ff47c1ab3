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

from tolpack.codecs.record import RecordLayout, record_layout
from tolpack.compress.limits import MOMENT_BLOCKS, block_tokens
from tolpack.compress.low_rank import spectrum
from tolpack.container.encodings import FieldEncoding
from tolpack.container.preamble import align
from tolpack.errors import ConfigError
from tolpack.runtime.array_types import Doubles, Floats
from tolpack.runtime.scratch import Scratch, SpilledArray
from tolpack.sources.held_table import HeldTable
from tolpack.sources.protocol import LayerRows, TableSource

# Smaller vocabularies are cut into this many runs at least, so that all workers have something.
_MOMENT_RUNS = 16


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


@contextmanager
def product_precision(compute: torch.dtype) -> Iterator[None]:
    """Let float32 products round their operands to `compute` inside; sums stay in float32.

    What a table is multiplied in is exact enough for its Gram matrices, projections and losses too.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if compute is torch.bfloat16 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True, slots=True)
class Moments:
    """One layer's weighted mean, float64 (hidden,), and the spectrum around it: eigenvalues,
    float64 (hidden,) descending, and eigenvectors, which may have to be read back.
    """

    mean: Doubles
    values: Doubles
    spilled_vectors: SpilledArray

    @property
    def vectors(self) -> Floats:
        """Eigenvectors in columns, float32 (hidden, hidden)."""
        return self.spilled_vectors.load()

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
    """Stream one layer of the table once and decompose it; parameters as of `second_moment`."""
    second, mean = second_moment(source, layer, weights, pool, done)
    found = spectrum(second, mean)
    return Moments(mean, found.values, scratch.spill(found.vectors.astype(np.float32)))


def second_moment(
    source: TableSource,
    layer: int,
    weights: Doubles,
    pool: ThreadPoolExecutor,
    done: Callable[[int], object],
) -> tuple[Doubles, Doubles]:
    """Stream one layer of the table once: ``Σ w TᵀT``, float64 (hidden, hidden), and ``Σ w T``.

    Parameters
    ----------
    source : TableSource
        The table.
    layer : int
        Which layer.
    weights : ndarray
        float64 (vocab_size,), summing to 1.
    pool : ThreadPoolExecutor
        Workers.
    done : callable
        Called with the number of rows done since the last call.
    """

    def measure() -> tuple[Doubles, Doubles]:
        return _second_moment(source, layer, weights, pool, done)

    if isinstance(source, HeldTable):
        return source.remembered(layer, weights, measure)
    return measure()


def _second_moment(
    source: TableSource,
    layer: int,
    weights: Doubles,
    pool: ThreadPoolExecutor,
    done: Callable[[int], object],
) -> tuple[Doubles, Doubles]:
    rows, block = source.layer(layer), block_tokens(source.hidden_size)
    roots = np.sqrt(weights).astype(np.float32)

    def moments(ids: NDArray[np.int64]) -> tuple[Doubles, Doubles]:
        root = torch.from_numpy(roots[ids])[:, None]
        weighted = torch.empty(len(ids), source.hidden_size)
        for part, target in zip(cut(ids, block), torch.split(weighted, block)):
            target.copy_(torch.from_numpy(rows(part)))
        weighted.mul_(root)
        second, mean = weighted.T @ weighted, (weighted * root).sum(0)
        return second.double().numpy(), mean.double().numpy()

    second = np.zeros((source.hidden_size, source.hidden_size))
    mean = np.zeros(source.hidden_size)
    run = min(MOMENT_BLOCKS * block, align(source.vocab_size // _MOMENT_RUNS + 1, block))
    runs = cut(np.arange(source.vocab_size, dtype=np.int64), run)
    for ids, (run_second, run_mean) in zip(runs, pool.map(moments, runs)):
        second += run_second
        mean += run_mean
        done(len(ids))
    return second, mean


@dataclass(frozen=True, slots=True)
class FieldProjection:
    """How a kept layer's rows become stored values: ``(row - mean) @ matrix``; ``None``: as is.

    ``mean`` float32 (hidden,); ``matrix`` gives `tolpack.compress.low_rank.projection`, float32
    (hidden, rank), which may have to be read back or computed.
    """

    layer: int
    rank: int | None = None
    mean: Floats | None = None
    matrix: Callable[[], Floats] | None = None

    def load(self) -> Callable[[Floats], Floats]:
        """Return a function that maps float32 (n, hidden) to float32 (n, stored values)."""
        if self.matrix is None or self.mean is None:
            return lambda rows: rows
        mean, matrix = self.mean, torch.from_numpy(self.matrix())
        return lambda rows: np.asarray((torch.from_numpy(rows - mean) @ matrix).numpy())


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
    block = block_tokens(source.hidden_size)
    for ids in cut(token_ids, superblock):
        records = np.zeros((len(ids), layout.record_bytes), np.uint8)
        for kept, field in enumerate(fields):
            rows, project = source.layer(field.layer), field.load()

            def encode(
                start: int,
                ids: NDArray[np.int64] = ids,
                records: NDArray[np.uint8] = records,
                kept: int = kept,
                layer: int = field.layer,
                project: Callable[[Floats], Floats] = project,
                rows: LayerRows = rows,
            ) -> int:
                part = ids[start : start + block]
                target = records[start : start + block]
                try:
                    layout.encode(target, kept, project(rows(part)))
                except ConfigError as error:
                    raise ConfigError(f"layer {layer}: {error}") from error
                return len(part)

            drain(pool.map(encode, range(0, len(ids), block)), done)
            del rows, project, encode  # the next layer's weights must not meet these
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
        layout.encode(records, kept, field.load()(rows[:, kept]))
    return records


def cut(ids: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Cut token ids into runs of at most `size`."""
    return [ids[start : start + size] for start in range(0, len(ids), size)]


def drain(results: Iterable[int], done: Callable[[int], object]) -> None:
    """Wait for workers, and report what each has done."""
    for count in results:
        done(count)
