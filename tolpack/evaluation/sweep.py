"""A row of settings, each built, judged and removed: ``tolpack eval --sweep``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tolpack.errors import ConfigError
from tolpack.evaluation.evaluator import Evaluator
from tolpack.evaluation.sweep_progress import SweepProgress
from tolpack.evaluation.sweep_runner import Inputs, SweepPoint, workplace
from tolpack.evaluation.sweep_setting import SweepSetting


def run_sweep(
    evaluator: Evaluator, settings: Sequence[SweepSetting], inputs: Inputs
) -> tuple[tuple[SweepPoint, ...], tuple[str, ...]]:
    """Measure `settings`, in their order; those that were measured before are not built again.

    Returns
    -------
    tuple
        The points, with their Pareto front marked; and a line for each setting that this checkpoint
        does not allow.

    Raises
    ------
    CheckpointError, FileAccessError
        As `tolpack.build`.
    """
    points: list[SweepPoint] = []
    skipped: list[str] = []
    steps = SweepProgress([setting.kind for setting in settings], evaluator.reporter)
    with workplace(evaluator, inputs) as place:
        for setting in settings:
            steps.begin(setting.label)
            try:
                points.append(place.point(setting))
                steps.end(points[-1].summary)
            except ConfigError as error:
                skipped.append(f"{setting.label}: {error}")
                steps.end(f"not built: {error}")
    return front(points), tuple(skipped)


def front(points: Sequence[SweepPoint]) -> tuple[SweepPoint, ...]:
    """Mark the points that no other one beats in both bytes and perplexity."""

    def beaten(one: SweepPoint) -> bool:
        own = (one.score.bytes, one.score.ppl)
        others = ((other.score.bytes, other.score.ppl) for other in points)
        return any(o != own and o[0] <= own[0] and o[1] <= own[1] for o in others)

    return tuple(replace(one, on_front=not beaten(one)) for one in points)
