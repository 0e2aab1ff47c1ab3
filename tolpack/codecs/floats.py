"""``f32``, ``f16``, ``bf16``: floating-point numbers, lossless for tables of that dtype."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tolpack.codecs.bfloat16 import from_bfloat16, to_bfloat16
from tolpack.codecs.codec import Codec, view_as
from tolpack.errors import ConfigError
from tolpack.runtime.array_types import Bytes, Floats


@dataclass(frozen=True, slots=True)
class FloatCodec(Codec):
    """float32 or float16, by its bits."""

    def encode(
        self, values: Floats, group_size: int | None, step: float | None
    ) -> tuple[Bytes, Bytes]:
        """See `Codec.encode`; raises `ConfigError` if a value does not fit float16."""
        with np.errstate(over="ignore"):
            stored = values.astype(self._stored_dtype)
        if self.code_bits == 16 and not np.isfinite(stored).all():
            raise ConfigError("a value exceeds float16's 65504: use --bits 8 or 4")
        return np.empty((len(values), 0), np.uint8), stored.view(np.uint8)

    def decode(
        self, scales: Bytes, codes: Bytes, count: int, group_size: int | None, step: float | None
    ) -> Floats:
        """See `Codec.decode`."""
        return view_as(codes, self._stored_dtype).astype(np.float32)

    @property
    def _stored_dtype(self) -> str:
        return f"<f{self.code_bits // 8}"


@dataclass(frozen=True, slots=True)
class BFloat16Codec(Codec):
    """bfloat16, which numpy has not."""

    def encode(
        self, values: Floats, group_size: int | None, step: float | None
    ) -> tuple[Bytes, Bytes]:
        """See `Codec.encode`."""
        stored = to_bfloat16(values).astype("<u2").view(np.uint8)
        return np.empty((len(values), 0), np.uint8), stored

    def decode(
        self, scales: Bytes, codes: Bytes, count: int, group_size: int | None, step: float | None
    ) -> Floats:
        """See `Codec.decode`."""
        return from_bfloat16(view_as(codes, "<u2"))
