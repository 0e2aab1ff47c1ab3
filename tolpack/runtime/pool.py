"""Threads that are started when they are first needed, and again after a fork."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from tolpack.errors import ConfigError
from tolpack.runtime.fork_safety import ForkSafe

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def processor_count() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_count(threads: int | None) -> int:
    """Return how many threads to use: `threads`, by default one for each processor.

    Raises
    ------
    ConfigError
        It is not a number from 1 to 1024.
    """
    if threads is None:
        return processor_count()
    if type(threads) is not int or not 1 <= threads <= 1024:
        raise ConfigError(f"threads is {threads!r}, expected 1 … 1024")
    return threads


class Pool(ForkSafe):
    """At most `size` threads."""

    _threads: ThreadPoolExecutor | None

    def __init__(self, size: int, name: str) -> None:
        self.size = size
        self._name = f"tolpack-{name}"
        super().__init__()

    def map(self, work: Callable[[_In], _Out], parts: Iterable[_In]) -> list[_Out]:
        """Do `work` on all parts; the first error is raised once all have ended. A pool of one
        thread leaves the work to the caller's.
        """
        if self.size == 1:
            return [work(part) for part in parts]
        futures: list[Future[_Out]] = []
        try:
            for part in parts:
                futures.append(self.submit(work, part))
            wait(futures)
        except BaseException:  # interrupted: nobody may go on with what the caller takes back
            for future in futures:
                future.cancel()
            wait(futures)
            raise
        return [future.result() for future in futures]

    def submit(self, work: Callable[[_In], _Out], part: _In) -> Future[_Out]:
        """Begin `work` on `part`."""
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self.size, thread_name_prefix=self._name)
            return self._threads.submit(work, part)

    def close(self) -> None:
        """End the threads after their work; the next use starts others."""
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False)

    def reset_after_fork(self) -> None:
        """See `tolpack.runtime.fork_safety.ForkReset`."""
        super().reset_after_fork()
        self._threads = None
