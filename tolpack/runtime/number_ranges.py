"""Numbers and ranges of them, as options take them: ``3,7-9``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tolpack.errors import ConfigError

_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


def parse_ranges(value: str, option: str, expected: str) -> tuple[int, ...]:
    """Parse numbers and ranges like ``3,7-9``: ascending, each once.

    Raises
    ------
    ConfigError
        It is not understood; the message names `option`, and what is `expected`.
    """
    numbers: set[int] = set()
    for part in value.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(f"{option} {value!r} is not understood: expected {expected}")
        numbers |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(numbers))


def format_ranges(numbers: Sequence[int]) -> str:
    """Write ascending numbers as `parse_ranges` takes them: ``3,7-9``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)
