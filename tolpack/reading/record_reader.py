"""The inner part of a lookup: from slots to records, passed to a function that decodes them.

Slots come ascending and distinct, so every block is read once. A window of blocks is fetched
together, at queue depth if it is cold; then blocks are decompressed and their records passed on a
few at a time, so that codes and rows stay in the cache of the core. Large lookups are shared among
threads, each with slots of its own from end to end: one dispatch for a thread, not for a row.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tolpack.container.verified_reader import Container
from tolpack.reading.block_decompression import decompress_block, decompress_blocks
from tolpack.reading.prefetching import Prefetcher
from tolpack.reading.row_cache import RowCache
from tolpack.runtime.array_types import Bytes, Ints
from tolpack.runtime.fork_safety import ForkSafe
from tolpack.runtime.pool import Pool

# Takes records, uint8 (n, record_bytes or more), of the encoding of that number; and their places,
# int64 (n,). Called from several threads.
RecordSink = Callable[[int, Bytes, Ints], None]

# Rows decoded together, and bytes of the file fetched together.
_DECODE_BYTES = 1 << 20
_WINDOW_BYTES = 2 << 20
# Bytes of records that an entropy coder decodes together.
_CODED_BYTES = 1 << 20
# Windows that the system is told of ahead, when they are cold.
_WINDOWS_AHEAD = 32
# Bytes of a lookup in object storage that are requested at once.
_REMOTE_BYTES = 64 << 20
# Extents that are Python's numbers at the same time.
_EXTENTS = 1 << 12
# Rows that a cache is filled with at a time.
_WARM_ROWS = 1 << 12
# Rows of a chunk up to which they are read one by one.
_FEW_ROWS = 4
# A thread of a lookup has at least so many decoded bytes to make.
_THREAD_BYTES = 4 << 20


class RecordReader(ForkSafe):
    """Reads the records of a container's table.

    Parameters
    ----------
    container : Container
        The open file.
    ahead : Prefetcher
        Where its blocks come from.
    cache : RowCache, optional
        Records that are kept.
    threads : int
        Threads that share large lookups.
    """

    def __init__(
        self, container: Container, ahead: Prefetcher, cache: RowCache | None, threads: int
    ) -> None:
        self._container, self._ahead = container, ahead
        self._table = container.table
        self._cache = cache
        self._pool = Pool(threads, "rows")
        super().__init__()
        self.cache_hits = self.cache_misses = self.asked_bytes = 0
        self._starts = [view.first_slot for view in container.chunks]
        self._row_bytes = 4 * sum(field.width for field in self._table.kept_fields)

    def read(self, slots: Ints, places: Ints, sink: RecordSink) -> None:
        """Pass the records of `slots`, int64 (n,), ascending and distinct, to `sink`, each with its
        number in `places`, int64 (n,).

        Raises
        ------
        ChecksumError, FormatError, FileAccessError
        """
        count = len(slots)
        if count == 1:
            self._read_one(int(slots[0]), places, sink)
            return
        if self._container.source.is_remote:
            self._advise_all(slots)
        shares = min(self._pool.size, count * self._row_bytes // _THREAD_BYTES)
        if shares <= 1:
            self._read_slots(slots, places, sink)
            return
        bounds = [count * n // shares for n in range(shares + 1)]
        parts = [slice(*pair) for pair in zip(bounds, bounds[1:])]
        self._pool.map(lambda part: self._read_slots(slots[part], places[part], sink), parts)

    def _advise_all(self, slots: Ints) -> None:
        """Have the blocks of a lookup requested before the first of them is waited for."""
        wanted, size = [], 0
        for number, blocks in self.missing_blocks(slots):
            view = self._container.chunks[number]
            mean = view.length_bytes // view.blocks + 1
            some = blocks[: max(0, _REMOTE_BYTES - size) // mean]
            wanted += [(number, block) for block in some]
            size += len(some) * mean
        self._container.source.advise(self._container.block_extents(wanted))

    def advise_one(self, slot: int) -> None:
        """Have the system begin to read a row's block, while the caller gets ready for it."""
        number = bisect_right(self._starts, slot) - 1
        view = self._container.chunks[number]
        row = slot - view.first_slot
        if self._cache is None or not self._cache.has(number, row):
            block = row // view.rows_per_block
            self._container.source.advise([self._container.block_extent(number, block)])

    def _chunk_spans(self, slots: Ints) -> Iterator[tuple[int, int, int]]:
        """Cut ascending slots by chunk: (chunk, begin, end) of the runs that are not empty."""
        bounds = np.searchsorted(slots, [*self._starts, self._table.rows]).tolist()
        for number, (begin, end) in enumerate(zip(bounds, bounds[1:])):
            if begin < end:
                yield number, begin, end

    def extents(self, slots: Ints) -> Ints:
        """Return offset and bytes of the block of each of the ascending `slots`: int64 (n, 2)."""
        found = np.empty((len(slots), 2), np.int64)
        for number, begin, end in self._chunk_spans(slots):
            view = self._container.chunks[number]
            for start in range(begin, end, _EXTENTS):
                part = slice(start, min(start + _EXTENTS, end))
                blocks = ((slots[part] - view.first_slot) // view.rows_per_block).tolist()
                found[part] = [self._container.block_extent(number, block) for block in blocks]
        return found

    def missing_blocks(self, slots: Ints) -> list[tuple[int, list[int]]]:
        """By chunk: the blocks of those of the ascending `slots` that no cache has."""
        found = []
        for number, begin, end in self._chunk_spans(slots):
            view = self._container.chunks[number]
            rows = slots[begin:end] - view.first_slot
            if self._cache is not None:
                rows = rows[~self._cache.found(number, rows)]
            found.append((number, np.unique(rows // view.rows_per_block).tolist()))
        return found

    def read_first(self, count: int) -> None:
        """Read the first `count` slots, as a cache keeps them."""
        for start in range(0, count, _WARM_ROWS):
            slots = np.arange(start, min(start + _WARM_ROWS, count))
            self.read(slots, slots, lambda *_: None)

    def close(self) -> None:
        """End the threads."""
        self._pool.close()

    def _read_one(self, slot: int, places: Ints, sink: RecordSink) -> None:
        """As `_read_chunk`, for a decode step of one token, where every array counts."""
        number = bisect_right(self._starts, slot) - 1
        view = self._container.chunks[number]
        row = slot - view.first_slot
        block, within = divmod(row, view.rows_per_block)
        with np.errstate(over="ignore", invalid="ignore"):
            if self._cache is not None and self._cache.has(number, row):
                with self._lock:
                    self.cache_hits += 1
                records = self._cache.records(number, np.array([row]))
                sink(view.chunk.encoding, records, places)
                return
            payload = self._ahead.take_blocks([(number, block)])[0]
            records = decompress_block(self._container, payload, number, block)
            self._keep(number, block, records)
            sink(view.chunk.encoding, records[within : within + 1], places)
        with self._lock:
            self.cache_misses += 1
            self.asked_bytes += view.record_bytes

    def _read_slots(self, slots: Ints, places: Ints, sink: RecordSink) -> None:
        spans = list(self._chunk_spans(slots))
        with np.errstate(over="ignore", invalid="ignore"):
            if self._cache is None and 0 < len(slots) <= _FEW_ROWS * len(spans):
                views = [self._container.chunks[number] for number, _, _ in spans]
                largest = max(view.rows_per_block * view.record_bytes for view in views)
                window = max(1, _WINDOW_BYTES // largest)
                for start in range(0, len(slots), window):
                    part = slice(start, start + window)
                    self._read_scattered(slots[part], places[part], sink)
                return
            for number, begin, end in spans:
                self._read_chunk(number, slots[begin:end], places[begin:end], sink)

    def _read_scattered(self, slots: Ints, places: Ints, sink: RecordSink) -> None:
        """As `_read_chunk`, for rows of which each chunk has few, as those of a token's n-grams."""
        chunks, found = self._container.chunks, []
        for slot in slots.tolist():
            number = bisect_right(self._starts, slot) - 1
            view = chunks[number]
            found.append((number, *divmod(slot - view.first_slot, view.rows_per_block)))
        distinct = list(dict.fromkeys((number, block) for number, block, _ in found))
        payloads = self._ahead.take_blocks(distinct)
        blocks = dict(zip(distinct, decompress_blocks(self._container, distinct, payloads)))
        by_encoding: dict[int, tuple[list[Bytes], list[int]]] = {}
        for n, (number, block, within) in enumerate(found):
            records, numbers = by_encoding.setdefault(chunks[number].chunk.encoding, ([], []))
            records.append(blocks[number, block][within : within + 1])
            numbers.append(n)
        for encoding, (records, numbers) in by_encoding.items():
            sink(encoding, np.concatenate(records), places[numbers])
        with self._lock:
            self.cache_misses += len(found)
            self.asked_bytes += sum(chunks[number].record_bytes for number, _, _ in found)

    def _read_chunk(self, number: int, slots: Ints, places: Ints, sink: RecordSink) -> None:
        view = self._container.chunks[number]
        rows, missing = slots - view.first_slot, np.arange(len(slots))
        if self._cache is not None:
            hit = self._cache.found(number, rows)
            held, missing = np.flatnonzero(hit), np.flatnonzero(~hit)
            step = self._decode_rows(1)
            for start in range(0, len(held), step):
                some = held[start : start + step]
                sink(view.chunk.encoding, self._cache.records(number, rows[some]), places[some])
        with self._lock:
            self.cache_hits += len(rows) - len(missing)
            self.cache_misses += len(missing)
            self.asked_bytes += len(missing) * view.record_bytes
        if len(missing):
            self._read_from_file(number, rows[missing], places[missing], sink)

    def _read_from_file(self, number: int, rows: Ints, places: Ints, sink: RecordSink) -> None:
        """Read rows of a chunk, window by window."""
        view = self._container.chunks[number]
        window = max(1, _WINDOW_BYTES * view.blocks // max(view.length_bytes, 1))
        if view.is_plain and self._container.source.caches_advised:
            for start in range(0, len(rows), window):
                part = slice(start, start + window)
                records = self._container.raw_rows(number, rows[part].tolist())
                self._advise_ahead(number, rows, start, window)
                self._pass_raw_rows(number, rows[part], places[part], records, sink)
            return
        blocks, first = np.unique(rows // view.rows_per_block, return_index=True)
        bounds = np.append(first, len(rows))
        for start in range(0, len(blocks), window):
            stop = min(start + window, len(blocks))
            part = slice(bounds[start], bounds[stop])
            wanted = [(number, block) for block in blocks[start:stop].tolist()]
            payloads = self._ahead.take_blocks(wanted)
            self._advise_ahead(number, blocks, start, window)
            self._decompress_all(
                number, blocks[start:stop], payloads, rows[part], places[part], sink
            )

    def _advise_ahead(self, number: int, blocks: Ints, start: int, window: int) -> None:
        """If the window at `start` was cold, have the next ones read while it is decoded."""
        source = self._container.source
        if not source.is_cold:
            return
        # All at once after the first, then always the farthest one.
        first = start + (window if start == 0 else _WINDOWS_AHEAD * window)
        coming = blocks[first : start + (_WINDOWS_AHEAD + 1) * window].tolist()
        source.advise(self._container.block_extents([(number, block) for block in coming]))

    def _pass_raw_rows(
        self, number: int, rows: Ints, places: Ints, records: Bytes, sink: RecordSink
    ) -> None:
        """Pass on a window of records that are stored as they are."""
        view = self._container.chunks[number]
        if self._cache is not None:
            self._cache.put(number, rows, records[:, : view.record_bytes])
        step = self._decode_rows(1)
        for start in range(0, len(rows), step):
            some = slice(start, start + step)
            sink(view.chunk.encoding, records[some], places[some])

    def _decompress_all(
        self, number: int, blocks: Ints, payloads: Sequence[memoryview], rows: Ints, places: Ints,
        sink: RecordSink,
    ) -> None:  # fmt: skip
        """Decompress a window of blocks, those of the ascending `rows`, and pass the records on."""
        view = self._container.chunks[number]
        bounds = np.append(np.searchsorted(rows, blocks * view.rows_per_block), len(rows))
        rows_together = self._decode_rows(view.rows_per_block)
        together = max(1, rows_together // view.rows_per_block)
        if view.encoding.coder is not None:
            together = max(together, _CODED_BYTES // (view.rows_per_block * view.record_bytes))
        for low in range(0, len(blocks), together):
            high = min(low + together, len(blocks))
            some = slice(bounds[low], bounds[high])
            wanted = np.split(rows[some], bounds[low + 1 : high] - bounds[low])
            records = self._records_of_rows(number, blocks[low:high], payloads[low:high], wanted)
            for start in range(0, len(records), rows_together):
                part = slice(start, start + rows_together)
                sink(view.chunk.encoding, records[part], places[some][part])

    def _records_of_rows(
        self, number: int, blocks: Ints, payloads: Sequence[memoryview], rows: Sequence[Ints]
    ) -> Bytes:
        """Decompress blocks; returns those records of `rows`: uint8 (all rows, record_bytes)."""
        per_block = self._container.chunks[number].rows_per_block
        found, numbers = [], [(number, block) for block in blocks.tolist()]
        decompressed = decompress_blocks(self._container, numbers, payloads)
        for block, records, wanted in zip(blocks.tolist(), decompressed, rows):
            self._keep(number, block, records)
            whole = len(wanted) == len(records)
            found.append(records if whole else records[wanted - block * per_block])
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _keep(self, number: int, block: int, records: Bytes) -> None:
        """Have the cache keep all records of a block."""
        if self._cache is not None:
            first = block * self._container.chunks[number].rows_per_block
            self._cache.put(number, np.arange(first, first + len(records)), records)

    def _decode_rows(self, least: int) -> int:
        """Rows to decode together, `least` at the least."""
        return max(_DECODE_BYTES // self._row_bytes, least)
