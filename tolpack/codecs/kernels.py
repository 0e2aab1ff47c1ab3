"""Compiled loops for decoding rows, through numba where it is installed.

numpy takes one pass over a row for every step of an expression; these take one in all, straight to
the place where the caller wants the row. They give the same bits as `tolpack.codecs.values` and
`tolpack.codecs.runs`, which stay the definition. Compiling takes seconds, once on a machine
(numba keeps the result beside the package, or where ``NUMBA_CACHE_DIR`` says); loading it takes a
second: so it happens when a lookup is large enough to want it (`load`). ``TOLPACK_KERNELS=off``
leaves them out.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Kernels:
    """Compiled functions; see the plain ones below."""

    int8: Callable[..., bool]
    int4: Callable[..., bool]
    step8: Callable[..., None]
    step16: Callable[..., None]
    runs: Callable[..., int]
    bfloat16: Callable[..., None]


@cache
def _compile() -> Kernels | None:
    if os.environ.get("TOLPACK_KERNELS") == "off":
        return None
    try:
        numba: Any = importlib.import_module("numba")
    except ImportError:
        return None

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, nogil=True)(function)
        except RuntimeError:  # nowhere to keep the result
            return numba.njit(nogil=True)(function)

    plain = (decode_int8, decode_int4, decode_step8, decode_step16, decode_runs, to_bfloat16)
    return Kernels(*(compiled(function) for function in plain))


_loaded: list[Kernels | None] = []


def load() -> Kernels | None:
    """Return the compiled functions, or ``None`` without numba."""
    if not _loaded:
        with _lock:
            if not _loaded:
                _loaded.append(_compile())
    return _loaded[0]


def loaded() -> Kernels | None:
    """Return the compiled functions if they were loaded before."""
    return _loaded[0] if _loaded else None


# What follows is compiled, so it is written for numba: loops over scalars. `records` is uint8
# (rows, record bytes); row ``r`` goes to ``out[places[r], column of its field + value]``, float32;
# a field whose column is negative is left out. Inner loops run over slices: with an index that
# could be negative they would not be vectorized, and take eight times as long.


def decode_int8(
    records: Array, scale_at: int, code_at: int, group: int, values: int, places: Array,
    columns: Array, out: Array,
) -> bool:  # fmt: skip
    """Decode a run of `int8` parts; false if a scale is not finite."""
    groups = (values + group - 1) // group
    for r in range(records.shape[0]):
        record, row = records[r], out[places[r]]
        for f in range(columns.shape[0]):
            if columns[f] < 0:
                continue
            at, code = scale_at + 2 * groups * f, code_at + values * f
            for g in range(groups):
                bits = np.uint32(record[at + 2 * g]) | (np.uint32(record[at + 2 * g + 1]) << 8)
                if bits & 0x7F80 == 0x7F80:
                    return False
                scale = np.uint32(bits << np.uint32(16)).view(np.float32)
                start = columns[f] + g * group
                size = min(group, values - g * group)
                stored = record[code + g * group : code + g * group + size]
                part = row[start : start + size]
                for j in range(part.shape[0]):
                    part[j] = np.float32(np.int8(stored[j])) * scale
    return True


def decode_int4(
    records: Array, scale_at: int, code_at: int, group: int, values: int, places: Array,
    columns: Array, out: Array,
) -> bool:  # fmt: skip
    """Decode a run of `int4` parts; false if a scale is not finite."""
    groups = (values + group - 1) // group
    last = values - (groups - 1) * group
    field_bytes = (groups - 1) * ((group + 1) // 2) + (last + 1) // 2
    for r in range(records.shape[0]):
        record, row = records[r], out[places[r]]
        for f in range(columns.shape[0]):
            if columns[f] < 0:
                continue
            at, code = scale_at + 2 * groups * f, code_at + field_bytes * f
            for g in range(groups):
                bits = np.uint32(record[at + 2 * g]) | (np.uint32(record[at + 2 * g + 1]) << 8)
                if bits & 0x7F80 == 0x7F80:
                    return False
                scale = np.uint32(bits << np.uint32(16)).view(np.float32)
                start = columns[f] + g * group
                size = min(group, values - g * group)
                half = (size + 1) // 2
                packed = record[code : code + half]
                low, high = row[start : start + half], row[start + half : start + size]
                for j in range(low.shape[0]):
                    low[j] = np.float32(np.int32(packed[j] & 15) - np.int32(8)) * scale
                for j in range(high.shape[0]):
                    high[j] = np.float32(np.int32(packed[j] >> 4) - np.int32(8)) * scale
                code += half
    return True


def decode_step8(
    records: Array, code_at: int, values: int, steps: Array, places: Array, columns: Array,
    out: Array,
) -> None:  # fmt: skip
    """Decode a run of `step8` parts."""
    for r in range(records.shape[0]):
        record, row = records[r], out[places[r]]
        for f in range(columns.shape[0]):
            if columns[f] < 0:
                continue
            stored = record[code_at + values * f : code_at + values * (f + 1)]
            part, step = row[columns[f] : columns[f] + values], steps[f]
            for j in range(part.shape[0]):
                part[j] = np.float32(np.int8(stored[j])) * step


def decode_step16(
    records: Array, code_at: int, values: int, steps: Array, places: Array, columns: Array,
    out: Array,
) -> None:  # fmt: skip
    """Decode a run of `step16` parts."""
    for r in range(records.shape[0]):
        record, row = records[r], out[places[r]]
        for f in range(columns.shape[0]):
            if columns[f] < 0:
                continue
            stored = record[code_at + 2 * values * f : code_at + 2 * values * (f + 1)]
            part, step = row[columns[f] : columns[f] + values], steps[f]
            for j in range(part.shape[0]):
                low, high = np.int32(stored[2 * j]), np.int32(np.int8(stored[2 * j + 1]))
                part[j] = np.float32(high * np.int32(256) + low) * step


def decode_runs(symbols: Array, literals: Array, out: Array) -> int:
    """Expand the symbols of a ``zstd-runs`` frame into zeros, uint8 (rows, record bytes), bytes
    column by column; returns 0, or what is wrong: 1 too many bytes, 2 literals over or lacking.
    """
    rows, size = out.shape[0], out.shape[0] * out.shape[1]
    at, literal = np.int64(0), 0
    for n in range(symbols.shape[0]):
        low, high = symbols[n] & 15, np.int64(symbols[n] >> 4)
        if low == 0:
            at += np.int64(16) << high
            if at > size:
                return 1
            continue
        at += high
        if at >= size:
            return 1
        if low == 8:
            if literal >= literals.shape[0]:
                return 2
            value = literals[literal]
            literal += 1
        else:
            value = np.uint8(low if low < 8 else low + 240)
        if rows == 1:
            out[0, at] = value
        else:
            out[at % rows, at // rows] = value
        at += 1
    return 0 if literal == literals.shape[0] else 2


def to_bfloat16(values: Array, places: Array, out: Array) -> None:
    """Round float32 (rows, n) to bfloat16 bits, uint16, ties to even, into ``out[places]``; what is
    too large becomes infinite, as torch has it.
    """
    for r in range(values.shape[0]):
        source, row = values[r], out[places[r]]
        for j in range(source.shape[0]):
            bits = np.float32(source[j]).view(np.uint32)
            row[j] = np.uint16((bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16)
