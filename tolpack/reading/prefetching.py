"""Reading ahead of a lookup, in a thread of its own.

Where rows come through the page cache, the system is told which extents will be wanted, and reads
them while the caller computes. Other sources (direct reads) cache nothing: their blocks are read,
verified and kept until a lookup takes them, and the oldest make room for new ones.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress

from tolpack.container.verified_reader import Container
from tolpack.errors import TolpackError
from tolpack.runtime.fork_safety import register_fork_reset
from tolpack.runtime.pool import Pool

_KEPT_BYTES = 64 << 20
# Blocks of a chunk are fetched so many at a time, that the first are there before the last.
_BLOCKS = 64
# Hints that may wait for their turn.
_MOST_HINTS = 16
Wanted = list[tuple[int, list[int]]]


class Prefetcher:
    """See the module; `begin` returns at once.

    ``blocks`` counts the blocks that were announced or read.
    """

    def __init__(self, container: Container) -> None:
        self._container = container
        self._pool = Pool(1, "ahead")
        self._closed = False
        self.blocks = 0
        self.reset_after_fork()
        register_fork_reset(self)

    def begin(self, wanted: Callable[[], Wanted]) -> Future[None] | None:
        """Begin to fetch the blocks that `wanted` gives, by chunk; ``None`` if many such hints are
        waiting already: this one is dropped.
        """
        with self._changed:
            if self._waiting >= _MOST_HINTS:
                return None
            self._waiting += 1
        return self._pool.submit(self._fetch, wanted)

    def take_blocks(self, wanted: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Return blocks, as `Container.read_blocks`: those that are kept, or coming, from there,
        where they are no more.
        """
        if not self._kept and not self._coming:
            return self._container.read_blocks(wanted)
        with self._changed:
            self._changed.wait_for(lambda: not any(one in self._coming for one in wanted))
            found = {one: self._kept.pop(one) for one in wanted if one in self._kept}
            self._kept_bytes -= sum(map(len, found.values()))
        others = [one for one in wanted if one not in found]
        found.update(zip(others, self._container.read_blocks(others) if others else []))
        return [found[one] for one in wanted]

    def close(self) -> None:
        """End the thread, and let go of what is kept."""
        self._pool.close()
        with self._changed:
            self._closed = True
            self._kept.clear()
            self._kept_bytes = 0

    def reset_after_fork(self) -> None:
        """See `tolpack.runtime.fork_safety.ForkReset`."""
        self._changed = threading.Condition()
        self._coming: set[tuple[int, int]] = set()
        self._kept: OrderedDict[tuple[int, int], memoryview] = OrderedDict()
        self._kept_bytes = self._waiting = 0

    def _fetch(self, wanted: Callable[[], Wanted]) -> None:
        source = self._container.source
        with self._changed:
            self._waiting -= 1
        with suppress(TolpackError), source.lease():  # a lookup will say what is wrong
            read = 0
            for number, blocks in [] if source.is_resident else wanted():
                for start in range(0, len(blocks), _BLOCKS):
                    some = blocks[start : start + _BLOCKS]
                    if source.caches_advised:
                        wanted_here = [(number, block) for block in some]
                        source.advise(self._container.block_extents(wanted_here))
                    elif read < _KEPT_BYTES:  # more would push out what was read first
                        read += self._keep(number, some)
                    else:
                        return
                    self.blocks += len(some)

    def _keep(self, number: int, blocks: list[int]) -> int:
        """Read blocks of a chunk and keep them; returns their bytes."""
        coming = {(number, block) for block in blocks}
        with self._changed:
            coming -= self._kept.keys()
            self._coming |= coming
        payloads: list[memoryview] = []
        order = sorted(coming)
        try:
            payloads = self._container.read_blocks(order)
        finally:
            with self._changed:
                self._coming -= coming
                for key, payload in zip(order, [] if self._closed else payloads):
                    # A copy, as it is a view of what was read together with others.
                    self._kept[key] = memoryview(bytes(payload))
                    self._kept_bytes += len(payload)
                while self._kept_bytes > _KEPT_BYTES:
                    self._kept_bytes -= len(self._kept.popitem(last=False)[1])
                self._changed.notify_all()
        return sum(map(len, payloads))
