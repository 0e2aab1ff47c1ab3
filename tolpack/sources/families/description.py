"""A summary of the tables of a checkpoint, for ``tolpack inspect``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from tolpack.sources.families.checkpoint_files import CheckpointFiles
from tolpack.sources.protocol import TableSource
from tolpack.sources.tensors.computed_table import ComputedTable
from tolpack.sources.tensors.quantized_table import QuantizedTable
from tolpack.sources.tensors.tensor_table import TensorTable


@dataclass(frozen=True, slots=True)
class TableSummary:
    """One table.

    ``layers`` are the layers of the model that read its fields, ``codecs`` how a lossless pack
    stores them, ``bytes`` what it takes in the checkpoint, and ``rows_per_token`` how many rows a
    token touches. ``source`` are lines about tensors and files.
    """

    name: str
    rows: int
    layers: tuple[int, ...]
    width: int
    dtype: str
    codecs: tuple[str, ...]
    multiplier: float
    bytes: int
    rows_per_token: int
    source: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TablesSummary:
    """The tables that a pack of a checkpoint holds; ``left_over`` are the other tensors.

    ``build`` is ``None`` if they are ready for it.
    """

    path: str
    model_type: str
    tables: tuple[TableSummary, ...]
    left_over: tuple[str, ...]
    build: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def summarize_tables(files: CheckpointFiles, tables: Iterable[TableSource]) -> TablesSummary:
    """Describe `tables` of `files`; no row is read."""
    tensors = [name for name in files.store.infos if name not in files.used]
    return summarize(str(files.path), files.model_type, tensors, tables)


def summarize(
    path: str, model_type: str, tensors: Iterable[str], tables: Iterable[TableSource]
) -> TablesSummary:
    """Describe `tables` of a file or folder that holds `tensors`; no row is read."""
    tables = tuple(tables)
    used = {name for table in tables for name in _tensors(table)}
    left_over = tuple(name for name in tensors if name not in used)
    return TablesSummary(path, model_type, tuple(map(_summary, tables)), left_over)


def _summary(table: TableSource) -> TableSummary:
    fields = table.fields
    return TableSummary(
        name=table.name,
        rows=table.rows,
        layers=tuple(field.layer for field in fields),
        width=fields[0].width,
        dtype=fields[0].dtype,
        codecs=tuple(dict.fromkeys(field.part.codec for field in fields)),
        multiplier=fields[0].multiplier,
        bytes=table.rows * sum(field.part.row_bytes for field in fields),
        rows_per_token=1 if table.ngrams is None else table.ngrams.heads,
        source=tuple(table.describe()),
    )


def _tensors(table: TableSource) -> list[str]:
    if isinstance(table, ComputedTable):
        return list(table.tensors)
    if isinstance(table, TensorTable | QuantizedTable):
        return [part.name for part in table.parts]
    return []
