"""The loops that `tolpack.codecs.kernels` compiles; imported only where numba is installed.

Written for numba: over scalars, for one type of array at a time. Those of codecs decode the same
part of some fields that stand side by side, and take the same arguments: `records`, uint8 (rows,
record bytes); the offsets in a record of the first field's scales and codes; values in a group and
in a part; the step of each field, float32 (fields,), empty for codecs without; and where to put
them. Row ``r`` goes to ``out[places[r]]``, from the column of its field on, in float32 or, if `out`
is uint16, as the bits of bfloat16; a field whose column is negative is left out. They return false
if a scale is not finite.

Inner loops run over slices: with an index that could be negative they would not be vectorized, and
take eight times as long.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload, register_jitable
from numpy.typing import NDArray

from tolpack.codecs.float8 import E4M3_VALUES, E8M0_VALUES

Array = NDArray[Any]


def stored_in(row: Any, value: Any) -> Any:
    """Return float32 `value` as an element of `row`."""
    raise NotImplementedError("only for numba")


@overload(stored_in)
def _stored_in(row: Any, value: Any) -> Any:
    """Choose one, when a loop is compiled (numba compares even the annotations)."""
    if row.dtype != types.uint16:

        def as_it_is(row: Any, value: Any) -> Any:
            return value

        return as_it_is

    def rounded(row: Any, value: Any) -> Any:  # ties to even
        bits = np.float32(value).view(np.uint32)
        return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16)

    return rounded


@register_jitable
def scale_of(low: Any, high: Any, is_float16: bool) -> Any:
    """Return the float32 of two bytes of float16, or else of bfloat16."""
    bits = np.uint32(low) | (np.uint32(high) << np.uint32(8))
    if not is_float16:
        return np.uint32(bits << np.uint32(16)).view(np.float32)
    sign, exponent = (bits & np.uint32(0x8000)) << np.uint32(16), bits >> np.uint32(10) & 31
    if exponent == 0:
        magnitude = np.float32(bits & np.uint32(1023)) * np.float32(2**-24)
        return -magnitude if sign else magnitude
    wider = np.uint32(255) if exponent == 31 else np.uint32(exponent + 112)
    mantissa = (bits & np.uint32(1023)) << np.uint32(13)
    return np.uint32(sign | wider << np.uint32(23) | mantissa).view(np.float32)


@register_jitable
def grouped_bytes(
    records: Array, scale_at: int, code_at: int, group: int, values: int, places: Array,
    columns: Array, out: Array, is_float16: bool,
) -> bool:  # fmt: skip
    """Decode parts of a codec of signed bytes with scales of 16 bits."""
    groups = (values + group - 1) // group
    for r in range(records.shape[0]):
        record, row = records[r], out[places[r]]
        for f in range(columns.shape[0]):
            if columns[f] < 0:
                continue
            at, code = scale_at + 2 * groups * f, code_at + values * f
            for g in range(groups):
                scale = scale_of(record[at + 2 * g], record[at + 2 * g + 1], is_float16)
                if not np.isfinite(scale):
                    return False
                start = columns[f] + g * group
                size = min(group, values - g * group)
                stored = record[code + g * group : code + g * group + size]
                part = row[start : start + size]
                for j in range(part.shape[0]):
                    part[j] = stored_in(part, np.float32(np.int8(stored[j])) * scale)
    return True


@register_jitable
def grouped_nibbles(
    records: Array, scale_at: int, code_at: int, group: int, values: int, places: Array,
    columns: Array, out: Array, is_float16: bool,
) -> bool:  # fmt: skip
    """Decode parts of a codec of 4 bits less 8 with scales of 16 bits."""
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
                scale = scale_of(record[at + 2 * g], record[at + 2 * g + 1], is_float16)
                if not np.isfinite(scale):
                    return False
                start = columns[f] + g * group
                size = min(group, values - g * group)
                half = (size + 1) // 2
                packed = record[code : code + half]
                low, high = row[start : start + half], row[start + half : start + size]
                for j in range(low.shape[0]):
                    number = np.float32(np.int32(packed[j] & 15) - np.int32(8))
                    low[j] = stored_in(low, number * scale)
                for j in range(high.shape[0]):
                    number = np.float32(np.int32(packed[j] >> 4) - np.int32(8))
                    high[j] = stored_in(high, number * scale)
                code += half
    return True


def decode_int8(
    records: Array, scale_at: int, code_at: int, group: int, values: int, steps: Array,
    places: Array, columns: Array, out: Array,
) -> bool:  # fmt: skip
    """Decode parts of codec ``int8``."""
    found: bool = grouped_bytes(
        records, scale_at, code_at, group, values, places, columns, out, False
    )  # fmt: skip
    return found


def decode_int4(
    records: Array, scale_at: int, code_at: int, group: int, values: int, steps: Array,
    places: Array, columns: Array, out: Array,
) -> bool:  # fmt: skip
    """Decode parts of codec ``int4``."""
    found: bool = grouped_nibbles(
        records, scale_at, code_at, group, values, places, columns, out, False
    )  # fmt: skip
    return found


def decode_q8_0(
    records: Array, scale_at: int, code_at: int, group: int, values: int, steps: Array,
    places: Array, columns: Array, out: Array,
) -> bool:  # fmt: skip
    """Decode parts of codec ``q8_0``."""
    found: bool = grouped_bytes(
        records, scale_at, code_at, group, values, places, columns, out, True
    )  # fmt: skip
    return found


def decode_q4_0(
    records: Array, scale_at: int, code_at: int, group: int, values: int, steps: Array,
    places: Array, columns: Array, out: Array,
) -> bool:  # fmt: skip
    """Decode parts of codec ``q4_0``."""
    found: bool = grouped_nibbles(
        records, scale_at, code_at, group, values, places, columns, out, True
    )  # fmt: skip
    return found


@register_jitable
def fp8(
    records: Array, scale_at: int, code_at: int, group: int, values: int, steps: Array,
    places: Array, columns: Array, out: Array, scale_bytes: int,
) -> bool:  # fmt: skip
    """Decode parts of fp8 codes: with float32 scales (4 bytes), E8M0 ones (1), or a step (0)."""
    groups = (values + group - 1) // group
    for r in range(records.shape[0]):
        record, row = records[r], out[places[r]]
        for f in range(columns.shape[0]):
            if columns[f] < 0:
                continue
            at, code = scale_at + scale_bytes * groups * f, code_at + values * f
            for g in range(groups):
                if scale_bytes == 4:
                    bits, first = np.uint32(0), at + 4 * g
                    for n in range(4):
                        bits |= np.uint32(record[first + n]) << np.uint32(8 * n)
                    scale = np.uint32(bits).view(np.float32)
                elif scale_bytes == 1:
                    scale = E8M0_VALUES[record[at + g]]
                else:
                    scale = steps[f]
                if not np.isfinite(scale):
                    return False
                start = columns[f] + g * group
                size = min(group, values - g * group)
                stored = record[code + g * group : code + g * group + size]
                part = row[start : start + size]
                for j in range(part.shape[0]):
                    part[j] = stored_in(part, E4M3_VALUES[stored[j]] * scale)
    return True


def decode_f8e4m3(
    records: Array, scale_at: int, code_at: int, group: int, values: int, steps: Array,
    places: Array, columns: Array, out: Array,
) -> bool:  # fmt: skip
    """Decode parts of codec ``f8e4m3``."""
    found: bool = fp8(
        records, scale_at, code_at, group, values, steps, places, columns, out, 4
    )  # fmt: skip
    return found


def decode_f8e4m3_e8m0(
    records: Array, scale_at: int, code_at: int, group: int, values: int, steps: Array,
    places: Array, columns: Array, out: Array,
) -> bool:  # fmt: skip
    """Decode parts of codec ``f8e4m3-e8m0``."""
    found: bool = fp8(
        records, scale_at, code_at, group, values, steps, places, columns, out, 1
    )  # fmt: skip
    return found


def decode_f8e4m3_step(
    records: Array, scale_at: int, code_at: int, group: int, values: int, steps: Array,
    places: Array, columns: Array, out: Array,
) -> bool:  # fmt: skip
    """Decode parts of codec ``f8e4m3-step``."""
    found: bool = fp8(
        records, scale_at, code_at, group, values, steps, places, columns, out, 0
    )  # fmt: skip
    return found


def decode_step8(
    records: Array, scale_at: int, code_at: int, group: int, values: int, steps: Array,
    places: Array, columns: Array, out: Array,
) -> bool:  # fmt: skip
    """Decode parts of codec ``step8``."""
    for r in range(records.shape[0]):
        record, row = records[r], out[places[r]]
        for f in range(columns.shape[0]):
            if columns[f] < 0:
                continue
            stored = record[code_at + values * f : code_at + values * (f + 1)]
            part, step = row[columns[f] : columns[f] + values], steps[f]
            for j in range(part.shape[0]):
                part[j] = stored_in(part, np.float32(np.int8(stored[j])) * step)
    return True


def decode_step16(
    records: Array, scale_at: int, code_at: int, group: int, values: int, steps: Array,
    places: Array, columns: Array, out: Array,
) -> bool:  # fmt: skip
    """Decode parts of codec ``step16``."""
    for r in range(records.shape[0]):
        record, row = records[r], out[places[r]]
        for f in range(columns.shape[0]):
            if columns[f] < 0:
                continue
            stored = record[code_at + 2 * values * f : code_at + 2 * values * (f + 1)]
            part, step = row[columns[f] : columns[f] + values], steps[f]
            for j in range(part.shape[0]):
                low, high = np.int32(stored[2 * j]), np.int32(np.int8(stored[2 * j + 1]))
                part[j] = stored_in(part, np.float32(high * np.int32(256) + low) * step)
    return True


def expand_zero_runs(symbols: Array, literals: Array, out: Array) -> int:
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
