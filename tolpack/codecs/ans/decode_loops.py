"""The loops that decode frame ``ans``; `tolpack.codecs.kernels` compiles them with numba.

Written for numba: states and words are uint64, as int64 and uint64 together would become floats,
and states are variables of their own, as numba keeps only those in registers. Nothing here makes an
array (`Kernel`). numba checks no bounds. So the place of the next word is checked after every step
of all lanes, each of which takes `compiled.MOST_WORDS` at most, or before some steps of a word each
lane; and callers leave `compiled.PADDING_WORDS` behind the last payload.

The bits are those of `tolpack.codecs.ans.block_coding`, which is the definition.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable
from numpy.typing import NDArray

from tolpack.codecs.ans import alphabets as tables
from tolpack.codecs.ans import compiled
from tolpack.codecs.ans.compiled import FAULTS
from tolpack.codecs.ans.trellis import NEXT

Array = NDArray[Any]
U = np.uint64

NEXT_STATES = NEXT.astype(np.uint64)
ZERO, ONE, TWO, EIGHT = U(0), U(1), U(2), U(8)
SLOT_BITS, SLOT_MASK = U(tables.SLOT_BITS), U(tables.SLOTS - 1)
WORD_BITS, WORD_MASK, LEAST = U(16), U(65535), U(1 << 16)
GROUP, SPECIAL = tables.LARGEST_GROUP, U(compiled.SPECIAL)
# What `decode` finds wrong.
TOO_FEW, STATE, LEFT_OVER, END, TOO_LARGE = 1, 2, 3, 4, 5


@register_jitable
def after_symbol(state: Any, at: Any, symbol: Any, word: Any, more: Any) -> Any:
    """Return a lane's state without a symbol, and the place of the next word.

    ``symbol``: its frequency, 65,536 × its first slot, and maybe `compiled.SPECIAL`; ``word``: the
    one at ``at``, if there is ``more``.
    """
    begin = symbol >> WORD_BITS & SLOT_MASK
    state = (symbol & WORD_MASK) * (state >> SLOT_BITS) + (state & SLOT_MASK) - begin
    low = (state < LEAST) & more
    return (state << WORD_BITS | word) if low else state, at + U(low)


@register_jitable
def after_bits(state: Any, at: Any, count: Any, word: Any, more: Any) -> Any:
    """Return a state without its lowest bits, and the place of the next word."""
    state = state >> count
    low = (state < LEAST) & more
    return (state << WORD_BITS | word) if low else state, at + U(low)


@register_jitable
def rest_of_level(
    words: Array, at: Any, limit: Any, state: Any, number: Any, escape: Any, shift: Any
) -> Any:
    """Take what follows a symbol of a single level: state, place of the next word, and level.

    ``limit``: where a single lane's words end, and beyond all words for more lanes.
    """
    if number < escape:
        level = (np.int64(number) - np.int64(escape) // 2) << np.int64(shift)
        level += np.int64(state & ((ONE << shift) - ONE))
        state, at = after_bits(state, at, shift, U(words[at]), at < limit)
        return state, at, level
    low = state & U(255)
    state, at = after_bits(state, at, EIGHT, U(words[at]), at < limit)
    level = np.int64(low | (state & U(255)) << EIGHT)
    state, at = after_bits(state, at, EIGHT, U(words[at]), at < limit)
    return state, at, (level ^ 32768) - 32768


@register_jitable
def rest_of_symbol(
    words: Array, at: Any, limit: Any, state: Any, number: Any, size: Any, model: Any,
    slots: Array, symbols: Array, escape: Any, shift: Any, codes: Array, place: Any,
) -> Any:  # fmt: skip
    """Take what follows a symbol that is not all of its levels, and put them at a place of codes.

    Returns the lane's state, and the place of the next word.
    """
    if size == 1:
        state, at, level = rest_of_level(words, at, limit, state, number, escape, shift)
        codes[place] = level
        return state, at
    for n in range(size):
        one = U(slots[model << SLOT_BITS | state & SLOT_MASK])
        symbol = U(symbols[model << EIGHT | one])
        state, at = after_symbol(state, at, symbol, U(words[at]), at < limit)
        state, at, level = rest_of_level(words, at, limit, state, one, escape, shift)
        codes[place + n] = level
    return state, at


@register_jitable
def step_of_lanes(
    words: Array, at: Any, limit: Any, states: Array, count: Any, models: Array, sizes: Array,
    alphabets: Array, slots: Array, symbols: Array, levels: Array, escape: Any, shifts: Array,
    start: Any, found: Array, codes: Array,
) -> Any:  # fmt: skip
    """Take a symbol out of each of the first ``count`` lanes; returns the place of the next word.

    ``start``: number of the first symbol in a row; ``found``, ``codes``: uint64 (n,) for four codes
    of a symbol each, and the same memory as int16.
    """
    for lane in range(count):
        own, state = U(alphabets[start + lane]), states[lane]
        number = U(slots[own << SLOT_BITS | state & SLOT_MASK])
        symbol = U(symbols[own << EIGHT | number])
        state, at = after_symbol(state, at, symbol, U(words[at]), at < limit)
        if symbol < SPECIAL:
            found[start + lane] = levels[own << EIGHT | number]
        else:
            model, size = models[start + lane], sizes[start + lane]
            state, at = rest_of_symbol(
                words, at, limit, state, number, size, U(model), slots, symbols, escape,
                shifts[model], codes, GROUP * (start + lane),
            )  # fmt: skip
        states[lane] = state
    return at


@register_jitable
def along_trellis(
    words: Array, at: Any, limit: Any, end: Any, states: Array, places: Array, classes: Array,
    codes: Array, slots: Array, symbols: Array, moves: Array, escape: Any, shifts: Array,
) -> Any:  # fmt: skip
    """Decode a field along a trellis; returns the place of the next word, behind ``end`` if there
    are too few, and whether a code has more than 16 bits. ``places``: for the state of each lane's
    trellis.
    """
    count, lanes, large = U(codes.shape[0]), U(states.shape[0]), False
    stretch = (count + lanes - ONE) // lanes
    places[:] = ZERO
    for i in range(stretch):
        value = U(i)
        for n in range(states.shape[0]):
            if value >= count:
                break
            place, state = places[n], states[n]
            model = U(classes[value]) + (place & ONE)
            number = U(slots[model << SLOT_BITS | state & SLOT_MASK])
            symbol = U(symbols[model << EIGHT | number])
            state, at = after_symbol(state, at, symbol, U(words[at]), at < limit)
            if symbol < SPECIAL:
                move = moves[place << EIGHT | number]
                codes[value], places[n] = np.int16(move), U(move >> 16)
            else:
                state, at, level = rest_of_level(
                    words, at, limit, state, number, escape, shifts[model]
                )
                sign = np.int64(level > 0) - np.int64(level < 0)
                code = 2 * level - np.int64(place & ONE) * sign
                codes[value] = code
                large |= code != np.int64(np.int16(code))
                places[n] = NEXT_STATES[place, U(level & 1)]
            states[n] = state
            value += stretch
        if at > end:
            return at, large
    return at, large


@register_jitable
def put_codes(codes: Array, places: Array, parts: Array, record: Array) -> bool:
    """Put the codes of a row, each from its place, into its record; false if one does not fit."""
    wrong = 0
    for n in range(parts.shape[0]):
        byte, first, count = parts[n, 0], parts[n, 1], parts[n, 2]
        own = places[first : first + count]
        if parts[n, 3] == 1:
            stored = record[byte : byte + count]
            for i in range(own.shape[0]):
                code = codes[own[i]]
                stored[i] = np.uint8(code)
                wrong |= code != np.int16(np.int8(code))
        else:
            stored = record[byte : byte + 2 * count]
            for i in range(own.shape[0]):
                code = codes[own[i]]
                stored[2 * i] = np.uint8(code)
                stored[2 * i + 1] = np.uint8(code >> 8)
    return wrong == 0


@register_jitable
def row_of_lanes(
    words: Array, at: Any, limit: Any, end: Any, states: Array, models: Array, sizes: Array,
    alphabets: Array, slots: Array, symbols: Array, levels: Array, escape: Any, shifts: Array,
    found: Array, codes: Array,
) -> Any:  # fmt: skip
    """Decode a row by class; returns the place of the next word, behind ``end`` if too few."""
    n = 0
    while n < alphabets.shape[0] and at <= end:
        count = min(states.shape[0], alphabets.shape[0] - n)
        at = step_of_lanes(
            words, at, limit, states, count, models, sizes, alphabets, slots, symbols, levels,
            escape, shifts, n, found, codes,
        )  # fmt: skip
        n += count
    return at


@register_jitable
def row_of_four_lanes(
    words: Array, at: Any, limit: Any, end: Any, states: Array, run_alphabets: Array,
    run_ends: Array, models: Array, sizes: Array, alphabets: Array, slots: Array, symbols: Array,
    levels: Array, escape: Any, shifts: Array, found: Array, codes: Array,
) -> Any:  # fmt: skip
    """As `row_of_lanes`, with the states of four lanes in registers.

    ``run_alphabets``, ``run_ends``: of symbols of the same alphabet, which follow each other.
    """
    n, count = 0, alphabets.shape[0]
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    for r in range(run_ends.shape[0]):
        own = U(run_alphabets[r])
        own_slots, own_symbols = own << SLOT_BITS, own << EIGHT
        while n < run_ends[r]:
            # No more symbols at once than there are words ahead: each takes one at most.
            last = min(run_ends[r], n + np.int64(words.shape[0]) - np.int64(at)) - 3
            while n < last:
                number0 = own_symbols | U(slots[own_slots | x0 & SLOT_MASK])
                number1 = own_symbols | U(slots[own_slots | x1 & SLOT_MASK])
                number2 = own_symbols | U(slots[own_slots | x2 & SLOT_MASK])
                number3 = own_symbols | U(slots[own_slots | x3 & SLOT_MASK])
                symbol0, symbol1 = U(symbols[number0]), U(symbols[number1])
                symbol2, symbol3 = U(symbols[number2]), U(symbols[number3])
                if (symbol0 | symbol1 | symbol2 | symbol3) >= SPECIAL:
                    break
                x0, at = after_symbol(x0, at, symbol0, U(words[at]), True)
                x1, at = after_symbol(x1, at, symbol1, U(words[at]), True)
                x2, at = after_symbol(x2, at, symbol2, U(words[at]), True)
                x3, at = after_symbol(x3, at, symbol3, U(words[at]), True)
                found[n], found[n + 1] = levels[number0], levels[number1]
                found[n + 2], found[n + 3] = levels[number2], levels[number3]
                n += 4
            if at > end:
                return at
            if n < run_ends[r]:
                states[0], states[1], states[2], states[3] = x0, x1, x2, x3
                at = step_of_lanes(
                    words, at, limit, states, min(4, count - n), models, sizes, alphabets, slots,
                    symbols, levels, escape, shifts, n, found, codes,
                )  # fmt: skip
                x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
                n += 4
                if at > end:
                    return at
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    return at


@register_jitable
def row_of_four_blocks(
    words: Array, ats: Array, ends: Array, states: Array, run_alphabets: Array,
    run_ends: Array, models: Array, sizes: Array, alphabets: Array, slots: Array, symbols: Array,
    levels: Array, escape: Any, shifts: Array, found: Array, codes: Array,
) -> None:  # fmt: skip
    """Decode a row of each of four blocks of one lane, whose states are in registers.

    ``ats``, ``ends``: places of the next word of each, moved on, and behind the last one; ``found``
    (4, n) and ``codes`` (4, 4 × n) have a row for each.
    """
    n = 0
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    at0, at1, at2, at3 = ats[0], ats[1], ats[2], ats[3]
    end0, end1, end2, end3 = ends[0], ends[1], ends[2], ends[3]
    for r in range(run_ends.shape[0]):
        own = U(run_alphabets[r])
        own_slots, own_symbols = own << SLOT_BITS, own << EIGHT
        while n < run_ends[r]:
            while n < run_ends[r]:
                number0 = own_symbols | U(slots[own_slots | x0 & SLOT_MASK])
                number1 = own_symbols | U(slots[own_slots | x1 & SLOT_MASK])
                number2 = own_symbols | U(slots[own_slots | x2 & SLOT_MASK])
                number3 = own_symbols | U(slots[own_slots | x3 & SLOT_MASK])
                symbol0, symbol1 = U(symbols[number0]), U(symbols[number1])
                symbol2, symbol3 = U(symbols[number2]), U(symbols[number3])
                if (symbol0 | symbol1 | symbol2 | symbol3) >= SPECIAL:
                    break
                x0, at0 = after_symbol(x0, at0, symbol0, U(words[at0]), at0 < end0)
                x1, at1 = after_symbol(x1, at1, symbol1, U(words[at1]), at1 < end1)
                x2, at2 = after_symbol(x2, at2, symbol2, U(words[at2]), at2 < end2)
                x3, at3 = after_symbol(x3, at3, symbol3, U(words[at3]), at3 < end3)
                found[0, n], found[1, n] = levels[number0], levels[number1]
                found[2, n], found[3, n] = levels[number2], levels[number3]
                n += 1
            if n < run_ends[r]:
                states[0], states[1], states[2], states[3] = x0, x1, x2, x3
                ats[0], ats[1], ats[2], ats[3] = at0, at1, at2, at3
                for block in range(4):
                    ats[block] = step_of_lanes(
                        words, ats[block], ends[block], states[block:], 1, models, sizes, alphabets,
                        slots, symbols, levels, escape, shifts, n, found[block], codes[block],
                    )  # fmt: skip
                x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
                at0, at1, at2, at3 = ats[0], ats[1], ats[2], ats[3]
                n += 1
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    ats[0], ats[1], ats[2], ats[3] = at0, at1, at2, at3


@register_jitable
def first_states(words: Array, at: Any, end: Any, states: Array) -> int:
    """Read the states of a block's lanes; returns 0, or what is wrong."""
    lanes = U(states.shape[0])
    if end < at + TWO * lanes:
        return TOO_FEW
    for n in range(states.shape[0]):
        states[n] = U(words[at]) | U(words[at + ONE]) << WORD_BITS
        at += TWO
        if states[n] < LEAST and (lanes > ONE or at < end):
            return STATE
    return 0


@register_jitable
def last_fault(at: Any, end: Any, states: Array) -> int:
    """Return what is wrong where a block should end."""
    if at != end:
        return LEFT_OVER
    last = ONE if states.shape[0] == 1 else LEAST
    for n in range(states.shape[0]):
        if states[n] != last:
            return END
    return 0


@register_jitable
def decode_four(
    words: Array, bounds: Array, rows: int, run_alphabets: Array, run_ends: Array, models: Array,
    sizes: Array, alphabets: Array, places: Array, slots: Array, symbols: Array, levels: Array,
    escape: Any, shifts: Array, parts: Array, records: Array, found: Array, codes: Array,
    scratch: Array,
) -> bool:  # fmt: skip
    """Decode four blocks of one lane and of so many rows together; false if any of them is wrong.

    ``bounds``: the first word of each, and the end; ``records``: theirs.
    """
    state, states, ats, ends = scratch[0, :1], scratch[1], scratch[2], scratch[3]
    fault = 0
    for n in range(4):
        ats[n], ends[n] = U(bounds[n]), U(bounds[n + 1])
        fault |= first_states(words, ats[n], ends[n], state)
        states[n] = state[0]
        ats[n] += TWO
    if fault:
        return False
    for row in range(rows):
        row_of_four_blocks(
            words, ats, ends, states, run_alphabets, run_ends, models, sizes, alphabets, slots,
            symbols, levels, escape, shifts, found, codes,
        )  # fmt: skip
        for n in range(4):
            fault |= not put_codes(codes[n], places, parts, records[n * rows + row])
    for n in range(4):
        state[0] = states[n]
        fault |= last_fault(ats[n], ends[n], state)
    return fault == 0


@register_jitable
def decode_one(
    words: Array, at: Any, end: Any, rows: int, fields: Array, run_alphabets: Array,
    run_ends: Array, models: Array, sizes: Array, alphabets: Array, places: Array, classes: Array,
    slots: Array, symbols: Array, levels: Array, escape: Any, shifts: Array, moves: Array,
    lanes: int, trellis: bool, parts: Array, records: Array, found: Array, codes: Array,
    scratch: Array,
) -> int:  # fmt: skip
    """Decode a block of so many rows; returns 0, or what is wrong."""
    states, others = scratch[0, :lanes], scratch[1]
    fault = first_states(words, at, end, states)
    if fault != 0:
        return fault
    at += TWO * U(lanes)
    limit = end if lanes == 1 else U(words.shape[0])
    large = False
    for row in range(rows):
        if trellis:
            first = 0
            for count in fields:
                span = slice(first, first + count)
                at, wrong = along_trellis(
                    words, at, limit, end, states, others, classes[span], codes[span], slots,
                    symbols, moves, escape, shifts,
                )  # fmt: skip
                large |= wrong
                if at > end:
                    break
                first += count
        elif lanes == 4:
            at = row_of_four_lanes(
                words, at, limit, end, states, run_alphabets, run_ends, models, sizes, alphabets,
                slots, symbols, levels, escape, shifts, found, codes,
            )  # fmt: skip
        else:
            at = row_of_lanes(
                words, at, limit, end, states, models, sizes, alphabets, slots, symbols, levels,
                escape, shifts, found, codes,
            )  # fmt: skip
        if at > end:
            return TOO_FEW
        if large or not put_codes(codes, places, parts, records[row]):
            return TOO_LARGE
    return last_fault(at, end, states)


def decode(
    words: Array, bounds: Array, rows: Array, fields: Array, run_alphabets: Array, run_ends: Array,
    models: Array, sizes: Array, alphabets: Array, places: Array, classes: Array, slots: Array,
    symbols: Array, levels: Array, escape: int, shifts: Array, moves: Array, lanes: int,
    trellis: bool, parts: Array, records: Array, found: Array, codes: Array, scratch: Array,
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
    run_alphabets, run_ends : ndarray
        int32 (runs,): alphabets of symbols that follow each other, and the number behind the last.
    models, sizes, alphabets : ndarray
        int32 (symbols,): those of a row's symbols, sizes being numbers of levels.
    places : ndarray
        int32 (V,): where the code of a value is among ``codes``.
    classes : ndarray
        uint8 (V,).
    slots, symbols, levels : ndarray
        uint8 (A × 16384,); uint32 (A × 256,): frequencies, 65,536 × first slots, and
        `compiled.SPECIAL`; uint64 (A × 256,): four levels of 16 bits.
    escape : int
        Number of the escape of single levels.
    shifts : ndarray
        uint64 (M,) of the models.
    moves : ndarray
        int32 (8 × 256,): by state and symbol, the code and 65,536 × the next state.
    lanes : int
        Number of lanes.
    trellis : bool
        Whether codes are trellis-coded.
    parts : ndarray
        int64 (parts, 4): first byte in a record, first value, values, bytes of a code.
    records : ndarray
        uint8 (sum of rows, record bytes), written to.
    found, codes, scratch : ndarray
        Memory: uint64 (n, symbols) and the same as int16, with a trellis (n, V); uint64 (4, 32).
        n is 4 for one lane, else 1.
    """
    block, record = 0, 0
    while block < rows.shape[0]:
        count = rows[block]
        together = lanes == 1 and not trellis and block + 4 <= rows.shape[0]
        for n in range(1, 4):
            together = together and rows[block + n] == count
        if together and decode_four(
            words, bounds[block : block + 5], count, run_alphabets, run_ends, models, sizes,
            alphabets, places, slots, symbols, levels, U(escape), shifts, parts,
            records[record : record + 4 * count], found, codes, scratch,
        ):  # fmt: skip
            record += 4 * count
            block += 4
            continue
        fault = decode_one(
            words, U(bounds[block]), U(bounds[block + 1]), count, fields, run_alphabets, run_ends,
            models, sizes, alphabets, places, classes, slots, symbols, levels, U(escape), shifts,
            moves, lanes, trellis, parts, records[record : record + count], found[0], codes[0],
            scratch,
        )  # fmt: skip
        if fault != 0:
            return block * FAULTS + fault
        record += count
        block += 1
    return 0
