"""Encoding rows for ``--bits auto``: all layers of a token together, as errors are compensated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from tolpack.codecs.record import RecordLayout
from tolpack.compress.entropy.compensated_table import CompensatedTable, DroppedTerm
from tolpack.compress.entropy.error_compensation import QuantizedLayer, quantize_layers
from tolpack.compress.plan import PlannedChunk
from tolpack.runtime.array_types import Bytes, Floats, Ints
from tolpack.sources.protocol import TableSource
from tolpack.workspace.limits import Limits
from tolpack.workspace.workers import split_ids


@dataclass(frozen=True, slots=True)
class EntropyCodedEncoder:
    """See `tolpack.compress.plan.RecordEncoder`.

    ``layers``: all kept layers, ascending; ``dropped``: how they compensate for dropped ones.
    """

    layers: tuple[QuantizedLayer, ...]
    dropped: tuple[DroppedTerm, ...]

    def records(
        self,
        source: TableSource,
        token_ids: Ints,
        chunk: PlannedChunk,
        layout: RecordLayout,
        limits: Limits,
        pool: ThreadPoolExecutor,
        done: Callable[[int], object],
    ) -> Iterator[Bytes]:
        """See `RecordEncoder`. Records and errors that are passed on are held for as many tokens as
        the limits allow.
        """
        table = CompensatedTable(source, self.dropped) if self.dropped else source
        fields = {one.layer: field for field, one in enumerate(self.layers)}
        held_bytes = layout.record_bytes + 8 * len(self.layers[0].mean)
        for ids in split_ids(token_ids, limits.superblock_tokens(held_bytes)):
            records = np.zeros((len(ids), layout.record_bytes), np.uint8)

            def encode(
                layer: int, span: slice, stored: Floats, _: Floats, records: Bytes = records
            ) -> None:
                layout.encode(records[span], fields[layer], stored)

            steps = np.full(len(ids), chunk.step, np.float32)
            quantize_layers(table, self.layers, ids, steps, pool, encode, done)
            yield records
