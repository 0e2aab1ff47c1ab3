"""A pack as plain values: the contract of ``tolpack inspect --json``."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tolpack.container.verified_reader import ChunkView
from tolpack.pack import Pack
from tolpack.reading.summary import bits_per_weight, layer_summaries, ratio_fp16


@dataclass(frozen=True, slots=True)
class Location:
    """The place of a token: its slot (0: the most frequent, as the pack orders them), its chunk,
    and the bytes that a lookup of it alone asks the file for.
    """

    slot: int
    chunk: int
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
    return [
        Location(slot, bisect_right(starts, slot) - 1, length)
        for slot, length in zip(slots.tolist(), lengths.tolist())
    ]


def describe_pack(pack: Pack) -> dict[str, Any]:
    """Return the object that ``tolpack inspect --json`` prints."""
    container = pack.container
    major, minor = container.preamble.version
    dropped = [n for n, field in enumerate(container.table.fields) if field.dropped]
    return {
        "format_version": f"{major}.{minor}",
        "producer": container.header.producer,
        "vocab_size": pack.vocab_size,
        "hidden_size": pack.hidden_size if len(set(pack.widths)) == 1 else None,
        "num_layers": pack.num_layers,
        "kept_layers": list(pack.kept_layers),
        "dropped_layers": dropped,
        "bytes": pack.nbytes,
        "ratio_fp16": ratio_fp16(container),
        "bits_per_weight": bits_per_weight(container),
        "resident_bytes": pack.resident_bytes,
        "macs_per_token": pack.macs_per_token,
        "token_map": container.table.token_map is not None,
        "layers": [asdict(s) for s in layer_summaries(container)],
        "chunks": [_describe_chunk(view) for view in container.chunks],
    }


def _describe_chunk(view: ChunkView) -> dict[str, Any]:
    return {
        "tokens": view.chunk.rows,
        "bytes": view.length_bytes,
        "encoding": view.encoding.frame,
        "rows_per_block": view.rows_per_block,
        "record_bytes": view.record_bytes,
    }
