"""The main path: a checkpoint becomes a pack, in the stages that `build` lists.

The module is not called ``build``: importing ``tolpack.build`` would replace the function of that
name in the package.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolpack.allocate import Allocation, Point, allocate_to_loss, allocate_to_size
from tolpack.auto_rank import LossModel, describe
from tolpack.codecs.frames import LEVEL, compress
from tolpack.codecs.record import record_layout
from tolpack.container.encodings import Encoding, FieldEncoding
from tolpack.container.header import Chunk, Field, Header, Table
from tolpack.container.preamble import PREAMBLE_BYTES, SECTION_ALIGNMENT, VERSION, align
from tolpack.container.writer import PackWriter
from tolpack.errors import ConfigError
from tolpack.layout import (
    ChunkPlan,
    build_header_room,
    field_encoding,
    plan_chunks,
    raw_chunk_bytes,
    raw_encoding,
    zstd_encoding,
)
from tolpack.pack import Pack
from tolpack.passes import (
    FieldProjection,
    Moments,
    encode_records,
    encoded_sample,
    measure_moments,
    worker_threads,
)
from tolpack.progress import Reporter
from tolpack.settings import Ranks, dropped_layers, parse_drop, parse_rank, parse_size
from tolpack.sources.table import ArrayTable, MemoryTable, TableSource, open_source
from tolpack.summary import bits_per_weight, layer_summaries, ratio_fp16
from tolpack.version import __version__
from tolpack.weighing import Weighing, weigh

_SAMPLE_TOKENS = 512
# Truncation is measured at the ranks it leads to; a third time changed nothing on data at hand.
_MEASUREMENTS = 2
# zstd must save this share of a cold chunk, or its rows stay raw and need no decompression.
_MIN_ZSTD_SAVING = 0.03


@dataclass(frozen=True, slots=True)
class LayerResult:
    """One layer of a finished pack.

    ``relative_error`` is ``√(Σ‖row - packed row‖² / Σ‖row‖²)`` over evenly spaced tokens, ``None``
    for a dropped layer.
    """

    layer: int
    rank: int | None
    bits: float
    relative_error: float | None
    bytes: int


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A finished pack: where it is, how large, and what each layer became."""

    path: Path
    bytes: int
    ratio_fp16: float
    bits_per_weight: float
    layers: tuple[LayerResult, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "path": str(self.path)}


def build(
    checkpoint: str | Path,
    output: str | Path | None = None,
    *,
    rank: str | int = "none",
    bits: int = 4,
    drop: str = "none",
    size: str | int | None = None,
    calibrate: str | Path | None = None,
    frequencies: str | Path | None = None,
    tokenizer: str | Path | None = None,
    config: str | Path | None = None,
    layers: int | None = None,
    resume: bool = False,
    force: bool = False,
    reporter: Reporter | None = None,
) -> BuildResult:
    """Build a pack from a checkpoint or a plain table.

    Parameters
    ----------
    checkpoint : str or Path
        See `tolpack.sources.table.open_source`.
    output : str or Path, optional
        The pack; default: ``NAME.tolpack`` beside the checkpoint.
    rank : str or int
        ``"none"`` (no basis), ``"full"``, ``"auto"``, a number, ``"50%"``, or ``"r0,r1,…"``.
    bits : int
        16 (float16), 8 or 4 (integers with a scale per 64 values).
    drop : str
        ``"none"`` or layers like ``"3,7-9"``.
    size : str or int, optional
        With rank ``"auto"``: the file's largest size, ``"800MB"`` or ``"12%"`` of FP16.
    calibrate : str or Path, optional
        Text (with `tokenizer`) or ``.npy`` of token ids: token counts, and the losses for ``auto``.
    frequencies : str or Path, optional
        ``.npy`` of token counts; frequent tokens are stored first and uncompressed.
    tokenizer, config : str or Path, optional
        ``tokenizer.json`` and ``config.json``, where the checkpoint has none.
    layers : int, optional
        Layers of a two-dimensional plain table.
    resume : bool
        Continue a build of the same inputs and settings that was interrupted.
    force : bool
        Replace an existing output.
    reporter : Reporter, optional
        Receives progress.

    Raises
    ------
    ConfigError
        A setting is invalid, or the output exists and `force` is false.
    CheckpointError
        The checkpoint cannot be used.
    FileAccessError
        Reading or writing failed; what was written stays for `resume`.
    """
    reporter = reporter or Reporter()
    settings = _Settings.parse(rank, bits, drop, size)
    path = output_path(checkpoint, output, force)
    source = open_source(checkpoint, config, layers)
    for line in source.describe():
        reporter.say(line)
    weighing = weigh(
        source,
        needs_metrics=settings.ranks.word == "auto",
        text=calibrate,
        frequencies=frequencies,
        tokenizer=tokenizer,
        reporter=reporter,
    )
    work = _Build(source, settings, weighing, reporter)
    with PackWriter(path, work.key, work.header_room, resume=resume) as writer:
        if resume:
            reporter.say(f"resuming after {writer.resumed_sections} finished sections")
        fields, projections = work.write_fields(writer)
        encodings, chunks = work.write_chunks(writer, projections)
        token_map = work.write_token_map(writer)
        table = Table("tol", source.vocab_size, tuple(fields), tuple(chunks), token_map)
        writer.commit(Header((table,), encodings, tuple(writer.sections), f"tolpack {__version__}"))
    return _result(path, source)


def output_path(checkpoint: str | Path, output: str | Path | None, force: bool) -> Path:
    """Return where the pack goes, after checking that nothing is lost by writing it.

    Raises
    ------
    ConfigError
        The output is the input, or exists and `force` is false.
    """
    source = Path(checkpoint)
    path = Path(output) if output is not None else source.with_suffix(".tolpack")
    if path.exists() and source.exists() and os.path.samefile(path, source):
        raise ConfigError(f"output {path} is the input: choose another name with -o")
    if path.is_dir():
        raise ConfigError(f"output {path} is a folder: give a file name with -o")
    if path.exists() and not force:
        raise ConfigError(f"output {path} exists: use --force to replace it, or another -o")
    return path


@dataclass(frozen=True, slots=True)
class _Settings:
    ranks: Ranks
    bits: int
    drop: tuple[int, ...]
    size: str | int | None

    @classmethod
    def parse(cls, rank: str | int, bits: int, drop: str, size: str | int | None) -> _Settings:
        if bits not in (16, 8, 4):
            raise ConfigError(f"--bits is {bits}, expected 16, 8 or 4")
        ranks = parse_rank(rank)
        if size is not None and ranks.word != "auto":
            raise ConfigError("--size chooses the ranks, so it needs --rank auto")
        return cls(ranks, bits, parse_drop(drop), size)


class _Build:
    """What the stages share. Everything expensive is computed when it is first needed, so that a
    resumed build repeats only what it lacks.
    """

    def __init__(
        self,
        source: MemoryTable | ArrayTable,
        settings: _Settings,
        weighing: Weighing,
        reporter: Reporter,
    ) -> None:
        self.source: TableSource = source
        self.settings = settings
        self.weighing = weighing
        self.reporter = reporter
        dropped = set(dropped_layers(settings.drop, source.num_layers))
        self.kept = [n for n in range(source.num_layers) if n not in dropped]
        self.chunks = plan_chunks(weighing.order)
        full = min(source.hidden_size, source.vocab_size)
        self.fixed_ranks = settings.ranks.for_layers(source.num_layers, full)
        self.size = None
        if settings.size is not None:
            fp16 = 2 * source.vocab_size * source.num_layers * source.hidden_size
            self.size = parse_size(settings.size, fp16)

    @property
    def key(self) -> bytes:
        """Identifies inputs and settings: equal keys give equal packs."""
        resolved = (VERSION, __version__, LEVEL, self.settings, self.size)
        digest = hashlib.sha256(repr(resolved).encode())
        digest.update(self.source.fingerprint() + self.weighing.fingerprint)
        return digest.digest()

    @property
    def header_room(self) -> int:
        """Bytes to keep for the header."""
        return build_header_room(
            self.source.num_layers,
            len(self.kept),
            len(self.chunks),
            has_basis=self.settings.ranks.word != "none",
        )

    @cached_property
    def moments(self) -> dict[int, Moments]:
        """Mean and spectrum of every kept layer: one pass over the table."""
        return measure_moments(self.source, self.kept, self.weighing.weights, self.reporter)

    @cached_property
    def allocation(self) -> dict[int, Point]:
        """``--rank auto``: what every kept layer is stored as, by one slope."""
        model = LossModel(self.source, self.moments, self.weighing, self.settings.bits)
        chosen = self._allocate(model)
        for _ in range(_MEASUREMENTS):
            model.measure(chosen, self.reporter)
            chosen = self._allocate(model)
        self.reporter.say(describe(chosen))
        return dict(zip(self.kept, chosen))

    def write_fields(self, writer: PackWriter) -> tuple[list[Field], list[FieldProjection]]:
        """Write bases and means; returns the fields and how rows become stored values."""
        fields, projections = [], []
        for layer in range(self.source.num_layers):
            name, width, dtype = f"layer.{layer}", self.source.hidden_size, self.source.dtype
            if layer not in self.kept:
                fields.append(Field(name, layer, width, dtype, dropped=True))
                continue
            if self.settings.ranks.word == "none":
                fields.append(Field(name, layer, width, dtype))
                projections.append(FieldProjection.onto(layer, None, None))
                continue
            basis_id, basis = writer.add_array("basis", partial(self._basis, layer))
            mean_id, mean = writer.add_array("mean", partial(self._mean, layer))
            rank = len(basis)
            fields.append(Field(name, layer, width, dtype, False, rank, basis_id, mean_id))
            projections.append(FieldProjection.onto(layer, basis, mean.astype(np.float32)))
        return fields, projections

    def write_chunks(
        self, writer: PackWriter, projections: list[FieldProjection]
    ) -> tuple[tuple[Encoding, ...], list[Chunk]]:
        """Write the records of all tokens, chunk by chunk; returns the encodings and chunks."""
        fields = tuple(self._field_encoding(projection) for projection in projections)
        encodings, numbers = self._chunk_encodings(fields, projections)
        layout = record_layout(fields)
        chunks = []
        total = self.source.vocab_size * len(projections)
        with self.reporter.phase("encoding", total, "rows") as done, worker_threads() as pool:
            for plan, number in zip(self.chunks, numbers):
                ids = self._chunk_tokens(plan)
                blocks, index = writer.add_chunk(
                    encodings[number],
                    plan.first_slot,
                    partial(encode_records, self.source, projections, layout, ids, pool, done),
                    compress,
                )
                chunks.append(Chunk(plan.rows, number, blocks, index))
        return encodings, chunks

    def write_token_map(self, writer: PackWriter) -> int | None:
        """Write the map from token id to slot, unless it is the identity."""
        if self.weighing.order.identity:
            return None
        dtype = np.uint32 if self.source.vocab_size <= 2**32 else np.uint64
        return writer.add_array("token_map", lambda: self.weighing.order.slots.astype(dtype))[0]

    def _basis(self, layer: int) -> NDArray[np.float16]:
        rank = None if self.fixed_ranks is None else self.fixed_ranks[layer]
        return self.moments[layer].spectrum.basis(rank or self.allocation[layer].rank)

    def _mean(self, layer: int) -> NDArray[np.float32]:
        return self.moments[layer].mean.astype(np.float32)

    def _field_encoding(self, projection: FieldProjection) -> FieldEncoding:
        if projection.matrix is None:
            codec16 = "bf16" if self.source.dtype == "bfloat16" else "f16"
            return field_encoding(self.source.hidden_size, self.settings.bits, codec16)
        leading = 0
        if self.fixed_ranks is None:
            leading = self.allocation[projection.layer].leading
        return field_encoding(projection.matrix.shape[1], self.settings.bits, "f16", leading)

    def _chunk_encodings(
        self, fields: tuple[FieldEncoding, ...], projections: list[FieldProjection]
    ) -> tuple[tuple[Encoding, ...], list[int]]:
        """Raw for hot chunks; zstd for cold ones if a sample of them shows that it pays."""
        raw, framed = raw_encoding(fields), zstd_encoding(fields)
        cold = [plan for plan in self.chunks if not plan.hot]
        if not cold or not self._zstd_pays(fields, framed, projections, cold):
            return (raw,), [0] * len(self.chunks)
        if len(cold) == len(self.chunks):
            return (framed,), [0] * len(self.chunks)
        return (raw, framed), [0 if plan.hot else 1 for plan in self.chunks]

    def _zstd_pays(
        self,
        fields: tuple[FieldEncoding, ...],
        framed: Encoding,
        projections: list[FieldProjection],
        cold: Sequence[ChunkPlan],
    ) -> bool:
        tokens = np.concatenate([self._chunk_tokens(plan) for plan in cold])
        sample = tokens[:: max(1, len(tokens) // _SAMPLE_TOKENS)][:_SAMPLE_TOKENS]
        records = encoded_sample(self.source, projections, fields, sample)
        rows = framed.rows_per_block
        frames = [compress(records[n : n + rows].tobytes()) for n in range(0, len(records), rows)]
        saved = 1 - sum(map(len, frames)) / records.size
        verdict = "zstd" if saved >= _MIN_ZSTD_SAVING else "raw, too little saved"
        self.reporter.say(f"cold chunks: zstd saves {saved:.1%} on a sample, stored as {verdict}")
        return saved >= _MIN_ZSTD_SAVING

    def _chunk_tokens(self, plan: ChunkPlan) -> NDArray[np.int64]:
        return self.weighing.order.token_ids[plan.first_slot : plan.first_slot + plan.rows]

    def _allocate(self, model: LossModel) -> Allocation:
        """Down to `size`, or until truncation costs what rounding the plain table to bits does."""
        layers = [model.points(layer) for layer in self.kept]
        size = self.size
        if size is None:
            return allocate_to_loss(layers, model.plain_rounding)
        return allocate_to_size(layers, lambda chosen: self._file_bytes(chosen) <= size)

    def _file_bytes(self, allocation: Allocation) -> int:
        """Upper bound of the file's bytes: all records raw, every section in whole pages."""
        encoding = raw_encoding(
            tuple(field_encoding(p.rank, self.settings.bits, "f16", p.leading) for p in allocation)
        )
        sizes = [raw_chunk_bytes(encoding, plan.rows) for plan in self.chunks]
        hidden = self.source.hidden_size
        sizes += [size for p in allocation for size in (2 * hidden * p.rank, 4 * hidden)]
        sizes += [] if self.weighing.order.identity else [4 * self.source.vocab_size]
        pages = sum(align(size, SECTION_ALIGNMENT) for size in sizes)
        return pages + PREAMBLE_BYTES + self.header_room


def _result(path: Path, source: TableSource) -> BuildResult:
    """Open the finished pack and hold a sample of it against the source."""
    ids = np.arange(0, source.vocab_size, max(1, source.vocab_size // _SAMPLE_TOKENS))
    layers = []
    with Pack(path) as pack:
        for summary in layer_summaries(pack):
            error = None
            if summary.bytes:
                rows = source.layer(summary.layer)(ids)
                difference = pack.rows(ids, layers=[summary.layer])[:, 0] - rows
                norm = float(np.square(rows, dtype=np.float64).sum())
                error = float(np.sqrt(np.square(difference, dtype=np.float64).sum() / (norm or 1)))
            layers.append(
                LayerResult(summary.layer, summary.rank, summary.bits, error, summary.bytes)
            )
        return BuildResult(
            path, pack.nbytes, ratio_fp16(pack), bits_per_weight(pack), tuple(layers)
        )
