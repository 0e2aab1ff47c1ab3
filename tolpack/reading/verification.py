"""Checking a whole pack: every checksum, every value, every byte that belongs to nothing.

Damage is named by its place and by the tokens that it hits. Neighbouring blocks that are damaged in
the same way are one entry, so a file that was cut or overwritten gives a short list. Where a
thousand entries are not enough, the last one counts the others: what this takes in memory is
bounded by the file, whatever is wrong with it; in time by what its blocks decode to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.encodings import CoderSettings
from tolpack.codecs.record import record_layout
from tolpack.container.chunk_view import ChunkView
from tolpack.container.index import FRAMES_PER_INDEX_BLOCK, index_block_extent
from tolpack.container.verified_reader import Container
from tolpack.errors import FileAccessError, FormatError
from tolpack.reading.basis_arrays import float_pieces
from tolpack.reading.block_checks import BlockChecker
from tolpack.reading.edited_rows import read_token_ids
from tolpack.reading.ngram_rows import read_id_map
from tolpack.reading.part_checks import part_errors
from tolpack.reading.token_map import StoredOrder, inverse_permutation, read_token_map
from tolpack.runtime.pool import Pool, thread_count

# Reads at once where they wait for a network.
_REMOTE_READS = 16
# Findings that are told one by one; runs of token ids that are told of each.
_MOST_FINDINGS = 1000
_MOST_RANGES = 100
# Token ids that are looked at together.
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that `Pack.verify` found.

    ``first_slot`` and ``rows`` say which rows it hits, in the order in which they are stored;
    ``token_ranges`` are the token ids of these, as (first, last) of runs, or ``None`` where the
    token map is damaged itself, and of a part file, whose damaged blocks have entries of their own;
    of many runs the first hundred, and ``more_ranges`` says how many there are besides. ``code`` is
    the `FormatError` code, or ``"unreadable"``; ``message`` is the first error's. ``places`` is 1,
    but of the last entry of a long list, which stands for all places that are not told one by one:
    its code is ``"more"``, and its rows reach from the first of them to the last. ``table`` is the
    table's name in a pack of several, and ``None`` for what hits all of them: their rows are then
    counted together.
    """

    place: str
    first_slot: int
    rows: int
    token_ranges: tuple[tuple[int, int], ...] | None
    code: str
    message: str
    places: int = 1
    more_ranges: int = 0
    table: str | None = None


def find_damage(
    container: Container,
    progress: Callable[[int], object] | None = None,
    threads: int | None = None,
) -> list[Damage]:
    """Read all of a pack, every table of it, and return what is damaged.

    Parameters
    ----------
    container : Container
        The open pack, whichever its table is.
    progress : callable, optional
        Called with the number of bytes of the file checked since the last call.
    threads : int, optional
        Threads that share the work; default: one for each processor.
    """
    progress = progress or (lambda count: None)
    workers = thread_count(threads)
    pool = Pool(max(workers, _REMOTE_READS * container.source.is_remote), "verify")
    try:
        return _find_damage(container, progress, pool)
    finally:
        pool.close()


def _find_damage(
    container: Container, progress: Callable[[int], object], pool: Pool
) -> list[Damage]:
    found = _envelope_damages(container, progress, pool)
    arrays = _Arrays(container, progress)
    for number in range(len(container.header.tables)):
        view = container if number == container.number else container.of_table(number)
        check = _Check(view, progress, max(0, _MOST_FINDINGS - len(found)), pool, arrays)
        check.arrays()
        for chunk in range(len(view.chunks)):
            check.chunk(chunk)
        found += check.damages()
    return found


def _envelope_damages(
    container: Container, progress: Callable[[int], object], pool: Pool
) -> list[Damage]:
    """Check what lies outside of sections, and what all tables need."""
    tables, found = container.header.tables, []
    sections = sum(section.length_bytes for section in container.header.sections)
    rest = container.preamble.file_length - sections
    rows = sum(table.rows for table in tables)
    tokens = ((0, rows - 1),) if len(tables) == 1 and tables[0].edits is None else None
    for place, check, size in (
        ("header", container.check_header, 0), ("padding", container.check_padding, rest),
    ):  # fmt: skip
        try:
            check()
        except (FormatError, FileAccessError) as error:
            found.append(Damage(place, 0, rows, tokens, _code(error), str(error)))
        progress(size)
    for file, reason in part_errors(container, pool):
        slot = next((one.first_row for one in file.pieces if one.first_row is not None), 0)
        place = f"part file {file.name}"
        found.append(Damage(place, slot, file.rows, None, _code(reason), str(reason)))
    return found


def _code(error: FormatError | FileAccessError) -> str:
    return error.code if isinstance(error, FormatError) else "unreadable"


class _Arrays:
    """Checks arrays, each of them once: tables may share them."""

    def __init__(self, container: Container, progress: Callable[[int], object]) -> None:
        self._container, self._progress = container, progress
        self._errors: dict[int, FormatError | FileAccessError | None] = {}

    def error(
        self, number: int, read: Callable[[], object]
    ) -> FormatError | FileAccessError | None:
        """What is wrong with section `number`, which `read` reads."""
        if number not in self._errors:
            self._errors[number] = None
            try:
                read()
            except (FormatError, FileAccessError) as error:
                self._errors[number] = error.with_traceback(None)  # it holds on to the array
            self._progress(self._container.header.sections[number].length_bytes)
        return self._errors[number]


@dataclass(frozen=True, slots=True)
class _Finding:
    """Like `Damage`; of a block, also chunk and block number, else -1."""

    place: str
    first_slot: int
    rows: int
    code: str
    message: str
    chunk: int = -1
    block: int = -1
    last_block: int = -1


class _Check:
    """One run over a table, with at most `most` findings in the order of the file's parts."""

    def __init__(
        self, container: Container, progress: Callable[[int], object], most: int, pool: Pool,
        arrays: _Arrays,
    ) -> None:  # fmt: skip
        self._container, self._arrays = container, arrays
        self._progress = progress
        self._most = most
        self._table = container.table
        layouts = {
            number: record_layout(container.header.encodings[number].fields)
            for number in self._table.encodings
        }
        self._checker = BlockChecker(container, layouts, pool, progress)
        self._findings: list[_Finding] = []
        self._last: _Finding | None = None
        self._more = 0
        self._more_slots = range(0)
        has_order = self._table.token_map is None and self._table.edits is None
        self._order = StoredOrder(None) if has_order else None

    def arrays(self) -> None:
        """Check the arrays of the table, of which all its rows need each."""
        seen: set[int] = set()
        for place, number, read in self._array_readers():
            if number not in seen:
                seen.add(number)
                error = self._arrays.error(number, partial(read, number))
                if error is not None:
                    place = place if self._name is None else f"{place}, of {self._name}"
                    self._add(place, 0, self._table.rows, error)
        for field in self._table.kept_fields:
            if field.basis is not None:  # what is wrong with its coder was found with the basis
                self._coder_error(self._container.header.sections[field.basis].coder)

    def _array_readers(self) -> Iterator[tuple[str, int, Callable[[int], None]]]:
        ngrams, floats = self._table.ngrams, partial(_read_floats, self._container)
        if self._table.token_map is not None:
            yield "token map", self._table.token_map, self._read_map
        if self._table.edits is not None:
            yield "edited token ids", self._table.edits.token_ids, self._read_token_ids
        if ngrams is not None and ngrams.id_map is not None:
            yield "compressed ids", ngrams.id_map, partial(_read_id_map, self._container)
        for field in self._table.kept_fields:
            for kind, number in (("basis", field.basis), ("mean", field.mean)):
                if number is not None:
                    yield f"{kind} of {field.name}", number, floats

    def _coder_error(self, coder: CoderSettings | None) -> FormatError | FileAccessError | None:
        """What is wrong with the bytes of a coder's models or classes."""
        numbers = () if coder is None else (coder.models, coder.classes)
        read = self._container.array
        errors = [self._arrays.error(number, partial(read, number)) for number in numbers]
        return next((error for error in errors if error is not None), None)

    def chunk(self, number: int) -> None:
        view = self._container.chunks[number]
        self._coder(number, view)
        if not view.encoding.is_compressed:
            self._blocks(number, view, 0, view.blocks)
            return
        end: int | None = 0
        for run in range(-(-view.blocks // FRAMES_PER_INDEX_BLOCK)):
            end = self._index_block(number, view, run, end)
        if end is not None and end != view.length_bytes:
            name = self._container.chunk_name(number)
            error = FormatError("frame-extent", name, end, view.length_bytes)
            self._add(f"end of {name}", view.first_slot, view.chunk.rows, error)

    def _coder(self, number: int, view: ChunkView) -> None:
        """Check the coder of a chunk; if it is damaged, so are all its rows, and of its blocks the
        checksums alone can be checked.
        """
        coder = view.encoding.coder
        if coder is None:
            return
        error = self._coder_error(coder)
        try:
            self._container.coders.of_encoding(view.chunk.encoding)
        except (FormatError, FileAccessError) as found:
            error = error or found.with_traceback(None)
        if error is not None:
            self._checker.undecodable.add(view.chunk.encoding)
            name = self._container.chunk_name(number)
            self._add(f"models of {name}", view.first_slot, view.chunk.rows, error)

    def damages(self) -> list[Damage]:
        found = [self._damage(finding) for finding in self._findings]
        if self._more:
            slots, words = self._more_slots, f"{self._more} more damaged places between these slots"
            more = Damage(
                "more places", slots.start, len(slots), None, "more", words, self._more,
                table=self._name,
            )  # fmt: skip
            found.append(more)
        return found

    @property
    def _name(self) -> str | None:
        return self._table.name if len(self._container.header.tables) > 1 else None

    def _read_map(self, number: int) -> None:
        self._order = StoredOrder(inverse_permutation(read_token_map(self._container, number)))

    def _read_token_ids(self, number: int) -> None:
        self._order = StoredOrder(read_token_ids(self._container))

    def _index_block(self, number: int, view: ChunkView, run: int, end: int | None) -> int | None:
        """Check one block of an index and its frames; returns where the last frame ends.

        `end` is where the frame before the first one ends, ``None`` if that is unknown.
        """
        start = run * FRAMES_PER_INDEX_BLOCK
        stop = min(view.blocks, start + FRAMES_PER_INDEX_BLOCK)
        name = self._container.chunk_name(number)
        place, slot = f"index of {name}", view.first_slot + start * view.rows_per_block
        rows = min(view.first_slot + view.chunk.rows, slot + (stop - start) * view.rows_per_block)
        self._progress(index_block_extent(run, view.blocks, view.sizes.length_bytes)[1])
        try:
            bounds = self._container.read_index_block(number, run)
        except (FormatError, FileAccessError) as error:
            self._add(place, slot, rows - slot, error)
            return None
        if end is not None and int(bounds[0]) != end:
            hole = FormatError("frame-extent", name, int(bounds[0]), end)
            self._add(place, slot, rows - slot, hole)
        self._blocks(number, view, start, stop)
        return int(bounds[-1])

    def _blocks(self, number: int, view: ChunkView, start: int, stop: int) -> None:
        for block, error in self._checker.errors(number, start, stop):
            slot = view.first_slot + block * view.rows_per_block
            place = f"{self._container.chunk_name(number)}, block {block}"
            self._add(place, slot, view.block_rows(block), error, number, block)

    def _add(
        self,
        place: str,
        slot: int,
        rows: int,
        error: FormatError | FileAccessError,
        chunk: int = -1,
        block: int = -1,
    ) -> None:
        """Add a finding, or widen the last one by a block that is damaged alike."""
        # Words only: the error itself holds on to the bytes of its block.
        found = _Finding(place, slot, rows, _code(error), str(error), chunk, block, block)
        last, self._last = self._last, found
        if last and chunk >= 0 and (last.chunk, last.last_block, last.code) == (
            chunk, block - 1, found.code,
        ):  # fmt: skip
            place = f"{self._container.chunk_name(chunk)}, blocks {last.block} … {block}"
            self._last = replace(last, place=place, rows=last.rows + rows, last_block=block)
            if not self._more:
                self._findings[-1] = self._last
        elif len(self._findings) < self._most:
            self._findings.append(found)
        else:
            self._more += 1
        if self._more:
            known = self._more_slots or range(slot, slot)
            self._more_slots = range(min(known.start, slot), max(known.stop, slot + rows))

    def _damage(self, f: _Finding) -> Damage:
        start, stop, order = f.first_slot, f.first_slot + f.rows, self._order
        more = 0
        ranges: tuple[tuple[int, int], ...] | None = None
        is_plain = self._table.token_map is None and self._table.edits is None
        if is_plain or (f.rows == self._table.rows and self._table.edits is None):
            ranges = ((start, stop - 1),)
        elif order is not None:
            ranges, more = _ranges(order.sorted_tokens(start, stop))
        return Damage(
            f.place, start, f.rows, ranges, f.code, f.message, more_ranges=more, table=self._name
        )


def _read_id_map(container: Container, number: int) -> None:
    read_id_map(container, number)


def _read_floats(container: Container, number: int) -> None:
    for _ in float_pieces(container, number):
        pass


def _ranges(ids: NDArray[np.integer[Any]]) -> tuple[tuple[tuple[int, int], ...], int]:
    """The first runs of ascending `ids` (n,), as (first, last), and how many more there are."""
    ends: list[int] = []
    count = 1
    for start in range(0, len(ids), _PIECE):
        breaks = np.flatnonzero(np.diff(ids[start : start + _PIECE + 1]) != 1)
        count += len(breaks)
        ends += (start + breaks[: _MOST_RANGES - len(ends)]).tolist()
    if count <= _MOST_RANGES:
        ends.append(len(ids) - 1)
    firsts = [0, *(end + 1 for end in ends)]
    ranges = tuple((int(ids[a]), int(ids[b])) for a, b in zip(firsts, ends))
    return ranges, count - len(ranges)
