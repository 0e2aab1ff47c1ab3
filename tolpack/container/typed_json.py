"""Typed access to a parsed JSON object: errors name place, value and what is expected."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

from tolpack.container.preamble import MAX_NAME
from tolpack.errors import FormatError

_FLOAT32 = struct.Struct("<f")
_LEAST_NORMAL = 2.0**-126
_NAME = f"1 … {MAX_NAME} printable ASCII"


class Node:
    """One JSON object, with typed access that reports the place of what is wrong."""

    __slots__ = ("place", "value")

    def __init__(self, value: object, place: str) -> None:
        if not isinstance(value, dict):
            raise FormatError("header-field", place, value, "an object")
        self.value: dict[str, Any] = value
        self.place = place

    def has(self, key: str) -> bool:
        """Whether `key` is there and not null."""
        return self.value.get(key) is not None

    def integer(self, key: str, low: int, high: int) -> int:
        """Return an integer in `low … high`."""
        value = self._get(key)
        if type(value) is not int or not low <= value <= high:
            raise FormatError(
                "header-field", f"{self.place}.{key}", value, f"an integer in {low} … {high}"
            )
        return value

    def optional_integer(self, key: str, low: int, high: int) -> int | None:
        """Return an integer in `low … high`, or ``None`` if it is absent."""
        return self.integer(key, low, high) if self.has(key) else None

    def text(self, key: str, choices: tuple[str, ...] | None = None) -> str:
        """Return a name, or one of `choices`."""
        value = self._get(key)
        plain = isinstance(value, str) and 0 < len(value) <= MAX_NAME and _is_printable_ascii(value)
        if not plain or (choices is not None and value not in choices):
            expected = f"one of {', '.join(choices)}" if choices else _NAME
            raise FormatError("header-field", f"{self.place}.{key}", value, expected)
        return str(value)

    def flag(self, key: str) -> bool:
        """Return a boolean, false if it is absent."""
        value = self.value[key] if self.has(key) else False
        if not isinstance(value, bool):
            raise FormatError("header-field", f"{self.place}.{key}", value, "true or false")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a normal float32 number; without a default it must be there."""
        value = self._get(key) if self.has(key) or default is None else default
        if type(value) in (int, float):
            rounded = _as_float32(value)
            if _LEAST_NORMAL <= abs(rounded) < math.inf:
                return rounded
        raise FormatError("header-field", f"{self.place}.{key}", value, "a normal float32 number")

    def items(self, key: str, low: int, high: int) -> Iterator[Node]:
        """Yield the objects of a list of `low … high` items."""
        for number, value in enumerate(self._list(key, low, high)):
            yield Node(value, f"{self.place}.{key}[{number}]")

    def integers(self, key: str, low: int, high: int, most: int) -> tuple[int, ...]:
        """Return a list of one to `most` integers in `low … high`."""
        values = {str(number): value for number, value in enumerate(self._list(key, 1, most))}
        node = Node(values, f"{self.place}.{key}")
        return tuple(node.integer(number, low, high) for number in values)

    def node(self, key: str) -> Node:
        """Return an object."""
        return Node(self._get(key), f"{self.place}.{key}")

    def _list(self, key: str, low: int, high: int) -> list[Any]:
        value = self._get(key)
        if not isinstance(value, list) or not low <= len(value) <= high:
            found = f"{len(value)} items" if isinstance(value, list) else value
            raise FormatError(
                "header-field", f"{self.place}.{key}", found, f"a list of {low} … {high} items"
            )
        return value

    def _get(self, key: str) -> Any:
        if key not in self.value:
            raise FormatError("header-field", f"{self.place}.{key}", "nothing", "this field")
        return self.value[key]


def without_none(**values: object) -> dict[str, object]:
    """Return the values that are not ``None``, by their names."""
    return {key: value for key, value in values.items() if value is not None}


def _as_float32(value: float) -> float:
    """Round to the nearest float32, ties to even; infinite beyond its range."""
    try:
        (rounded,) = _FLOAT32.unpack(_FLOAT32.pack(value))
    except OverflowError:
        return math.inf
    return float(rounded)


def _is_printable_ascii(text: str) -> bool:
    return text.isascii() and text.isprintable()
