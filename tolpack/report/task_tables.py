"""Text tables of lm-eval's tasks: a line for each task, metric and model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tolpack.report.tables import format_table

if TYPE_CHECKING:  # it loads torch and lm-eval
    from tolpack.lm_eval.task_scores import ModelScores

_HEADER = ("task", "metric", "documents", "model", "value", "difference")


def task_table(models: Sequence[ModelScores]) -> str:
    """Write the scores of all models, task by task; differences are against the first one."""
    baseline = models[0]
    rows = []
    for n, base in enumerate(baseline.scores):
        for model in models:
            score = model.scores[n]
            first = model is baseline
            change = "" if first else _signed(*model.differences[n])
            named = [base.task, base.metric, str(base.documents)] if first else ["", "", ""]
            rows.append([*named, model.name, with_se(score.value, score.se), change])
    note = "differences are paired document by document" if len(models) > 1 else ""
    return f"{format_table(_HEADER, rows)}\n\n{note}".rstrip()


def with_se(value: float, se: float | None) -> str:
    """Write a value with its standard error, as far as there is one."""
    style = ".3g" if abs(value) >= 1e5 else ".2f" if abs(value) >= 100 else ".4f"
    return f"{value:{style}}" + ("" if se is None else f" ± {se:{style}}")


def _signed(change: float, se: float | None) -> str:
    return f"{'+' if change >= 0 else ''}{with_se(change, se)}"
