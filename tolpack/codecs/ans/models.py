"""`CodeModels`: the distributions of codes by which a coder spends its bits (SPEC §8)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import FormatError
from tolpack.runtime.array_types import Doubles

SLOT_BITS = 12
SLOTS = 1 << SLOT_BITS
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
        uint16 (M, W), as it is stored: shift, frequency of the escape, frequencies of the symbols
        ``-K … K`` with ``K = (W - 3) / 2``.
    entries : ndarray
        uint32 (M, 4096), by slot: frequency - 1 (bits 0 to 11), the slot's distance from the
        symbol's first one (bits 12 to 23) and the number of the symbol (bits 24 to 31), the
        symbol ``-K`` being number 0 and the escape the last.
    frequencies, begins : ndarray
        int64 (M, W - 1): slots of a symbol, and the first of them, by the symbol's number.
    shifts : ndarray
        int64 (M,): low bits of a level that are stored as they are.
    """

    array: NDArray[np.uint16]
    entries: NDArray[np.uint32]
    frequencies: NDArray[np.int64]
    begins: NDArray[np.int64]
    shifts: NDArray[np.int64]

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
            Code ``code-models``: another shape, shift or sum of frequencies than the format allows.
        """
        _check(array, place)
        own = np.array(array, np.uint16)
        shifts = own[:, 0].astype(np.int64)
        frequencies = np.roll(own[:, 1:], -1, axis=1).astype(np.int64)
        begins = np.cumsum(frequencies, axis=1) - frequencies
        return cls(own, _entries(frequencies, begins), frequencies, begins, shifts)

    @property
    def largest_symbol(self) -> int:
        """``K``: symbols are ``-K … K``."""
        return int(self.array.shape[1] - 3) // 2

    def numbers(self, levels: NDArray[np.int64], models: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of the symbols that stand for levels: the escape's for those that
        have no symbol, or one that never occurs. Both arrays have the same shape.
        """
        escape = self.frequencies.shape[1] - 1
        found = (levels >> self.shifts[models]) + self.largest_symbol
        found[(found < 0) | (found > escape)] = escape
        found[self.frequencies[models, found] == 0] = escape
        return found

    def bits(self) -> Doubles:
        """Return what symbols cost with all their bits: float64 (M, W - 1), infinite for those that
        never occur.
        """
        with np.errstate(divide="ignore"):
            found = SLOT_BITS - np.log2(self.frequencies)
        found[:, :-1] += self.shifts[:, None]
        found[:, -1] += ESCAPE_BITS
        return found


def _entries(frequencies: NDArray[np.int64], begins: NDArray[np.int64]) -> NDArray[np.uint32]:
    models, symbols = frequencies.shape
    packed = (frequencies - 1) & (SLOTS - 1) | np.arange(symbols) << 24
    spread = np.repeat(np.stack([packed, begins], axis=-1).reshape(-1, 2), frequencies.ravel(), 0)
    spread = spread.reshape(models, SLOTS, 2)
    within = np.arange(SLOTS) - spread[..., 1]
    found: NDArray[np.uint32] = (spread[..., 0] | within << SLOT_BITS).astype(np.uint32)
    return found


def _check(array: NDArray[np.uint16], place: str) -> None:
    models, width = array.shape if array.ndim == 2 else (0, 0)
    if not (1 <= models <= MOST_MODELS and NARROWEST <= width <= WIDEST and width % 2):
        expected = f"1 to {MOST_MODELS} models of {NARROWEST} to {WIDEST} numbers, an odd number"
        raise FormatError("code-models", place, f"shape {list(array.shape)}", expected)
    largest = int(array[:, 0].max())
    if largest > LARGEST_SHIFT:
        expected = f"at most {LARGEST_SHIFT}"
        raise FormatError("code-models", place, f"a shift of {largest}", expected)
    sums = array[:, 1:].sum(axis=1, dtype=np.int64)
    wrong = np.flatnonzero(sums != SLOTS)
    if len(wrong):
        found = f"frequencies of model {wrong[0]} with a sum of {sums[wrong[0]]}"
        raise FormatError("code-models", place, found, str(SLOTS))
