"""`Codec`: what every codec says about itself, and its two functions between values and bytes.

A codec stores a value as a code of a few bits. Some multiply the code by a scale that a group of
values shares and that stands in the record; some by a step that the header gives for a whole chunk.
From these facts follow the sizes that a header is checked against (`tolpack.container`), and how
torch expands records on a device (`tolpack.torch`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import FormatError
from tolpack.runtime.array_types import Bytes, Floats


@dataclass(frozen=True, slots=True)
class Codec(ABC):
    """One codec of SPEC §7; `tolpack.codecs.registry.CODECS` lists them all.

    Parameters
    ----------
    feature_bit : int
        Bit of the required features that a pack with this codec sets (SPEC §9).
    code_bits : int
        Bits of a code.
    code_dtype : str
        dtype of a code, as torch names it; ``int4``: two codes share a byte.
    loop : str, optional
        The function of `tolpack.codecs.compiled_loops` that decodes its records, if there is one.

    Attributes
    ----------
    scale_bytes : int
        Bytes of a scale; 0 for codecs without scales.
    scale_dtype : str or None
        dtype of a scale, as torch names it.
    has_step : bool
        Whether codes are multiplied by the step of their part.
    """

    feature_bit: int
    code_bits: int
    code_dtype: str
    loop: str | None = None
    scale_bytes: ClassVar[int] = 0
    scale_dtype: ClassVar[str | None] = None
    has_step: ClassVar[bool] = False

    @abstractmethod
    def encode(
        self, values: Floats, group_size: int | None, step: float | None
    ) -> tuple[Bytes, Bytes]:
        """Return scales and codes of finite float32 (rows, n): uint8 (rows, bytes), new arrays."""

    @abstractmethod
    def decode(
        self, scales: Bytes, codes: Bytes, count: int, group_size: int | None, step: float | None
    ) -> Floats:
        """Return `count` values a row, float32 (rows, count), a new array.

        `scales` and `codes` are uint8 (rows, bytes), of any strides.
        """

    def check_scales(self, scales: Bytes) -> None:
        """Raise `FormatError` (``scale-not-finite``) if one of `scales` is NaN or infinite."""
        if not self._scales_are_finite(scales):
            raise scale_not_finite()

    def _scales_are_finite(self, scales: Bytes) -> bool:
        return True


def view_as(data: Bytes, dtype: str) -> NDArray[Any]:
    """Return rows of bytes as rows of another dtype."""
    return np.ascontiguousarray(data).view(dtype)


def scale_not_finite() -> FormatError:
    """Return the error for a scale that is NaN or infinite."""
    return FormatError("scale-not-finite", "a record", "a NaN or infinite scale", "finite")
