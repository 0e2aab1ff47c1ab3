"""A pack's contents as plain values: the contract of ``tolpack inspect --json``."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tolpack.codecs.encodings import field_bytes
from tolpack.container.reader import ChunkView, Container
from tolpack.reading.code_rates import CodeRate, code_rates

if TYPE_CHECKING:
    from tolpack.pack import Pack


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """One layer: ``rank`` (``None`` without a basis), mean stored bits per stored value (scales
    included, basis not), and bytes with basis and mean; a dropped layer has 0 bits and bytes.

    ``entropy_bits``, ``gaussian_bits``: for entropy-coded rows, see `tolpack.reading.code_rates`.
    """

    layer: int
    rank: int | None
    bits: float
    bytes: int
    entropy_bits: float | None = None
    gaussian_bits: float | None = None


def fp16_bytes(pack: Pack) -> int:
    """Bytes of the FP16 table of all layers, dropped ones included."""
    return pack.vocab_size * sum(pack.widths) * 2


def ratio_fp16(pack: Pack) -> float:
    """How many times smaller the file is than the FP16 table, every byte counted."""
    return fp16_bytes(pack) / pack.nbytes


def bits_per_weight(pack: Pack) -> float:
    """Bits of the file per value of the full table."""
    return 16 / ratio_fp16(pack)


def layer_summaries(pack: Pack) -> list[LayerSummary]:
    """Summarise each layer.

    A compressed chunk's bytes are shared out by the layers' raw bytes, or by their codes' entropy.
    """
    container, table = pack.container, pack.container.table
    rates = code_rates(container)
    shares = _stored_bytes(container, rates)
    kept = 0
    layers = []
    for layer, field in enumerate(table.fields):
        if field.dropped:
            layers.append(LayerSummary(layer, None, 0.0, 0))
            continue
        stored, rate = shares[kept], {} if rates is None else asdict(rates[kept])
        arrays = [n for n in (field.basis, field.mean) if n is not None]
        extra = sum(container.header.sections[n].length_bytes for n in arrays)
        bits = 8 * stored / (pack.vocab_size * field.stored_values)
        layers.append(LayerSummary(layer, field.rank, bits, round(stored) + extra, **rate))
        kept += 1
    return layers


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
        "ratio_fp16": ratio_fp16(pack),
        "bits_per_weight": bits_per_weight(pack),
        "resident_bytes": pack.resident_bytes,
        "macs_per_token": pack.macs_per_token,
        "token_map": container.table.token_map is not None,
        "layers": [asdict(s) for s in layer_summaries(pack)],
        "chunks": [_describe_chunk(view) for view in container.chunks],
    }


def _stored_bytes(container: Container, rates: list[CodeRate] | None) -> list[float]:
    """Bytes of all chunks by kept field."""
    fields, views = container.table.kept_fields, container.chunks
    if rates is None:
        return _raw_shares(container)
    whole = sum(view.length_bytes for view in views)
    sizes = [rate.entropy_bits * field.stored_values for rate, field in zip(rates, fields)]
    total = sum(sizes)
    return [whole * (size / total if total else 1 / len(sizes)) for size in sizes]


def _describe_chunk(view: ChunkView) -> dict[str, Any]:
    return {
        "tokens": view.chunk.rows,
        "bytes": view.length_bytes,
        "encoding": view.encoding.frame,
        "rows_per_block": view.rows_per_block,
        "record_bytes": view.record_bytes,
    }


def _raw_shares(container: Container) -> list[float]:
    """Bytes of all chunks by kept field, in the shares of a record that is not compressed.

    Encoding by encoding: chunks and fields may be thousands, each.
    """
    stored: Counter[int] = Counter()
    for view in container.chunks:
        stored[view.chunk.encoding] += view.length_bytes
    found = [0.0] * len(container.table.kept_fields)
    for number, size in stored.items():
        encoding = container.header.encodings[number]
        record = container.table.record_bytes(encoding)
        for kept, parts in enumerate(encoding.fields):
            found[kept] += size * field_bytes(parts) / record
    return found
