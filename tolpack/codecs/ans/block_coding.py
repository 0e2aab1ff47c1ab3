"""Coding of blocks with numpy, which defines the coder: a symbol of all blocks at a time (SPEC §8).

A symbol that has ``f`` of the 16,384 slots takes ``14 - log2(f)`` bits. A lane's state holds 16 to
32 bits; when it would hold more, 16 go to the words that all lanes share. A single lane begins
with a state of no bits. Encoding goes backwards, as a decoder takes out first what was put in last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.ans.alphabets import SLOT_BITS, SLOTS
from tolpack.codecs.ans.coding_order import ClassOrder, TrellisOrder
from tolpack.codecs.ans.models import CodeModels
from tolpack.codecs.ans.payload_sizes import STATE_BYTES, WORD_BYTES
from tolpack.codecs.ans.trellis import NEXT, codes_of
from tolpack.errors import FormatError
from tolpack.runtime.array_types import Ints

# The least state of a lane that has words; 16 bits leave a state, or come to it, at a time.
LEAST_STATE = 1 << 16


def first_state(lanes: int) -> int:
    """Return the state that an encoder begins with, and a decoder ends with."""
    return 1 if lanes == 1 else LEAST_STATE


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
    models : CodeModels
        The models.
    """

    def __init__(self, blocks: int, lanes: int, most_words: int, models: CodeModels) -> None:
        self._models, self._lanes = models, lanes
        self._states = np.full((lanes, blocks), first_state(lanes), np.int64)
        self._words = np.empty((blocks, most_words), "<u2")
        self._starts = np.full(blocks, most_words, np.int64)

    def put_levels(self, lane: int, own: Ints, levels: Ints, models: Ints) -> None:
        """Put levels (n,) with the models of each into a lane of the blocks numbered `own`."""
        tables = self._models
        numbers = tables.numbers(levels, models)
        escaped = numbers == tables.escape
        if escaped.any():
            self._put_bits(lane, own[escaped], levels[escaped] >> 8 & 255, 8)
        counts = np.where(escaped, 8, tables.shifts[models])
        if counts.any():
            self._put_bits(lane, own, levels & ((1 << counts) - 1), counts)
        self._put_symbols(lane, own, models, numbers)

    def put_group(self, lane: int, levels: Ints, model: int) -> None:
        """Put a group of levels, (blocks, size), into a lane of every block."""
        alphabet = int(self._models.groups[model])
        numbers = self._models.group_numbers(levels, alphabet)
        own = np.flatnonzero(numbers == self._models.alphabets.escapes[alphabet])
        for place in range(levels.shape[1] - 1, -1, -1):
            if len(own):
                self.put_levels(lane, own, levels[own, place], np.full(len(own), model))
        self._put_symbols(lane, np.arange(len(levels)), alphabet, numbers)

    def payloads(self) -> list[bytes]:
        """Return what the blocks came to."""
        states = np.ascontiguousarray(self._states.T.astype("<u4"))
        return [
            state.tobytes() + words[start:].tobytes()
            for state, words, start in zip(states, self._words, self._starts)
        ]

    def _put_bits(self, lane: int, own: Ints, values: Ints, counts: Any) -> None:
        self._make_room(lane, own, 1 << (32 - counts))
        self._states[lane, own] = self._states[lane, own] << counts | values

    def _put_symbols(self, lane: int, own: Ints, alphabet: Any, numbers: Ints) -> None:
        frequencies = self._models.alphabets.frequencies[alphabet, numbers]
        self._make_room(lane, own, frequencies << (32 - SLOT_BITS))
        high, low = np.divmod(self._states[lane, own], frequencies)
        begins = self._models.alphabets.begins[alphabet, numbers]
        self._states[lane, own] = (high << SLOT_BITS) + low + begins

    def _make_room(self, lane: int, own: Ints, limits: Any) -> None:
        states = self._states[lane]
        full = own[states[own] >= limits]
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
    models : CodeModels
        The models.
    place : callable
        Names payload number ``n`` in errors.

    Raises
    ------
    FormatError
        Code ``frame``: a payload is too short for its states, of an odd length, or its states are
        too small.
    """

    def __init__(
        self, payloads: Sequence[bytes | memoryview], lanes: int, models: CodeModels,
        place: Callable[[int], str],
    ) -> None:  # fmt: skip
        self._place, self._lanes, self._models = place, lanes, models
        self.blocks = len(payloads)
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
        small = (self._states < LEAST_STATE).any(axis=0)
        if lanes == 1:
            small &= self._at < self._ends
        self._refuse(small, "a state below 2^16", "a state of 16 bits")

    def levels(self, lane: int, own: Ints, models: Ints) -> Ints:
        """Take a level, by the model of each, out of a lane of the blocks numbered `own`: (n,)."""
        tables = self._models
        numbers = self._symbols(lane, own, models)
        escaped = numbers == tables.escape
        shifts = tables.shifts[models]
        counts = np.where(escaped, 8, shifts)
        low = self._bits(lane, own, counts) if counts.any() else 0
        levels: Ints = ((numbers - tables.largest_symbol) << shifts) + low
        if escaped.any():
            whole = self._bits(lane, own, 8 * escaped) << 8 | low
            levels = np.where(escaped, whole - (whole >> 15 << 16), levels)
        return levels

    def group(self, lane: int, model: int) -> Ints:
        """Take a group of levels out of a lane of every block: int64 (blocks, size)."""
        tables, alphabet = self._models, int(self._models.groups[model])
        numbers = self._symbols(lane, np.arange(self.blocks), alphabet)
        levels = tables.alphabets.levels[alphabet, numbers, : int(tables.sizes[model])]
        found: Ints = levels.astype(np.int64)
        own = np.flatnonzero(numbers == tables.alphabets.escapes[alphabet])
        for place in range(found.shape[1]):
            if len(own):
                found[own, place] = self.levels(lane, own, np.full(len(own), model))
        return found

    def finish(self) -> None:
        """Raise `FormatError` (``frame``) unless every payload ends here."""
        self._refuse(self._at != self._ends, "words left over", "every word used")
        last = first_state(self._lanes)
        ended = (self._states == last).all(axis=0)
        self._refuse(~ended, f"a state that does not end at {last}", f"{last}")

    def _bits(self, lane: int, own: Ints, counts: Any) -> Ints:
        states = self._states[lane, own]
        found: Ints = states & ((1 << counts) - 1)
        self._refill(lane, own, states >> counts)
        return found

    def _symbols(self, lane: int, own: Ints, alphabet: Any) -> Ints:
        states, tables = self._states[lane, own], self._models.alphabets
        slots = states & (SLOTS - 1)
        numbers: Ints = tables.slots[alphabet, slots].astype(np.int64)
        frequencies, begins = (
            table[alphabet, numbers] for table in (tables.frequencies, tables.begins)
        )
        self._refill(lane, own, frequencies * (states >> SLOT_BITS) + slots - begins)
        return numbers

    def _refill(self, lane: int, own: Ints, states: Ints) -> None:
        """Set the states of a lane; those below 2^16 take a word."""
        self._states[lane, own] = states
        low = own[states < LEAST_STATE]
        if self._lanes == 1:
            low = low[self._at[low] < self._ends[low]]
        if len(low):
            at = self._at[low]
            lacking = at >= self._ends[low]
            if lacking.any():
                at_fault = np.zeros(self.blocks, np.bool_)
                at_fault[low[lacking]] = True
                self._refuse(at_fault, "too few words", "words for all values")
            self._states[lane, low] = self._states[lane, low] << 16 | self._words[at]
            self._at[low] = at + 1

    def _refuse(self, wrong: NDArray[np.bool_], found: str, expected: str) -> None:
        if wrong.any():
            raise FormatError("frame", self._place(int(np.argmax(wrong))), found, expected)


def encode_by_class(encoder: BlockEncoder, levels: Ints, order: ClassOrder, lanes: int) -> None:
    """Put rows of blocks, int64 (rows, V, blocks), into an encoder, the last row first."""
    own = np.arange(levels.shape[2])
    for row in levels[::-1]:
        for n, model, values in order.symbols(backwards=True):
            if len(values) > 1:
                encoder.put_group(n % lanes, row[values].T, model)
            else:
                encoder.put_levels(n % lanes, own, row[values[0]], np.full(len(own), model))


def encode_trellis(encoder: BlockEncoder, levels: Ints, models: Ints, order: TrellisOrder) -> None:
    """As `encode_by_class`, for a trellis; ``models``: int64 (rows, V, blocks)."""
    own = np.arange(levels.shape[2])
    steps = list(zip(order.values.tolist(), order.lanes.tolist()))[::-1]
    for row in range(len(levels) - 1, -1, -1):
        for value, lane in steps:
            encoder.put_levels(lane, own, levels[row, value], models[row, value])


def take_by_class(
    decoder: BlockDecoder, rows: int, values: int, order: ClassOrder, lanes: int
) -> Ints:
    """Take the values of the next rows out of blocks: codes, int64 (rows, values, blocks).

    Raises `FormatError`, code ``frame``.
    """
    found = np.empty((rows, values, decoder.blocks), np.int64)
    own = np.arange(decoder.blocks)
    for row in found:
        for n, model, numbers in order.symbols():
            if len(numbers) > 1:
                row[numbers] = decoder.group(n % lanes, model).T
            else:
                row[numbers[0]] = decoder.levels(n % lanes, own, np.full(len(own), model))
    return found


def take_trellis(decoder: BlockDecoder, rows: int, order: TrellisOrder, classes: Ints) -> Ints:
    """As `take_by_class`, for a trellis; ``classes``, int64 (V,): the class of each value."""
    found = np.empty((rows, len(classes), decoder.blocks), np.int64)
    own = np.arange(decoder.blocks)
    states = np.zeros((int(order.stretches.max()) + 1, decoder.blocks), np.int64)
    parts = (order.values, order.lanes, order.stretches, classes[order.values])
    steps = list(zip(*(part.tolist() for part in parts)))
    for row in found:
        states[:] = 0
        for value, lane, stretch, number in steps:
            state = states[stretch]
            levels = decoder.levels(lane, own, number + (state & 1))
            row[value] = codes_of(levels, state)
            states[stretch] = NEXT[state, levels & 1]
    return found
