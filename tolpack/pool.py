"""Threads that are started when they are first needed, and again after a fork."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Pool:
    """At most `size` threads."""

    _threads: ThreadPoolExecutor | None

    def __init__(self, size: int, name: str) -> None:
        self.size = size
        self._name = f"tolpack-{name}"
        self._renew()

    def map(self, work: Callable[[_In], _Out], parts: Iterable[_In]) -> list[_Out]:
        """Do `work` on all parts; the first error is raised once all have ended."""
        futures = [self.submit(work, part) for part in parts]
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise errors[0]
        return [future.result() for future in futures]

    def submit(self, work: Callable[[_In], _Out], part: _In) -> Future[_Out]:
        """Begin `work` on `part`."""
        if self._process != os.getpid():  # threads do not live on in a forked process
            self._renew()
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self.size, thread_name_prefix=self._name)
            return self._threads.submit(work, part)

    def close(self) -> None:
        """End the threads after their work; the next use starts others."""
        if self._process != os.getpid():
            self._renew()
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False)

    def _renew(self) -> None:
        self._process, self._lock, self._threads = os.getpid(), threading.Lock(), None
