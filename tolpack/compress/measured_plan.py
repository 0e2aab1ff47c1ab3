"""A plan without a pack: ``tolpack plan`` of settings for which the table is measured."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tolpack.calibration.calibrate import CalibrationInputs, calibrate
from tolpack.compress.build import check_source
from tolpack.compress.make_plan import make_plan
from tolpack.compress.settings import BuildSettings
from tolpack.errors import memory_errors
from tolpack.runtime.progress import Reporter
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.open_source import open_source
from tolpack.workspace.limits import choose_compute
from tolpack.workspace.resources import Resources
from tolpack.workspace.workers import torch_settings
from tolpack.workspace.workspace import open_workspace


@dataclass(frozen=True, slots=True)
class PlanPreview:
    """A plan as plain values (`tolpack.compress.plan.Plan.to_json`), and the bytes of FP16."""

    plan: dict[str, Any]
    fp16_bytes: int


@memory_errors("give less --max-memory or fewer --threads")
def preview_plan(
    checkpoint: str | Path,
    settings: BuildSettings,
    inputs: CalibrationInputs,
    options: CheckpointOptions,
    layers: int | None,
    resources: Resources,
    reporter: Reporter,
) -> PlanPreview:
    """Measure and decide as a build does, and show the plan. Arrays are spilled to ``TMPDIR``.

    Parameters
    ----------
    checkpoint, options, layers
        As of `tolpack.sources.open_source.open_source`.
    settings, inputs : BuildSettings, CalibrationInputs
        What is asked for, and what is known of tokens.
    resources : Resources
        What it may use.
    reporter : Reporter
        Receives progress.

    Raises
    ------
    ConfigError, CheckpointError
        As of `tolpack.build`.
    """
    source = open_source(checkpoint, options, layers)
    folder = Path(tempfile.gettempdir())
    with open_workspace(source, folder, resources, reporter) as workspace:
        check_source(source, reporter)
        compute = choose_compute(resources.compute, source, settings.bits, reporter)
        table = source.computed_in(compute)
        with torch_settings(workspace.limits.threads, compute):
            stats = calibrate(table, inputs, settings.loss_reach, workspace)
            plan = make_plan(table, stats, settings, workspace)
            widths = sum(field.width for field in source.fields)
            return PlanPreview(plan.to_json(), 2 * source.rows * widths)
