"""A plan without a pack: ``tolpack plan`` of settings for which the table is measured."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tolpack.calibration.calibrate import CalibrationInputs
from tolpack.compress.build import calibrated_tables
from tolpack.compress.early_checks import check_request
from tolpack.compress.make_plan import TableInputs, make_plan
from tolpack.compress.plan import PackPlan
from tolpack.compress.settings import BuildSettings
from tolpack.errors import memory_errors
from tolpack.runtime.progress import KeptWarnings, PhaseTimes, Reporter
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.open_source import open_tables
from tolpack.storage.locations import Location
from tolpack.workspace.resources import Resources
from tolpack.workspace.workspace import Workspace


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What a plan is asked for.

    ``checkpoint``, ``options``, ``layers`` and ``tensor`` as of
    `tolpack.sources.open_source.open_tables`; ``settings`` and ``inputs``: what is asked for, and
    what is known of tokens; ``resources``: what planning may use.
    """

    checkpoint: Location
    settings: BuildSettings
    inputs: CalibrationInputs
    options: CheckpointOptions
    layers: int | None
    tensor: str | None
    resources: Resources


@dataclass(frozen=True, slots=True)
class DecidedPlan:
    """A plan as a build makes it, what it was made from, and how long calibration and planning took
    on this machine.
    """

    plan: PackPlan
    tables: Sequence[TableInputs]
    workspace: Workspace
    calibration_seconds: float
    plan_seconds: float


@contextmanager
def decided_plan(request: PlanRequest, reporter: Reporter) -> Iterator[DecidedPlan]:
    """Measure and decide as a build does, and yield the plan while its workspace is there. Arrays
    are spilled to ``TMPDIR``.

    Raises
    ------
    ConfigError, CheckpointError
        As of `tolpack.build`.
    """
    times, begin = PhaseTimes(KeptWarnings(reporter)), time.perf_counter()
    sources = open_tables(request.checkpoint, request.options, request.layers, request.tensor)
    inputs = request.inputs.beside(request.checkpoint)
    check_request(sources, request.settings, inputs)
    folder = Path(tempfile.gettempdir())
    measured = calibrated_tables(
        sources, request.settings, inputs, folder, request.resources, times
    )
    with measured as (tables, workspace):
        ready = time.perf_counter()
        checked = sum(seconds for name, seconds in times.seconds if name == "checking the input")
        calibration = ready - begin - checked
        plan = make_plan(tables, request.settings, workspace)
        yield DecidedPlan(plan, tables, workspace, calibration, time.perf_counter() - ready)


@memory_errors("give less --max-memory or fewer --threads")
def preview_plan(request: PlanRequest, reporter: Reporter) -> list[dict[str, Any]]:
    """Measure and decide as a build does, and return the plans of all tables as plain values
    (`tolpack.compress.plan.Plan.to_json`).

    Parameters
    ----------
    request : PlanRequest
        What is asked for.
    reporter : Reporter
        Receives progress.

    Raises
    ------
    ConfigError, CheckpointError
        As of `tolpack.build`.
    """
    with decided_plan(request, reporter) as decided:
        return [one.to_json() for one in decided.plan.tables]
