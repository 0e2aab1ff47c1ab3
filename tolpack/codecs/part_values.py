"""Rows of one part: values to scales and codes by the part's codec, and back (SPEC §7)."""

from __future__ import annotations

import numpy as np

from tolpack.codecs.encodings import Part
from tolpack.codecs.registry import CODECS
from tolpack.runtime.array_types import Bytes, Floats


def encode_values(values: Floats, part: Part) -> tuple[Bytes, Bytes]:
    """Encode rows of values.

    Parameters
    ----------
    values : ndarray
        float32 (rows, part.values), finite.
    part : Part
        ``f32``, ``f16``, ``bf16`` (lossless if the values are of that dtype), ``int8``, ``int4``
        (error at most scale / 2), or ``step8``, ``step16`` (error at most step / 2 for values up
        to 127 or 32,767 steps; larger ones are cut).

    Returns
    -------
    scales, codes : ndarray
        uint8 (rows, scale bytes) and uint8 (rows, code bytes); new arrays.

    Raises
    ------
    ConfigError
        A value does not fit float16, or the codec does not encode.
    """
    return CODECS[part.codec].encode(values, part.group_size, part.step)


def decode_values(scales: Bytes, codes: Bytes, part: Part) -> Floats:
    """Decode rows: the inverse of `encode_values`.

    Parameters
    ----------
    scales, codes : ndarray
        uint8 (rows, scale bytes) and (rows, code bytes), of any strides.
    part : Part
        How they were encoded.

    Returns
    -------
    ndarray
        float32 (rows, part.values), a new array.

    Raises
    ------
    FormatError
        Code ``scale-not-finite``.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # huge scales may give infinite values
        return CODECS[part.codec].decode(scales, codes, part.values, part.group_size, part.step)
