"""The symbols of models, and their slots: of single levels and of groups of levels (SPEC §8)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolpack.runtime.array_types import Ints

SLOT_BITS = 14
SLOTS = 1 << SLOT_BITS
# Symbols of an alphabet with the escape.
MOST_SYMBOLS = 256
# By the size of groups, the largest level that is in one.
LARGEST_IN_GROUP = {2: 15, 3: 4, 4: 2}
LARGEST_GROUP = max(LARGEST_IN_GROUP)


@dataclass(frozen=True, slots=True, eq=False)
class Alphabets:
    """The alphabets of some models: first the single levels of each, then groups of those that have
    them. The arrays are not to be written to.

    Parameters
    ----------
    frequencies, begins : ndarray
        int64 (A, 256): slots of a symbol by its number, and the first of them; 0 behind the escape.
    escapes : ndarray
        int64 (A,): number of the escape, which is an alphabet's last symbol.
    levels : ndarray
        int16 (A, 256, 4): the levels of a symbol, before shifts, one behind the other.
    numbers : ndarray
        int16 (A, 961): of groups, by all levels as digits of one number, the first one most, the
        number of the symbol; the escape's for groups without one.
    slots : ndarray
        uint8 (A, 16384): the number of the symbol that has a slot.
    """

    frequencies: Ints
    begins: Ints
    escapes: Ints
    levels: NDArray[np.int16]
    numbers: NDArray[np.int16]
    slots: NDArray[np.uint8]

    @classmethod
    def of(cls, frequencies: Ints, groups: list[tuple[Ints, Ints]]) -> Alphabets:
        """Make the alphabets of models.

        Parameters
        ----------
        frequencies : ndarray
            int64 (M, W - 1): of the symbols ``-K … K`` and the escape; each row adds up to 16384.
        groups : list
            What `group_symbols` found for each model that has groups.
        """
        largest = (frequencies.shape[1] - 2) // 2
        single = np.arange(-largest, largest + 1)[:, None]
        symbols = [*((single, row) for row in frequencies), *groups]
        count = len(symbols)
        frequencies = np.zeros((count, MOST_SYMBOLS), np.int64)
        levels = np.zeros((count, MOST_SYMBOLS, LARGEST_GROUP), np.int16)
        numbers = np.zeros((count, (2 * LARGEST_IN_GROUP[2] + 1) ** 2), np.int16)
        slots = np.empty((count, SLOTS), np.uint8)
        escapes = np.array([len(own) for own, _ in symbols])
        for n, (own, shares) in enumerate(symbols):
            frequencies[n, : len(shares)] = shares
            levels[n, : len(own), : own.shape[1]] = own
            slots[n] = np.repeat(np.arange(len(shares)), shares)
            numbers[n] = len(own)
            if own.shape[1] > 1:
                numbers[n, group_digits(own)] = np.arange(len(own))
        begins = np.cumsum(frequencies, axis=1) - frequencies
        begins[frequencies == 0] = 0
        return cls(frequencies, begins, escapes, levels, numbers, slots)


def group_symbols(frequencies: Ints, size: int) -> tuple[Ints, Ints]:
    """Find the most frequent groups of levels that occur on their own.

    Parameters
    ----------
    frequencies : ndarray
        int64 (W - 1,): of the symbols ``-K … K`` and the escape.
    size : int
        Levels of a group, 2 to 4.

    Returns
    -------
    levels, frequencies : ndarray
        int64 (n, size), 255 at most, and int64 (n + 1,), the escape's last: it may be too small.
    """
    largest = (len(frequencies) - 2) // 2
    reach = min(largest, LARGEST_IN_GROUP[size])
    own = frequencies[largest - reach : largest + reach + 1]
    products = own
    for _ in range(size - 1):
        products = np.multiply.outer(products, own)
    bits = SLOT_BITS * (size - 1)
    rounded = (products.ravel() + (1 << (bits - 1))) >> bits
    found = np.argsort(-rounded, kind="stable")[: MOST_SYMBOLS - 1]
    found = found[rounded[found] > 0]
    levels = np.stack(np.unravel_index(found, products.shape), axis=1) - reach
    return levels, np.append(rounded[found], SLOTS - rounded[found].sum())


def group_digits(levels: Ints) -> Ints:
    """Return groups (…, size) of levels that may be in one as numbers: int64 (…,)."""
    size = levels.shape[-1]
    reach = LARGEST_IN_GROUP[size]
    found: Ints = (levels + reach) @ (2 * reach + 1) ** np.arange(size - 1, -1, -1)
    return found
