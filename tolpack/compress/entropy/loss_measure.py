"""What a limit of a pack's loss is in: KL divergence in nats, or increase of perplexity in percent.

KL divergence is the one where no limit of perplexity is given. It has little noise, and
cannot be below zero: on text unlike a small model's own, perplexity falls as rows get worse, and a
search for a limit of it ends at rows that are far too coarse, or nowhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tolpack.compress.settings import DEFAULT_KLD, BuildSettings
from tolpack.runtime.array_types import Doubles


@dataclass(frozen=True, slots=True)
class Loss:
    """A measured loss in the unit of its measure.

    ``error``: its standard error over windows, ``None`` where one window tells none; ``windows``:
    the loss of each window, float64 (windows,).
    """

    value: float
    error: float | None
    windows: Doubles | None = None

    def error_of_difference(self, other: Loss) -> float:
        """Return the standard error of the difference of two losses, paired window by window; 0
        where nothing tells it.
        """
        if self.windows is None or other.windows is None:
            return max(self.error or 0.0, other.error or 0.0)
        difference = self.windows - other.windows
        return mean_error(difference) or 0.0


def mean_error(values: Doubles) -> float | None:
    """Return the standard error of the mean of `values`; ``None`` for one of them."""
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None


@dataclass(frozen=True, slots=True)
class LossMeasure:
    """A measure of loss.

    ``option``: the one that limits it; ``unit``, as it follows a limit; ``room``: the share of the
    limit by which a pack may stay below it; ``least_nats``: a smaller loss is lost in noise.
    """

    option: str
    unit: str
    room: float
    least_nats: float

    def nats(self, value: float) -> float:
        """Return what `value` is in nats per token."""
        return math.log1p(value / 100) if self.unit == "%" else value

    def with_unit(self, value: float) -> str:
        """Write a value with its unit."""
        return f"{value:.3f} %" if self.unit == "%" else f"{value:.3g} nats"

    def with_error(self, loss: Loss) -> str:
        """Write a loss with its standard error."""
        if self.unit == "%":
            error = "n/a" if loss.error is None else f"{loss.error:.3f}"
            return f"{loss.value:+.3f} ± {error} % perplexity"
        error = "n/a" if loss.error is None else f"{loss.error:.1g}"
        return f"{loss.value:.3g} ± {error} nats of KL divergence"


# A percentage's room is half of it in bytes, about; a divergence is measured with less noise.
PERPLEXITY = LossMeasure("--max-ppl-increase", "%", 0.08, 1e-4)
DIVERGENCE = LossMeasure("--max-kld", " nats", 0.04, 1e-9)


def measure_for(settings: BuildSettings) -> LossMeasure:
    """Return the measure of the loss that `settings` limit, or of any other."""
    return DIVERGENCE if settings.max_ppl_increase is None else PERPLEXITY


def loss_limit(settings: BuildSettings) -> float:
    """Return the limit, in the unit of `measure_for`."""
    if settings.max_ppl_increase is not None:
        return settings.max_ppl_increase
    return DEFAULT_KLD if settings.max_kld is None else settings.max_kld
