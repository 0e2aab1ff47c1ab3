"""Between arrays of Python and the compiled loops of frame ``ans``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.ans.models import CodeModels
from tolpack.codecs.ans.trellis import NEXT, STATES, codes_of
from tolpack.errors import ConfigError, FormatError
from tolpack.runtime.array_types import Bytes, Ints

# Words that a step of 16 lanes may take: those of a symbol and of an escape's two bytes.
MOST_WORDS = 48
PADDING_WORDS = MOST_WORDS + 2
# What `loops.decode` and `loops.encode` return, by number (the loops need numba); faults of block n
# are n * FAULTS more.
FAULTS = 8
_DECODING = {
    1: ("too few words", "words for all values"),
    2: ("a state below 2^16", "a state of 16 bits"),
    3: ("words left over", "every word used"),
    4: ("a state that does not end at 2^16", "2^16"),
    5: ("a larger code", "codes of 8 or 16 bits, as their codec has"),
}
_ENCODING = {
    1: "trellis-coded codes must be in the set of their state",
    2: "a code has no symbol in its model, which has no escape either",
}
_PADDING = bytes(2 * PADDING_WORDS)
_CLASSES = 256


@dataclass(frozen=True, slots=True, eq=False)
class LoopTables:
    """What the loops look up, for the models, classes and fields of a coder."""

    fields: Ints
    classes: NDArray[np.uint8]
    models: CodeModels
    entries: NDArray[np.uint32]
    shifts: NDArray[np.uint64]
    plain: NDArray[np.uint64]
    moves: NDArray[np.int32]
    symbols: NDArray[np.uint64]
    lanes: int
    trellis: bool

    @classmethod
    def of(
        cls,
        field_values: tuple[int, ...],
        classes: NDArray[np.uint8],
        models: CodeModels,
        lanes: int,
        trellis: bool,
    ) -> LoopTables:
        """Make the tables; parameters as of `RowCoder`."""
        symbols = models.frequencies.shape[1]
        shifted = models.shifts > 0
        if trellis:
            shifted[:-1] |= models.shifts[1:] > 0
        plain = np.zeros(_CLASSES, np.uint64)
        plain[: len(shifted)] = np.where(shifted, 0, symbols - 1)
        return cls(
            np.array(field_values, np.int64), np.ascontiguousarray(classes, np.uint8), models,
            models.entries.reshape(-1), models.shifts.astype(np.uint64), plain,
            _moves(symbols, trellis), _symbols(models), lanes, trellis,
        )  # fmt: skip

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
        odd = np.flatnonzero(sizes % 2)
        if len(odd):
            raise FormatError("frame", place(int(odd[0])), f"{sizes[odd[0]]} bytes", "whole words")
        bounds = np.concatenate([[0], np.cumsum(sizes // 2)])
        words = np.frombuffer(b"".join([*payloads, _PADDING]), "<u2")
        records = np.empty((int(rows.sum()), record_bytes), np.uint8)
        fault = loop(
            words, bounds, rows, self.fields, self.classes, self.entries, self.shifts, self.plain,
            self.moves, self.lanes, self.models.frequencies.shape[1], self.trellis, parts, records,
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
            np.ascontiguousarray(codes, np.int32), rows_per_block, self.fields, self.classes,
            self.symbols, self.models.shifts, self.lanes, self.trellis,
            np.empty(most_words + 2, np.uint16), words, lengths,
        )  # fmt: skip
        if fault:
            raise ConfigError(_ENCODING[fault])
        ends = np.cumsum(lengths)
        data = words[: ends[-1] if blocks else 0].astype("<u2").tobytes()
        return [data[2 * (e - n) : 2 * e] for e, n in zip(ends.tolist(), lengths.tolist())]


def _symbols(models: CodeModels) -> NDArray[np.uint64]:
    """Return frequencies of symbols and 65,536 × their first slots: uint64 (M, W - 1)."""
    found = models.frequencies | models.begins << 16
    return np.where(models.frequencies == 0, 0, found).astype(np.uint64)


def _moves(symbols: int, trellis: bool) -> NDArray[np.int32]:
    """Return, by state and symbol, the code and 65,536 × the next state: int32 (8 × 256,)."""
    found = np.zeros((STATES, 256), np.int64)
    levels = np.arange(symbols - 1) - (symbols - 2) // 2
    states = np.arange(STATES)[:, None]
    if trellis:
        found[:, : symbols - 1] = codes_of(levels, states) & 0xFFFF | NEXT[states, levels & 1] << 16
    else:
        found[:, : symbols - 1] = levels & 0xFFFF
    return found.astype(np.int32).ravel()
