"""float32 to bfloat16 and back: bfloat16 is the upper half of a float32 (SPEC §7)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tolpack.runtime.array_types import Floats


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
