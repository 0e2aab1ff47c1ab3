"""Results of lm-eval's tasks with standard errors, and paired differences of two models.

lm-eval gives each document a value. The accuracy of a task is their mean, and LAMBADA's perplexity
exp of minus their mean. Both models answer the same documents, so their difference is paired
document by document, which removes what makes documents easy or hard. For a perplexity the delta
method gives each document's share in it.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from numpy.typing import NDArray

from tolpack.errors import ConfigError

# Where a standard error has no formula, lm-eval draws so many bootstrap samples.
_BOOTSTRAP_SAMPLES = 1000


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """What to run; ``limit`` is a number of documents per task."""

    tasks: tuple[str, ...]
    include_paths: tuple[Path, ...] = ()
    limit: int | None = None
    num_fewshot: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TaskScore:
    """A metric of a task.

    ``documents`` is the number of them. ``se`` is ``None`` where lm-eval knows none. ``shares``
    float64 (documents,) are values whose mean is ``value``, for pairing; ``None`` where a metric is
    no mean.
    """

    task: str
    metric: str
    value: float
    se: float | None
    documents: int
    shares: NDArray[np.float64] | None


class TaskRunner:
    """Runs the same tasks on one model after another.

    Parameters
    ----------
    options : TaskOptions
        The tasks.

    Raises
    ------
    ConfigError
        There is no such task.
    """

    def __init__(self, options: TaskOptions) -> None:
        self.options = options
        self._manager = TaskManager(include_path=list(options.include_paths) or None)
        unknown = [name for name in options.tasks if not self._manager.match_tasks([name])]
        if unknown or not options.tasks:
            raise ConfigError(
                f"lm-eval has no task {', '.join(unknown)}: `python -m tolpack.lm_eval ls tasks` "
                "lists them, and --include-path names a folder of others"
            )

    def run(self, lm: LM) -> tuple[TaskScore, ...]:
        """Return the scores of a model on all tasks, in the order of lm-eval."""
        options = self.options
        with _quiet_bootstrap():
            results = simple_evaluate(
                lm, tasks=self._manager.match_tasks(list(options.tasks)), limit=options.limit,
                num_fewshot=options.num_fewshot, task_manager=self._manager,
                bootstrap_iters=_BOOTSTRAP_SAMPLES,
            )  # fmt: skip
        return tuple(_task_scores(results))


def difference(score: TaskScore, baseline: TaskScore) -> tuple[float, float | None]:
    """Return how much higher `score` is, and the paired standard error.

    It is ``None`` for fewer than two documents, and where a metric is no mean.

    Raises
    ------
    ConfigError
        The scores are of different documents.
    """
    if (score.task, score.metric, score.documents) != (
        baseline.task, baseline.metric, baseline.documents,
    ):  # fmt: skip
        raise ConfigError("the two scores are of different documents and cannot be paired")
    change = score.value - baseline.value
    if score.shares is None or baseline.shares is None:
        return change, None
    return change, _mean_se(score.shares - baseline.shares)


def _task_scores(results: dict[str, Any]) -> Iterator[TaskScore]:
    """Yield a score for each number that lm-eval reports with its task."""
    for task, metrics in results["results"].items():
        samples = results["samples"].get(task, [])
        for name, value in metrics.items():
            metric, _, chosen = name.partition(",")
            if not chosen or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            reported = metrics.get(f"{metric}_stderr,{chosen}")
            shares = _shares([one for one in samples if one["filter"] == chosen], metric, value)
            se = _mean_se(shares) if shares is not None else reported
            count = int(metrics.get("sample_len") or len(samples))
            shown = metric if chosen == "none" else f"{metric}, {chosen}"
            known = isinstance(se, float) and math.isfinite(se)
            yield TaskScore(task, shown, float(value), se if known else None, count, shares)


def _shares(
    samples: Sequence[dict[str, Any]], metric: str, value: float
) -> NDArray[np.float64] | None:
    """Return each document's share in a mean or a perplexity; ``None`` for other metrics."""
    ordered = [one.get(metric) for one in sorted(samples, key=lambda one: int(one["doc_id"]))]
    if not ordered or not all(isinstance(one, (int, float)) for one in ordered):
        return None
    values = np.array(ordered, np.float64)
    mean = float(values.mean())
    if math.isclose(mean, value, rel_tol=1e-9, abs_tol=1e-12):
        return values
    if -mean < 700 and math.isclose(math.exp(-mean), value, rel_tol=1e-9):
        return value * (1 + mean - values)
    return None


def _mean_se(values: NDArray[np.float64]) -> float | None:
    count = len(values)
    return float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else None


@contextmanager
def _quiet_bootstrap() -> Iterator[None]:
    """Keep lm-eval's bootstrap from printing on standard output and from forking processes."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before
