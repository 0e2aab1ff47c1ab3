"""What a limit of a pack's loss is in: KL divergence in nats, or increase of perplexity in percent.

KL divergence is the one where no limit of perplexity is given. It has little noise, and
cannot be below zero: on text unlike a small model's own, perplexity falls as rows get worse, and a
search for a limit of it ends at rows that are far too coarse, or nowhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tolpack.compress.settings import DEFAULT_KLD, BuildSettings


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

    def with_error(self, value: float, error: float) -> str:
        """Write a value with its standard error."""
        if self.unit == "%":
            return f"{value:+.3f} ± {error:.3f} % perplexity"
        return f"{value:.3g} ± {error:.1g} nats of KL divergence"


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
