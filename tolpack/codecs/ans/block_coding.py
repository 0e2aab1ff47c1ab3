"""Coding of blocks with numpy, which defines the coder: all blocks a value at a time (SPEC §8).

A symbol that has ``f`` of the 4,096 slots takes ``12 - log2(f)`` bits. A lane's state holds 16 to
32 bits; when it would hold more, 16 go to the words that all lanes share. Encoding goes backwards,
as a decoder takes out first what was put in last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.ans.models import SLOT_BITS, SLOTS, CodeModels
from tolpack.codecs.ans.payload_sizes import STATE_BYTES, WORD_BYTES
from tolpack.codecs.ans.trellis import NEXT, codes_of
from tolpack.codecs.ans.value_order import ValueOrder
from tolpack.errors import FormatError
from tolpack.runtime.array_types import Ints

# The least state; 16 bits leave a state, or come to it, at a time.
LEAST_STATE = 1 << 16


class BlockEncoder:
    """Takes the values of some blocks, the last ones first.

    Parameters
    ----------
    blocks : int
        Number of blocks.
    lanes : int
        Lanes of each.
    most_words : int
        Words that a block may take.
    """

    def __init__(self, blocks: int, lanes: int, most_words: int) -> None:
        self._states = np.full((lanes, blocks), LEAST_STATE, np.int64)
        self._words = np.empty((blocks, most_words), "<u2")
        self._starts = np.full(blocks, most_words, np.int64)

    def put_bits(self, lane: int, values: Ints, counts: Ints) -> None:
        """Put ``counts[b]`` bits, the number ``values[b]``, into a lane of block ``b``."""
        self._make_room(lane, 1 << (32 - counts))
        states = self._states[lane]
        self._states[lane] = states << counts | values

    def put_symbols(self, lane: int, frequencies: Ints, begins: Ints) -> None:
        """Put the symbol with these slots into a lane of every block."""
        self._make_room(lane, frequencies << (32 - SLOT_BITS))
        high, low = np.divmod(self._states[lane], frequencies)
        self._states[lane] = (high << SLOT_BITS) + low + begins

    def payloads(self) -> list[bytes]:
        """Return what the blocks came to."""
        states = np.ascontiguousarray(self._states.T.astype("<u4"))
        return [
            state.tobytes() + words[start:].tobytes()
            for state, words, start in zip(states, self._words, self._starts)
        ]

    def _make_room(self, lane: int, limits: Ints) -> None:
        states = self._states[lane]
        full = np.flatnonzero(states >= limits)
        if len(full):
            self._starts[full] -= 1
            self._words[full, self._starts[full]] = states[full] & (LEAST_STATE - 1)
            states[full] >>= 16


class BlockDecoder:
    """Takes values out of some blocks, in the order of coding.

    Parameters
    ----------
    payloads : sequence of bytes or memoryview
        One of each block.
    lanes : int
        Lanes of each.
    place : callable
        Names payload number ``n`` in errors.

    Raises
    ------
    FormatError
        Code ``frame``: a payload is too short for its states, of an odd length, or its states are
        too small.
    """

    def __init__(
        self, payloads: Sequence[bytes | memoryview], lanes: int, place: Callable[[int], str]
    ) -> None:
        self._place = place
        sizes = np.array([len(payload) for payload in payloads], np.int64)
        self._refuse(
            (sizes < STATE_BYTES * lanes) | (sizes % 2 != 0),
            "too short, or half a word", f"{lanes} states, and whole words",
        )  # fmt: skip
        words = np.frombuffer(b"".join(payloads), "<u2").astype(np.int64)
        self._ends = np.cumsum(sizes) // WORD_BYTES
        at = self._ends - sizes // WORD_BYTES
        halves = words[at + np.arange(2 * lanes)[:, None]].reshape(lanes, 2, -1)
        self._states: Ints = halves[:, 0] | halves[:, 1] << 16
        self._at, self._words = at + 2 * lanes, words
        self._refuse(
            (self._states < LEAST_STATE).any(axis=0), "a state below 2^16", "a state of 16 bits"
        )

    def bits(self, lane: int, counts: Any) -> Ints:
        """Take ``counts[b]`` bits out of a lane of block ``b``."""
        states = self._states[lane]
        found: Ints = states & ((1 << counts) - 1)
        self._states[lane] = states >> counts
        self._refill(lane)
        return found

    def symbols(self, lane: int, entries: NDArray[np.uint32], models: Ints) -> Ints:
        """Take a symbol of these models out of a lane of every block: the symbols' numbers."""
        states = self._states[lane]
        found = entries[models, states & (SLOTS - 1)].astype(np.int64)
        frequencies = (found & (SLOTS - 1)) + 1
        self._states[lane] = frequencies * (states >> SLOT_BITS) + (found >> SLOT_BITS & 4095)
        self._refill(lane)
        numbers: Ints = found >> 24
        return numbers

    def finish(self) -> None:
        """Raise `FormatError` (``frame``) unless every payload ends here."""
        self._refuse(self._at != self._ends, "words left over", "every word used")
        ended = (self._states == LEAST_STATE).all(axis=0)
        self._refuse(~ended, "a state that does not end at 2^16", "2^16")

    def _refill(self, lane: int) -> None:
        states = self._states[lane]
        low = np.flatnonzero(states < LEAST_STATE)
        if len(low):
            at = self._at[low]
            lacking = at >= self._ends[low]
            if lacking.any():
                at_fault = np.zeros(len(self._ends), np.bool_)
                at_fault[low[lacking]] = True
                self._refuse(at_fault, "too few words", "words for all values")
            states[low] = states[low] << 16 | self._words[at]
            self._at[low] = at + 1

    def _refuse(self, wrong: NDArray[np.bool_], found: str, expected: str) -> None:
        if wrong.any():
            raise FormatError("frame", self._place(int(np.argmax(wrong))), found, expected)


def encode_blocks(
    levels: Ints, models: Ints, order: ValueOrder, tables: CodeModels, lanes: int, most_words: int
) -> list[bytes]:
    """Encode blocks of the same number of rows.

    Parameters
    ----------
    levels, models : ndarray
        int64 (rows, V, blocks): what to code, and the number of its model.
    order : ValueOrder
        Order of a row's values.
    tables : CodeModels
        All models.
    lanes : int
        Number of lanes.
    most_words : int
        Words that a block may take.

    Returns
    -------
    list of bytes
        The payloads.
    """
    escape = tables.frequencies.shape[1] - 1
    encoder = BlockEncoder(levels.shape[2], lanes, most_words)
    steps = list(zip(order.values.tolist(), order.lanes.tolist()))[::-1]
    for row in range(len(levels) - 1, -1, -1):
        for value, lane in steps:
            level, model = levels[row, value], models[row, value]
            number = tables.numbers(level, model)
            escaped = number == escape
            if escaped.any():
                encoder.put_bits(lane, np.where(escaped, level >> 8 & 255, 0), 8 * escaped)
            counts = np.where(escaped, 8, tables.shifts[model])
            if counts.any():
                encoder.put_bits(lane, level & ((1 << counts) - 1), counts)
            encoder.put_symbols(
                lane, tables.frequencies[model, number], tables.begins[model, number]
            )
    return encoder.payloads()


def take_rows(
    decoder: BlockDecoder,
    rows: int,
    blocks: int,
    order: ValueOrder,
    classes: Ints,
    tables: CodeModels,
    trellis: bool,
) -> Ints:
    """Take the values of the next rows out of blocks: codes, int64 (rows, V, blocks).

    ``classes``, int64 (V,): the class of each value. Raises `FormatError`, code ``frame``.
    """
    found = np.empty((rows, len(classes), blocks), np.int64)
    states = np.zeros((int(order.stretches.max()) + 1, blocks), np.int64)
    parts = (order.values, order.lanes, order.stretches, classes[order.values])
    steps = list(zip(*(part.tolist() for part in parts)))
    for row in found:
        states[:] = 0
        for value, lane, stretch, number in steps:
            state = states[stretch]
            levels = _level(decoder, lane, number + (state & 1) * trellis, tables)
            row[value] = codes_of(levels, state) if trellis else levels
            if trellis:
                states[stretch] = NEXT[state, levels & 1]
    return found


def _level(decoder: BlockDecoder, lane: int, models: Ints, tables: CodeModels) -> Ints:
    """Take the next level out of a lane of every block, by these models."""
    numbers = decoder.symbols(lane, tables.entries, models)
    escaped = numbers == tables.frequencies.shape[1] - 1
    shifts = tables.shifts[models]
    counts = np.where(escaped, 8, shifts)
    low = decoder.bits(lane, counts) if counts.any() else 0
    levels = ((numbers - tables.largest_symbol) << shifts) + low
    if escaped.any():
        whole = decoder.bits(lane, 8 * escaped) << 8 | low
        levels = np.where(escaped, whole - (whole >> 15 << 16), levels)
    return levels
