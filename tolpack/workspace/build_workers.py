"""Workers of a build: other processes that open the same input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass

from tolpack.runtime.pool import processor_count
from tolpack.sources.input_location import InputLocation
from tolpack.sources.protocol import TableSource
from tolpack.storage.folder import Folder
from tolpack.workspace.limits import BuildNeeds, Limits, plan_limits
from tolpack.workspace.resources import Resources
from tolpack.workspace.run_tasks import Workers, open_workers


@dataclass(frozen=True, slots=True)
class BuildWorkers:
    """Workers, how they open the input, what each of them may use, and the folder in which jobs are
    stored and results come.
    """

    workers: Workers
    input: InputLocation
    limits: Limits
    folder: Folder


@contextmanager
def open_build_workers(
    executor: Executor | None,
    processes: int | None,
    location: InputLocation,
    sources: Sequence[TableSource],
    folder: Callable[[], Folder],
    resources: Resources,
    needs: BuildNeeds,
) -> Iterator[BuildWorkers | None]:
    """Yield the workers of `executor`, or of so many `processes`; ``None`` where neither is given.

    Raises
    ------
    ConfigError
        Both are given, or the memory granted to each worker is not enough; or as of `folder`.
    """
    if executor is None and processes is None:
        yield None
        return
    with open_workers(executor, processes) as workers:
        share = 1 if processes is None else max(1, processor_count() // processes)
        threads = resources.threads or share
        limits = plan_limits(sources, resources.max_memory, threads, needs)
        yield BuildWorkers(workers, location, limits, folder())
