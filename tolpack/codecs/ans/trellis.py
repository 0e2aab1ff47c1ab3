"""Trellis-coded quantization of 8 states: between codes and levels (SPEC §8).

Two sets of codes share the numbers: the even ones, and the odd ones with zero (Marcellin and
Fischer 1990; the states are those of dependent quantization in video coding). The parities of the
levels so far say which set is next, so that a level is about half of its code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

STATES = 8
# The next state, by state and parity of the level; a state's set of codes is its parity.
NEXT = np.array(
    [[0, 2], [5, 7], [1, 3], [6, 4], [2, 0], [4, 6], [3, 1], [7, 5]], np.int64
)  # fmt: skip


def codes_of(levels: NDArray[Any], states: NDArray[Any]) -> NDArray[Any]:
    """Return the codes of levels in these states."""
    found: NDArray[Any] = 2 * levels - (states & 1) * np.sign(levels)
    return found


def levels_of(codes: NDArray[Any], states: NDArray[Any]) -> NDArray[Any]:
    """Return the levels of codes in these states, in whose sets they must be (`in_set`)."""
    found: NDArray[Any] = (codes + (states & 1) * np.sign(codes)) >> 1
    return found


def run_length(count: int, lanes: Any) -> Any:
    """Return how many values of a field of `count` a lane has, but for the last lanes."""
    return -(-count // lanes)


def levels_and_sets(
    codes: NDArray[np.signedinteger[Any]],
    lengths: Any,
    first: int = 0,
    states: NDArray[np.uint8] | None = None,
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Return the levels of a field's codes along the trellis, and the sets they are of.

    Parameters
    ----------
    codes : ndarray
        Whole numbers of 16 bits, (n, count), of values `first` … of the field.
    lengths : int or ndarray
        As of `run_length`, for all rows or int (n,) for each: every run begins in state 0.
    first : int
        Number of the first value.
    states : ndarray, optional
        uint8 (n,): states ahead of the codes; receives those behind. Needed where `first` is not 0.

    Returns
    -------
    levels, sets : ndarray
        int16 and uint8 (n, count).
    """
    levels, sets = np.empty(codes.shape, np.int16), np.empty(codes.shape, np.uint8)
    states = np.zeros(len(codes), np.uint8) if states is None else states
    following = NEXT.astype(np.uint8)
    for i in range(codes.shape[1]):
        states *= (first + i) % lengths != 0
        sets[:, i] = states & 1
        levels[:, i] = found = levels_of(codes[:, i], sets[:, i].astype(np.int16))
        states[:] = following[states, found & 1]
    return levels, sets


def in_set(codes: NDArray[Any], states: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether codes are in the sets of these states."""
    inside: NDArray[np.bool_] = ((codes + (states & 1)) & 1 == 0) | (codes == 0)
    return inside
