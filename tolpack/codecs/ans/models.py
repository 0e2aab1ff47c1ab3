"""`CodeModels`: the distributions of codes by which a coder spends its bits (SPEC §8)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.ans.alphabets import (
    LARGEST_GROUP,
    LARGEST_IN_GROUP,
    SLOT_BITS,
    SLOTS,
    Alphabets,
    group_digits,
    group_symbols,
)
from tolpack.errors import FormatError
from tolpack.runtime.array_types import Doubles, Ints

LARGEST_SHIFT = 8
MOST_MODELS = 256
NARROWEST, WIDEST = 5, 257
# Bits of an escaped level, which come as two bytes.
ESCAPE_BITS = 16


@dataclass(frozen=True, slots=True, eq=False)
class CodeModels:
    """Checked models of levels; the arrays are not to be written to.

    Parameters
    ----------
    array : ndarray
        uint16 (M, W), as it is stored: shift and 256 × the size of groups less one, frequency of
        the escape, frequencies of the symbols ``-K … K`` with ``K = (W - 3) / 2``.
    shifts, sizes : ndarray
        int64 (M,): low bits of a level that are stored as they are; levels of a group, 1 to 4.
    groups : ndarray
        int64 (M,): number of the alphabet of groups; the model's own number if it has none.
    alphabets : Alphabets
        Symbols and slots; those of single levels of model ``m`` have the number ``m``.
    """

    array: NDArray[np.uint16]
    shifts: Ints
    sizes: Ints
    groups: Ints
    alphabets: Alphabets

    @classmethod
    def of(cls, array: NDArray[np.uint16], place: str) -> CodeModels:
        """Check stored models and make what coders look up.

        Parameters
        ----------
        array : ndarray
            uint16 (M, W).
        place : str
            What to name in errors.

        Returns
        -------
        CodeModels
            The models.

        Raises
        ------
        FormatError
            Code ``code-models``: another shape, shift, size of groups or sum of frequencies than
            the format allows.
        """
        _check(array, place)
        own = np.array(array, np.uint16)
        sizes, shifts = np.divmod(own[:, 0].astype(np.int64), 256)
        sizes += 1
        frequencies = np.roll(own[:, 1:], -1, axis=1).astype(np.int64)
        found = _groups(frequencies, sizes, place)
        groups = np.arange(len(own))
        groups[sizes > 1] = len(own) + np.arange(len(found))
        return cls(own, shifts, sizes, groups, Alphabets.of(frequencies, found))

    @property
    def largest_symbol(self) -> int:
        """``K``: symbols are ``-K … K``."""
        return int(self.array.shape[1] - 3) // 2

    @property
    def escape(self) -> int:
        """The number of the escape among single levels."""
        return int(self.array.shape[1]) - 2

    @property
    def always_escapes(self) -> bool:
        """Whether every model has an escape, so that it codes every level."""
        return bool(self.array[:, 1].all())

    def numbers(self, levels: Ints, models: Ints) -> Ints:
        """Return the numbers of the symbols that stand for levels: the escape's for those that
        have no symbol, or one that never occurs. Both arrays have the same shape.
        """
        found = (levels >> self.shifts[models]) + self.largest_symbol
        found[(found < 0) | (found > self.escape)] = self.escape
        found[self.alphabets.frequencies[models, found] == 0] = self.escape
        return found

    def group_numbers(self, levels: Ints, alphabet: int) -> Ints:
        """Return the numbers of the symbols of groups of levels (n, size): int64 (n,)."""
        largest = np.abs(levels).max(axis=1)
        outside: NDArray[np.bool_] = largest > LARGEST_IN_GROUP[levels.shape[1]]
        digits = group_digits(np.where(outside[:, None], 0, levels))
        found: Ints = self.alphabets.numbers[alphabet, digits].astype(np.int64)
        found[outside] = self.alphabets.escapes[alphabet]
        return found

    def bits(self) -> Doubles:
        """Return what single symbols cost with all their bits: float64 (M, W - 1), infinite for
        those that never occur.
        """
        with np.errstate(divide="ignore"):
            found = SLOT_BITS - np.log2(np.roll(self.array[:, 1:], -1, axis=1).astype(np.float64))
        found[:, :-1] += self.shifts[:, None]
        found[:, -1] += ESCAPE_BITS
        return found


def _check(array: NDArray[np.uint16], place: str) -> None:
    models, width = array.shape if array.ndim == 2 else (0, 0)
    if not (1 <= models <= MOST_MODELS and NARROWEST <= width <= WIDEST and width % 2):
        expected = f"1 to {MOST_MODELS} models of {NARROWEST} to {WIDEST} numbers, an odd number"
        raise FormatError("code-models", place, f"shape {list(array.shape)}", expected)
    shift, size = int((array[:, 0] % 256).max()), int((array[:, 0] // 256).max()) + 1
    if shift > LARGEST_SHIFT or size > LARGEST_GROUP:
        found = f"a shift of {shift}, groups of {size}"
        expected = f"at most {LARGEST_SHIFT}, and {LARGEST_GROUP}"
        raise FormatError("code-models", place, found, expected)
    if ((array[:, 0] > 255) & (array[:, 0] % 256 > 0)).any():
        raise FormatError("code-models", place, "groups and a shift", "a shift of 0 with groups")
    sums = array[:, 1:].sum(axis=1, dtype=np.int64)
    wrong = np.flatnonzero(sums != SLOTS)
    if len(wrong):
        found = f"frequencies of model {wrong[0]} with a sum of {sums[wrong[0]]}"
        raise FormatError("code-models", place, found, str(SLOTS))


def _groups(frequencies: Ints, sizes: Ints, place: str) -> list[tuple[Ints, Ints]]:
    """Return the group symbols of each model that has groups."""
    found = []
    for model in np.flatnonzero(sizes > 1).tolist():
        levels, slots = group_symbols(frequencies[model], int(sizes[model]))
        if slots[-1] < 1:
            left = f"groups of model {model} that leave {slots[-1]} slots to the escape"
            raise FormatError("code-models", place, left, "at least one")
        found.append((levels, slots))
    return found
