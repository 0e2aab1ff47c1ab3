"""Encoding rows for ``--bits 16|8|4``: each layer on its own, as values or as coefficients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from tolpack.codecs.encodings import FieldEncoding
from tolpack.codecs.record import RecordLayout, record_layout
from tolpack.compress.plan import PlannedChunk
from tolpack.compress.records import FieldEncoder, encode_fields
from tolpack.errors import ConfigError
from tolpack.runtime.array_types import Bytes, Floats, Ints
from tolpack.runtime.scratch import SpilledArray
from tolpack.sources.protocol import TableSource
from tolpack.workspace.limits import Limits


@dataclass(frozen=True, slots=True)
class LayerProjection:
    """How a kept layer's rows become stored values: ``(row - mean) @ matrix``; ``None``: as is.

    ``mean`` float32 (hidden,); ``matrix``: `tolpack.compress.low_rank.projection`, float32
    (hidden, rank).
    """

    layer: int
    rank: int | None = None
    mean: Floats | None = None
    matrix: SpilledArray | None = None

    def load(self) -> Callable[[Floats], Floats]:
        """Return a function that maps float32 (n, hidden) to float32 (n, stored values)."""
        if self.matrix is None or self.mean is None:
            return lambda rows: rows
        mean, matrix = self.mean, torch.from_numpy(self.matrix.load())
        return lambda rows: np.asarray((torch.from_numpy(rows - mean) @ matrix).numpy())


@dataclass(frozen=True, slots=True)
class FixedBitsEncoder:
    """See `tolpack.compress.plan.RecordEncoder`; one projection for each kept layer."""

    layers: tuple[LayerProjection, ...]

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
        """See `RecordEncoder`. Layers that are computed, or projected, are worked on one after the
        other for as many tokens as the limits allow, whose records are held.
        """
        loaders = [
            partial(_load, source, one, layout, field) for field, one in enumerate(self.layers)
        ]
        return encode_fields(
            source, loaders, token_ids, layout, limits, pool, done,
            apart=any(one.matrix is not None for one in self.layers),
        )  # fmt: skip


def _load(
    source: TableSource, one: LayerProjection, layout: RecordLayout, field: int
) -> FieldEncoder:
    rows, project = source.field_rows(one.layer), one.load()

    def encode(ids: Ints, records: Bytes) -> int:
        try:
            layout.encode(records, field, project(rows(ids)))
        except ConfigError as error:
            raise ConfigError(f"layer {one.layer}: {error}") from error
        return len(ids)

    return encode


def encoded_sample(
    rows: Sequence[Floats],
    layers: Iterable[LayerProjection],
    encoding: tuple[FieldEncoding, ...],
) -> Bytes:
    """Return the records of a few tokens, uint8 (n, record_bytes).

    `rows` are the table's, by kept layer: float32 (n, width).
    """
    layout = record_layout(encoding)
    records = np.zeros((len(rows[0]), layout.record_bytes), np.uint8)
    for field, projection in enumerate(layers):
        layout.encode(records, field, projection.load()(rows[field]))
    return records
