"""Sizes of packs, predicted from the shape of the table alone: ``tolpack plan``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tolpack.calibration.token_order import order_tokens
from tolpack.compress.chunks import doubling_chunks
from tolpack.compress.fixed.encoding_choice import (
    codec_of,
    field_encoding,
    raw_chunk_bytes,
    raw_encoding,
)
from tolpack.compress.header_size import estimate_header_room
from tolpack.compress.settings import dropped_layers, parse_drop, parse_rank
from tolpack.container.preamble import PREAMBLE_BYTES, SECTION_ALIGNMENT, align
from tolpack.errors import ConfigError
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.open_source import open_tables
from tolpack.sources.protocol import TableSource


@dataclass(frozen=True, slots=True)
class SizePrediction:
    """Predicted cost of one setting; sizes in bytes, work in multiply–accumulates per token.

    ``bytes`` counts the whole file with every record raw: zstd can only make it smaller.
    ``paper_bytes`` is the paper's ``vocab × layers × hidden × bits / 8`` (arXiv 2602.00398,
    Table 7), with a basis ``layers × rank × (vocab × bits / 8 + 2 × hidden)`` (Table 8); it counts
    neither scales nor header. ``ffn_bytes`` are the memory FFNs
    as stored, ``None`` for a plain table.
    """

    rank: str
    bits: int
    bytes: int
    ratio_fp16: float
    bits_per_weight: float
    read_bytes_per_token: int
    resident_bytes: int
    macs_per_token: int
    paper_bytes: int
    ffn_bytes: int | None

    def with_table(self, other: SizePrediction) -> SizePrediction:
        """Return the cost of a pack of these tables and another one."""
        fp16 = self.ratio_fp16 * self.bytes + other.ratio_fp16 * other.bytes
        total = self.bytes + other.bytes
        return replace(
            self,
            bytes=total,
            ratio_fp16=fp16 / total,
            bits_per_weight=16 * total / fp16,
            read_bytes_per_token=self.read_bytes_per_token + other.read_bytes_per_token,
            resident_bytes=self.resident_bytes + other.resident_bytes,
            macs_per_token=self.macs_per_token + other.macs_per_token,
            paper_bytes=self.paper_bytes + other.paper_bytes,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


# What `tolpack plan` shows when nothing is asked for.
_SETTINGS = (("none", 16), ("none", 8), ("none", 4), ("75%", 4), ("50%", 4), ("25%", 4))


def predict_checkpoint(
    checkpoint: str | Path,
    *,
    rank: str | None = None,
    bits: int | str | None = None,
    drop: str = "none",
    checkpoint_options: CheckpointOptions | None = None,
    layers: int | None = None,
    tensor: str | None = None,
) -> list[SizePrediction]:
    """Plan packs of a checkpoint or table: of one setting, or of a range of usual ones.

    Parameters
    ----------
    checkpoint, checkpoint_options, layers, tensor
        As for `tolpack.compress.build.build`.
    rank, bits : optional
        One setting; default ``none`` and 4 if only the other is given.
    drop : str
        Layers left out.

    Raises
    ------
    ConfigError
        Rank ``auto``, whose ranks follow from the table itself.
    """
    sources = open_tables(checkpoint, checkpoint_options, layers, tensor)
    if bits is not None and str(bits) not in ("16", "8", "4"):
        raise ConfigError(f"--bits is {bits}, expected 16, 8 or 4")
    settings = _SETTINGS if rank is bits is None else ((rank or "none", int(bits or 4)),)
    return [_predict_tables(sources, label, width, parse_drop(drop)) for label, width in settings]


def _predict_tables(
    sources: Sequence[TableSource], label: str, bits: int, drop: tuple[int, ...]
) -> SizePrediction:
    """Predict a pack of all tables; the header is counted for each of them."""
    found = []
    for source in sources:
        count, width = len(source.fields), min(field.width for field in source.fields)
        ranks = parse_rank(label).for_layers(count, min(width, source.rows))
        if ranks is None:
            raise ConfigError("--rank auto follows from the table: plan a number or a percentage")
        dropped = dropped_layers(drop, count)
        found.append(predict_pack(source, ranks, bits, dropped, label=label))
    whole = found[0]
    for one in found[1:]:
        whole = whole.with_table(one)
    return whole


def predict_pack(
    source: TableSource,
    ranks: Sequence[int | None],
    bits: int,
    dropped: Sequence[int] = (),
    *,
    label: str = "",
    token_map: bool = False,
) -> SizePrediction:
    """Predict the pack of fixed `ranks` (``None``: no basis) and `bits`.

    Parameters
    ----------
    source : TableSource
        Only its shape is used; no row is computed.
    ranks : sequence of int or None
        One per layer.
    bits : int
        16, 8 or 4.
    dropped : sequence of int
        Layers left out.
    label : str
        How the setting was asked for.
    token_map : bool
        Whether tokens are reordered by frequency, so that the file holds a map.
    """
    vocab, fields = source.rows, source.fields
    kept = [(field, ranks[n]) for n, field in enumerate(fields) if n not in dropped]
    encoding = raw_encoding(
        tuple(
            field_encoding(rank or field.width, bits, "f16" if rank else codec_of(field))
            for field, rank in kept
        )
    )
    chunks = doubling_chunks(order_tokens(None, vocab))
    arrays = [
        size for field, rank in kept if rank for size in (2 * rank * field.width, 4 * field.width)
    ]
    arrays += [(4 if vocab <= 2**32 else 8) * vocab] if token_map else []
    has_basis = any(rank is not None for _, rank in kept)
    header = PREAMBLE_BYTES + estimate_header_room(
        len(fields), len(kept), len(chunks), has_basis=has_basis
    )
    sections = arrays + [raw_chunk_bytes(encoding, chunk.rows) for chunk in chunks]
    total = header + sum(align(size, SECTION_ALIGNMENT) for size in sections[:-1]) + sections[-1]
    fp16 = 2 * vocab * sum(field.width for field in fields)
    return SizePrediction(
        rank=label,
        bits=bits,
        bytes=total,
        ratio_fp16=fp16 / total,
        bits_per_weight=16 * total / fp16,
        read_bytes_per_token=raw_chunk_bytes(encoding, 1),
        resident_bytes=header + sum(arrays),
        macs_per_token=sum((rank or 0) * field.width for field, rank in kept),
        paper_bytes=sum(_paper_bytes(vocab, field.width, rank, bits) for field, rank in kept),
        ffn_bytes=source.ffn_bytes,
    )


def _paper_bytes(vocab: int, width: int, rank: int | None, bits: int) -> int:
    if rank is None:
        return vocab * width * bits // 8
    return vocab * rank * bits // 8 + 2 * rank * width
