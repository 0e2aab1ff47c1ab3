"""``--bits auto``: one step for everything, and an entropy coder that spends bits where they count.

In coordinates where the loss metric is the identity, every value's rounding error costs the same,
so one step serves all layers and components; small components round to zeros, which cost nothing.
The step of a token falls with its frequency (`tolpack.compress.entropy.frame_sample`). What
rounding adds to one layer is carried into the layers above
(`tolpack.compress.entropy.error_compensation`). One number decides the size, the step;
`tolpack.compress.entropy.step_search` finds it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property, partial

import numpy as np

from tolpack.codecs.code_entropy import code_bytes
from tolpack.codecs.frames import compress_runs
from tolpack.codecs.record import record_layout
from tolpack.compress.assembly import Assembly
from tolpack.compress.entropy.components import Component, choose_components
from tolpack.compress.entropy.frame_sample import FrameSample, FrequencySteps, sample_frames
from tolpack.compress.entropy.held_out_validation import HeldOutValidation
from tolpack.compress.entropy.layer_basis import MAX_CODE, basis_part
from tolpack.compress.entropy.layer_sweep import encode_rounded
from tolpack.compress.entropy.quantizers import layer_step, layer_steps
from tolpack.compress.entropy.step_search import search_loss, search_size
from tolpack.compress.entropy.table_quantizer import Candidate, TableQuantizer
from tolpack.compress.header_size import PlannedHeader, planned_array, planned_basis
from tolpack.compress.layout import ChunkPlan, file_bytes, step_chunks
from tolpack.compress.settings import DEFAULT_INCREASE
from tolpack.compress.table_passes import worker_threads
from tolpack.container.crc import CHECKSUM_BYTES
from tolpack.container.encodings import Encoding, FieldEncoding, Part
from tolpack.container.header import Chunk, Field
from tolpack.container.index import index_bytes
from tolpack.container.preamble import SECTION_ALIGNMENT
from tolpack.container.writer import PackWriter
from tolpack.errors import ConfigError
from tolpack.runtime.array_types import Floats

# Records that a frame holds at least, in bytes before compression.
_FRAME_BYTES = 1 << 15
_MAX_FRAME_ROWS = 64
# What a chunk takes beside its rows: a page and a half of padding, an index that fills no page, and
# parts in the header, of which a field of coefficients has four.
_CHUNK_BYTES, _PART_BYTES, _PARTS = 1.5 * SECTION_ALIGNMENT, 48, 4
# A sample's largest code may be passed by this factor before a component's codes get 16 bits.
_CODE_MARGIN = 1.5
# A step that rounds as 4 bits do, in units of the root mean square: groups of 64 have their largest
# value at three of it, and seven codes.
_STEP_OF_4_BITS = 0.43


class EntropyCodedAssembly(Assembly):
    """See the module; `Assembly` for the interface."""

    def plan_chunks(self) -> list[ChunkPlan]:
        """See `Assembly`."""
        self.rows_per_block = 1
        record = len(self.kept) * self.source.hidden_size
        while self.rows_per_block < _MAX_FRAME_ROWS and record * self.rows_per_block < _FRAME_BYTES:
            self.rows_per_block *= 2
        rows, values = self.source.vocab_size, len(self.kept) * self.source.hidden_size
        row_bytes = values / 8 if self.size is None else self.size / rows
        parts = len(self.kept) * (_PARTS if self.has_basis else 1)
        chunk_bytes = _CHUNK_BYTES + _PART_BYTES * parts
        return step_chunks(self.weighing.order, self.rows_per_block, row_bytes, chunk_bytes)

    @property
    def header_room(self) -> int:
        """Bytes to keep for the header."""
        return self._header(self.chosen).room_bytes

    def _header(self, candidate: Candidate) -> PlannedHeader:
        """What the header will say; sections of arrays in the order of the file."""
        encodings, numbers = self._encodings(candidate)
        width = self.source.hidden_size
        fields, arrays = [], []
        for layer in range(self.source.num_layers):
            field = self._field(layer)
            if not field.dropped and self.has_basis:
                rank = candidate.components[layer].rank
                field = replace(field, rank=rank, basis=0)
                arrays.append(planned_basis(rank, basis_part(width)))
                if self.rounder.bases[layer].has_mean:
                    field = replace(field, mean=0)
                    arrays.append(planned_array("mean", "float32", (width,), 4))
            fields.append(field)
        arrays += self.planned_token_map
        return PlannedHeader(fields, self.chunks, encodings, numbers, arrays)

    def _field(self, layer: int) -> Field:
        width, dtype = self.source.hidden_size, self.source.dtype
        return Field(f"layer.{layer}", layer, width, dtype, dropped=layer not in self.kept)

    def _encodings(self, candidate: Candidate) -> tuple[tuple[Encoding, ...], list[int]]:
        """Return the encodings, and the number of each chunk's."""
        found: list[Encoding] = []
        numbers = []
        for chunk in range(len(self.chunks)):
            fields = self._fields(candidate, chunk)
            encoding = Encoding("zstd-runs", self.rows_per_block, fields)
            if encoding not in found:
                found.append(encoding)
            numbers.append(found.index(encoding))
        return tuple(found), numbers

    def keep_back(self, excess_bytes: int) -> None:
        """See `Assembly`."""
        super().keep_back(excess_bytes)
        self.__dict__.pop("chosen", None)

    @property
    def has_basis(self) -> bool:
        """Whether rows are stored as coefficients."""
        return self.settings.ranks.word != "none"

    @cached_property
    def rounder(self) -> TableQuantizer:
        """How kept layers are rounded."""
        return TableQuantizer(
            self.source, self.kept, self.weighing, self._steps, has_basis=self.has_basis,
            limits=self.limits, scratch=self.scratch, reporter=self.reporter,
        )  # fmt: skip

    # ---- what follows from a step ----------------------------------------------------------------

    def candidate(self, step: float) -> Candidate:
        """Decide ranks and large codes for a step, on a sample."""
        hidden = self.source.hidden_size
        full = min(hidden, self.source.vocab_size) if self.has_basis else hidden
        ranks = self.fixed_ranks or (None,) * self.source.num_layers
        widest = {n: Component(ranks[n] or full, ranks[n] or full) for n in self.kept}
        sampled = self._sampled(Candidate(step, widest))
        steps = self._steps.of_slots(self._sample.all_slots, step)
        codes = {layer: stored / steps[:, None] for layer, stored in sampled.items()}
        limit = MAX_CODE / _CODE_MARGIN
        if not self.has_basis:
            unit = self.rounder.unit
            large = {n: np.abs(codes[n]).max() > limit * unit(n) for n in self.kept}
            return Candidate(
                step, {n: Component(hidden, hidden if large[n] else 0) for n in self.kept}
            )
        chosen = choose_components(
            codes, self._sample, steps, self._basis_row_bytes,
            fixed=self.fixed_ranks is not None, limit=limit,
        )  # fmt: skip
        return Candidate(step, chosen)

    @property
    def _basis_row_bytes(self) -> int:
        return basis_part(self.source.hidden_size).row_bytes

    # ---- the sample ------------------------------------------------------------------------------

    @cached_property
    def _steps(self) -> FrequencySteps:
        return FrequencySteps(self.weighing.order, self.chunks)

    @cached_property
    def _sample(self) -> FrameSample:
        row_values = self.source.num_layers * self.source.hidden_size
        return sample_frames(self.weighing.order, self.chunks, self.rows_per_block, row_values)

    def _sampled(self, candidate: Candidate) -> dict[int, Floats]:
        return self.rounder.stored(candidate, self.weighing.order.token_ids[self._sample.all_slots])

    def predicted_bytes(self, candidate: Candidate) -> int:
        """Predict the file's size from the frames of the sample."""
        stored = self._sampled(candidate)
        header = self._header(candidate)
        sizes: list[float] = [array.length_bytes for array in header.arrays]
        start = 0
        with worker_threads(self.limits.threads) as pool:
            for number, (plan, slots) in enumerate(zip(self.chunks, self._sample.slots)):
                layout = record_layout(self._fields(candidate, number))
                records = np.zeros((slots.size, layout.record_bytes), np.uint8)
                for n, layer in enumerate(self.kept):
                    layout.encode(records, n, stored[layer][start : start + slots.size])
                frames = [part.tobytes() for part in np.split(records, len(slots))]
                compress = partial(compress_runs, layout.record_bytes)
                mean = sum(map(len, pool.map(compress, frames))) / slots.size
                blocks = -(-plan.rows // self.rows_per_block)
                sizes += [mean * plan.rows + CHECKSUM_BYTES * blocks, index_bytes(blocks)]
                start += slots.size
        return file_bytes(header.room_bytes, sizes)

    # ---- choosing --------------------------------------------------------------------------------

    @cached_property
    def chosen(self) -> Candidate:
        """The candidate that meets what was asked for."""
        start = self._first_step
        if self.target is not None:
            return search_size(
                self.candidate, self.predicted_bytes, self.target, start, self.reporter
            )
        if self.weighing.model is None:
            if self.settings.max_ppl_increase is not None:
                raise ConfigError(
                    "--max-ppl-increase is measured, but the model cannot be run: use --size"
                )
            return self.candidate(start)
        return search_loss(
            self.candidate, self.measured_increase, self._limit, start, self.reporter
        )

    @property
    def _limit(self) -> float:
        """Percent of perplexity that may be lost."""
        given = self.settings.max_ppl_increase
        return DEFAULT_INCREASE if given is None else given

    @cached_property
    def _first_step(self) -> float:
        """Without a model, as coarse as 4 bits: 0.43 of the rows' root mean square; with one, where
        errors are predicted to add half of the limit.
        """
        if self.weighing.model is None:
            square = self._mean_square or 1.0
            return _STEP_OF_4_BITS * math.sqrt(square / self._steps.mean_square)
        values = len(self.kept) * self.source.hidden_size
        per_square = 0.5 * values / 12 * self._steps.mean_square
        return math.sqrt(0.5 * math.log1p(self._limit / 100) / per_square)

    @property
    def _mean_square(self) -> float:
        """Mean square of the table's values, on the sample."""
        ids = self.weighing.order.token_ids[self._sample.all_slots]
        rows = (self.rounder.table.layer(layer)(ids) for layer in self.kept)
        return float(np.mean([np.square(part, dtype=np.float64).mean() for part in rows]))

    @cached_property
    def trial(self) -> HeldOutValidation | None:
        """Where losses are measured, if they can be."""
        model = self.weighing.model
        return None if model is None else HeldOutValidation(model, self.reporter)

    def measured_increase(self, candidate: Candidate) -> tuple[float, float]:
        """Perplexity increase in percent, and its standard error, on the held-out part."""
        trial = self.trial
        if trial is None:
            raise ValueError("a table that cannot be run has no losses")
        return trial.increase_pct(self.rounder.decoded(candidate, trial.token_ids))

    # ---- dropping --------------------------------------------------------------------------------

    def layer_bytes(self, candidate: Candidate) -> dict[int, float]:
        """Predict what each kept layer takes of the file, its basis included."""
        steps = self._steps.of_slots(self._sample.all_slots, candidate.step)
        found = {}
        for layer, stored in self._sampled(candidate).items():
            codes = np.rint(stored / layer_steps(steps, self.rounder.unit(layer))[:, None])
            found[layer] = float(code_bytes(codes, self._sample.rows).sum())
            if self.has_basis:
                found[layer] += candidate.components[layer].rank * self._basis_row_bytes
        return found

    # ---- writing ---------------------------------------------------------------------------------

    def write_fields(self, writer: PackWriter) -> list[Field]:
        """See `Assembly`."""
        part = basis_part(self.source.hidden_size)
        fields, rounder = [], self.rounder
        for layer in range(self.source.num_layers):
            field = self._field(layer)
            if not field.dropped and self.has_basis:
                rank, found = self.chosen.components[layer].rank, rounder.bases[layer]
                basis, _ = writer.add_array("coded_basis", partial(found.coded, rank), part)
                field = replace(field, rank=rank, basis=basis)
                if found.has_mean:
                    mean, _ = writer.add_array("mean", partial(rounder.mean, layer))
                    field = replace(field, mean=mean)
            fields.append(field)
        return fields

    def write_chunks(self, writer: PackWriter) -> tuple[tuple[Encoding, ...], list[Chunk]]:
        """See `Assembly`."""
        candidate, layers = self.chosen, self.rounder.layers(self.chosen)
        encodings, numbers = self._encodings(candidate)
        chunks = []
        with (
            self.reporter.phase("encoding", self.source.vocab_size * len(layers), "rows") as done,
            worker_threads(self.limits.threads) as pool,
        ):
            for chunk, (plan, number) in enumerate(zip(self.chunks, numbers)):
                encoding = encodings[number]
                layout = record_layout(encoding.fields)
                carried_bytes = 8 * self.source.hidden_size
                blocks, index = writer.add_chunk(
                    encoding,
                    plan.first_slot,
                    partial(
                        encode_rounded, self.rounder.table, layers, layout, self.chunk_tokens(plan),
                        self._steps.of_chunk(chunk, candidate.step),
                        self.limits.superblock_tokens(layout.record_bytes + carried_bytes),
                        pool, done,
                    ),
                    partial(compress_runs, layout.record_bytes),
                )  # fmt: skip
                chunks.append(Chunk(plan.rows, number, blocks, index))
        return encodings, chunks

    def _fields(self, candidate: Candidate, chunk: int) -> tuple[FieldEncoding, ...]:
        step = self._steps.of_chunk(chunk, candidate.step)
        found = []
        for layer in self.kept:
            component = candidate.components[layer]
            own = layer_step(step, self.rounder.unit(layer))
            parts = []
            if component.leading:
                parts.append(Part("step16", component.leading, step=own))
            bounds = (component.leading, *component.cuts, component.rank)
            for start, stop in zip(bounds, bounds[1:]):
                if stop > start:
                    parts.append(Part("step8", stop - start, step=own))
            found.append(tuple(parts))
        return tuple(found)
