"""The inner part of a lookup: from slots to rows in the caller's array.

Slots come ascending and distinct, so every block is read once. A window of blocks is fetched
together, at queue depth if it is cold; then blocks are opened and decoded a few at a time, so that
codes and rows stay in the cache of the core, straight to their places. Large lookups are shared
among threads, each with slots of its own from end to end: one dispatch for a thread, not for a row.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs import kernels
from tolpack.codecs.record import record_layout
from tolpack.codecs.values import Bytes, Floats
from tolpack.container.reader import Container
from tolpack.pool import Pool
from tolpack.prefetching import Prefetcher
from tolpack.row_cache import RowCache
from tolpack.sections import open_records, read_floats

Ints = NDArray[np.int64]

# Rows decoded together, and bytes of the file fetched together.
_DECODE_BYTES = 1 << 20
_WINDOW_BYTES = 8 << 20
# A thread of a lookup has at least so many decoded bytes to make.
_THREAD_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Request:
    """Distinct slots and where their rows go.

    ``slots`` int64 (n,), ascending; row ``i`` goes to ``out[places[i]]``, ``out`` (any, layers,
    hidden) of float32, float16 or uint16 for the bits of bfloat16; ``positions``: by kept field,
    the place of its layer in ``out``, or -1.
    """

    slots: Ints
    places: Ints
    out: NDArray[Any]
    positions: Ints

    def part(self, start: int, stop: int) -> Request:
        """Rows `start` to `stop`."""
        span = slice(start, stop)
        return Request(self.slots[span], self.places[span], self.out, self.positions)


class Gatherer:
    """Rows of a container's table.

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
        self._layouts = [record_layout(one.fields) for one in container.header.encodings]
        self._arrays: dict[int, Floats] = {}
        self._lock = threading.Lock()
        self.cache_hits = self.cache_misses = self.asked_bytes = 0
        fields = self._table.kept_fields
        self._row_bytes = 4 * sum(field.width for field in fields)
        self._plain = self._table.multiplier == 1.0 and all(
            field.basis is None and field.mean is None for field in fields
        )

    def gather(self, request: Request) -> None:
        """Fill the rows of `request`.

        Raises
        ------
        ChecksumError, FormatError, FileAccessError
        """
        count = len(request.slots)
        shares = min(self._pool.size, count * self._row_bytes // _THREAD_BYTES)
        if shares <= 1:
            self._fill(request)
            return
        bounds = [count * n // shares for n in range(shares + 1)]
        parts = [request.part(*pair) for pair in zip(bounds, bounds[1:])]
        self._pool.map(self._fill, parts)

    def spans(self, slots: Ints) -> Iterator[tuple[int, int, int]]:
        """Cut ascending slots by chunk: (chunk, begin, end) of the runs that are not empty."""
        starts = [view.first_slot for view in self._container.chunks] + [self._table.rows]
        bounds = np.searchsorted(slots, starts).tolist()
        for number, (begin, end) in enumerate(zip(bounds, bounds[1:])):
            if begin < end:
                yield number, begin, end

    def close(self) -> None:
        """End the threads."""
        self._pool.close()

    def _fill(self, request: Request) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            for number, begin, end in self.spans(request.slots):
                self._fill_chunk(number, request.part(begin, end))

    def _fill_chunk(self, number: int, request: Request) -> None:
        view = self._container.chunks[number]
        rows = request.slots - view.first_slot
        hit = np.zeros(0, bool) if self._cache is None else self._cache.found(number, rows)
        if self._cache is not None and hit.any():
            step = self._decode_rows(1)
            held = np.flatnonzero(hit)
            for start in range(0, len(held), step):
                some = held[start : start + step]
                self._decode(number, self._cache.records(number, rows[some]), request, some)
        missing = np.flatnonzero(~hit) if len(hit) else np.arange(len(rows))
        with self._lock:
            self.cache_hits += len(rows) - len(missing)
            self.cache_misses += len(missing)
            self.asked_bytes += len(missing) * view.record_bytes
        if len(missing):
            self._fill_from_file(number, rows, missing, request)

    def _fill_from_file(self, number: int, rows: Ints, missing: Ints, request: Request) -> None:
        """Read and decode the rows ``rows[missing]`` of a chunk, window by window."""
        view = self._container.chunks[number]
        block_of = rows[missing] // view.rows_per_block
        blocks, first = np.unique(block_of, return_index=True)
        bounds = np.append(first, len(missing))
        window = max(1, _WINDOW_BYTES * view.blocks // max(view.length_bytes, 1))
        step = max(1, self._decode_rows(view.rows_per_block) // view.rows_per_block)
        for start in range(0, len(blocks), window):
            stop = min(start + window, len(blocks))
            payloads = self._ahead.blocks_of(number, blocks[start:stop].tolist())
            for low in range(start, stop, step):
                high = min(low + step, stop)
                some = missing[bounds[low] : bounds[high]]
                records = self._records(
                    number, blocks[low:high], payloads[low - start : high - start],
                    np.split(rows[some], bounds[low + 1 : high] - bounds[low]),
                )  # fmt: skip
                self._decode(number, records, request, some)

    def _records(
        self, number: int, blocks: Ints, payloads: Sequence[memoryview], rows: Sequence[Ints]
    ) -> Bytes:
        """Open blocks, and return the records of their `rows`: uint8 (all rows, record_bytes)."""
        per_block = self._container.chunks[number].rows_per_block
        found = []
        for block, payload, wanted in zip(blocks.tolist(), payloads, rows):
            records = open_records(self._container, payload, number, block)
            if self._cache is not None:
                every = np.arange(block * per_block, block * per_block + len(records))
                self._cache.put(number, every, records)
            whole = len(wanted) == len(records)
            found.append(records if whole else records[wanted - block * per_block])
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _decode_rows(self, least: int) -> int:
        """Rows to decode together, `least` at the least."""
        return max(_DECODE_BYTES // self._row_bytes, least)

    def _decode(self, number: int, records: Bytes, request: Request, some: Ints) -> None:
        """Decode `records`, the rows `some` of `request`, to their places."""
        layout = self._layouts[self._container.chunks[number].chunk.encoding]
        out, places, positions = request.out, request.places[some], request.positions
        width, direct = out.shape[2], self._plain and out.dtype == np.float32
        if direct and out.flags.c_contiguous:
            columns = np.where(positions < 0, -1, positions * width)
            layout.decode_into(records, columns, out.reshape(len(out), -1), places)
            return
        wanted = np.flatnonzero(positions >= 0)
        if self._plain and out.flags.c_contiguous and out.dtype == np.uint16:
            columns = np.where(positions < 0, -1, positions * width)
            scratch = np.zeros((len(records), out.shape[1] * width), np.float32)
            layout.decode_into(records, columns, scratch, np.arange(len(records)))
            _put_bfloat16(out.reshape(len(out), -1), places, scratch)
            return
        decoded = layout.decode(records, wanted.tolist())
        for kept, values in decoded.items():
            rows = self._product(kept, values)
            if out.dtype == np.uint16:
                _put_bfloat16(out[:, positions[kept]], places, rows)
            else:
                out[places, positions[kept]] = rows

    def _product(self, kept: int, stored: Floats) -> Floats:
        """Rows of one kept field from its stored values."""
        field = self._table.kept_fields[kept]
        values = stored if field.basis is None else stored @ self.array(field.basis)
        if field.mean is not None:
            values = values + self.array(field.mean)
        if self._table.multiplier != 1.0:
            values = values * np.float32(self._table.multiplier)
        return values

    def array(self, number: int) -> Floats:
        """Return array section `number`, a basis or a mean, float32; read once."""
        if number not in self._arrays:
            self._arrays[number] = read_floats(self._container, number)
        return self._arrays[number]


def _put_bfloat16(out: NDArray[Any], places: Ints, values: Floats) -> None:
    compiled = kernels.loaded()
    if compiled is None:
        bits = np.ascontiguousarray(values).view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
        out[places] = rounded.astype(np.uint16)
    else:
        compiled.bfloat16(values, places, out)
