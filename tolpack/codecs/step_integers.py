"""``step8``, ``step16``: integers times a step that the header gives for all rows of a chunk.

Codes that an entropy coder makes small: they have no scales. The error is at most half a step for
values up to 127 or 32,767 steps; larger ones are cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tolpack.codecs.codec import Codec, view_as
from tolpack.runtime.array_types import Bytes, Floats


@dataclass(frozen=True, slots=True)
class StepIntegerCodec(Codec):
    """Signed integers of 8 or 16 bits."""

    has_step: ClassVar[bool] = True

    def encode(
        self, values: Floats, group_size: int | None, step: float | None
    ) -> tuple[Bytes, Bytes]:
        """See `Codec.encode`."""
        limit = 2 ** (self.code_bits - 1) - 1
        codes = np.rint(values / np.float32(step or 1))
        np.clip(codes, -limit, limit, out=codes)
        stored = np.ascontiguousarray(codes.astype(self._stored_dtype))
        return np.empty((len(values), 0), np.uint8), stored.view(np.uint8)

    def decode(
        self, scales: Bytes, codes: Bytes, count: int, group_size: int | None, step: float | None
    ) -> Floats:
        """See `Codec.decode`."""
        values = view_as(codes, self._stored_dtype).astype(np.float32)
        values *= np.float32(step or 1)
        return values

    @property
    def _stored_dtype(self) -> str:
        return f"<i{self.code_bits // 8}"
