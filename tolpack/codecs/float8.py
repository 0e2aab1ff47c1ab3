"""``f8e4m3``: fp8 codes (no infinities) with a float32 scale for each group of values.

A lossless pass-through of tables that are stored so already. Other values are not such products, so
there is no encoding from float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tolpack.codecs.codec import Codec, view_as
from tolpack.errors import ConfigError
from tolpack.runtime.array_types import Bytes, Floats


@dataclass(frozen=True, slots=True)
class Float8Codec(Codec):
    """Products of an fp8 code and its group's scale."""

    scale_bytes: ClassVar[int] = 4
    scale_dtype: ClassVar[str | None] = "float32"

    def encode(
        self, values: Floats, group_size: int | None, step: float | None
    ) -> tuple[Bytes, Bytes]:
        """Raise `ConfigError`."""
        raise ConfigError("f8e4m3 tables are stored as they are, not encoded from float32")

    def decode(
        self, scales: Bytes, codes: Bytes, count: int, group_size: int | None, step: float | None
    ) -> Floats:
        """See `Codec.decode`; raises `FormatError` (``scale-not-finite``)."""
        self.check_scales(scales)
        repeated = np.repeat(view_as(scales, "<f4"), int(group_size or count), axis=1)
        product: Floats = _VALUES[codes] * repeated[:, :count]
        return product

    def _scales_are_finite(self, scales: Bytes) -> bool:
        return bool(np.isfinite(view_as(scales, "<f4")).all())


def _values_by_code() -> Floats:
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    value = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    value[(code & 127) == 127] = np.nan
    return np.where(code & 128, -value, value).astype(np.float32)


_VALUES = _values_by_code()
