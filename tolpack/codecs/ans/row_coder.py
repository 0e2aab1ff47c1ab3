"""`RowCoder`: between the codes of rows and payloads of frame ``ans`` (SPEC §8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs import kernels
from tolpack.codecs.ans.alphabets import SLOT_BITS
from tolpack.codecs.ans.block_coding import (
    BlockDecoder,
    BlockEncoder,
    encode_by_class,
    encode_trellis,
    take_by_class,
    take_trellis,
)
from tolpack.codecs.ans.coding_order import ClassOrder, TrellisOrder
from tolpack.codecs.ans.compiled import LoopTables
from tolpack.codecs.ans.models import CodeModels
from tolpack.codecs.ans.payload_sizes import longest_payload, most_words
from tolpack.codecs.ans.trellis import in_set, levels_and_sets, run_length
from tolpack.errors import ConfigError, FormatError
from tolpack.runtime.array_types import Doubles, Ints

# Values that numpy codes together: some arrays of 8 bytes stand for each.
_PIECE = 1 << 22
# Values for which it pays to load the compiled loops, which takes about a second.
_WORTH_LOADING = 1 << 14
_CODES_TOO_LARGE = "codes must fit into the 8 or 16 bits of their codec"
_EXPECTED_CODES = "codes of 8 or 16 bits, as their codec has"


def compiled_loops(values: int) -> kernels.Kernels | None:
    """Return the compiled loops to code so many values with, or ``None`` for numpy."""
    return kernels.load() if values >= _WORTH_LOADING else kernels.loaded()


@dataclass(frozen=True, slots=True, eq=False)
class RowCoder:
    """Codes rows of one layout with the same models and classes.

    Parameters
    ----------
    field_values : tuple of int
        Stored values of each field.
    classes : ndarray
        uint8 (V,): number of the model of each value, in field order; with a trellis that of the
        even codes, the next one being that of the odd ones.
    models : CodeModels
        The models.
    lanes : int
        1 to 32.
    trellis : bool
        Whether codes are trellis-coded.
    code_bits : ndarray or int
        Bits of the codes, 8 or 16: of all, or int64 (V,).
    place : str, optional
        What to name in errors about the classes.

    Raises
    ------
    FormatError
        Code ``code-classes``: there is no such model.
    """

    field_values: tuple[int, ...]
    classes: NDArray[np.uint8]
    models: CodeModels
    lanes: int
    trellis: bool
    code_bits: NDArray[np.int64] | int = 16
    place: str = "classes"
    order: ClassOrder = field(init=False)
    tables: LoopTables = field(init=False)

    def __post_init__(self) -> None:
        """Check the classes, so that nothing has to be while decoding."""
        most = len(self.models.array) - self.trellis
        largest = int(self.classes.max(initial=0))
        if len(self.classes) != self.values:
            found, expected = f"{len(self.classes)} classes", f"{self.values}"
            raise FormatError("code-classes", self.place, found, expected)
        if largest >= most:
            raise FormatError("code-classes", self.place, f"class {largest}", f"below {most}")
        order = ClassOrder.of(self.classes, self.models)
        own = self.classes, self.models, self.lanes, self.trellis
        object.__setattr__(self, "order", order)
        object.__setattr__(self, "tables", LoopTables.of(self.field_values, order, *own))

    @classmethod
    def for_basis(
        cls,
        rank: int,
        width: int,
        row_classes: NDArray[np.uint8],
        models: CodeModels,
        lanes: int,
        place: str = "classes",
    ) -> RowCoder:
        """Make the coder of a basis of 8-bit codes, which is one row: its rows are the fields.

        Parameters
        ----------
        rank, width : int
            Rows of the basis, and values of each.
        row_classes : ndarray
            uint8 (rank or more,): class of each row.
        models, lanes, place
            As of the class.

        Returns
        -------
        RowCoder
            The coder, which takes and gives codes (1, rank × width).

        Raises
        ------
        FormatError
            Code ``code-classes``.
        """
        classes = np.repeat(row_classes[:rank], width)
        return cls((width,) * rank, classes, models, lanes, False, 8, place)

    @property
    def values(self) -> int:
        """Values of a row, V."""
        return sum(self.field_values)

    def longest_payload(self, rows: int) -> int:
        """Bytes of the longest payload of a block of so many rows."""
        return longest_payload(self.lanes, rows * self.values)

    def encode(self, codes: NDArray[Any], rows_per_block: int) -> list[bytes]:
        """Encode rows.

        Parameters
        ----------
        codes : ndarray
            int8, int16, int32 or int64 (n, V), in field order; with a trellis each in the set of
            its state.
        rows_per_block : int
            Rows of a block; the last one may have fewer.

        Returns
        -------
        list of bytes
            The payload of each block.

        Raises
        ------
        ConfigError
            A code is in no symbol of its model, is too large, or is not in its set.
        """
        compiled = compiled_loops(codes.size)
        if compiled is not None:
            return self._encode_compiled(compiled, codes, rows_per_block)
        whole = len(codes) // rows_per_block * rows_per_block
        pieces = self._pieces(whole // rows_per_block, rows_per_block)
        spans = [(a * rows_per_block, b * rows_per_block, rows_per_block) for a, b in pieces]
        if whole < len(codes):
            spans.append((whole, len(codes), len(codes) - whole))
        found: list[bytes] = []
        for start, stop, rows in spans:
            levels, models = self._levels(codes[start:stop])
            self._check_symbols(levels, models)
            found += self._encode(levels, models, rows)
        return found

    def decode(
        self,
        payloads: Sequence[bytes | memoryview],
        rows: Sequence[int],
        place: Callable[[int], str] = "payload {}".format,
    ) -> NDArray[np.int16]:
        """Decode blocks.

        Parameters
        ----------
        payloads : sequence of bytes or memoryview
            One of each block.
        rows : sequence of int
            Rows of each block.
        place : callable, optional
            Names payload number ``n`` in errors.

        Returns
        -------
        ndarray
            int16 (sum of rows, V), in field order.

        Raises
        ------
        FormatError
            Code ``frame``: a payload is not one of so many rows.
        """
        counts = np.asarray(rows, np.int64)
        compiled = compiled_loops(int(counts.sum()) * self.values)
        if compiled is not None:
            return self._decode_compiled(compiled, payloads, counts, place)
        found = np.empty((int(counts.sum()), self.values), np.int16)
        firsts = np.cumsum(counts) - counts
        for count in np.unique(counts).tolist():
            blocks = np.flatnonzero(counts == count)
            for start, stop in self._pieces(len(blocks), count):
                own = blocks[start:stop]
                codes = self._decode(payloads, own.tolist(), count, place)
                found[firsts[own][:, None] + np.arange(count)] = codes
        return found

    def cost_bits(self, codes: NDArray[Any]) -> Doubles:
        """Return the bits of rows by their models, float64 (n,).

        A payload is longer by 24 bits for each lane on average, by 16 or so if there is only one.

        Parameters
        ----------
        codes : ndarray
            As of `encode`.

        Returns
        -------
        ndarray
            float64 (n,); infinite where a model has no symbol for a code.

        Raises
        ------
        ConfigError
            As of `encode`, for codes too large or not in their set.
        """
        bits = self.models.bits()
        found = np.empty(len(codes))
        for start, stop in self._pieces(len(codes), 1):
            levels, models = self._levels(codes[start:stop])
            single = bits[models, self.models.numbers(levels, models)]
            found[start:stop] = single.sum(axis=1)
            if not self.trellis:
                found[start:stop] += self._more_in_groups(levels, single)
        return found

    def _more_in_groups(self, levels: Ints, single: Doubles) -> Doubles:
        """Return what groups cost more than single levels, whose bits are `single`: float64 (n,).

        ``levels``: int64 (n, V), as `single`.
        """
        found, order, tables = np.zeros(len(levels)), self.order, self.models
        slots = tables.alphabets.frequencies
        for model in np.unique(order.models[order.sizes > 1]).tolist():
            size, alphabet = int(tables.sizes[model]), int(tables.groups[model])
            values = order.values[(order.models == model) & (order.sizes > 1), :size]
            own, alone = levels[:, values], single[:, values].sum(axis=2)
            numbers = tables.group_numbers(own.reshape(-1, size), alphabet).reshape(alone.shape)
            bits = SLOT_BITS - np.log2(slots[alphabet, numbers])
            bits += np.where(numbers == tables.alphabets.escapes[alphabet], alone, 0.0)
            found += (bits - alone).sum(axis=1)
        return found

    def _encode(self, levels: Ints, models: Ints, rows: int) -> list[bytes]:
        """Encode blocks of so many rows with numpy."""
        by_block = [
            one.reshape(-1, rows, self.values).transpose(1, 2, 0) for one in (levels, models)
        ]
        blocks, words = by_block[0].shape[2], most_words(rows * self.values)
        encoder = BlockEncoder(blocks, self.lanes, words, self.models)
        if self.trellis:
            encode_trellis(encoder, by_block[0], by_block[1], self._trellis_order())
        else:
            encode_by_class(encoder, by_block[0], self.order, self.lanes)
        return encoder.payloads()

    def _encode_compiled(
        self, compiled: kernels.Kernels, codes: NDArray[Any], rows_per_block: int
    ) -> list[bytes]:
        """Encode by the compiled loop, some blocks at a time."""
        if self._too_large(codes).any():
            raise ConfigError(_CODES_TOO_LARGE)
        found: list[bytes] = []
        step, words = rows_per_block, most_words(rows_per_block * self.values)
        for start, stop in self._pieces(-(-len(codes) // step), step):
            own = codes[start * step : stop * step]
            found += self.tables.encode(compiled.ans_encode, own, step, words)
        return found

    def _decode_compiled(
        self, compiled: kernels.Kernels, payloads: Sequence[bytes | memoryview], rows: Ints,
        place: Callable[[int], str],
    ) -> NDArray[np.int16]:  # fmt: skip
        """Decode by the compiled loop."""
        parts = np.array([[0, 0, self.values, 2]], np.int64)
        records = self.tables.decode(
            compiled.ans_decode, payloads, rows, parts, 2 * self.values, place
        )
        codes: NDArray[np.int16] = records.view("<i2")
        wrong = np.flatnonzero(self._too_large(codes).any(axis=1))
        if len(wrong):
            block = int(np.searchsorted(np.cumsum(rows), wrong[0], side="right"))
            raise FormatError("frame", place(block), "a larger code", _EXPECTED_CODES)
        return codes

    def _decode(
        self, payloads: Sequence[bytes | memoryview], own: list[int], rows: int,
        place: Callable[[int], str],
    ) -> Ints:  # fmt: skip
        """Decode the payloads numbered `own`, of so many rows: int64 (payloads, rows, V)."""
        decoder = BlockDecoder(
            [payloads[n] for n in own], self.lanes, self.models, lambda number: place(own[number])
        )
        if self.trellis:
            classes = self.classes.astype(np.int64)
            codes = take_trellis(decoder, rows, self._trellis_order(), classes)
        else:
            codes = take_by_class(decoder, rows, self.values, self.order, self.lanes)
        codes = codes.transpose(2, 0, 1)
        decoder.finish()
        wrong = self._too_large(codes).any(axis=(1, 2))
        if wrong.any():
            block = own[int(np.argmax(wrong))]
            raise FormatError("frame", place(block), "a larger code", _EXPECTED_CODES)
        return codes

    def _levels(self, codes: NDArray[Any]) -> tuple[Ints, Ints]:
        """Return the levels of codes, and the numbers of their models: int64 (n, V)."""
        whole = codes.astype(np.int64)
        if self._too_large(whole).any():
            raise ConfigError(_CODES_TOO_LARGE)
        models = np.broadcast_to(self.classes.astype(np.int64), codes.shape)
        if not self.trellis:
            return whole, models
        ends = np.cumsum(self.field_values)
        found = [
            levels_and_sets(field, run_length(field.shape[1], self.lanes))
            for field in np.split(whole, ends[:-1], axis=1)
        ]
        levels, sets = (np.concatenate(parts, axis=1, dtype=np.int64) for parts in zip(*found))
        if not in_set(whole, sets).all():
            raise ConfigError("trellis-coded codes must be in the set of their state")
        return levels, models + sets

    def _check_symbols(self, levels: Ints, models: Ints) -> None:
        """Raise `ConfigError` if a level has neither a symbol nor an escape."""
        if self.models.always_escapes:
            return
        numbers = self.models.numbers(levels, models)
        if (self.models.alphabets.frequencies[models, numbers] == 0).any():
            raise ConfigError("a code has no symbol in its model, which has no escape either")

    def _too_large(self, codes: NDArray[Any]) -> NDArray[np.bool_]:
        limits = 1 << (np.asarray(self.code_bits) - 1)
        large: NDArray[np.bool_] = (codes < -limits) | (codes > limits - 1)
        return large

    def _trellis_order(self) -> TrellisOrder:
        return TrellisOrder.of(self.field_values, self.lanes)

    def _pieces(self, blocks: int, rows: int) -> Iterator[tuple[int, int]]:
        """Yield the bounds of blocks that are coded together."""
        step = max(1, _PIECE // (rows * self.values))
        return ((start, min(start + step, blocks)) for start in range(0, blocks, step))
