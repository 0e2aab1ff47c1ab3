"""Codecs of single values: floats as they are, and integers by group with a scale (SPEC §7).

A group of consecutive values shares one scale ``s = max|x| / q_max`` (``q_max`` 127 or 7), stored
as bfloat16, whose range is float32's: tables of any magnitude keep their precision, and a scale's
rounding does not matter because the codes are made against the stored scale. The value is
``code · s``. The error is at most ``s / 2`` per value.

Two 4-bit codes share a byte. Within a group of ``g`` values, byte ``j`` holds value ``j`` in its
low and value ``j + ⌈g/2⌉`` in its high half, so that both halves unpack to contiguous runs.

Codes that an entropy coder makes small have no scales: ``code · step``, with a step that the
header names for all rows of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.container.encodings import Part
from tolpack.errors import ConfigError, FormatError
from tolpack.runtime.array_types import Bytes, Floats


@dataclass(frozen=True, slots=True)
class _FloatCodec:
    """Lossless for tables of its own dtype."""

    def encode(self, values: Floats, part: Part) -> tuple[Bytes, Bytes]:
        if part.codec == "f32":
            stored = values.astype("<f4").view(np.uint8)
        elif part.codec == "bf16":
            stored = to_bfloat16(values).astype("<u2").view(np.uint8)
        else:
            with np.errstate(over="ignore"):
                halves = values.astype("<f2")
            if not np.isfinite(halves).all():
                raise ConfigError("a value exceeds float16's 65504: use --bits 8 or 4")
            stored = halves.view(np.uint8)
        return np.empty((len(values), 0), np.uint8), stored

    def decode(self, scales: Bytes, codes: Bytes, part: Part) -> Floats:
        if part.codec == "bf16":
            return from_bfloat16(_view(codes, "<u2"))
        return _view(codes, "<f4" if part.codec == "f32" else "<f2").astype(np.float32)


@dataclass(frozen=True, slots=True)
class _GroupCodec:
    """Symmetric integers of `bits` bits by group."""

    bits: int

    def encode(self, values: Floats, part: Part) -> tuple[Bytes, Bytes]:
        scales, codes = [], []
        for start, stop, group in _spans(part):
            groups = values[:, start:stop].reshape(len(values), -1, group)
            scale = from_bfloat16(to_bfloat16(np.abs(groups).max(axis=2) / self._limit))
            divisor = np.where(scale > 0, scale, np.inf)  # a group of zeros has scale 0
            code = np.rint(groups / divisor[:, :, None])
            np.clip(code, -self._limit, self._limit, out=code)
            scales.append(to_bfloat16(scale))
            codes.append(self._pack(code.astype(np.int8)))
        joined = np.ascontiguousarray(np.concatenate(scales, axis=1).astype("<u2"))
        return joined.view(np.uint8), np.concatenate(codes, axis=1)

    def decode(self, scales: Bytes, codes: Bytes, part: Part) -> Floats:
        bits = _view(scales, "<u2")
        if ((bits & 0x7F80) == 0x7F80).any():
            raise FormatError("scale-not-finite", "a record", "a NaN or infinite scale", "finite")
        scale = from_bfloat16(bits)
        out = np.empty((len(codes), part.values), np.float32)
        at_scale = at_code = 0
        for start, stop, group in _spans(part):
            groups = (stop - start) // group
            size = groups * self._group_bytes(group)
            values = out[:, start:stop].reshape(len(codes), groups, group)
            self._unpack(codes[:, at_code : at_code + size].reshape(len(codes), groups, -1), values)
            values *= scale[:, at_scale : at_scale + groups, None]
            at_scale, at_code = at_scale + groups, at_code + size
            if not np.may_share_memory(values, out):
                out[:, start:stop] = values.reshape(len(codes), -1)
        return out

    @property
    def _limit(self) -> int:
        return int(2 ** (self.bits - 1) - 1)

    def _group_bytes(self, group: int) -> int:
        return group if self.bits == 8 else -(-group // 2)

    def _pack(self, code: NDArray[np.int8]) -> Bytes:
        rows, groups, group = code.shape
        if self.bits == 8:
            return code.view(np.uint8).reshape(rows, -1)
        half = -(-group // 2)
        nibbles = np.full((rows, groups, 2 * half), 8, np.uint8)
        nibbles[:, :, :group] = code + 8
        packed: Bytes = nibbles[:, :, :half] | (nibbles[:, :, half:] << 4)
        return packed.reshape(rows, -1)

    def _unpack(self, packed: Bytes, out: Floats) -> None:
        if self.bits == 8:
            out[...] = packed.view(np.int8)
            return
        half = packed.shape[2]
        np.subtract(packed & 15, 8, out=out[:, :, :half], dtype=np.float32, casting="unsafe")
        high = (packed >> 4)[:, :, : out.shape[2] - half]
        np.subtract(high, 8, out=out[:, :, half:], dtype=np.float32, casting="unsafe")


@dataclass(frozen=True, slots=True)
class _Float8Codec:
    """fp8 (e4m3, no infinities) codes with float32 scales by group: lossless pass-through.

    Encoding takes values that are a code times their group's scale already, as such tables are;
    other values are not representable and are refused by the writer of such a table.
    """

    def decode(self, scales: Bytes, codes: Bytes, part: Part) -> Floats:
        scale = _view(scales, "<f4")
        if not np.isfinite(scale).all():
            raise FormatError("scale-not-finite", "a record", "a NaN or infinite scale", "finite")
        repeated = np.repeat(scale, int(part.group_size or part.values), axis=1)
        product: Floats = _E4M3[codes] * repeated[:, : part.values]
        return product


@dataclass(frozen=True, slots=True)
class _StepCodec:
    """Signed integers of `bits` bits times the part's step: for entropy-coded rows."""

    bits: int

    def encode(self, values: Floats, part: Part) -> tuple[Bytes, Bytes]:
        limit = 2 ** (self.bits - 1) - 1
        codes = np.rint(values / np.float32(part.step or 1))
        np.clip(codes, -limit, limit, out=codes)
        stored = np.ascontiguousarray(codes.astype(self._dtype))
        return np.empty((len(values), 0), np.uint8), stored.view(np.uint8)

    def decode(self, scales: Bytes, codes: Bytes, part: Part) -> Floats:
        values = _view(codes, self._dtype).astype(np.float32)
        values *= np.float32(part.step or 1)
        return values

    @property
    def _dtype(self) -> str:
        return f"<i{self.bits // 8}"


def encode_values(values: Floats, part: Part) -> tuple[Bytes, Bytes]:
    """Encode rows of values.

    Parameters
    ----------
    values : ndarray
        float32 (rows, part.values), finite.
    part : Part
        ``f32``, ``f16``, ``bf16`` (lossless if the values are of that dtype), ``int8``, ``int4``
        (error at most scale / 2), or ``step8``, ``step16`` (error at most step / 2 for values up
        to 127 or 32,767 steps; larger ones are cut).

    Returns
    -------
    scales, codes : ndarray
        uint8 (rows, scale bytes) and uint8 (rows, code bytes); new arrays.

    Raises
    ------
    ConfigError
        A value does not fit float16.
    """
    codec = _CODECS[part.codec]
    if isinstance(codec, _Float8Codec):
        raise ConfigError("f8e4m3 tables are stored as they are, not encoded from float32")
    return codec.encode(values, part)


def decode_values(scales: Bytes, codes: Bytes, part: Part) -> Floats:
    """Decode rows: the inverse of `encode_values`.

    Parameters
    ----------
    scales, codes : ndarray
        uint8 (rows, scale bytes) and (rows, code bytes), of any strides.
    part : Part
        How they were encoded.

    Returns
    -------
    ndarray
        float32 (rows, part.values), a new array.

    Raises
    ------
    FormatError
        Code ``scale-not-finite``.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # huge scales may give infinite values
        return _CODECS[part.codec].decode(scales, codes, part)


def to_bfloat16(values: Floats) -> NDArray[np.uint16]:
    """Round finite float32 to bfloat16 bits, ties to even; overflow saturates at the largest."""
    rounded = rounded_to_bfloat16(values)
    overflow = (rounded & 0x7F80) == 0x7F80
    return np.where(overflow, (rounded & 0x8000) | 0x7F7F, rounded).astype(np.uint16)


def rounded_to_bfloat16(values: Floats) -> NDArray[np.uint16]:
    """Round float32 to bfloat16 bits, ties to even; what is too large becomes infinite, as in
    torch. For numbers and infinities: a NaN may not stay one.
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + (np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1)))) >> 16).astype(np.uint16)


def from_bfloat16(bits: NDArray[np.uint16]) -> Floats:
    """Widen bfloat16 bits to float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _spans(part: Part) -> list[tuple[int, int, int]]:
    """(start, stop, group) of the full groups and of a shorter last one."""
    width, group = part.values, int(part.group_size or part.values)
    full = width // group * group
    spans = [(0, full, group)] if full else []
    return spans + ([(full, width, width - full)] if width > full else [])


def _view(data: Bytes, dtype: str) -> NDArray[Any]:
    return np.ascontiguousarray(data).view(dtype)


def _e4m3_table() -> Floats:
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    value = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    value[(code & 127) == 127] = np.nan
    return np.where(code & 128, -value, value).astype(np.float32)


_E4M3 = _e4m3_table()
_CODECS: dict[str, _FloatCodec | _GroupCodec | _Float8Codec | _StepCodec] = {
    "f32": _FloatCodec(),
    "f16": _FloatCodec(),
    "bf16": _FloatCodec(),
    "f8e4m3": _Float8Codec(),
    "int8": _GroupCodec(8),
    "int4": _GroupCodec(4),
    "step8": _StepCodec(8),
    "step16": _StepCodec(16),
}
