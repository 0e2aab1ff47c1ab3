"""Checking blocks many at a time: read together, and checked by several threads.

Blocks are read one by one only where one of those that were read together cannot be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from tolpack.codecs.record import RecordLayout
from tolpack.container.verified_reader import Container
from tolpack.errors import FileAccessError, FormatError
from tolpack.reading.block_decompression import decompress_block
from tolpack.runtime.pool import Pool

# Bytes of blocks that are read together, and blocks at most.
_TOGETHER_BYTES, _TOGETHER_BLOCKS = 4 << 20, 4096

BlockError = FormatError | FileAccessError


class BlockChecker:
    """Checks blocks of one table; `layouts` are those of records by the number of their encoding.

    `progress` is called with the number of bytes of blocks checked since the last call.
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
        blocks = range(start, stop)
        payloads: Sequence[memoryview | None] = [None] * len(blocks)
        with suppress(FormatError, FileAccessError):  # of one of them, which is found below
            payloads = self._container.read_blocks([(number, block) for block in blocks])
        size, errors = 0, []
        for block, payload in zip(blocks, payloads):
            try:
                size += self._container.block_extent(number, block)[1]
                self._check_one(number, block, payload)
            except (FormatError, FileAccessError) as error:
                errors.append((block, _without_bytes(error)))
        return size, errors

    def _check_one(self, number: int, block: int, payload: memoryview | None) -> None:
        payload = self._container.block(number, block) if payload is None else payload
        view = self._container.chunks[number]
        records = decompress_block(self._container, payload, number, block)
        self._layouts[view.chunk.encoding].check_scales(records)
        if not view.encoding.is_compressed and any(payload[records.size :]):
            place = f"{self._container.chunk_name(number)}, block {block}"
            raise FormatError("padding", place, "data", "zeros")


def _without_bytes(error: BlockError) -> BlockError:
    """Return an error that does not hold on to the bytes of its block."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
