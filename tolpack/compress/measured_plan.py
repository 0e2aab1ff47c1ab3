"""A plan without a pack: ``tolpack plan`` of settings for which the table is measured."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tolpack.calibration.calibrate import CalibrationInputs
from tolpack.compress.build import calibrated_tables
from tolpack.compress.make_plan import make_plan
from tolpack.compress.settings import BuildSettings
from tolpack.errors import memory_errors
from tolpack.runtime.progress import Reporter
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.open_source import open_tables
from tolpack.storage.locations import Location
from tolpack.workspace.resources import Resources


@memory_errors("give less --max-memory or fewer --threads")
def preview_plan(
    checkpoint: Location,
    settings: BuildSettings,
    inputs: CalibrationInputs,
    options: CheckpointOptions,
    layers: int | None,
    tensor: str | None,
    resources: Resources,
    reporter: Reporter,
) -> list[dict[str, Any]]:
    """Measure and decide as a build does, and return the plans of all tables as plain values
    (`tolpack.compress.plan.Plan.to_json`). Arrays are spilled to ``TMPDIR``.

    Parameters
    ----------
    checkpoint, options, layers, tensor
        As of `tolpack.sources.open_source.open_tables`.
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
    sources = open_tables(checkpoint, options, layers, tensor)
    folder, inputs = Path(tempfile.gettempdir()), inputs.beside(checkpoint)
    measured = calibrated_tables(sources, settings, inputs, folder, resources, reporter)
    with measured as (tables, workspace):
        return [one.to_json() for one in make_plan(tables, settings, workspace).tables]
