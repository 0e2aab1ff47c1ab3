"""Packs of many options, each built, evaluated and removed: ``tolpack eval --sweep``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tolpack.errors import ConfigError
from tolpack.evaluation.evaluator import Evaluator
from tolpack.evaluation.experiment_runner import ExperimentOptions, SweepResult, open_runner
from tolpack.evaluation.pareto import on_front
from tolpack.evaluation.step_costs import pack_steps
from tolpack.evaluation.step_progress import StepProgress
from tolpack.evaluation.sweep_grid import PackOptions


def run_sweep(
    evaluator: Evaluator, grid: Sequence[PackOptions], options: ExperimentOptions
) -> tuple[tuple[SweepResult, ...], tuple[str, ...]]:
    """Evaluate a pack of each of the options in `grid`, in their order.

    Returns
    -------
    tuple
        The results, with their Pareto front marked; and a line for each of the options that this
        checkpoint does not allow.

    Raises
    ------
    CheckpointError, FileAccessError
        As `tolpack.build`.
    """
    results: list[SweepResult] = []
    skipped: list[str] = []
    progress = StepProgress(pack_steps(list(grid), evaluator), evaluator.reporter)
    with open_runner(evaluator, options) as runner:
        for one in grid:
            progress.begin(one.label)
            try:
                results.append(runner.evaluate(one))
                progress.end(results[-1].summary, runner.calibration_seconds())
            except ConfigError as error:
                skipped.append(f"{one.label}: {error}")
                progress.end(f"not built: {error}", runner.calibration_seconds())
    evaluator.warn_of_falls([(one.options.label, one.score) for one in results])
    return mark_front(results), tuple(skipped)


def mark_front(results: Sequence[SweepResult]) -> tuple[SweepResult, ...]:
    """Mark the results that no other one dominates in bytes and mean KL divergence."""
    marks = on_front([(one.score.bytes, one.score.kl_mean_nats) for one in results])
    return tuple(replace(one, on_front=mark) for one, mark in zip(results, marks))
