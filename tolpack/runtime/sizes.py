"""Sizes as users write them, and numbers of things as they read them."""

from __future__ import annotations

import re

from tolpack.errors import ConfigError

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip


def parse_bytes(value: str | int, option: str, example: str = "800MB or 4GB") -> int:
    """Parse a number of bytes with or without a decimal or binary unit: ``4GB``, ``512 MiB``."""
    text = str(value).strip().upper().replace(" ", "")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?I?B)?", text)
    if match is None or (match[2] or "B") not in _UNITS:
        raise ConfigError(f"{option} {value!r} is not understood: expected e.g. {example}")
    return in_range(float(match[1]) * _UNITS[match[2] or "B"], text, option)


def parse_rate(value: str | int, option: str) -> float:
    """Parse bytes a second: ``500MB/s``, ``1GiB/s``, or bits, ``10Gbit/s``; a bare number is in
    bytes.
    """
    text = str(value).strip().upper().replace(" ", "")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:([KMGT]?I?B|[KMGT]?BIT)/S)?", text)
    unit = match[2] or "B" if match else ""
    bits = unit.endswith("BIT")
    if match is None or (unit := unit[:-2] if bits else unit) not in _UNITS:
        raise ConfigError(
            f"{option} {str(value)[:40]!r} is not understood: expected e.g. 500MB/s or 10Gbit/s"
        )
    return in_range(float(match[1]) * _UNITS[unit] / (8 if bits else 1), text, option)


def counted(number: int, noun: str) -> str:
    """Write how many of something there are: ``1 token``, ``44,553 tokens``; `noun` in the
    singular, with ``s`` as its plural.
    """
    return f"{number:,} {noun}{'s' * (number != 1)}"


def in_range(size: float, text: str, option: str) -> int:
    """Return `size` as a whole number, or raise `ConfigError` if no file could have it."""
    if not 1 <= size < 2**63:
        raise ConfigError(f"{option} {text[:40]!r} is outside 1 … 2^63 bytes")
    return int(size)


def format_bytes(size: float) -> str:
    """Write a number of bytes with a decimal unit and three to four digits."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


def plus_minus(value: float, error: float | None, spec: str, error_spec: str | None = None) -> str:
    """Write a value with its standard error, in formats like ``+.3f`` and ``.3f``; ``n/a`` where
    nothing tells the error.
    """
    shown = "n/a" if error is None else format(error, error_spec or spec.lstrip("+"))
    return f"{value:{spec}} ± {shown}"
