"""``f8e4m3``, ``f8e4m3-e8m0``, ``f8e4m3-step``: fp8 codes (no infinities), times a scale.

The scale is a float32 or a power of two for each group of values, or one number of the part. A
lossless pass-through of tables that are stored so already. Other values are not such products, so
there is no encoding from float32.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tolpack.codecs.codec import Codec, view_as
from tolpack.errors import ConfigError
from tolpack.runtime.array_types import Bytes, Floats


@dataclass(frozen=True, slots=True)
class _Float8Codec(Codec):
    """Products of an fp8 code and something else."""

    name: ClassVar[str]

    def encode(
        self, values: Floats, group_size: int | None, step: float | None
    ) -> tuple[Bytes, Bytes]:
        """Raise `ConfigError`."""
        raise ConfigError(f"{self.name} tables are stored as they are, not encoded from float32")


@dataclass(frozen=True, slots=True)
class _ScaledFloat8Codec(_Float8Codec):
    """Products of an fp8 code and its group's scale."""

    def decode(
        self, scales: Bytes, codes: Bytes, count: int, group_size: int | None, step: float | None
    ) -> Floats:
        """See `Codec.decode`; raises `FormatError` (``scale-not-finite``)."""
        self.check_scales(scales)
        values: Floats = E4M3_VALUES.take(codes)
        values *= np.repeat(self._scale_values(scales), int(group_size or count), axis=1)[:, :count]
        return values

    def _scales_are_finite(self, scales: Bytes) -> bool:
        return bool(np.isfinite(self._scale_values(scales)).all())

    @abstractmethod
    def _scale_values(self, scales: Bytes) -> Floats:
        """Return the scales as numbers, float32 (rows, groups)."""


@dataclass(frozen=True, slots=True)
class Float8Codec(_ScaledFloat8Codec):
    """A float32 for each group."""

    name: ClassVar[str] = "f8e4m3"
    scale_bytes: ClassVar[int] = 4
    scale_dtype: ClassVar[str | None] = "float32"

    def _scale_values(self, scales: Bytes) -> Floats:
        found: Floats = view_as(scales, "<f4")
        return found


@dataclass(frozen=True, slots=True)
class PowerFloat8Codec(_ScaledFloat8Codec):
    """A power of two for each group, E8M0 of the OCP microscaling formats (MX): an exponent of
    bias 127 and nothing else, of which 255 is a NaN.
    """

    name: ClassVar[str] = "f8e4m3-e8m0"
    scale_bytes: ClassVar[int] = 1
    scale_dtype: ClassVar[str | None] = "float8_e8m0fnu"

    def _scale_values(self, scales: Bytes) -> Floats:
        return E8M0_VALUES[scales]


@dataclass(frozen=True, slots=True)
class StepFloat8Codec(_Float8Codec):
    """One number of the part, as of a table that has one scale in all."""

    name: ClassVar[str] = "f8e4m3-step"
    has_step: ClassVar[bool] = True

    def decode(
        self, scales: Bytes, codes: Bytes, count: int, group_size: int | None, step: float | None
    ) -> Floats:
        """See `Codec.decode`."""
        values: Floats = E4M3_VALUES.take(codes)
        values *= np.float32(step or 1)
        return values


def _e4m3_values() -> Floats:
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    value = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    value[(code & 127) == 127] = np.nan
    return np.where(code & 128, -value, value).astype(np.float32)


def _e8m0_values() -> Floats:
    value = np.ldexp(1.0, np.arange(256) - 127)
    value[255] = np.nan
    return value.astype(np.float32)


# By code: float32 (256,), exactly.
E4M3_VALUES = _e4m3_values()
E8M0_VALUES = _e8m0_values()
