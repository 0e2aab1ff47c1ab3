"""How a text is continued. Without torch, so that the command line can check it at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tolpack.errors import ConfigError

DEFAULT_TOKENS, DEFAULT_TEMPERATURE = 100, 0.8
_LEAST_TEMPERATURE, _MOST_TEMPERATURE = 0.01, 100.0


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """At most so many tokens, the temperature at which they are sampled, and the seed.

    Temperature 0 takes the most likely token each time.
    """

    tokens: int = DEFAULT_TOKENS
    temperature: float = DEFAULT_TEMPERATURE
    seed: int = 0


def parse_temperature(value: str) -> float:
    """Parse a temperature: 0, or 0.01 to 100.

    Raises
    ------
    ConfigError
        It is another value.
    """
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if number != 0 and not _LEAST_TEMPERATURE <= number <= _MOST_TEMPERATURE:
        raise ConfigError(
            f"temperature is {value!r}, expected 0 (the most likely token each time) or a number "
            f"from {_LEAST_TEMPERATURE} to {_MOST_TEMPERATURE:g}"
        )
    return number
