"""A pack as plain values: the contract of ``tolpack inspect --json``."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tolpack.container.chunk_view import ChunkView
from tolpack.container.parts.parts_source import PartsSource
from tolpack.container.provenance import Provenance
from tolpack.container.verified_reader import Container
from tolpack.pack import Pack
from tolpack.reading.code_costs import code_costs
from tolpack.reading.edited_rows import read_token_ids
from tolpack.reading.summary import (
    LayerSummary,
    bits_per_weight,
    layer_summaries,
    ratio_fp16,
    table_bytes,
)


@dataclass(frozen=True, slots=True)
class Location:
    """The place of a token: its slot (0: the most frequent, as the pack orders them), its chunk,
    ``None`` if its row comes from edits, and the bytes that a lookup of it alone asks the file for.
    """

    slot: int
    chunk: int | None
    read_bytes: int


def locate(pack: Pack, token_ids: Sequence[int]) -> list[Location]:
    """Return where each of `token_ids` is stored.

    Raises
    ------
    TokenIdError, FormatError, FileAccessError
        As `Pack.rows`.
    """
    lengths, slots = pack.extents(token_ids)[:, 1], pack.slots(token_ids)
    starts = [view.first_slot for view in pack.container.chunks]
    edited = np.isin(token_ids, pack.edited_tokens).tolist()
    return [
        Location(slot, None if is_edited else bisect_right(starts, slot) - 1, length)
        for slot, is_edited, length in zip(slots.tolist(), edited, lengths.tolist())
    ]


@contextmanager
def every_table(pack: Pack) -> Iterator[list[Pack]]:
    """Yield `pack`, and its other tables opened for the meantime."""
    with ExitStack() as stack:
        others = [name for name in pack.tables if name != pack.table]
        yield [pack, *(stack.enter_context(pack.open_table(name)) for name in others)]


def describe_pack(pack: Pack) -> dict[str, Any]:
    """Return the object that ``tolpack inspect --json`` prints.

    ``provenance``: what the pack says of its making (`tolpack.container.provenance`), or ``None``.
    A pack in parts has ``part_files``, each with its name, bytes and rows.
    What concerns a table stands beside what concerns the file, or, if there are several tables,
    under ``tables``, an object each. A table has its number of ``edited_tokens``, those of edits
    that the pack was opened with included. Of edits alone, ``base`` is the digest of their pack,
    and a table says what it ``edits``, and which ``token_ids``.
    """
    container = pack.container
    major, minor = container.preamble.version
    made_from = Provenance.parse(container.header.provenance)
    described: dict[str, Any] = {
        "format_version": f"{major}.{minor}",
        "producer": container.header.producer,
        "bytes": pack.nbytes,
        "ratio_fp16": ratio_fp16(container),
        "bits_per_weight": bits_per_weight(container),
        **made_from.weight_bytes(),
        "provenance": made_from.to_json() or None,
    }
    if isinstance(container.source, PartsSource):
        files = container.source.manifest.files
        described["part_files"] = [
            {"name": one.name, "bytes": one.length_bytes, "rows": one.rows} for one in files
        ]
    if container.header.base is not None:
        described["base"] = container.header.base
    if len(pack.tables) == 1:
        return described | _describe_table(container) | _describe_edits(pack, container)
    tables, shown = [], set(pack.tables)
    for number, table in enumerate(container.header.tables):
        if table.name in shown:
            view = container.of_table(number)
            own = {"bytes": table_bytes(view)} | _describe_table(view)
            tables.append(own | _describe_edits(pack, view))
    return described | {"tables": tables}


def _describe_edits(pack: Pack, view: Container) -> dict[str, Any]:
    """Return how many tokens of a table are edited; of edits, which ones they edit."""
    edits = view.table.edits
    if edits is not None:
        token_ids = read_token_ids(view).tolist()
        return {"edits": {"table": edits.table, "rows": edits.rows}, "token_ids": token_ids}
    if view.table.name == pack.table:
        return {"edited_tokens": len(pack.edited_tokens)}
    if not pack.edit_files and len(pack.tables) == len(pack.container.header.tables):
        return {"edited_tokens": 0}  # a file may have thousands of tables: none is opened for that
    with pack.open_table(view.table.name) as other:
        return {"edited_tokens": len(other.edited_tokens)}


def _describe_table(container: Container) -> dict[str, Any]:
    """Describe a table; ``kept_layers`` and ``dropped_layers`` are numbers of its fields."""
    table = container.table
    widths = {field.width for field in table.fields}
    numbers: dict[bool, list[int]] = {True: [], False: []}
    for number, field in enumerate(table.fields):
        numbers[field.dropped].append(number)
    summaries = layer_summaries(container)
    layers = [
        {"name": field.name, "width": field.width, **asdict(summary)}
        for field, summary in zip(table.fields, summaries)
    ]
    return {
        "name": table.name,
        "vocab_size": table.rows,
        "hidden_size": widths.pop() if len(widths) == 1 else None,
        "num_layers": len(table.fields),
        "kept_layers": numbers[False],
        "dropped_layers": numbers[True],
        "resident_bytes": container.resident_bytes,
        "macs_per_token": table.macs_per_token,
        "token_map": table.token_map is not None,
        "ngrams": None if table.ngrams is None else table.ngrams.to_json(),
        "layers": layers,
        "coding": _describe_coding(container, summaries),
        "chunks": [_describe_chunk(view) for view in container.chunks],
    }


def _describe_coding(
    container: Container, summaries: Sequence[LayerSummary]
) -> dict[str, Any] | None:
    """Return what rows coded by models take, in bytes, beside their adaptive ``entropy``."""
    costs, table = code_costs(container), container.table
    if costs is None:
        return None
    bits = sum(
        (one.entropy_bits or 0.0) * field.stored_values
        for one, field in zip(summaries, table.fields)
    )
    return {"entropy": table.rows * bits / 8} | asdict(costs)


def _describe_chunk(view: ChunkView) -> dict[str, Any]:
    return {
        "tokens": view.chunk.rows,
        "bytes": view.length_bytes,
        "encoding": view.encoding.frame,
        "rows_per_block": view.rows_per_block,
        "record_bytes": view.record_bytes,
    }
