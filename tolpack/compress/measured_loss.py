"""What a pack was measured to cost, as its plan carries it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

# Significant digits that are kept: more of them would be noise, and might differ between runs.
_DIGITS = 3


@dataclass(frozen=True, slots=True)
class MeasuredLoss:
    """The loss of a candidate pack on a text, and its standard error over windows.

    Either ``kl_mean_nats``, the mean KL divergence from the model's own predictions, or
    ``ppl_increase_pct``, the increase of perplexity, is given. An error is ``None`` where one
    window tells none. ``tokens``: the tokens scored; ``step``: the quantization step of the
    candidate, ``None`` with fixed bits. All but ``tokens`` are rounded to three significant digits.
    """

    tokens: int
    step: float | None = None
    kl_mean_nats: float | None = None
    kl_mean_se_nats: float | None = None
    ppl_increase_pct: float | None = None
    ppl_increase_se_pct: float | None = None

    def __post_init__(self) -> None:
        """Round all values, so that a repeated measurement is the same value."""
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, float):
                object.__setattr__(self, name, _rounded(value))

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON: of the two losses only the one that was measured."""
        unused = "ppl_increase" if self.ppl_increase_pct is None else "kl_mean"
        return {name: value for name, value in asdict(self).items() if not name.startswith(unused)}


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else value
