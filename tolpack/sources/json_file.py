"""Untrusted JSON files: their size, their depth and their memory once decoded are bounded."""

from __future__ import annotations

import json
from typing import Any

from tolpack.container.strict_json import nests_deeper
from tolpack.storage.inputs import InputPath, read_whole

MAX_DEPTH = 64
# Bytes of a value as a Python object; bytes of all values, beside a multiple of the file's size.
_VALUE_BYTES = 100
_ALLOWED_BYTES = 48 << 20


def read_json(path: InputPath, most_bytes: int) -> Any:
    """Decode a JSON file of at most `most_bytes`.

    Raises
    ------
    OSError
        It cannot be read, or is longer (`tolpack.storage.inputs.read_whole`).
    ValueError
        It is not JSON, or is nested deeper than 64 levels, or holds a great many tiny values.
    """
    data = read_whole(path, most_bytes)
    values = sum(data.count(sign) for sign in (b",", b"[", b"{"))
    if values * _VALUE_BYTES > _ALLOWED_BYTES + 2 * len(data):
        raise ValueError(f"about {values:,} values in {len(data):,} bytes, which is too many")
    try:
        value = json.loads(data.decode("utf-8"))
        too_deep = nests_deeper(value, MAX_DEPTH)
    except RecursionError:
        too_deep = True
    if too_deep:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
    return value
