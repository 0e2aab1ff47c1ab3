"""The beginning of a lookup: arguments are checked, and each slot is looked up once."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from tolpack.container.header import Field
from tolpack.errors import ConfigError, TokenIdError


@dataclass(frozen=True, slots=True)
class UniqueSlots:
    """The distinct slots of a lookup, ascending, and where each one is asked for first.

    ``slots`` and ``places`` int64 (distinct,); ``copies`` int64 (2, duplicates): the place of each
    duplicate, and that of the first one.
    """

    slots: NDArray[np.int64]
    places: NDArray[np.int64]
    copies: NDArray[np.int64]

    @classmethod
    def of(cls, slots: NDArray[np.int64]) -> UniqueSlots:
        """Sort and deduplicate."""
        if len(slots) == 1:
            return cls(slots, np.zeros(1, np.int64), np.empty((2, 0), np.int64))
        order = np.argsort(slots, kind="stable")
        ascending = slots[order]
        new = np.ones(len(slots), bool)
        np.not_equal(ascending[1:], ascending[:-1], out=new[1:])
        places = order[new]
        copied = ~new
        origin = places[np.cumsum(new)[copied] - 1]
        return cls(ascending[new], places, np.stack([order[copied], origin]))

    @classmethod
    def none(cls) -> UniqueSlots:
        """Return those of a lookup of nothing."""
        empty = np.empty(0, np.int64)
        return cls(empty, empty, np.empty((2, 0), np.int64))

    def fill_duplicates(self, out: NDArray[Any]) -> None:
        """Copy the rows of `out`, (ids, …), that duplicates share with the first of them."""
        if self.copies.size:
            out[self.copies[0]] = out[self.copies[1]]


@dataclass(frozen=True, slots=True)
class LayerSelection:
    """Layers of a result, in order; all have ``width`` values.

    ``positions`` int64 (kept fields,): where each kept layer stands first in the result, or -1, and
    ``columns``, the same in values; ``zeros``: where dropped layers stand; ``repeats``: where a
    layer stands once more, and where first.
    """

    count: int
    width: int
    positions: NDArray[np.int64]
    columns: NDArray[np.int64]
    zeros: tuple[int, ...]
    repeats: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, layers: Sequence[int], fields: Sequence[Field]) -> LayerSelection:
        """Select `layers` of a table of `fields`.

        Raises
        ------
        ConfigError
            There is no such layer, or their widths differ.
        """
        layers = check_layers(layers, len(fields))
        width = common_width(fields, layers)
        first = {layer: n for n, layer in reversed(list(enumerate(layers)))}
        kept = [layer for layer, field in enumerate(fields) if not field.dropped]
        stored = set(kept)
        positions = np.array([first.get(layer, -1) for layer in kept], np.int64)
        columns = np.where(positions < 0, -1, positions * width)
        zeros = tuple(n for n, layer in enumerate(layers) if layer not in stored)
        repeats = tuple((n, first[layer]) for n, layer in enumerate(layers)
                        if layer in stored and first[layer] != n)  # fmt: skip
        return cls(len(layers), width, positions, columns, zeros, repeats)

    def fill_undecoded(self, out: NDArray[Any]) -> None:
        """Fill the dropped and the repeated layers of `out`, (ids, layers, width)."""
        for n in self.zeros:
            out[:, n] = 0
        for n, source in self.repeats:
            out[:, n] = out[:, source]


def common_width(fields: Sequence[Field], layers: Sequence[int]) -> int:
    """Return the values that each of `layers` has in a row (of none: that every field has).

    Raises
    ------
    ConfigError
        They differ.
    """
    numbers = layers or range(len(fields))
    first = fields[numbers[0]].width
    other = next((n for n in numbers if fields[n].width != first), None)
    if other is not None:
        raise ConfigError(
            f"layer {numbers[0]} has {first} values in a row and layer {other} has "
            f"{fields[other].width}: give layers=… of one width at a time"
        )
    return first


def check_ids(token_ids: ArrayLike, vocab_size: int) -> NDArray[np.int64]:
    """Return `token_ids` as int64 (ids,), or raise `TokenIdError`."""
    try:
        ids = np.asarray(token_ids)
    except ValueError as error:
        raise TokenIdError(f"token ids are not an array of integers: {error}") from error
    if ids.size == 0 and ids.ndim == 1:
        return np.empty(0, np.int64)
    if ids.dtype.kind not in "iu":
        raise TokenIdError(f"token ids are {ids.dtype}, expected integers")
    if ids.ndim != 1:
        raise TokenIdError(
            f"token ids have {ids.ndim} dimensions, expected 1: pass a list, or ids.ravel()"
        )
    # One id, that of a decode step, is looked at as Python's number: it takes a third of the time.
    low, high = (ids.min(), ids.max()) if ids.size > 1 else (ids.item(),) * 2
    if low < 0 or high >= vocab_size:
        wrong = ids[(ids < 0) | (ids >= vocab_size)][0]
        raise TokenIdError(f"token id {wrong} is out of range 0 … {vocab_size - 1} (vocab_size)")
    return ids.astype(np.int64)


def check_layers(layers: Sequence[int], count: int) -> list[int]:
    """Return `layers` of a pack of `count` as integers, or raise `ConfigError`."""
    try:
        wanted = [operator.index(layer) for layer in layers]
        if any(isinstance(layer, (bool, np.bool_)) for layer in layers):
            raise TypeError("bool is not a layer number")
    except TypeError as error:
        raise ConfigError(f"layers are {layers!r}, expected a list of integers") from error
    wrong = [layer for layer in wanted if not 0 <= layer < count]
    if wrong:
        raise ConfigError(f"layer {wrong[0]} is out of range 0 … {count - 1}")
    return wanted


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
