"""A row quantizer with a bitshift trellis, as QTIP (arXiv 2406.11235) and EXL3's rows have it.

A row is one sequence of values. Its state has `STATE_BITS` bits: every value shifts `bits` new ones
in and as many old ones out, and a code that is computed from the state, 1MAD, gives the value. The
decoder needs the first state and the new bits of each value. The encoder finds the sequence with
the least squared error by Viterbi's algorithm, from any first state.

Before, the values of each group are multiplied by random signs and a Hadamard matrix, so that they
look Gaussian. A group has one scale. The loop is compiled by numba.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from table_quantizers import Floats, rotated

# QTIP has 16, and a GPU. Squared errors of a Gaussian at 1 and 2 bits: 0.276 and 0.0737 with 12,
# 0.267 and 0.0695 with 14, 0.263 and 0.0674 with 16; 14 take 5 times as long, 16 30 times.
STATE_BITS = 12
GROUP = 256


def one_mad(state_bits: int) -> Floats:
    """Return the 1MAD code of each state: float32 (2^state_bits,), nearly Gaussian.

    Section 3.1.1 of QTIP: the sum of the four bytes of a linear congruential generator's number.
    Here it is shifted and scaled to mean 0 and variance 1 over the states there are.
    """
    states = np.arange(1 << state_bits, dtype=np.uint64)
    numbers = (states * np.uint64(34038481) + np.uint64(76625530)).astype(np.uint32)
    sums = numbers.view(np.uint8).reshape(-1, 4).sum(axis=1).astype(np.float64)
    code: Floats = ((sums - sums.mean()) / sums.std()).astype(np.float32)
    return code


def bitshift_trellis(
    table: Floats, bits: int, *, state_bits: int = STATE_BITS, group: int = GROUP
) -> tuple[Floats, float]:
    """Quantize rows with a trellis of `bits` bits a value.

    Parameters
    ----------
    table : ndarray
        float32 (rows, width), whose width is a multiple of `group`.
    bits : int
        New bits of each value, less than `state_bits`.
    state_bits : int
        Bits of a state.
    group : int
        Values that are rotated together and share a scale, a power of two.

    Returns
    -------
    tuple
        The values that a reader would get; bits per value: those of the trellis, of a row's first
        state, and of one float16 scale a group.
    """
    rows, width = table.shape
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), group)
    groups = rotated(table.reshape(-1, group) * signs)
    # The values of the best codes have the variance σ² - D of Gaussian rate–distortion theory.
    spread = np.sqrt(np.square(groups).mean(axis=1, keepdims=True) * (1 - 0.25**bits))
    targets = (groups / np.where(spread > 0, spread, 1)).astype(np.float32).reshape(rows, width)
    code = one_mad(state_bits)
    values = code[trellis_states(targets, code, bits)].reshape(-1, group)
    scale = (groups * values).sum(axis=1, keepdims=True) / np.square(values).sum(1, keepdims=True)
    values = rotated(values * scale.astype(np.float16).astype(np.float32)) * signs
    bits_per_value = (state_bits + bits * (width - 1)) / width + 16 / group
    return values.reshape(table.shape), bits_per_value


def trellis_states(targets: Floats, code: Floats, bits: int) -> NDArray[np.int32]:
    """Return the states whose codes are nearest to each row of `targets`.

    Parameters
    ----------
    targets : ndarray
        float32 (rows, length).
    code : ndarray
        float32 (states,), a power of two of them.
    bits : int
        New bits of each value, which enter a state at its top.

    Returns
    -------
    ndarray
        int32 (rows, length): ``states[:, t] & (2^(n - bits) - 1) == states[:, t - 1] >> bits`` with
        ``n`` bits of a state.
    """
    states = np.empty(targets.shape, np.int32)
    _viterbi(bits)(np.ascontiguousarray(targets), code, states)
    return states


@cache
def _viterbi(bits: int) -> Callable[..., None]:
    """Compile the search for `bits`, which the loops over predecessors have to know."""
    fan = 1 << bits

    @numba.njit(nogil=True, fastmath=True)
    def search(targets: Any, code: Any, states: Any) -> None:
        groups = len(code) >> bits
        cost, least = np.empty(len(code), np.float32), np.empty(groups, np.float32)
        came = np.empty((targets.shape[1], groups), np.uint8)
        for row in range(len(targets)):
            for state in range(len(code)):
                cost[state] = (targets[row, 0] - code[state]) ** 2
            for t in range(1, targets.shape[1]):
                step(targets[row, t], code, cost, least, came[t])
            state = int(np.argmin(cost))
            for t in range(targets.shape[1] - 1, -1, -1):
                states[row, t] = state
                if t:
                    low = state & (groups - 1)
                    state = (low << bits) | came[t, low]

    @numba.njit(nogil=True, fastmath=True)
    def step(target: Any, code: Any, cost: Any, least: Any, came: Any) -> None:
        for group in range(len(least)):
            best, origin = cost[group * fan], 0
            for k in range(1, fan):
                other = cost[group * fan + k]
                origin = k if other < best else origin
                best = min(best, other)
            least[group], came[group] = best, origin
        for k in range(fan):
            own, values = cost[k * len(least) : (k + 1) * len(least)], code[k * len(least) :]
            for group in range(len(least)):
                own[group] = least[group] + (target - values[group]) ** 2

    return search
