"""Sizes of packs, predicted from the shape of the table alone: ``tolpack plan``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tolpack.calibration.token_order import order_tokens
from tolpack.codecs.encodings import Encoding, field_bytes
from tolpack.compress.chunks import doubling_chunks
from tolpack.compress.fixed.encoding_choice import (
    codec_of,
    field_encoding,
    raw_chunk_bytes,
    raw_encoding,
)
from tolpack.compress.frame_choice import chunk_sizes
from tolpack.compress.header_size import estimate_header_room
from tolpack.compress.lossless.planner import lossless_encodings, measure_planes
from tolpack.compress.pack_provenance import provenance_room, replaced_by_pack
from tolpack.compress.settings import dropped_fields, parse_bits, parse_drop, parse_rank
from tolpack.container.header import Field, Table
from tolpack.container.ngram_header import NGrams
from tolpack.container.preamble import PREAMBLE_BYTES, SECTION_ALIGNMENT, align
from tolpack.errors import ConfigError
from tolpack.runtime.array_types import Ints
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.open_source import open_tables
from tolpack.sources.protocol import TableSource


@dataclass(frozen=True, slots=True)
class SizePrediction:
    """Predicted cost of one setting; sizes in bytes, work in multiply–accumulates per token.

    ``bytes`` counts the whole file with every record raw: zstd can only make it smaller. With
    ``bits`` ``"lossless"`` it counts frames where they save enough of a sample.
    ``paper_bytes`` is the paper's ``vocab × layers × hidden × bits / 8`` (arXiv 2602.00398,
    Table 7), with a basis ``layers × rank × (vocab × bits / 8 + 2 × hidden)`` (Table 8); it counts
    neither scales nor header. ``ffn_bytes`` are the memory FFNs as stored, ``None`` for a plain
    table, and ``ffn_bytes_16`` in 16 bits; ``table_bytes``: tables that the checkpoint stores.
    """

    rank: str
    bits: int | str
    bytes: int
    ratio_fp16: float
    bits_per_weight: float
    read_bytes_per_token: int
    resident_bytes: int
    macs_per_token: int
    paper_bytes: int
    ffn_bytes: int | None
    ffn_bytes_16: int | None = None
    table_bytes: int | None = None

    def with_table(self, other: SizePrediction) -> SizePrediction:
        """Return the cost of a pack of these tables and another one."""
        fp16 = self.ratio_fp16 * self.bytes + other.ratio_fp16 * other.bytes
        total, stored = self.bytes + other.bytes, (self.table_bytes, other.table_bytes)
        return replace(
            self,
            bytes=total,
            ratio_fp16=fp16 / total,
            bits_per_weight=16 * total / fp16,
            read_bytes_per_token=self.read_bytes_per_token + other.read_bytes_per_token,
            resident_bytes=self.resident_bytes + other.resident_bytes,
            macs_per_token=self.macs_per_token + other.macs_per_token,
            paper_bytes=self.paper_bytes + other.paper_bytes,
            table_bytes=None if None in stored else sum(filter(None, stored)),
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


Setting = tuple[str, int | str]
# What `tolpack plan` shows when nothing is asked for: of computed tables, of those that are read,
# and of hashed ones, whose rows have no common basis.
_COMPUTED: tuple[Setting, ...] = (
    ("none", 16), ("none", 8), ("none", 4), ("75%", 4), ("50%", 4), ("25%", 4)
)  # fmt: skip
_HASHED: tuple[Setting, ...] = (("none", "lossless"), ("none", 8), ("none", 4))
_READ = (_HASHED[0], *_COMPUTED)


def predict_checkpoint(
    checkpoint: str | Path,
    *,
    rank: str | None = None,
    bits: int | str | None = None,
    drop: str = "none",
    checkpoint_options: CheckpointOptions | None = None,
    layers: int | None = None,
    tensor: str | None = None,
    compression: str = "auto",
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
    compression : str
        ``"auto"`` or ``"none"``, as for a build; counts with bits ``"lossless"``.

    Raises
    ------
    ConfigError
        Rank ``auto``, whose ranks follow from the table itself.
    """
    sources = open_tables(checkpoint, checkpoint_options, layers, tensor)
    if bits is not None and str(bits) not in ("lossless", "16", "8", "4"):
        raise ConfigError(f"--bits is {bits}, expected lossless, 16, 8 or 4")
    settings = _usual_settings(sources)
    if rank is not None or bits is not None:
        settings = ((rank or "none", 4 if bits is None else parse_bits(str(bits))),)
    dropped, raw = parse_drop(drop), compression == "none"
    return [predict_tables(sources, label, width, dropped, raw=raw) for label, width in settings]


def _usual_settings(sources: Sequence[TableSource]) -> tuple[Setting, ...]:
    if any(source.ngrams is not None for source in sources):
        return _HASHED
    return _COMPUTED if any(source.inner_size for source in sources) else _READ


def predict_tables(
    sources: Sequence[TableSource],
    label: str,
    bits: int | str,
    drop: tuple[int, ...] = (),
    *,
    raw: bool = False,
) -> SizePrediction:
    """Predict a pack of all tables under one setting of ``--rank`` and ``--bits``, without frames
    if `raw`. The header is counted for each table.

    Raises
    ------
    ConfigError
        As of `predict_checkpoint`.
    """
    found = []
    for source in sources:
        count, width = len(source.fields), min(field.width for field in source.fields)
        ranks = parse_rank(label).for_layers(count, min(width, source.rows))
        if ranks is None:
            raise ConfigError("--rank auto follows from the table: plan a number or a percentage")
        dropped = dropped_fields(drop, [field.layer for field in source.fields])
        if isinstance(bits, int):
            found.append(predict_pack(source, ranks, bits, dropped, label=label))
        else:
            found.append(predict_lossless(source, dropped, raw=raw))
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
    fields = source.fields
    kept = [(field, ranks[n]) for n, field in enumerate(fields) if n not in dropped]
    encoding = raw_encoding(
        tuple(
            field_encoding(rank or field.width, bits, "f16" if rank else codec_of(field))
            for field, rank in kept
        )
    )
    arrays = [
        size for field, rank in kept if rank for size in (2 * rank * field.width, 4 * field.width)
    ]
    arrays += [4 * source.rows] if token_map else []
    has_basis = any(rank is not None for _, rank in kept)
    return replace(
        _predicted(source, encoding, encoding, 0.0, arrays, has_basis=has_basis),
        rank=label,
        bits=bits,
        macs_per_token=sum((rank or 0) * field.width for field, rank in kept),
        paper_bytes=sum(_paper_bytes(source.rows, f.width, rank, bits) for f, rank in kept),
    )


def predict_lossless(
    source: TableSource, dropped: Sequence[int] = (), *, raw: bool = False
) -> SizePrediction:
    """Predict the pack of ``--bits lossless``, with frames where they save enough of a sample, or
    `raw`; parameters as of `predict_pack`.
    """
    kept = tuple(n for n in range(len(source.fields)) if n not in dropped)
    records, planes = lossless_encodings([source.fields[n] for n in kept])
    saved = 0.0
    if not raw:
        cost = measure_planes(source, kept, planes, lambda n: _spread_rows(source.rows, n))
        saved = cost.saved if cost.pays else 0.0
    found = _predicted(source, records, planes, saved, [], has_basis=False)
    stored = sum(source.fields[n].part.row_bytes for n in kept)
    return replace(found, rank="none", bits="lossless", paper_bytes=source.rows * stored)


def _spread_rows(rows: int, count: int) -> Ints:
    """Return about `count` evenly spread row numbers, int64 (n,)."""
    return np.arange(0, rows, max(1, rows // count))


def _predicted(
    source: TableSource,
    raw: Encoding,
    framed: Encoding,
    saved: float,
    arrays: Sequence[int],
    *,
    has_basis: bool,
) -> SizePrediction:
    """Predict the bytes of a pack whose chunks are `raw`, or `framed` where that saves a share."""
    fields, ngrams = source.fields, source.ngrams
    chunks = doubling_chunks(order_tokens(None, source.rows))
    if saved:
        chunks = [replace(chunk, hot=False) for chunk in chunks]
    if ngrams is not None and ngrams.compressed_ids is not None:
        arrays = [*arrays, ngrams.compressed_ids.nbytes]
    described = Table(
        source.name, source.rows, tuple(Field(f.name, f.layer, f.width) for f in fields), (),
        ngrams=None if ngrams is None else NGrams.of(ngrams),
    )  # fmt: skip
    header = PREAMBLE_BYTES + estimate_header_room(
        len(fields), len(raw.fields), len(chunks), has_basis=has_basis, table=described,
        provenance=provenance_room([source.name], len(fields)),
    )  # fmt: skip
    sections = [*arrays, *map(math.ceil, chunk_sizes(chunks, raw, framed, saved))]
    total = header + sum(align(size, SECTION_ALIGNMENT) for size in sections[:-1]) + sections[-1]
    fp16 = 2 * source.rows * sum(field.width for field in fields)
    row_bytes = raw_chunk_bytes(raw, 1)
    if saved:
        record = sum(field_bytes(field) for field in framed.fields)
        row_bytes = round(framed.rows_per_block * record * (1 - saved))
    return SizePrediction(
        rank="none",
        bits=16,
        bytes=total,
        ratio_fp16=fp16 / total,
        bits_per_weight=16 * total / fp16,
        read_bytes_per_token=row_bytes * (1 if ngrams is None else ngrams.heads),
        resident_bytes=header + sum(arrays),
        macs_per_token=0,
        paper_bytes=0,
        **replaced_by_pack([source]).weight_bytes(),
    )


def _paper_bytes(vocab: int, width: int, rank: int | None, bits: int) -> int:
    if rank is None:
        return vocab * width * bits // 8
    return vocab * rank * bits // 8 + 2 * rank * width
