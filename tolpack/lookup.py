"""The two ends of a lookup: checked arguments, and rows put where they were asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from tolpack.codecs.values import Floats
from tolpack.errors import ConfigError, TokenIdError


@dataclass(frozen=True, slots=True)
class Scatter:
    """Puts decoded rows of distinct slots where they were asked for.

    ``order[first[i] : first[i+1]]`` are the places of distinct row ``i``; ``end`` closes the last.
    """

    out: NDArray[Any]
    order: NDArray[np.intp]
    first: NDArray[np.intp]
    end: int

    def put(self, position: int, values: Floats) -> None:
        """Write float32 (distinct, hidden) as layer number `position` of the result."""
        counts = np.diff(self.first, append=self.end)
        places = self.order[self.first[0] : self.end]
        repeated = values if (counts == 1).all() else np.repeat(values, counts, axis=0)
        self.out[places, position] = repeated


def check_ids(token_ids: ArrayLike, vocab_size: int) -> NDArray[np.int64]:
    """Return `token_ids` as int64 (ids,), or raise `TokenIdError`."""
    try:
        ids = np.asarray(token_ids)
    except ValueError as error:
        raise TokenIdError(f"token ids are no array of integers: {error}") from error
    if ids.size == 0 and ids.ndim == 1:
        return np.empty(0, np.int64)
    if ids.dtype.kind not in "iu":
        raise TokenIdError(f"token ids are {ids.dtype}, expected integers")
    if ids.ndim != 1:
        raise TokenIdError(
            f"token ids have {ids.ndim} dimensions, expected 1: pass a list, or ids.ravel()"
        )
    wrong = (ids < 0) | (ids >= vocab_size)
    if wrong.any():
        raise TokenIdError(
            f"token id {ids[wrong][0]} is out of range 0 … {vocab_size - 1} (vocab_size)"
        )
    return ids.astype(np.int64)


def check_out(out: NDArray[Any] | None, shape: tuple[int, ...], wanted: DTypeLike) -> NDArray[Any]:
    """Return `out`, or a new array if it is ``None``; raise `ConfigError` if it does not fit."""
    try:
        dtype = np.dtype(wanted)
    except TypeError:
        dtype = np.dtype(object)
    if dtype not in (np.dtype(np.float32), np.dtype(np.float16)):
        raise ConfigError(
            f"dtype is {wanted!r}, expected float32 or float16 (bfloat16: tolpack.torch.ToLMemory)"
        )
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray):
        raise ConfigError(f"out is {type(out).__name__}, expected a {dtype} array of {shape}")
    if out.shape != shape or out.dtype != dtype or not out.flags.writeable:
        raise ConfigError(
            f"out is {out.dtype} {out.shape}, expected a writable {dtype} array of {shape}"
        )
    return out
