"""What all ways of storing a table share: the parts of a pack, in the order they are written.

`tolpack.compress.fixed.encoder` stores values of 16, 8 or 4 bits,
`tolpack.compress.entropy.encoder` codes whose length follows from what they are.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from tolpack.calibration.stats import CalibrationStats
from tolpack.codecs.frames import LEVEL
from tolpack.compress.header_size import planned_array
from tolpack.compress.layout import ChunkPlan
from tolpack.compress.limits import Limits
from tolpack.compress.settings import BuildSettings, dropped_layers, parse_size
from tolpack.container.encodings import Encoding
from tolpack.container.header import Chunk, Field, Section
from tolpack.container.preamble import VERSION
from tolpack.container.writer import PackWriter
from tolpack.runtime.progress import Reporter
from tolpack.runtime.scratch import Scratch
from tolpack.sources.protocol import TableSource
from tolpack.version import __version__


class Assembly(ABC):
    """The parts of one pack. Everything expensive is computed when it is first needed, so that a
    resumed build repeats only what it lacks.
    """

    def __init__(
        self,
        source: TableSource,
        settings: BuildSettings,
        weighing: CalibrationStats,
        limits: Limits,
        scratch: Scratch,
        reporter: Reporter,
    ) -> None:
        self.source = source
        self.settings = settings
        self.weighing = weighing
        self.limits = limits
        self.scratch = scratch
        self.reporter = reporter
        dropped = set(dropped_layers(settings.drop.layers, source.num_layers))
        self.kept = [n for n in range(source.num_layers) if n not in dropped]
        full = min(source.hidden_size, source.vocab_size)
        self.fixed_ranks = settings.ranks.for_layers(source.num_layers, full)
        self.size = None
        if settings.size is not None:
            fp16 = 2 * source.vocab_size * source.num_layers * source.hidden_size
            self.size = parse_size(settings.size, fp16)
        self.kept_back = 0
        self.chunks = self.plan_chunks()

    @property
    def key(self) -> bytes:
        """Identifies inputs and settings: equal keys give equal packs."""
        resolved = (VERSION, __version__, LEVEL, self.settings, self.size)
        digest = hashlib.sha256(repr(resolved).encode())
        digest.update(self.source.fingerprint() + self.weighing.fingerprint)
        return digest.digest()

    @property
    def target(self) -> int | None:
        """Bytes to aim at: ``--size`` less what an earlier attempt was over it."""
        return None if self.size is None else self.size - self.kept_back

    @abstractmethod
    def plan_chunks(self) -> list[ChunkPlan]:
        """Cut the slots into chunks."""

    @property
    @abstractmethod
    def header_room(self) -> int:
        """Bytes to keep for the header."""

    @abstractmethod
    def write_fields(self, writer: PackWriter) -> list[Field]:
        """Write bases and means; returns the fields."""

    @abstractmethod
    def write_chunks(self, writer: PackWriter) -> tuple[tuple[Encoding, ...], list[Chunk]]:
        """Write the records of all tokens, chunk by chunk; returns the encodings and chunks."""

    def keep_back(self, excess_bytes: int) -> None:
        """Aim lower: the last attempt came out too large."""
        self.kept_back += excess_bytes

    def write_token_map(self, writer: PackWriter) -> int | None:
        """Write the map from token id to slot, unless it is the identity."""
        if self.weighing.order.identity:
            return None
        slots = self.weighing.order.slots
        return writer.add_array("token_map", lambda: slots.astype(np.uint32))[0]

    def chunk_tokens(self, plan: ChunkPlan) -> NDArray[np.int64]:
        """Return the token ids of a chunk, int64 (rows,)."""
        return self.weighing.order.token_ids[plan.first_slot : plan.first_slot + plan.rows]

    @property
    def planned_token_map(self) -> list[Section]:
        """The token map's section, if there will be one."""
        if self.weighing.order.identity:
            return []
        return [planned_array("token_map", "uint32", (self.source.vocab_size,), 4)]
