"""JSON as the header uses it: one object, no duplicate keys, no NaN, no surprises (SPEC §4)."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from tolpack.container.preamble import MAX_NESTING
from tolpack.errors import FormatError

_MAX_INTEGER = 2**63 - 1


def parse(data: bytes) -> dict[str, Any]:
    """Decode header bytes into a dict.

    Raises
    ------
    FormatError
        Code ``header-json``: not UTF-8, no JSON object, white space or a byte-order mark in
        front, duplicate keys, NaN or Infinity, ``-0``, an integer beyond 2^63-1, or more
        than 16 levels of objects and lists.
    """
    if data[:1] != b"{":
        raise _error(f"first byte {data[:1]!r}", "'{'")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_int=_integer,
        )
    except UnicodeDecodeError as error:
        raise _error(f"no UTF-8 at byte {error.start}", "UTF-8") from error
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        raise _error(str(error), "valid JSON") from error
    if nests_deeper(value, MAX_NESTING):
        raise _too_deep()
    return dict(value)


def nests_deeper(value: object, levels: int) -> bool:
    """Whether objects and lists are nested deeper than `levels`, the outermost being the first."""
    level = [value]
    for _ in range(levels):
        level = [child for item in level for child in _children(item)]
        if not level:
            return False
    return True


def _children(item: object) -> list[object]:
    """Objects and lists inside a JSON value."""
    if isinstance(item, dict):
        item = item.values()
    elif not isinstance(item, list):
        return []
    return [child for child in item if isinstance(child, (dict, list))]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise _error(f"key {key[:64]!r} twice", "unique keys")
        result[key] = value
    return result


def _integer(text: str) -> int:
    if text == "-0" or len(text) > 20 or abs(int(text)) > _MAX_INTEGER:
        raise _error(f"integer {text[:24]}", f"an integer up to {_MAX_INTEGER}")
    return int(text)


def _refuse_constant(text: str) -> NoReturn:
    raise _error(text, "a finite number")


def _too_deep() -> FormatError:
    return _error("a deeper nesting", f"at most {MAX_NESTING} levels of objects and lists")


def _error(found: str, expected: str) -> FormatError:
    return FormatError("header-json", "header", found, expected)
