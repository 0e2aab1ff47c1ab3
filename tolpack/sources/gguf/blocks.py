"""GGML's blocks and a pack's records: the same scales and codes in another order.

A block of Q8_0 or Q4_0 is a float16 scale and then the codes of 32 values; a row is one block after
another. A record has all scales of a field first and then its codes (SPEC §6). The codes need no
change: the codec ``q4_0``, like GGML, keeps value ``j`` in the low and value ``j + 16`` in the high
half of a byte.
"""

from __future__ import annotations

import numpy as np

from tolpack.codecs.encodings import Part
from tolpack.errors import ConfigError
from tolpack.runtime.array_types import Bytes

# Types of plain floats: GGML's names, and codecs.
FLOATS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_GROUPED = {"Q8_0": "q8_0", "Q4_0": "q4_0"}
_GROUP = 32
_SCALE_BYTES = 2
_TYPES = {codec: type_name for type_name, codec in (FLOATS | _GROUPED).items()}


def stored_part(type_name: str, values: int) -> Part | None:
    """Return how a pack holds `values` values of a GGML type bit for bit.

    ``None``: it has no codec for the type, so values can only be kept as float32.
    """
    if type_name in FLOATS:
        return Part(FLOATS[type_name], values)
    if type_name in _GROUPED:
        return Part(_GROUPED[type_name], values, group_size=_GROUP)
    return None


def scales_and_codes(stored: Bytes, part: Part) -> tuple[Bytes, Bytes]:
    """Cut rows of GGML's blocks into scales and codes.

    Parameters
    ----------
    stored : ndarray
        uint8 (n, bytes of a row).
    part : Part
        What `stored_part` gives.

    Returns
    -------
    scales, codes : ndarray
        uint8 (n, scale bytes) and (n, code bytes); new arrays, or a view of `stored` for floats.
    """
    if part.group_size is None:
        return np.empty((len(stored), 0), np.uint8), stored
    blocks = stored.reshape(
        len(stored), part.values // _GROUP, part.row_bytes * _GROUP // part.values
    )
    scales = np.ascontiguousarray(blocks[:, :, :_SCALE_BYTES])
    codes = np.ascontiguousarray(blocks[:, :, _SCALE_BYTES:])
    return scales.reshape(-1, part.scale_bytes), codes.reshape(-1, part.code_bytes)


def ggml_blocks(scales: Bytes, codes: Bytes, part: Part) -> tuple[str, Bytes]:
    """Make rows of GGML's blocks out of scales and codes: the inverse of `scales_and_codes`.

    Returns
    -------
    str
        GGML's name of the type.
    ndarray
        uint8 (n, bytes of a row).

    Raises
    ------
    ConfigError
        GGML has no type for the part.
    """
    type_name = _TYPES.get(part.codec)
    grouped = type_name in _GROUPED
    fits = part.group_size == _GROUP and part.values % _GROUP == 0 if grouped else type_name
    if type_name is None or not fits:
        raise ConfigError(
            f"{part.values} values of {part.codec} in groups of {part.group_size} are not a type "
            f"of GGML, expected one of {', '.join(_TYPES)}, the last two in groups of {_GROUP}"
        )
    if not grouped:
        return type_name, codes
    blocks = part.values // _GROUP
    joined = np.concatenate(
        [
            scales.reshape(len(codes), blocks, _SCALE_BYTES),
            codes.reshape(len(codes), blocks, part.code_bytes // blocks),
        ],
        axis=2,
    )
    return type_name, joined.reshape(len(codes), part.row_bytes)
