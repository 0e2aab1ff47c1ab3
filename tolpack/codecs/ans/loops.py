"""The loops of frame ``ans`` that `tolpack.codecs.kernels` compiles; they need numba.

Written for numba: states and words are uint64, as int64 and uint64 together would become floats,
and inner helpers take numbers only, as numba counts the users of an array at every call. numba
checks no bounds. So the place of the next word is checked after every step of all lanes, each of
which takes `compiled.MOST_WORDS` at most, and callers leave `compiled.PADDING_WORDS` behind the
last payload.

The bits are those of `tolpack.codecs.ans.block_coding`, which is the definition.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable
from numpy.typing import NDArray

from tolpack.codecs.ans.compiled import FAULTS
from tolpack.codecs.ans.trellis import NEXT

Array = NDArray[Any]
U = np.uint64

NEXT_STATES = NEXT.astype(np.uint64)
ZERO, ONE, TWO, EIGHT, SLOT_BITS, SLOT_MASK = U(0), U(1), U(2), U(8), U(12), U(4095)
WORD_BITS, NUMBER_AT, LEAST = U(16), U(24), U(1 << 16)
# What `decode` finds wrong.
TOO_FEW, STATE, LEFT_OVER, END, TOO_LARGE = 1, 2, 3, 4, 5
# What `encode` finds wrong.
NOT_IN_SET, NO_SYMBOL = 1, 2


@register_jitable
def after_symbol(state: Any, at: Any, entry: Any, word: Any) -> Any:
    """Return a lane's state without the symbol of an entry, and the place of the next word."""
    state = ((entry & SLOT_MASK) + ONE) * (state >> SLOT_BITS) + (entry >> SLOT_BITS & SLOT_MASK)
    low = state < LEAST
    return (state << WORD_BITS | word) if low else state, at + U(low)


@register_jitable
def after_bits(state: Any, at: Any, count: Any, word: Any) -> Any:
    """Return a state without its lowest bits, and the place of the next word."""
    state = state >> count
    low = state < LEAST
    return (state << WORD_BITS | word) if low else state, at + U(low)


@register_jitable
def special(
    state: Any, at: Any, number: Any, symbols: Any, shift: Any, word: Any, next_word: Any,
    place: Any, trellis: Any,
) -> Any:  # fmt: skip
    """Take what follows a symbol that is not all of its level.

    Returns the lane's state, the place of the next word, the code, and the next state of the
    trellis. ``symbols``: how many there are with the escape; ``place``: the state of the trellis;
    ``word``, ``next_word``: those at ``at``.
    """
    if number < symbols - ONE:
        level = np.int64(number) - np.int64(symbols - TWO) // 2
        level = (level << np.int64(shift)) + np.int64(state & ((ONE << shift) - ONE))
        state, at = after_bits(state, at, shift, word)
    else:
        low, first = state & U(255), at
        state, at = after_bits(state, at, EIGHT, word)
        level = np.int64(low | (state & U(255)) << EIGHT)
        level = (level ^ 32768) - 32768
        state, at = after_bits(state, at, EIGHT, word if at == first else next_word)
    if trellis == ZERO:
        return state, at, level, ZERO
    sign = np.int64(level > 0) - np.int64(level < 0)
    code = 2 * level - np.int64(place & ONE) * sign
    return state, at, code, NEXT_STATES[place, U(level & 1)]


@register_jitable
def any_lanes(
    words: Array, at: Any, end: Any, states: Array, places: Array, classes: Array, codes: Array,
    entries: Array, shifts: Array, plain: Array, moves: Array, symbols: Any, trellis: Any,
) -> Any:  # fmt: skip
    """Decode a field; returns the place of the next word, behind `end` if there are too few."""
    count, lanes = U(codes.shape[0]), U(states.shape[0])
    stretch = (count + lanes - ONE) // lanes
    places[:] = ZERO
    for i in range(stretch):
        value = U(i)
        for n in range(states.shape[0]):
            if value >= count:
                break
            place, kind = places[n], U(classes[value])
            model = kind + (place & trellis)
            entry = U(entries[(model << SLOT_BITS) + (states[n] & SLOT_MASK)])
            number = entry >> NUMBER_AT
            state, at = after_symbol(states[n], at, entry, U(words[at]))
            if number < plain[kind]:
                move = moves[place << EIGHT | number]
                codes[value], places[n] = np.int16(move), U(move >> 16)
            else:
                state, at, codes[value], places[n] = special(
                    state, at, number, symbols, shifts[model], U(words[at]), U(words[at + ONE]),
                    place, trellis,
                )  # fmt: skip
            states[n] = state
            value += stretch
        if at > end:
            return at
    return at


@register_jitable
def four_lanes(
    words: Array, at: Any, end: Any, states: Array, classes: Array, codes: Array, entries: Array,
    shifts: Array, plain: Array, moves: Array, symbols: Any, trellis: Any,
) -> Any:  # fmt: skip
    """Decode as `any_lanes` does, with the states of four equally long lanes in registers."""
    size = codes.shape[0] // 4
    kinds, found = classes.reshape((4, size)), codes.reshape((4, size))
    kinds0, kinds1, kinds2, kinds3 = kinds[0], kinds[1], kinds[2], kinds[3]
    codes0, codes1, codes2, codes3 = found[0], found[1], found[2], found[3]
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    t0, t1, t2, t3 = ZERO, ZERO, ZERO, ZERO
    for i in range(size):
        kind, place = U(kinds0[i]), t0
        entry = U(entries[((kind + (place & trellis)) << SLOT_BITS) + (x0 & SLOT_MASK)])
        x0, at = after_symbol(x0, at, entry, U(words[at]))
        if entry >> NUMBER_AT < plain[kind]:
            move = moves[place << EIGHT | entry >> NUMBER_AT]
            codes0[i], t0 = np.int16(move), U(move >> 16)
        else:
            x0, at, codes0[i], t0 = special(
                x0, at, entry >> NUMBER_AT, symbols, shifts[kind + (place & trellis)],
                U(words[at]), U(words[at + ONE]), place, trellis,
            )  # fmt: skip
        kind, place = U(kinds1[i]), t1
        entry = U(entries[((kind + (place & trellis)) << SLOT_BITS) + (x1 & SLOT_MASK)])
        x1, at = after_symbol(x1, at, entry, U(words[at]))
        if entry >> NUMBER_AT < plain[kind]:
            move = moves[place << EIGHT | entry >> NUMBER_AT]
            codes1[i], t1 = np.int16(move), U(move >> 16)
        else:
            x1, at, codes1[i], t1 = special(
                x1, at, entry >> NUMBER_AT, symbols, shifts[kind + (place & trellis)],
                U(words[at]), U(words[at + ONE]), place, trellis,
            )  # fmt: skip
        kind, place = U(kinds2[i]), t2
        entry = U(entries[((kind + (place & trellis)) << SLOT_BITS) + (x2 & SLOT_MASK)])
        x2, at = after_symbol(x2, at, entry, U(words[at]))
        if entry >> NUMBER_AT < plain[kind]:
            move = moves[place << EIGHT | entry >> NUMBER_AT]
            codes2[i], t2 = np.int16(move), U(move >> 16)
        else:
            x2, at, codes2[i], t2 = special(
                x2, at, entry >> NUMBER_AT, symbols, shifts[kind + (place & trellis)],
                U(words[at]), U(words[at + ONE]), place, trellis,
            )  # fmt: skip
        kind, place = U(kinds3[i]), t3
        entry = U(entries[((kind + (place & trellis)) << SLOT_BITS) + (x3 & SLOT_MASK)])
        x3, at = after_symbol(x3, at, entry, U(words[at]))
        if entry >> NUMBER_AT < plain[kind]:
            move = moves[place << EIGHT | entry >> NUMBER_AT]
            codes3[i], t3 = np.int16(move), U(move >> 16)
        else:
            x3, at, codes3[i], t3 = special(
                x3, at, entry >> NUMBER_AT, symbols, shifts[kind + (place & trellis)],
                U(words[at]), U(words[at + ONE]), place, trellis,
            )  # fmt: skip
        if at > end:
            return at
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    return at


@register_jitable
def put_parts(codes: Array, parts: Array, record: Array) -> bool:
    """Put the codes of a row into its record; false if one does not fit."""
    wrong = 0
    for n in range(parts.shape[0]):
        byte, first, count = parts[n, 0], parts[n, 1], parts[n, 2]
        own = codes[first : first + count]
        if parts[n, 3] == 1:
            stored = record[byte : byte + count]
            for i in range(own.shape[0]):
                stored[i] = np.uint8(own[i])
                wrong |= own[i] != np.int32(np.int8(own[i]))
        else:
            stored = record[byte : byte + 2 * count]
            for i in range(own.shape[0]):
                stored[2 * i] = np.uint8(own[i])
                stored[2 * i + 1] = np.uint8(own[i] >> 8)
                wrong |= own[i] != np.int32(np.int16(own[i]))
    return wrong == 0


def decode(
    words: Array, bounds: Array, rows: Array, fields: Array, classes: Array, entries: Array,
    shifts: Array, plain: Array, moves: Array, lanes: int, symbols: int, trellis: bool,
    parts: Array, records: Array,
) -> int:  # fmt: skip
    """Decode blocks to records; returns 0, or what is wrong.

    Parameters
    ----------
    words : ndarray
        uint16: payloads one after the other, and `compiled.PADDING_WORDS` more.
    bounds : ndarray
        int64 (blocks + 1,): the first word of each, and the end.
    rows : ndarray
        int64 (blocks,): rows of each.
    fields : ndarray
        int64 (fields,): values of each.
    classes : ndarray
        uint8 (V,).
    entries, shifts : ndarray
        uint32 (M × 4096,) and uint64 (M,) of the models.
    plain : ndarray
        uint64 (256,): for each class, as many of the first symbols have no more bits.
    moves : ndarray
        int32 (8 × 256,): by state and symbol, the code and 65,536 × the next state.
    lanes, symbols : int
        Number of lanes, and of symbols with the escape.
    trellis : bool
        Whether codes are trellis-coded.
    parts : ndarray
        int64 (parts, 4): first byte in a record, first value, values, bytes of a code.
    records : ndarray
        uint8 (sum of rows, record bytes), written to.
    """
    codes = np.empty(classes.shape[0], np.int32)
    states, places = np.empty(lanes, np.uint64), np.empty(lanes, np.uint64)
    record, odd, count_of = 0, U(trellis), U(symbols)
    for block in range(rows.shape[0]):
        at, end = U(bounds[block]), U(bounds[block + 1])
        if end < at + TWO * U(lanes):
            return block * FAULTS + TOO_FEW
        for n in range(lanes):
            states[n] = U(words[at]) | U(words[at + ONE]) << WORD_BITS
            at += TWO
            if states[n] < LEAST:
                return block * FAULTS + STATE
        for _ in range(rows[block]):
            first = 0
            for count in fields:
                own, found = classes[first : first + count], codes[first : first + count]
                if lanes == 4 and count % 4 == 0:
                    at = four_lanes(
                        words, at, end, states, own, found, entries, shifts, plain, moves,
                        count_of, odd,
                    )  # fmt: skip
                else:
                    at = any_lanes(
                        words, at, end, states, places, own, found, entries, shifts, plain, moves,
                        count_of, odd,
                    )  # fmt: skip
                if at > end:
                    return block * FAULTS + TOO_FEW
                first += count
            if not put_parts(codes, parts, records[record]):
                return block * FAULTS + TOO_LARGE
            record += 1
        if at != end:
            return block * FAULTS + LEFT_OVER
        for n in range(lanes):
            if states[n] != LEAST:
                return block * FAULTS + END
    return 0


@register_jitable
def with_room(state: Any, start: Any, limit: Any) -> Any:
    """Return a state after the word that leaves it if it is at the limit, and the first word's
    place; callers write that word ahead of it in any case.
    """
    full = state >= limit
    return (state >> WORD_BITS) if full else state, start - U(full)


@register_jitable
def encode_field(
    levels: Array, odd: Array, classes: Array, symbols: Array, shifts: Array, states: Array,
    words: Array, start: Any,
) -> Any:  # fmt: skip
    """Encode a field of a row, the last value first; returns the place of the first word, or 0 if
    a model has no symbol for a level.
    """
    count, lanes, escape = levels.shape[0], states.shape[0], symbols.shape[1] - 1
    stretch, largest = (count + lanes - 1) // lanes, (symbols.shape[1] - 2) // 2
    for i in range(stretch - 1, -1, -1):
        for n in range(lanes - 1, -1, -1):
            value = n * stretch + i
            if value >= count:
                continue
            level, state = levels[value], states[n]
            model = np.int64(classes[value]) + odd[value]
            shift = shifts[model]
            number = (level >> shift) + largest
            if number < 0 or number > escape or symbols[model, number] == 0:
                number = escape
            symbol = symbols[model, number]
            if number == escape:
                if symbol == ZERO:
                    return ZERO
                words[start - ONE] = np.uint16(state)
                state, start = with_room(state, start, U(1 << 24))
                state = state << EIGHT | U((level >> 8) & 255)
                words[start - ONE] = np.uint16(state)
                state, start = with_room(state, start, U(1 << 24))
                state = state << EIGHT | U(level & 255)
            elif shift:
                words[start - ONE] = np.uint16(state)
                state, start = with_room(state, start, U(1 << 32) >> U(shift))
                state = state << U(shift) | U(level & ((1 << shift) - 1))
            frequency = symbol & U(65535)
            words[start - ONE] = np.uint16(state)
            state, start = with_room(state, start, frequency << U(20))
            high = state // frequency
            low = state - high * frequency
            states[n] = (high << SLOT_BITS) + low + (symbol >> WORD_BITS)
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
    codes: Array, rows_per_block: int, fields: Array, classes: Array, symbols: Array,
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
    classes : ndarray
        uint8 (V,).
    symbols : ndarray
        uint64 (M, W - 1): frequency of a symbol, and 65,536 × its first slot; 0 if it never occurs.
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
        states[:], start = LEAST, U(scratch.shape[0])
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
            for f in range(fields.shape[0] - 1, -1, -1):
                span = slice(stop - fields[f], stop)
                start = encode_field(
                    levels[r, span], odd[r, span], classes[span], symbols, shifts, states, scratch,
                    start,
                )  # fmt: skip
                if start == ZERO:
                    return NO_SYMBOL
                stop -= fields[f]
        for n in range(lanes):
            words[at], words[at + 1] = states[n] & U(65535), states[n] >> WORD_BITS
            at += 2
        size = scratch.shape[0] - np.int64(start)
        words[at : at + size] = scratch[scratch.shape[0] - size :]
        at, lengths[block] = at + size, size + 2 * lanes
    return 0
