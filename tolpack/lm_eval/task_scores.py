"""Results of lm-eval's tasks with standard errors, and paired differences of two models.

lm-eval gives each document a value. The accuracy of a task is their mean, and LAMBADA's perplexity
exp of minus their mean. Both models answer the same documents, so their difference is paired
document by document, which removes what makes documents easy or hard. For a perplexity the delta
method gives each document's share in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import ConfigError


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

    def to_plain(self) -> dict[str, Any]:
        """Return plain values for JSON, the shares among them."""
        shares = None if self.shares is None else self.shares.tolist()
        return {**{one.name: getattr(self, one.name) for one in fields(self)}, "shares": shares}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> TaskScore:
        """Return what `to_plain` wrote."""
        shares = values["shares"]
        return cls(**{**values, "shares": None if shares is None else np.array(shares)})


@dataclass(frozen=True, slots=True)
class ModelScores:
    """The scores of a model, and (difference, standard error) of each against a baseline.

    ``differences`` is empty for the baseline itself.
    """

    name: str
    scores: tuple[TaskScore, ...]
    differences: tuple[tuple[float, float | None], ...] = ()

    @classmethod
    def compared(
        cls, name: str, scores: tuple[TaskScore, ...], baseline: ModelScores
    ) -> ModelScores:
        """Pair the scores of a model with those of a baseline; errors as of `difference`."""
        return cls(name, scores, tuple(map(difference, scores, baseline.scores)))

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        results = []
        for n, one in enumerate(self.scores):
            change, change_se = self.differences[n] if self.differences else (None, None)
            results.append(
                {
                    "task": one.task, "metric": one.metric, "documents": one.documents,
                    "value": one.value, "se": one.se,
                    "difference": change, "difference_se": change_se,
                }
            )  # fmt: skip
        return {"name": self.name, "results": results}


def compared(named: Sequence[tuple[str, Sequence[dict[str, Any]]]]) -> tuple[ModelScores, ...]:
    """Compare models by their names and plain scores with the first one, the baseline."""
    models: list[ModelScores] = []
    for name, plain in named:
        scores = tuple(map(TaskScore.from_plain, plain))
        if models:
            models.append(ModelScores.compared(name, scores, models[0]))
        else:
            models.append(ModelScores(name, scores))
    return tuple(models)


def difference(score: TaskScore, baseline: TaskScore) -> tuple[float, float | None]:
    """Return how much higher `score` is, and the paired standard error.

    It is ``None`` for fewer than two documents, and where a metric is not a mean.

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
    return change, mean_se(score.shares - baseline.shares)


def shares_of(
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


def mean_se(values: NDArray[np.float64]) -> float | None:
    """Return the standard error of a mean; ``None`` for fewer than two values."""
    count = len(values)
    return float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else None
