"""Checking blocks many at a time: read together, and checked by several threads.

Blocks are read, and decompressed, one by one only where one of those that were taken together
cannot be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from tolpack.codecs.record import RecordLayout
from tolpack.container.verified_reader import Container
from tolpack.errors import FileAccessError, FormatError
from tolpack.reading.block_decompression import decompress_blocks
from tolpack.runtime.array_types import Bytes
from tolpack.runtime.pool import Pool

# Bytes of blocks that are read together, and blocks at most.
_TOGETHER_BYTES, _TOGETHER_BLOCKS = 4 << 20, 4096

BlockError = FormatError | FileAccessError
T = TypeVar("T")
R = TypeVar("R")


class BlockChecker:
    """Checks blocks of one table; `layouts` are those of records by the number of their encoding.

    `progress` is called with the number of bytes of blocks checked since the last call.
    ``undecodable``: numbers of encodings of whose blocks the checksums alone can be checked.
    """

    def __init__(
        self,
        container: Container,
        layouts: dict[int, RecordLayout],
        pool: Pool,
        progress: Callable[[int], object],
    ) -> None:
        self._container, self._layouts = container, layouts
        self._pool, self._progress = pool, progress
        self.undecodable: set[int] = set()

    def errors(self, number: int, start: int, stop: int) -> Iterator[tuple[int, BlockError]]:
        """Yield the damaged ones of blocks `start` … `stop` - 1 of chunk `number`, in order."""
        view = self._container.chunks[number]
        longest = max(1, view.rows_per_block * view.record_bytes)
        step = max(1, min(_TOGETHER_BLOCKS, _TOGETHER_BYTES // longest))
        batches = [(number, first, min(stop, first + step)) for first in range(start, stop, step)]
        for begin in range(0, len(batches), self._pool.size):
            some = batches[begin : begin + self._pool.size]
            for size, found in self._pool.map(self._check, some):
                self._progress(size)
                yield from found

    def _check(self, batch: tuple[int, int, int]) -> tuple[int, list[tuple[int, BlockError]]]:
        """Check some blocks; returns their bytes and the damaged ones."""
        number, start, stop = batch
        wanted = [(number, block) for block in range(start, stop)]
        extents, errors = _taken(self._container.block_extents, wanted)
        payloads, more = _taken(self._container.read_blocks, list(extents))
        errors |= more

        def decompress(some: Sequence[tuple[int, int]]) -> list[Bytes]:
            return decompress_blocks(self._container, some, [payloads[one] for one in some])

        decodable = self._container.chunks[number].chunk.encoding not in self.undecodable
        records, more = _taken(decompress, list(payloads) if decodable else [])
        errors |= more
        for one, found in records.items():
            try:
                self._check_records(*one, payloads[one], found)
            except FormatError as error:
                errors[one] = _without_bytes(error)
        size = sum(length for _, length in extents.values())
        return size, [(block, errors[number, block]) for _, block in sorted(errors)]

    def _check_records(self, number: int, block: int, payload: memoryview, records: Bytes) -> None:
        view = self._container.chunks[number]
        self._layouts[view.chunk.encoding].check_scales(records)
        if not view.encoding.is_compressed and any(payload[records.size :]):
            place = f"{self._container.chunk_name(number)}, block {block}"
            raise FormatError("padding", place, "data", "zeros")


def _taken(
    take: Callable[[Sequence[T]], list[R]], wanted: Sequence[T]
) -> tuple[dict[T, R], dict[T, BlockError]]:
    """Return what `take` gives for all of `wanted`; if that fails, for each by itself, and the
    errors of those for which it fails.
    """
    errors: dict[T, BlockError] = {}
    try:
        return dict(zip(wanted, take(wanted))), errors
    except (FormatError, FileAccessError):
        found = {}
        for one in wanted:
            try:
                found[one] = take([one])[0]
            except (FormatError, FileAccessError) as error:
                errors[one] = _without_bytes(error)
        return found, errors


def _without_bytes(error: BlockError) -> BlockError:
    """Return an error that does not hold on to the bytes of its block."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
