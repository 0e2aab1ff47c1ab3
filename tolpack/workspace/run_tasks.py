"""Tasks on any `concurrent.futures.Executor`: a bounded number at a time, until all are done.

Workers may be lost: killed by the system for their memory, or with their machine. An engine such as
Dask gives their tasks to others by itself. A pool of processes does not survive it, so the one that
was started here is started again; of another one the error says what to do. Tasks may be done
twice, so nothing has to be undone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    wait,
)
from concurrent.futures.process import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from time import monotonic
from typing import Any, TypeVar

from tolpack.errors import ConfigError, ExecutorError, TolpackError
from tolpack.runtime.progress import Reporter

_T = TypeVar("_T")

# Tasks that an executor whose workers are not known has at once: enough for some hundred workers.
_AT_ONCE = 1000
# How often in a row a pool is started again without a task that was done in between.
_RESTARTS = 3
_MOST_PROCESSES = 1024
# How long to wait for a task that ends before it is asked whether the executor still works; and
# after how many seconds without one something is said.
_POLL_SECONDS, _QUIET_SECONDS = 2.0, 30.0


class Workers:
    """An executor, and how another one takes its place when its workers are lost.

    Parameters
    ----------
    executor : Executor
        Where tasks run.
    at_once : int
        Tasks that are submitted at once.
    restart : callable, optional
        Ends the executor, and gives another one; default: an executor that is broken stays so.
    """

    def __init__(
        self,
        executor: Executor,
        at_once: int = _AT_ONCE,
        restart: Callable[[Executor], Executor] | None = None,
    ) -> None:
        self._executor, self.at_once, self._restart = executor, at_once, restart

    @property
    def can_restart(self) -> bool:
        """Whether a broken executor is replaced."""
        return self._restart is not None

    @property
    def is_connected(self) -> bool:
        """Whether the executor is known not to have lost its scheduler."""
        # When Dask's client loses the scheduler while it fetches a result, the future never ends.
        status = getattr(getattr(self._executor, "_client", None), "status", "running")
        return bool(status == "running")

    def submit(self, function: Callable[..., _T], arguments: Sequence[Any]) -> Future[_T]:
        """Begin a task; raises what the executor raises."""
        try:
            return self._executor.submit(function, *arguments)
        except OSError as error:
            # A pool whose worker dies at this moment has closed what it would be woken by.
            raise BrokenExecutor(str(error)) from error

    def restart(self) -> None:
        """Take another executor, as this one is broken."""
        if self._restart is not None:
            self._executor = self._restart(self._executor)

    def close(self) -> None:
        """End the executor, and its processes whatever they do."""
        _end_pool(self._executor)


@contextmanager
def open_workers(executor: Executor | None, processes: int | None) -> Iterator[Workers]:
    """Yield the workers of `executor`, which stays open, or of a pool of so many `processes`, whose
    processes end with this one.

    Raises
    ------
    ConfigError
        Both are given, or one is none.
    """
    if executor is not None and processes is not None:
        raise ConfigError("--processes and --cluster both say who encodes: give one of them")
    if executor is not None and not isinstance(executor, Executor):
        raise ConfigError(
            f"executor is a {type(executor).__name__}, expected a concurrent.futures.Executor: of "
            "a Dask client that is client.get_executor()"
        )
    if executor is not None:
        yield Workers(executor)
    elif type(processes) is int and 1 <= processes <= _MOST_PROCESSES:
        with _process_workers(processes) as workers:
            yield workers
    else:
        raise ConfigError(f"--processes is {processes!r}, expected 1 … {_MOST_PROCESSES}")


@contextmanager
def _process_workers(processes: int) -> Iterator[Workers]:

    def start() -> ProcessPoolExecutor:
        # A fork would take over the threads' locks, and torch's.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(processes, context, initializer=_prepare_process)

    def restart(broken: Executor) -> Executor:
        _end_pool(broken)
        return start()

    workers = Workers(start(), 2 * processes, restart)
    try:
        yield workers
    finally:  # all is done, or nothing more is wanted
        workers.close()


def run_tasks(
    workers: Workers,
    function: Callable[..., _T],
    calls: Sequence[Sequence[Any]],
    take: Callable[[int, _T], object],
    reporter: Reporter,
) -> None:
    """Call `function` with each of `calls` on workers, in any order.

    Parameters
    ----------
    workers : Workers
        Where.
    function : callable
        A function of a module, as it is pickled.
    calls : sequence of sequence
        Arguments.
    take : callable
        Receives the number of each call and its result, here.
    reporter : Reporter
        Is told of workers that were lost.

    Raises
    ------
    TolpackError
        That of a task; tasks that were not begun are cancelled.
    ExecutorError
        Workers are lost, or a task failed in another way.
    """
    run = _Run(workers, function, calls, take, reporter)
    try:
        while run.left:
            run.step()
    finally:
        run.cancel()


class _Run:
    """The state of `run_tasks`."""

    def __init__(
        self, workers: Workers, function: Callable[..., _T], calls: Sequence[Sequence[Any]],
        take: Callable[[int, _T], object], reporter: Reporter,
    ) -> None:  # fmt: skip
        self._workers, self._function, self._calls = workers, function, calls
        self._take, self._reporter = take, reporter
        self._waiting = deque(range(len(calls)))
        self._running: dict[Future[Any], int] = {}
        self._restarts, self._last, self._quiet = 0, monotonic(), _QUIET_SECONDS

    @property
    def left(self) -> int:
        """Tasks that are not done."""
        return len(self._waiting) + len(self._running)

    def step(self) -> None:
        """Submit what may be, and take what has ended next."""
        try:
            self._submit()
            ended, _ = wait(self._running, _POLL_SECONDS, FIRST_COMPLETED)
            for future in ended:
                if not _succeeded(future):
                    future.result()  # raises
            if not ended and not self._workers.is_connected:
                raise CancelledError
        except TolpackError:
            raise
        except Exception as error:  # noqa: BLE001 - each engine has errors of its own
            self._recover(error)
            return
        if self._take_results():
            self._restarts, self._last = 0, monotonic()
            self._quiet = _QUIET_SECONDS
        elif monotonic() - self._last > self._quiet:
            self._reporter.say(
                f"no worker has ended a task for {self._quiet:.0f} seconds, and {self.left} are "
                "left: are there workers?"
            )
            self._quiet *= 2

    def cancel(self) -> None:
        """Have nothing begin any more."""
        for future in self._running:
            future.cancel()

    def _submit(self) -> None:
        while self._waiting and len(self._running) < self._workers.at_once:
            number = self._waiting[0]
            future = self._workers.submit(self._function, self._calls[number])
            self._running[future] = self._waiting.popleft()

    def _take_results(self) -> bool:
        """Take all results that are there; returns whether there were any."""
        ended = [future for future in self._running if _succeeded(future)]
        for future in ended:
            self._take(self._running.pop(future), future.result())
        return bool(ended)

    def _recover(self, error: BaseException) -> None:
        """Start a broken pool again, with all that was lost; raise where that cannot be."""
        progressed = self._take_results()
        broken = isinstance(error, BrokenExecutor) and self._workers.can_restart
        if not broken or (self._restarts == _RESTARTS and not progressed):
            raise ExecutorError(
                f"{_reason(error)}; {self.left} of {len(self._calls)} tasks are left. What is made "
                "is kept: repair the cause, and give the same command again"
            ) from error
        self._restarts = 1 if progressed else self._restarts + 1
        self._waiting.extendleft(self._running.values())
        self._running.clear()
        self._reporter.say(f"a worker was lost: {len(self._waiting)} tasks go to new ones")
        self._workers.restart()


def _end_pool(pool: Executor) -> None:
    # A process that was started while the pool broke would be waited for, and never end. Python has
    # a method for this from 3.14 on.
    processes: dict[int, BaseProcess] = getattr(pool, "_processes", None) or {}
    for process in list(processes.values()):
        process.terminate()
    pool.shutdown(cancel_futures=True)


def _reason(error: BaseException) -> str:
    if isinstance(error, CancelledError):
        return "tasks were cancelled: the scheduler was lost, or the executor was closed"
    if isinstance(error, BrokenExecutor):
        return (
            "a worker ended abruptly, often because the system has too little memory for so many "
            f"workers ({error})"
        )
    return f"a worker failed ({type(error).__name__}: {error})"


def _succeeded(future: Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _prepare_process() -> None:
    """End with the process that started this one, and leave an interrupt of all to that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # a pool's process would wait for tasks for ever
