"""``int8``, ``int4``: integers with a scale for each group of values.

A group of consecutive values shares one scale ``s = max|x| / q_max`` (``q_max`` 127 or 7), stored
as bfloat16, whose range is float32's: tables of any magnitude keep their precision, and a scale's
rounding does not matter because the codes are made against the stored scale. The value is
``code · s``. The error is at most ``s / 2`` per value.

Two 4-bit codes share a byte. Within a group of ``g`` values, byte ``j`` holds value ``j`` in its
low and value ``j + ⌈g/2⌉`` in its high half, so that both halves unpack to contiguous runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.bfloat16 import from_bfloat16, to_bfloat16
from tolpack.codecs.codec import Codec, view_as
from tolpack.runtime.array_types import Bytes, Floats


@dataclass(frozen=True, slots=True)
class GroupedIntegerCodec(Codec):
    """Symmetric integers of 8 or 4 bits."""

    scale_bytes: ClassVar[int] = 2
    scale_dtype: ClassVar[str | None] = "bfloat16"

    def encode(
        self, values: Floats, group_size: int | None, step: float | None
    ) -> tuple[Bytes, Bytes]:
        """See `Codec.encode`."""
        scales, codes = [], []
        for start, stop, group in group_spans(values.shape[1], group_size):
            groups = values[:, start:stop].reshape(len(values), -1, group)
            scale = from_bfloat16(to_bfloat16(np.abs(groups).max(axis=2) / self._limit))
            divisor = np.where(scale > 0, scale, np.inf)  # a group of zeros has scale 0
            code = np.rint(groups / divisor[:, :, None])
            np.clip(code, -self._limit, self._limit, out=code)
            scales.append(to_bfloat16(scale))
            codes.append(self._pack(code.astype(np.int8)))
        joined = np.ascontiguousarray(np.concatenate(scales, axis=1).astype("<u2"))
        return joined.view(np.uint8), np.concatenate(codes, axis=1)

    def decode(
        self, scales: Bytes, codes: Bytes, count: int, group_size: int | None, step: float | None
    ) -> Floats:
        """See `Codec.decode`; raises `FormatError` (``scale-not-finite``)."""
        self.check_scales(scales)
        scale = self._scale_values(scales)
        out = np.empty((len(codes), count), np.float32)
        at_scale = at_code = 0
        for start, stop, group in group_spans(count, group_size):
            groups = (stop - start) // group
            size = groups * self._group_bytes(group)
            values = out[:, start:stop].reshape(len(codes), groups, group)
            self._unpack(codes[:, at_code : at_code + size].reshape(len(codes), groups, -1), values)
            values *= scale[:, at_scale : at_scale + groups, None]
            at_scale, at_code = at_scale + groups, at_code + size
            if not np.may_share_memory(values, out):
                out[:, start:stop] = values.reshape(len(codes), -1)
        return out

    def _scales_are_finite(self, scales: Bytes) -> bool:
        return bool(((view_as(scales, "<u2") & 0x7F80) != 0x7F80).all())

    def _scale_values(self, scales: Bytes) -> Floats:
        """Return the scales as numbers, float32 (rows, groups)."""
        return from_bfloat16(view_as(scales, "<u2"))

    @property
    def _limit(self) -> int:
        return int(2 ** (self.code_bits - 1) - 1)

    def _group_bytes(self, group: int) -> int:
        return group if self.code_bits == 8 else -(-group // 2)

    def _pack(self, code: NDArray[np.int8]) -> Bytes:
        rows, groups, group = code.shape
        if self.code_bits == 8:
            return code.view(np.uint8).reshape(rows, -1)
        half = -(-group // 2)
        nibbles = np.full((rows, groups, 2 * half), 8, np.uint8)
        nibbles[:, :, :group] = code + 8
        packed: Bytes = nibbles[:, :, :half] | (nibbles[:, :, half:] << 4)
        return packed.reshape(rows, -1)

    def _unpack(self, packed: Bytes, out: Floats) -> None:
        if self.code_bits == 8:
            out[...] = packed.view(np.int8)
            return
        half = packed.shape[2]
        np.subtract(packed & 15, 8, out=out[:, :, :half], dtype=np.float32, casting="unsafe")
        high = (packed >> 4)[:, :, : out.shape[2] - half]
        np.subtract(high, 8, out=out[:, :, half:], dtype=np.float32, casting="unsafe")


def group_spans(count: int, group_size: int | None) -> list[tuple[int, int, int]]:
    """Return (start, stop, group) of the full groups and of a shorter last one."""
    group = int(group_size or count)
    full = count // group * group
    spans = [(0, full, group)] if full else []
    return spans + ([(full, count, count - full)] if count > full else [])
