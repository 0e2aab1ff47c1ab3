"""Threads of a build, each with one BLAS thread, and how torch multiplies meanwhile.

Workers take blocks of tokens of a fixed size, and results are combined in the order of the blocks.
So the bytes of a pack depend neither on the number of threads nor on timing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

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


class SharedTorchSettings:
    """`torch_settings` of one thread, for tasks that several threads of a process work on at once.

    Torch's settings are those of the process. Tasks of one dtype share them; those of another one
    wait until none is left.
    """

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._users = 0
        self._compute = torch.float32
        self._settings = ExitStack()

    @contextmanager
    def using(self, compute: torch.dtype) -> Iterator[None]:
        """Have products made in `compute` inside."""
        with self._turn:
            self._turn.wait_for(lambda: not self._users or self._compute is compute)
            if not self._users:
                self._compute = compute
                self._settings.enter_context(torch_settings(1, compute))
            self._users += 1
        try:
            yield
        finally:
            with self._turn:
                self._users -= 1
                if not self._users:
                    self._settings.close()
                    self._turn.notify_all()


def split_ids(ids: Ints, size: int) -> list[Ints]:
    """Split token ids into runs of at most `size`."""
    return [ids[start : start + size] for start in range(0, len(ids), size)]


def wait_for(results: Iterable[int], done: Callable[[int], object]) -> None:
    """Wait for workers, and report the rows that each has done."""
    for count in results:
        done(count)
