"""Whether stored bytes hold NaN or infinity, by dtype: integers, ten times `np.isfinite`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.runtime.array_types import Bytes


def bad_rows(dtype: str, rows: Bytes) -> NDArray[np.int64]:
    """Return the numbers of the rows that hold NaN or infinity, int64; none for other dtypes.

    Parameters
    ----------
    dtype : str
        Torch's name.
    rows : ndarray
        uint8 (n, bytes), C-contiguous.
    """
    found = _BAD.get(dtype)
    if found is None or not rows.size:
        return np.zeros(0, np.int64)
    unsigned, without_sign, least = found
    bits = rows.view(unsigned) & without_sign
    if int(bits.max()) < least:
        return np.zeros(0, np.int64)
    return np.flatnonzero((bits >= least).any(axis=1))


# An unsigned integer of the value's size, what is left of it without the sign, and the least such
# number that is not a finite value.
_BAD: dict[str, tuple[str, np.unsignedinteger[Any], int]] = {
    "float32": ("<u4", np.uint32(0x7FFFFFFF), 0x7F800000),
    "bfloat16": ("<u2", np.uint16(0x7FFF), 0x7F80),
    "float16": ("<u2", np.uint16(0x7FFF), 0x7C00),
    "float8_e4m3fn": ("u1", np.uint8(0x7F), 0x7F),
    "float8_e8m0fnu": ("u1", np.uint8(0xFF), 0xFF),
}
