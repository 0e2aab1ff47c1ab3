"""Results of lm-eval's tasks: a line for each task, metric and model, and a section of a report."""

from __future__ import annotations

from collections.abc import Sequence

from tolpack.lm_eval.task_scores import ModelScores
from tolpack.report.page_content import Axis, Chart, ChartPoint, DataTable, PageSection, Series
from tolpack.report.tables import format_table

_ALPHA = "α = "
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


def task_section(models: Sequence[ModelScores]) -> PageSection:
    """Return a report's section: all scores, and the accuracies against α if it was changed."""
    rows: list[tuple[str | float | None, ...]] = []
    for n, base in enumerate(models[0].scores):
        for model in models:
            score = model.scores[n]
            change = model.differences[n] if model.differences else (None, None)
            rows.append((base.task, base.metric, model.name, score.value, score.se, *change))
    header = ("task", "metric", "model", "value", "±", "difference", "±")
    table = DataTable(header, tuple(rows), ("", "", "", "", "", "+.4f", ".4f"))
    text = (
        f"Tasks of lm-eval on {models[0].scores[0].documents} documents each, with standard "
        "errors. Differences from the checkpoint are paired document by document."
    )
    scaled = [one for one in models if one.name.startswith(_ALPHA)]
    charts = (_alpha_chart([models[0], *scaled]),) if scaled else ()
    return PageSection("Tasks", text, charts, table)


def _alpha_chart(models: Sequence[ModelScores]) -> Chart:
    """Draw the accuracies of each task against α; the first model is the one with α = 1."""
    series = []
    for n, base in enumerate(models[0].scores):
        if base.metric != "acc":
            continue
        points = []
        for model in models:
            score, scaled = model.scores[n], model.name.startswith(_ALPHA)
            alpha = float(model.name.removeprefix(_ALPHA)) if scaled else 1.0
            points.append(ChartPoint(alpha, score.value, score.se, f"{base.task}, α = {alpha:g}"))
        series.append(Series(base.task, tuple(points), "line"))
    return Chart(Axis("α"), Axis("accuracy"), tuple(series), "All memory outputs times α.")


def with_se(value: float, se: float | None) -> str:
    """Write a value with its standard error, as far as there is one."""
    style = ".3g" if abs(value) >= 1e5 else ".2f" if abs(value) >= 100 else ".4f"
    return f"{value:{style}}" + ("" if se is None else f" ± {se:{style}}")


def _signed(change: float, se: float | None) -> str:
    return f"{'+' if change >= 0 else ''}{with_se(change, se)}"
