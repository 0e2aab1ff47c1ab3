"""Between arrays of Python and the compiled loops of frame ``ans``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.ans.alphabets import LARGEST_GROUP, MOST_SYMBOLS
from tolpack.codecs.ans.coding_order import ClassOrder
from tolpack.codecs.ans.models import CodeModels
from tolpack.codecs.ans.payload_sizes import MOST_LANES
from tolpack.codecs.ans.trellis import NEXT, STATES, codes_of
from tolpack.errors import ConfigError, FormatError
from tolpack.runtime.array_types import Bytes, Ints

# Words that a step of all lanes may take: of each one those of a group's escape, and of four levels
# an escape and two bytes.
MOST_WORDS = MOST_LANES * (1 + 4 * 3)
PADDING_WORDS = MOST_WORDS + 2
# Stands with symbols that more has to be read for.
SPECIAL = 1 << 31
# What the loops return, by number (they need numba); faults of block n are n * FAULTS more.
FAULTS = 8
_DECODING = {
    1: ("too few words", "words for all values"),
    2: ("a state below 2^16", "a state of 16 bits"),
    3: ("words left over", "every word used"),
    4: ("a state that does not end as it should", "2^16, and 1 for a single lane"),
    5: ("a larger code", "codes of 8 or 16 bits, as their codec has"),
}
_ENCODING = {
    1: "trellis-coded codes must be in the set of their state",
    2: "a code has no symbol in its model, which has no escape either",
}
_PADDING = bytes(2 * PADDING_WORDS)


@dataclass(frozen=True, slots=True, eq=False)
class LoopTables:
    """What the loops look up, for the models, classes and fields of a coder.

    ``decoding``, ``encoding``: arguments of the loops that are the same at every call;
    ``row_symbols``: symbols of a row, with memory for four codes each.
    """

    decoding: tuple[Any, ...]
    encoding: tuple[Any, ...]
    lanes: int
    row_symbols: int

    @classmethod
    def of(
        cls,
        field_values: tuple[int, ...],
        order: ClassOrder,
        classes: NDArray[np.uint8],
        models: CodeModels,
        lanes: int,
        trellis: bool,
    ) -> LoopTables:
        """Make the tables; parameters as of `RowCoder`, and the order of its values."""
        fields, classes = np.array(field_values, np.int64), np.ascontiguousarray(classes, np.uint8)
        tables, symbols = models.alphabets, _symbols(models)
        alphabets = np.where(order.sizes > 1, models.groups[order.models], order.models)
        alphabets = alphabets.astype(np.int32)
        ends = np.flatnonzero(np.diff(alphabets, append=-1)) + 1
        places = np.arange(len(classes), dtype=np.int32) if trellis else _places(order)
        levels = np.ascontiguousarray(tables.levels, "<i2").view(np.uint64)
        decoding = (
            fields, alphabets[ends - 1], ends.astype(np.int32), order.models, order.sizes,
            alphabets, places, classes, tables.slots.reshape(-1), symbols.reshape(-1),
            levels.reshape(-1), models.escape, models.shifts.astype(np.uint64),
            _moves(models, trellis), lanes, trellis,
        )  # fmt: skip
        encoding = (
            fields, order.models, order.sizes, order.values, alphabets, classes,
            symbols & ~np.uint32(SPECIAL), tables.numbers, tables.escapes, models.shifts, lanes,
            trellis,
        )  # fmt: skip
        row_symbols = -(-len(classes) // LARGEST_GROUP) if trellis else len(alphabets)
        return cls(decoding, encoding, lanes, row_symbols)

    def decode(
        self,
        loop: Callable[..., int],
        payloads: Sequence[bytes | memoryview],
        rows: Ints,
        parts: Ints,
        record_bytes: int,
        place: Callable[[int], str],
    ) -> Bytes:
        """Decode blocks: uint8 (sum of rows, record_bytes).

        ``parts``, int64 (parts, 4): first byte in a record, first value, values, bytes of a code.
        Raises `FormatError`, code ``frame``.
        """
        sizes = np.array([len(payload) for payload in payloads], np.int64)
        odd = sizes & 1
        if odd.any():
            block = int(odd.argmax())
            raise FormatError("frame", place(block), f"{sizes[block]} bytes", "whole words")
        bounds = np.zeros(len(sizes) + 1, np.int64)
        np.cumsum(sizes // 2, out=bounds[1:])
        words = np.frombuffer(b"".join([*payloads, _PADDING]), "<u2")
        records = np.empty((int(rows.sum()), record_bytes), np.uint8)
        found = np.empty((4 if self.lanes == 1 else 1, self.row_symbols), np.uint64)
        fault = loop(
            words, bounds, rows, *self.decoding, parts, records, found, found.view(np.int16),
            np.empty((4, MOST_LANES), np.uint64),
        )  # fmt: skip
        if fault:
            block, kind = divmod(fault, FAULTS)
            raise FormatError("frame", place(block), *_DECODING[kind])
        return records

    def encode(
        self, loop: Callable[..., int], codes: NDArray[Any], rows_per_block: int, most_words: int
    ) -> list[bytes]:
        """Encode codes that fit: the payload of each block, which has `most_words` at most behind
        its states. Raises `ConfigError`.
        """
        blocks = -(-len(codes) // rows_per_block)
        words = np.empty(blocks * (most_words + 2 * self.lanes), np.uint16)
        lengths = np.empty(blocks, np.int64)
        fault = loop(
            np.ascontiguousarray(codes, np.int32), rows_per_block, *self.encoding,
            np.empty(most_words + 2, np.uint16), words, lengths,
        )  # fmt: skip
        if fault:
            raise ConfigError(_ENCODING[fault])
        ends = np.cumsum(lengths)
        data = words[: ends[-1] if blocks else 0].astype("<u2").tobytes()
        return [data[2 * (e - n) : 2 * e] for e, n in zip(ends.tolist(), lengths.tolist())]


def _places(order: ClassOrder) -> NDArray[np.int32]:
    """Return where the code of each value is among those of all symbols: int32 (V,)."""
    found = np.zeros(int(order.sizes.sum()), np.int32)
    symbols = LARGEST_GROUP * np.arange(len(order.sizes), dtype=np.int32)
    for place, own in enumerate(order.values.T):
        here = own >= 0
        found[own[here]] = symbols[here] + place
    return found


def _symbols(models: CodeModels) -> NDArray[np.uint32]:
    """Return frequencies of symbols, 65,536 × their first slots, and `SPECIAL` for those that are
    not all of their levels: uint32 (A, 256).
    """
    tables = models.alphabets
    special = np.arange(MOST_SYMBOLS) >= tables.escapes[:, None]
    special[: len(models.shifts)] |= models.shifts[:, None] > 0
    return (tables.frequencies | tables.begins << 16 | special * SPECIAL).astype(np.uint32)


def _moves(models: CodeModels, trellis: bool) -> NDArray[np.int32]:
    """Return, by state and symbol, the code and 65,536 × the next state: int32 (8 × 256,)."""
    found = np.zeros((STATES, 256), np.int64)
    levels = np.arange(models.escape) - models.largest_symbol
    states = np.arange(STATES)[:, None]
    if trellis:
        found[:, : models.escape] = codes_of(levels, states) & 0xFFFF
        found[:, : models.escape] |= NEXT[states, levels & 1] << 16
    return found.astype(np.int32).ravel()
