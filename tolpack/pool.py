"""Threads that are started when they are first needed, and again after a fork."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol, TypeVar

from tolpack.errors import ConfigError

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Forked(Protocol):
    """What has locks or threads, neither of which live on in a forked process."""

    def renew(self) -> None:
        """Begin anew in the child of a fork: its other threads are gone, and what they held."""
        ...


_living: weakref.WeakSet[Forked] = weakref.WeakSet()


def renew_after_fork(one: Forked) -> None:
    """Have `one` renewed in every forked child, for as long as it lives."""
    _living.add(one)


def _renew_all() -> None:
    for one in list(_living):
        one.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)


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
        It is no number from 1 to 1024.
    """
    if threads is None:
        return processor_count()
    if type(threads) is not int or not 1 <= threads <= 1024:
        raise ConfigError(f"threads is {threads!r}, expected 1 … 1024")
    return threads


class Pool:
    """At most `size` threads."""

    _threads: ThreadPoolExecutor | None

    def __init__(self, size: int, name: str) -> None:
        self.size = size
        self._name = f"tolpack-{name}"
        self.renew()
        renew_after_fork(self)

    def map(self, work: Callable[[_In], _Out], parts: Iterable[_In]) -> list[_Out]:
        """Do `work` on all parts; the first error is raised once all have ended."""
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

    def renew(self) -> None:
        """See `Forked`."""
        self._lock, self._threads = threading.Lock(), None
