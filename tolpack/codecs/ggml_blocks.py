"""``q8_0``, ``q4_0``: GGML's blocks of 8 and 4 bits, integers with a float16 scale for each group.

The arithmetic is that of ``quantize_row_q8_0_ref`` and ``quantize_row_q4_0_ref`` of GGML, where a
group is a block of 32 values: codes are made against the scale before it is rounded to float16. In
``q8_0`` the scale is ``max|x| / 127``; in ``q4_0`` it is that of the value ``x`` of the largest
magnitude, ``x / -8``, so that this one has the code -8. A record holds the two bytes of a scale and
the bytes of the codes as a block of GGML does, but all scales first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.codec import view_as
from tolpack.codecs.grouped_integers import GroupedIntegerCodec, group_spans
from tolpack.errors import ConfigError
from tolpack.runtime.array_types import Bytes, Floats


@dataclass(frozen=True, slots=True)
class GgmlCodec(GroupedIntegerCodec):
    """Integers of 8 bits, or of 4 bits less 8; packed as `GroupedIntegerCodec` packs them."""

    scale_dtype: ClassVar[str | None] = "float16"

    def encode(
        self, values: Floats, group_size: int | None, step: float | None
    ) -> tuple[Bytes, Bytes]:
        """See `Codec.encode`; raises `ConfigError` if a scale does not fit float16."""
        scales, codes = [], []
        for start, stop, group in group_spans(values.shape[1], group_size):
            groups = values[:, start:stop].reshape(len(values), -1, group)
            scale = self._unrounded_scales(groups)
            with np.errstate(divide="ignore", over="ignore"):
                inverse = np.float32(1) / scale
            inverse[np.isinf(inverse)] = 0  # a group of zeros, or almost
            scales.append(scale)
            codes.append(self._pack(self._codes(groups * inverse[:, :, None])))
        return _stored_scales(np.concatenate(scales, axis=1)), np.concatenate(codes, axis=1)

    def _unrounded_scales(self, groups: Floats) -> Floats:
        if self.code_bits == 8:
            largest: Floats = np.abs(groups).max(axis=2) / np.float32(127)
            return largest
        place = np.abs(groups).argmax(axis=2)[:, :, None]
        scale: Floats = np.take_along_axis(groups, place, axis=2)[:, :, 0] / np.float32(-8)
        return scale

    def _codes(self, quotients: Floats) -> NDArray[np.int8]:
        if self.code_bits == 4:
            code: NDArray[np.int8] = (
                np.trunc(quotients + np.float32(8.5)).clip(0, 15).astype(np.int8)
            )
            return code - np.int8(8)
        magnitude = np.abs(quotients)
        whole = np.floor(magnitude)
        whole += magnitude - whole >= 0.5  # halves go away from zero, as in C
        return np.copysign(whole, quotients).astype(np.int8)

    def _scales_are_finite(self, scales: Bytes) -> bool:
        return bool(((view_as(scales, "<u2") & 0x7C00) != 0x7C00).all())

    def _scale_values(self, scales: Bytes) -> Floats:
        return view_as(scales, "<f2").astype(np.float32)


def _stored_scales(scales: Floats) -> Bytes:
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(scales.astype("<f2"))
    if not np.isfinite(stored).all():
        largest = float(np.abs(scales).max())
        raise ConfigError(f"a scale of {largest:g} exceeds float16's 65504: use int8 or int4")
    return stored.view(np.uint8)
