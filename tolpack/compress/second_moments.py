"""Second moments of layers of the table, in one pass over their rows; and a sample of tokens."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.container.preamble import align
from tolpack.runtime.array_types import Doubles
from tolpack.sources.protocol import TableSource
from tolpack.workspace.limits import MOMENT_BLOCKS, block_tokens
from tolpack.workspace.workers import split_ids, worker_threads
from tolpack.workspace.workspace import MomentsCache, Workspace

# Smaller vocabularies are cut into this many runs at least, so that all workers have something.
_MOMENT_RUNS = 16


def second_moments(
    source: TableSource,
    layers: Sequence[int],
    weights: Doubles,
    workspace: Workspace,
    cache: MomentsCache | None = None,
) -> Generator[tuple[int, Doubles, Doubles]]:
    """Yield each layer's number, ``Σ w TᵀT``, float64 (hidden, hidden), and ``Σ w T``.

    Parameters
    ----------
    source : TableSource
        The table; each layer is streamed once.
    layers : sequence of int
        Which layers.
    weights : ndarray
        float64 (vocab_size,), summing to 1.
    workspace : Workspace
        Workers and progress.
    cache : MomentsCache, optional
        Moments of this very table that were measured before.

    Close it where not all layers are taken: it holds workers.
    """
    total = source.rows * len(layers)
    with (
        workspace.reporter.phase("Gram matrices", total, "rows") as done,
        worker_threads(workspace.limits.threads) as pool,
    ):
        for layer in layers:
            measure = partial(measure_moments, source, layer, weights, pool, done)
            yield layer, *(measure() if cache is None else cache.get(layer, weights, measure))


def measure_moments(
    source: TableSource,
    layer: int,
    weights: Doubles,
    pool: ThreadPoolExecutor,
    done: Callable[[int], object],
) -> tuple[Doubles, Doubles]:
    """Stream one layer of the table; see `second_moments`."""
    width = source.fields[layer].width
    rows, block = source.field_rows(layer), block_tokens(width)
    roots = np.sqrt(weights).astype(np.float32)

    def moments(ids: NDArray[np.int64]) -> tuple[Doubles, Doubles]:
        root = torch.from_numpy(roots[ids])[:, None]
        weighted = torch.empty(len(ids), width)
        for part, target in zip(split_ids(ids, block), torch.split(weighted, block)):
            target.copy_(torch.from_numpy(rows(part)))
        weighted.mul_(root)
        second, mean = weighted.T @ weighted, (weighted * root).sum(0)
        return second.double().numpy(), mean.double().numpy()

    second = np.zeros((width, width))
    mean = np.zeros(width)
    run = min(MOMENT_BLOCKS * block, align(source.rows // _MOMENT_RUNS + 1, block))
    runs = split_ids(np.arange(source.rows, dtype=np.int64), run)
    for ids, (run_second, run_mean) in zip(runs, pool.map(moments, runs)):
        second += run_second
        mean += run_mean
        done(len(ids))
    return second, mean


def sample_tokens(weights: Doubles, count: int) -> NDArray[np.int64]:
    """Draw `count` tokens with probability `weights` by systematic sampling: no randomness."""
    points = (np.arange(count) + 0.5) / count
    drawn = np.searchsorted(np.cumsum(weights), points * weights.sum())
    return np.asarray(np.minimum(drawn, len(weights) - 1), dtype=np.int64)
