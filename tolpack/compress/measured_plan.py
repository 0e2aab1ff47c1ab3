"""A plan without a pack: ``tolpack plan`` of settings for which the table is measured."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from tolpack.calibration.calibrate import CalibrationInputs, calibrate
from tolpack.compress.build import check_sources
from tolpack.compress.make_plan import TableInputs, make_plan
from tolpack.compress.settings import BuildSettings
from tolpack.errors import memory_errors
from tolpack.model.text import find_tokenizer
from tolpack.runtime.progress import Reporter
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.open_source import open_tables
from tolpack.workspace.limits import choose_compute
from tolpack.workspace.resources import Resources
from tolpack.workspace.workers import torch_settings
from tolpack.workspace.workspace import open_workspace


@memory_errors("give less --max-memory or fewer --threads")
def preview_plan(
    checkpoint: str | Path,
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
    if inputs.text is not None:
        inputs = replace(inputs, tokenizer=find_tokenizer(Path(checkpoint), inputs.tokenizer))
    sources = open_tables(checkpoint, options, layers, tensor)
    folder = Path(tempfile.gettempdir())
    with open_workspace(sources, folder, resources, reporter) as workspace:
        check_sources(sources, reporter)
        compute = choose_compute(resources.compute, sources[0], settings.bits, reporter)
        with torch_settings(workspace.limits.threads, compute):
            faster = [source.computed_in(compute) for source in sources]
            tables = [
                TableInputs(table, calibrate(table, inputs, settings.loss_reach, workspace))
                for table in faster
            ]
            plan = make_plan(tables, settings, workspace)
            return [one.to_json() for one in plan.tables]
