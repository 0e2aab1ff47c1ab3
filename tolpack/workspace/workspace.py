"""The workspace of builds: limits, scratch space and progress. Nothing here decides a byte."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tolpack.runtime.array_types import Doubles
from tolpack.runtime.progress import Reporter
from tolpack.runtime.scratch import Scratch, SpilledArray
from tolpack.sources.protocol import TableSource
from tolpack.workspace.build_workers import BuildWorkers
from tolpack.workspace.limits import BuildNeeds, Limits, plan_limits
from tolpack.workspace.resources import Resources


class MomentsCache:
    """Second moments of one table that several packs are made of.

    Parameters
    ----------
    scratch : Scratch
        Keeps them.
    """

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._known: dict[tuple[int, bytes], tuple[SpilledArray, SpilledArray]] = {}

    def get(
        self, layer: int, weights: Doubles, measure: Callable[[], tuple[Doubles, Doubles]]
    ) -> tuple[Doubles, Doubles]:
        """Return what `measure` gave for these token weights when they were first asked for: two
        arrays, not to be changed.
        """
        key = layer, hashlib.sha256(weights.tobytes()).digest()
        if key not in self._known:
            second, mean = measure()
            self._known[key] = self._scratch.spill(second), self._scratch.spill(mean)
        spilled = self._known[key]
        return spilled[0].load(), spilled[1].load()


@dataclass(frozen=True, slots=True)
class Workspace:
    """Limits, scratch space for arrays, and the receiver of progress.

    ``moments``: second moments that several packs of one table share, if there are several.
    ``workers``: other processes that share the work, if there are any.
    """

    limits: Limits
    scratch: Scratch
    reporter: Reporter
    moments: MomentsCache | None = None
    workers: BuildWorkers | None = None


@contextmanager
def open_workspace(
    sources: Sequence[TableSource],
    folder: Path,
    resources: Resources,
    reporter: Reporter,
    needs: BuildNeeds | None = None,
    workers: BuildWorkers | None = None,
) -> Iterator[Workspace]:
    """Yield a workspace for builds of `sources`, one after the other, with its temporary file in
    `folder`; see `plan_limits` for `needs`.

    Raises
    ------
    ConfigError
        The memory granted is not enough; see `plan_limits`.
    """
    limits = plan_limits(sources, resources.max_memory, resources.threads, needs)
    with Scratch(folder, limits.scratch_bytes) as scratch:
        yield Workspace(limits, scratch, reporter, workers=workers)
