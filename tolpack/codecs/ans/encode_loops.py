"""The loops that encode frame ``ans``; `tolpack.codecs.kernels` compiles them with numba.

They go backwards, as a decoder takes out first what was put in last; the rules for loops are those
of `tolpack.codecs.ans.decode_loops`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from tolpack.codecs.ans import alphabets as tables
from tolpack.codecs.ans.decode_loops import (
    LEAST,
    NEXT_STATES,
    ONE,
    SLOT_BITS,
    WORD_BITS,
    WORD_MASK,
    ZERO,
    Array,
    U,
)

ROOM_BITS = U(32 - tables.SLOT_BITS)
REACHES = np.array([0, 0, *tables.LARGEST_IN_GROUP.values()])
# What `encode` finds wrong.
NOT_IN_SET, NO_SYMBOL = 1, 2


@register_jitable
def with_room(state: Any, start: Any, limit: Any) -> Any:
    """Return a state after the word that leaves it if it is at the limit, and the first word's
    place; callers write that word ahead of it in any case.
    """
    full = state >= limit
    return (state >> WORD_BITS) if full else state, start - U(full)


@register_jitable
def put_bits(state: Any, value: Any, count: Any, words: Array, start: Any) -> Any:
    """Put bits into a state; returns it and the place of the first word."""
    words[start - ONE] = np.uint16(state)
    state, start = with_room(state, start, U(1 << 32) >> U(count))
    return state << U(count) | U(value), start


@register_jitable
def put_symbol(state: Any, symbol: Any, words: Array, start: Any) -> Any:
    """As `put_bits`, for a symbol: its frequency, and 65,536 × its first slot."""
    frequency = symbol & WORD_MASK
    words[start - ONE] = np.uint16(state)
    state, start = with_room(state, start, frequency << ROOM_BITS)
    high = state // frequency
    low = state - high * frequency
    return (high << SLOT_BITS) + low + (symbol >> WORD_BITS), start


@register_jitable
def put_level(
    level: Any, model: Any, symbols: Array, escape: Any, shift: Any, state: Any, words: Array,
    start: Any,
) -> Any:  # fmt: skip
    """Put a level into a state; returns the state and the place of the first word, or 0 for that if
    the model has no symbol for it.
    """
    number = (level >> shift) + escape // 2
    if number < 0 or number > escape or symbols[model, number] == 0:
        number = escape
    symbol = U(symbols[model, number])
    if number == escape:
        if symbol == ZERO:
            return state, ZERO
        state, start = put_bits(state, (level >> 8) & 255, 8, words, start)
        state, start = put_bits(state, level & 255, 8, words, start)
    elif shift:
        state, start = put_bits(state, level & ((1 << shift) - 1), shift, words, start)
    return put_symbol(state, symbol, words, start)


@register_jitable
def encode_by_class(
    levels: Array, models: Array, sizes: Array, values: Array, alphabets: Array, symbols: Array,
    numbers: Array, escapes: Array, shifts: Array, states: Array, words: Array, start: Any,
) -> Any:  # fmt: skip
    """Encode a row by class, the last symbol first; returns as `encode_trellis`."""
    for n in range(models.shape[0] - 1, -1, -1):
        model, own, size, lane = models[n], alphabets[n], sizes[n], n % states.shape[0]
        state, escape, shift, reach = states[lane], escapes[model], shifts[model], REACHES[size]
        number, digits, inside = escapes[own], 0, True
        if size > 1:
            for k in range(size):
                level = levels[values[n, k]]
                inside &= -reach <= level <= reach
                digits = digits * (2 * reach + 1) + level + reach
            if inside:
                number = np.int64(numbers[own, digits])
        if number == escapes[own]:
            for k in range(size - 1, -1, -1):
                level = levels[values[n, k]]
                state, start = put_level(level, model, symbols, escape, shift, state, words, start)
                if start == ZERO:
                    return ZERO
        if size > 1:
            state, start = put_symbol(state, U(symbols[own, number]), words, start)
        states[lane] = state
    return start


@register_jitable
def encode_trellis(
    levels: Array, odd: Array, classes: Array, symbols: Array, escape: Any, shifts: Array,
    states: Array, words: Array, start: Any,
) -> Any:  # fmt: skip
    """Encode a field of a row along a trellis, the last value first; returns the place of the first
    word, or 0 if a model has no symbol for a level.
    """
    count, lanes = levels.shape[0], states.shape[0]
    stretch = (count + lanes - 1) // lanes
    for i in range(stretch - 1, -1, -1):
        for n in range(lanes - 1, -1, -1):
            value = n * stretch + i
            if value >= count:
                continue
            model = np.int64(classes[value]) + odd[value]
            states[n], start = put_level(
                levels[value], model, symbols, escape, shifts[model], states[n], words, start
            )
            if start == ZERO:
                return ZERO
    return start


@register_jitable
def find_levels(codes: Array, lanes: int, levels: Array, odd: Array) -> bool:
    """Find the levels of a field's codes, and which are in the set of the odd ones; false if a code
    is not in its set.
    """
    count = codes.shape[0]
    stretch = (count + lanes - 1) // lanes
    state = ZERO
    for i in range(count):
        if i % stretch == 0:
            state = ZERO
        code, own = np.int64(codes[i]), np.int64(state & ONE)
        if code != 0 and (code + own) & 1:
            return False
        level = (code + own * (np.int64(code > 0) - np.int64(code < 0))) >> 1
        levels[i], odd[i] = level, own
        state = NEXT_STATES[state, level & 1]
    return True


def encode(
    codes: Array, rows_per_block: int, fields: Array, models: Array, sizes: Array, values: Array,
    alphabets: Array, classes: Array, symbols: Array, numbers: Array, escapes: Array,
    shifts: Array, lanes: int, trellis: bool, scratch: Array, words: Array, lengths: Array,
) -> int:  # fmt: skip
    """Encode rows; returns 0, or what is wrong.

    Parameters
    ----------
    codes : ndarray
        int32 (n, V).
    rows_per_block : int
        Rows of a block; the last one may have fewer.
    fields : ndarray
        int64 (fields,): values of each.
    models, sizes, alphabets : ndarray
        int32 (symbols,): those of a row's symbols, sizes being numbers of levels.
    values : ndarray
        int32 (symbols, 4): their values.
    classes : ndarray
        uint8 (V,).
    symbols, numbers, escapes : ndarray
        uint32 (A, 256): frequencies and 65,536 × first slots, 0 if it never occurs; int16 (A, 961):
        numbers of groups; int64 (A,): numbers of escapes.
    shifts : ndarray
        int64 (M,).
    lanes : int
        Number of lanes.
    trellis : bool
        Whether codes are trellis-coded.
    scratch : ndarray
        uint16: for the words of one block, and two more.
    words : ndarray
        uint16, written to: the payloads one after the other.
    lengths : ndarray
        int64 (blocks,), written to: words of each payload.
    """
    levels = np.zeros((rows_per_block, codes.shape[1]), np.int64)
    odd = np.zeros((rows_per_block, codes.shape[1]), np.int64)
    states, at = np.empty(lanes, np.uint64), 0
    for block in range(lengths.shape[0]):
        own = codes[block * rows_per_block : (block + 1) * rows_per_block]
        states[:], start = ONE if lanes == 1 else LEAST, U(scratch.shape[0])
        for r in range(own.shape[0]):
            if not trellis:
                levels[r] = own[r]
                continue
            first = 0
            for count in fields:
                span = slice(first, first + count)
                if not find_levels(own[r, span], lanes, levels[r, span], odd[r, span]):
                    return NOT_IN_SET
                first += count
        for r in range(own.shape[0] - 1, -1, -1):
            stop = own.shape[1]
            if trellis:
                for f in range(fields.shape[0] - 1, -1, -1):
                    span = slice(stop - fields[f], stop)
                    start = encode_trellis(
                        levels[r, span], odd[r, span], classes[span], symbols, escapes[0], shifts,
                        states, scratch, start,
                    )  # fmt: skip
                    if start == ZERO:
                        return NO_SYMBOL
                    stop -= fields[f]
            else:
                start = encode_by_class(
                    levels[r], models, sizes, values, alphabets, symbols, numbers,
                    escapes, shifts, states, scratch, start,
                )  # fmt: skip
                if start == ZERO:
                    return NO_SYMBOL
        for n in range(lanes):
            words[at], words[at + 1] = states[n] & WORD_MASK, states[n] >> WORD_BITS
            at += 2
        size = scratch.shape[0] - np.int64(start)
        words[at : at + size] = scratch[scratch.shape[0] - size :]
        at, lengths[block] = at + size, size + 2 * lanes
    return 0
