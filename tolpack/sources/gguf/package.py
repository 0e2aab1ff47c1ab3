"""What is taken from the ``gguf`` package: sizes and names of types, and dequantization."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np

from tolpack.errors import ConfigError
from tolpack.runtime.array_types import Bytes, Floats


def require_package() -> None:
    """Raise `ConfigError` if the package is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError("reading GGUF files needs gguf: pip install 'tolpack[gguf]'")


@dataclass(frozen=True, slots=True)
class GGMLType:
    """A type of GGML: its name, and how many values and bytes a block of it has.

    A type that the package does not know has its number as name, and blocks of no values.
    """

    name: str
    block_values: int = 0
    block_bytes: int = 0


def ggml_type(number: int) -> GGMLType:
    """Return the type that has a number in a file."""
    return _types().get(number, GGMLType(str(number)))


def is_dequantized(kind: GGMLType) -> bool:
    """Whether `dequantize` knows a type."""
    try:
        dequantize(np.zeros((1, kind.block_bytes), np.uint8), kind)
    except (NotImplementedError, KeyError):
        return False
    return True


def dequantize(stored: Bytes, kind: GGMLType) -> Floats:
    """Dequantize whole blocks.

    Parameters
    ----------
    stored : ndarray
        uint8 (n, bytes), one row at least.
    kind : GGMLType
        Their type.

    Returns
    -------
    ndarray
        float32 (n, values); NaN or infinite where a scale is.

    Raises
    ------
    NotImplementedError, KeyError
        The package does not know how.
    """
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize as package_dequantize

    with np.errstate(all="ignore"):
        found: Any = package_dequantize(
            np.ascontiguousarray(stored), GGMLQuantizationType[kind.name]
        )
    return np.asarray(found, np.float32)


@functools.cache
def _types() -> dict[int, GGMLType]:
    from gguf.constants import GGML_QUANT_SIZES

    return {int(kind): GGMLType(kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
