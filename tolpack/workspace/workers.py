"""Threads of a build, each with one BLAS thread, and how torch multiplies meanwhile.

Workers take blocks of tokens of a fixed size, and results are combined in the order of the blocks.
So the bytes of a pack depend neither on the number of threads nor on timing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from tolpack.runtime.array_types import Ints


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
def torch_settings(threads: int, compute: torch.dtype) -> Iterator[None]:
    """Let torch use `threads` threads inside, and round the operands of float32 products to
    `compute`; sums stay in float32.

    The dtype that a table is computed in is exact enough for its Gram matrices, projections and
    losses too.
    """
    with torch_threads(threads), product_precision(compute):
        yield


@contextmanager
def product_precision(compute: torch.dtype) -> Iterator[None]:
    """Let float32 products round their operands to `compute` inside; see `torch_settings`."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if compute is torch.bfloat16 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def split_ids(ids: Ints, size: int) -> list[Ints]:
    """Split token ids into runs of at most `size`."""
    return [ids[start : start + size] for start in range(0, len(ids), size)]


def wait_for(results: Iterable[int], done: Callable[[int], object]) -> None:
    """Wait for workers, and report the rows that each has done."""
    for count in results:
        done(count)
