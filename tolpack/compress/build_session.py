"""Many packs of one checkpoint: it is opened, checked and calibrated once for all.

The packs share token counts and loss metrics, and, where memory allows, the table itself and the
second moments of its layers. Shared rows are computed for whole layers together; they may differ in
the last bit from those of a build alone, and so may a byte of a pack.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch

from tolpack.calibration.calibrate import CalibrationInputs, CalibrationStats, calibrate
from tolpack.compress.build import build_pack, check_sources
from tolpack.compress.make_plan import TableInputs
from tolpack.compress.outputs import FileOutput
from tolpack.compress.settings import BuildSettings
from tolpack.compress.write import PackFile
from tolpack.runtime.progress import Reporter
from tolpack.runtime.scratch import Scratch
from tolpack.sources.held_table import HeldTable
from tolpack.sources.protocol import TableSource
from tolpack.workspace.limits import choose_compute
from tolpack.workspace.resources import Resources
from tolpack.workspace.workers import torch_settings
from tolpack.workspace.workspace import MomentsCache, Workspace, open_workspace

# Of the memory for arrays, the share that a held table may take.
_HELD_SHARE = 0.5


class BuildSession:
    """See the module; use as a context manager.

    Parameters
    ----------
    source : TableSource
        The table, exact.
    folder : Path
        Where arrays are spilled to.
    inputs : CalibrationInputs
        Token counts and texts.
    resources : Resources
        What builds may use.
    reporter : Reporter
        Receives progress.
    """

    def __init__(
        self,
        source: TableSource,
        folder: Path,
        inputs: CalibrationInputs,
        resources: Resources,
        reporter: Reporter,
    ) -> None:
        self._source, self._inputs = source, inputs
        self._resources, self._reporter, self._folder = resources, reporter, folder
        self._exit = ExitStack()
        self._tables: dict[torch.dtype, tuple[TableSource, MomentsCache]] = {}
        self._stats: dict[tuple[torch.dtype, int | None], CalibrationStats] = {}
        self._checked = False

    def __enter__(self) -> BuildSession:
        opened = open_workspace([self._source], self._folder, self._resources, self._reporter)
        self._workspace = self._exit.enter_context(opened)
        held, scratch = HeldTable.nbytes(self._source), self._workspace.scratch
        self._hold = held <= _HELD_SHARE * scratch.left
        scratch.left -= held if self._hold else 0
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.close()

    def build(self, settings: BuildSettings, path: Path) -> None:
        """Write a pack of `settings` to `path`, in place of what is there.

        Raises
        ------
        ConfigError, CheckpointError, FileAccessError
            As of `tolpack.build`.
        """
        if not self._checked:
            check_sources([self._source], self._reporter)
            self._checked = True
        dtype = choose_compute(self._resources.compute, self._source, settings.bits, self._reporter)
        limits, shared = self._workspace.limits, self._workspace.scratch
        with torch_settings(limits.threads, dtype):
            stats = self._stats_of(settings, dtype)
            table, moments = self._table(dtype)
            file = PackFile(path, check_inputs=self._source.check_unchanged)
            # Of one pack alone, arrays are not kept for the next.
            with Scratch(shared.folder, shared.left) as scratch:
                workspace = Workspace(limits, scratch, self._reporter, moments)
                build_pack([TableInputs(table, stats)], workspace, settings, FileOutput(file))

    @property
    def table(self) -> TableSource:
        """The exact table, held where memory allows."""
        return self._table(torch.float32)[0]

    def _table(self, dtype: torch.dtype) -> tuple[TableSource, MomentsCache]:
        if dtype not in self._tables:  # the one before is let go
            source = self._source.computed_in(dtype)
            table = HeldTable(source) if self._hold else source
            self._tables = {dtype: (table, MomentsCache(self._workspace.scratch))}
        return self._tables[dtype]

    def _stats_of(self, settings: BuildSettings, dtype: torch.dtype) -> CalibrationStats:
        key = dtype, settings.loss_reach
        if key not in self._stats:
            table = self._source.computed_in(dtype)
            self._stats[key] = calibrate(table, self._inputs, settings.loss_reach, self._workspace)
        return self._stats[key]
