"""Tasks of lm-eval, run on one model after another."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval import evaluate
from lm_eval.api.model import LM
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.tasks import TaskManager

from tolpack.errors import ConfigError
from tolpack.lm_eval.task_scores import TaskScore, mean_se, shares_of

# Where a standard error has no formula, lm-eval draws so many bootstrap samples.
_BOOTSTRAP_SAMPLES = 1000


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """What to run; ``limit`` is a number of documents per task."""

    tasks: tuple[str, ...]
    include_paths: tuple[Path, ...] = ()
    limit: int | None = None
    num_fewshot: int | None = None


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
        self._manager, names = _find_tasks(options)
        unknown = [name for name, found in names.items() if not found]
        if unknown or not names:
            raise ConfigError(
                f"lm-eval has no task {', '.join(unknown)}: `python -m tolpack.lm_eval ls tasks` "
                "lists them, and --include-path names a folder of others"
            )
        self._names = list(dict.fromkeys(name for found in names.values() for name in found))

    def run(self, lm: LM) -> tuple[TaskScore, ...]:
        """Return the scores of a model on all tasks, in their order."""
        loaded = self._manager.load(self._names)
        for task in loaded["tasks"].values():
            self._set_fewshot(task)
        with _quiet_bootstrap():
            # `simple_evaluate` would also ask git and the network about the model.
            results = evaluate(
                lm, loaded, limit=self.options.limit, bootstrap_iters=_BOOTSTRAP_SAMPLES
            )
        return tuple(_task_scores(results))

    def _set_fewshot(self, task: Any) -> None:
        """Set the number of examples as lm-eval's command line does, and its seed."""
        own, asked = task.get_config("num_fewshot"), self.options.num_fewshot
        # A task with 0 in its definition is never given examples.
        if own is None or (asked is not None and own != 0):
            task.set_config(key="num_fewshot", value=asked or 0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)


def _find_tasks(options: TaskOptions) -> tuple[TaskManager, dict[str, list[str]]]:
    """Return a manager, and the tasks that each of the given names stands for."""
    # To list its own tasks takes lm-eval seconds, and none of them is called so.
    own = all(name.startswith("tolpack_") for name in options.tasks)
    manager = TaskManager(
        include_path=list(options.include_paths) or None, include_defaults=not own
    )
    return manager, {name: manager.match_tasks([name]) for name in options.tasks}


def _task_scores(results: dict[str, Any]) -> Iterator[TaskScore]:
    """Yield a score for each number that lm-eval reports with its task."""
    for task, metrics in results["results"].items():
        samples = results["samples"].get(task, [])
        for name, value in metrics.items():
            metric, _, chosen = name.partition(",")
            if not chosen or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            reported = metrics.get(f"{metric}_stderr,{chosen}")
            shares = shares_of([one for one in samples if one["filter"] == chosen], metric, value)
            se = mean_se(shares) if shares is not None else reported
            count = int(metrics.get("sample_len") or len(samples))
            shown = metric if chosen == "none" else f"{metric}, {chosen}"
            known = isinstance(se, float) and math.isfinite(se)
            yield TaskScore(task, shown, float(value), se if known else None, count, shares)


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
