"""Planning for ``--bits 16|8|4``: ranks, encodings and chunks.

With ``--rank auto`` ranks are allocated by loss (`tolpack.compress.fixed.loss_model`). Hot chunks
are raw records, cold ones zstd frames if that pays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from tolpack.codecs.encodings import Encoding, FieldEncoding
from tolpack.compress.chunks import ChunkSpan, doubling_chunks, spread_slots
from tolpack.compress.entropy.held_out_validation import HeldOutValidation
from tolpack.compress.entropy.loss_measure import DIVERGENCE
from tolpack.compress.fixed.encoder import FixedBitsEncoder, LayerProjection, encoded_sample
from tolpack.compress.fixed.encoding_choice import (
    codec_of,
    field_encoding,
    frame_encoding,
    raw_encoding,
)
from tolpack.compress.fixed.loss_model import LossModel, describe
from tolpack.compress.fixed.principal_components import PrincipalComponents
from tolpack.compress.fixed.rank_allocation import (
    Allocation,
    RankOption,
    allocate_to_loss,
    allocate_to_size,
)
from tolpack.compress.fixed.rank_validation import choose, stored_memory
from tolpack.compress.frame_choice import (
    MIN_SAVING,
    chunk_encodings,
    chunk_sizes,
    frame_saving,
)
from tolpack.compress.header_size import estimate_header_room
from tolpack.compress.low_rank import projection
from tolpack.compress.measured_loss import MeasuredLoss
from tolpack.compress.pack_provenance import provenance_room
from tolpack.compress.plan import Plan, PlanInputs, PlannedArray, PlannedChunk
from tolpack.compress.second_moments import second_moments
from tolpack.container.header import Field
from tolpack.container.preamble import PREAMBLE_BYTES, SECTION_ALIGNMENT, align
from tolpack.container.writer import check_header_room
from tolpack.runtime.array_types import Floats
from tolpack.runtime.scratch import in_memory

# What zstd saves is measured on this many tokens, or on fewer where a row is large.
_SAMPLE_TOKENS = 4096
_SAMPLE_BYTES = 64 << 20
# Truncation is measured at the ranks it leads to; each time moves the ranks less.
_MEASUREMENTS = 2
# Truncation may be predicted to add this share of what rounding the plain table adds: coefficients
# are rounded besides, and together they must not cost more than twice the plain table's rounding.
_TRUNCATION_SHARE = 2 / 3
# Left free when the saving of a sample, not of all cold tokens, decides what fits --size.
_SAVING_MARGIN = 0.002


@dataclass(frozen=True, slots=True)
class FixedBitsPlanner:
    """What plans of one table and setting share: its chunks and the bases of its layers.

    ``components``: by kept layer, where rows are stored as coefficients. ``cold_sample``: rows of
    spread tokens of the cold chunks, by kept layer, float32 (n, width), if there are any.
    """

    inputs: PlanInputs
    spans: tuple[ChunkSpan, ...]
    components: dict[int, PrincipalComponents]
    cold_sample: list[Floats] | None

    @classmethod
    def of(cls, inputs: PlanInputs) -> FixedBitsPlanner:
        """Measure the table: one pass over it, if rows are stored as coefficients."""
        spans = tuple(doubling_chunks(inputs.stats.order))
        check_header_room(_header_room(inputs, spans))
        workspace, components = inputs.workspace, {}
        if inputs.has_basis:
            moments = second_moments(
                inputs.source, inputs.kept, inputs.stats.weights, workspace, workspace.moments
            )
            with closing(moments):
                components = {
                    layer: PrincipalComponents.of(second, mean, workspace.scratch)
                    for layer, second, mean in moments
                }
        return cls(inputs, spans, components, _cold_sample(inputs, spans))

    def plan(self, reserve_bytes: int = 0) -> Plan:
        """Decide everything; see `Plan` for `reserve_bytes`."""
        inputs, order = self.inputs, self.inputs.stats.order
        target = inputs.target(reserve_bytes)
        options = self._options(target)
        fields, arrays, layers = self._layers(options)
        arrays += inputs.row_arrays()
        encoded = self._field_encodings(options)
        encodings, numbers, saved = self._chunk_encodings(encoded, layers)
        chunks = [PlannedChunk(s.first_slot, s.rows, n) for s, n in zip(self.spans, numbers)]
        return Plan(
            inputs.key, inputs.source.fingerprint(), replace(order, counts=None),
            inputs.table(fields, [array.kind for array in arrays]),
            tuple(arrays), encodings, tuple(chunks),
            FixedBitsEncoder(tuple(layers)), _header_room(inputs, self.spans),
            self._file_bytes(options, saved), inputs.size_limit, reserve_bytes,
            provenance=inputs.provenance, measured=self._measured(options),
        )  # fmt: skip

    def _measured(self, options: Sequence[RankOption | None]) -> MeasuredLoss | None:
        """Measure what the pack costs, where the model is run for its ranks."""
        inputs, calibrated = self.inputs, self.inputs.stats.model
        points = {n: one for n, one in zip(inputs.kept, options) if one is not None}
        if inputs.ranks is not None or calibrated is None or not points:
            return None
        reporter = inputs.workspace.reporter
        memory = stored_memory(calibrated, points, self.components, self._bits)
        validation = HeldOutValidation(calibrated, DIVERGENCE, reporter)
        loss = validation.loss_with(memory)
        reporter.say(
            f"rank auto: these ranks cost {DIVERGENCE.with_error(loss)} on the calibration text"
        )
        return validation.measured(loss, None)

    # ---- ranks -----------------------------------------------------------------------------------

    @property
    def _bits(self) -> int:
        return int(self.inputs.settings.bits)

    def _options(self, target: int | None) -> list[RankOption | None]:
        """Rank and leading bits of every kept layer; ``None`` without a basis."""
        inputs = self.inputs
        if not inputs.has_basis:
            return [None] * len(inputs.kept)
        if inputs.ranks is None:
            return list(self._allocation(target))
        ranks = (inputs.ranks[layer] for layer in inputs.kept)
        return [RankOption(rank or 0, 0, 0.0, 0.0, 0.0) for rank in ranks]

    def _allocation(self, target: int | None) -> Allocation:
        """``--rank auto``: ranks by one slope, then compared with others on the text."""
        inputs, reporter = self.inputs, self.inputs.workspace.reporter
        model = LossModel(inputs.source, self.components, inputs.stats, self._bits, reporter)
        chosen = self._allocate(model, target)
        for _ in range(_MEASUREMENTS):
            model.measure(chosen)
            chosen = self._allocate(model, target)
        reporter.say(describe(chosen, model.factors))
        return choose(model, chosen, self._fits_like(chosen, target), reporter)

    def _allocate(self, model: LossModel, target: int | None) -> Allocation:
        """Down to `target`, or until truncation costs about what rounding the plain table does."""
        layers = [model.points(layer) for layer in self.inputs.kept]
        if target is None:
            return allocate_to_loss(layers, _TRUNCATION_SHARE * model.plain_rounding)
        chosen = allocate_to_size(layers, lambda found: self._file_bytes(found, 0.0) <= target)
        saved = self._saving_of(chosen)
        return allocate_to_size(layers, lambda found: self._file_bytes(found, saved) <= target)

    def _fits_like(
        self, allocation: Allocation, target: int | None
    ) -> Callable[[Allocation], bool]:
        """Whether an allocation's file fits `target`; without one, whether it is no larger than
        `allocation`.
        """
        if target is not None:
            return lambda found: self._file_bytes(found, self._saving_of(found)) <= target
        limit = sum(option.bytes for option in allocation)
        return lambda found: sum(option.bytes for option in found) <= limit

    # ---- fields ----------------------------------------------------------------------------------

    def _layers(
        self, options: Sequence[RankOption | None]
    ) -> tuple[list[Field], list[PlannedArray], list[LayerProjection]]:
        """Return all fields, and the arrays and projections of kept layers."""
        inputs, kept = self.inputs, dict(zip(self.inputs.kept, options))
        fields: list[Field] = []
        arrays: list[PlannedArray] = []
        layers: list[LayerProjection] = []
        for layer in range(len(inputs.source.fields)):
            field, option = inputs.field(layer), kept.get(layer)
            if option is not None:
                made, projected = self._basis(layer, option.rank)
                number = len(arrays)
                field = replace(field, rank=projected.rank, basis=number, mean=number + 1)
                arrays += made
                layers.append(projected)
            elif layer in kept:
                layers.append(LayerProjection(layer))
            fields.append(field)
        return fields, arrays, layers

    def _basis(self, layer: int, rank: int) -> tuple[list[PlannedArray], LayerProjection]:
        found, scratch = self.components[layer], self.inputs.workspace.scratch
        basis, mean = found.basis(rank), found.mean.astype(np.float32)
        arrays = [
            PlannedArray("basis", scratch.spill(basis)), PlannedArray("mean", in_memory(mean))
        ]  # fmt: skip
        matrix = scratch.spill(projection(basis))
        return arrays, LayerProjection(layer, len(basis), mean, matrix)

    def _field_encodings(self, options: Sequence[RankOption | None]) -> tuple[FieldEncoding, ...]:
        bits, fields = self._bits, self.inputs.kept_fields
        return tuple(
            field_encoding(field.width, bits, codec_of(field)) if option is None
            else field_encoding(option.rank, bits, "f16", option.leading)
            for field, option in zip(fields, options)
        )  # fmt: skip

    # ---- chunks ----------------------------------------------------------------------------------

    def _chunk_encodings(
        self, fields: tuple[FieldEncoding, ...], layers: Sequence[LayerProjection]
    ) -> tuple[tuple[Encoding, ...], list[int], float]:
        """Raw for hot chunks; zstd for cold ones if a sample of them shows that it pays.

        Returns the encodings, the number of each chunk's, and the share that zstd saves.
        """
        saved = self._zstd_saving(fields, layers)
        pays = saved >= MIN_SAVING
        if self.cold_sample is not None:
            verdict = "zstd frames" if pays else "raw records"
            self.inputs.workspace.reporter.say(
                f"cold chunks: zstd saves {saved:.1%} of a sample, stored as {verdict}"
            )
        found = chunk_encodings(
            self.spans, raw_encoding(fields), frame_encoding("zstd", fields), saved
        )
        return *found, saved if pays else 0.0

    def _saving_of(self, allocation: Allocation) -> float:
        """Share of cold chunks' bytes that zstd is sure to save under `allocation`."""
        layers = map(self._projection, self.inputs.kept, allocation)  # one at a time
        saved = self._zstd_saving(self._field_encodings(allocation), layers)
        if saved < MIN_SAVING:
            return 0.0
        cold = sum(span.rows for span in self.spans if not span.hot)
        return saved if cold <= _SAMPLE_TOKENS else max(0.0, saved - _SAVING_MARGIN)

    def _projection(self, layer: int, option: RankOption) -> LayerProjection:
        found = self.components[layer]
        matrix = in_memory(projection(found.basis(option.rank)))
        return LayerProjection(layer, option.rank, found.mean.astype(np.float32), matrix)

    def _zstd_saving(
        self, fields: tuple[FieldEncoding, ...], layers: Iterable[LayerProjection]
    ) -> float:
        """Share of the bytes of cold chunks that zstd saves, measured on spread tokens."""
        if self.cold_sample is None:
            return 0.0
        records = encoded_sample(self.cold_sample, layers, fields)
        return frame_saving(records, frame_encoding("zstd", fields))

    # ---- bytes -----------------------------------------------------------------------------------

    def _file_bytes(self, options: Sequence[RankOption | None], saved: float) -> int:
        """Upper bound of the file's bytes, with every section in whole pages.

        `saved` is the share of the cold chunks that zstd saves.
        """
        fields = self._field_encodings(options)
        sizes = chunk_sizes(self.spans, raw_encoding(fields), frame_encoding("zstd", fields), saved)
        for field, option in zip(self.inputs.kept_fields, options):
            if option is not None:
                sizes += [2 * field.width * option.rank, 4 * field.width]
        sizes += [section.length_bytes for section in self.inputs.row_sections()]
        pages = sum(align(math.ceil(size), SECTION_ALIGNMENT) for size in sizes)
        return pages + PREAMBLE_BYTES + _header_room(self.inputs, self.spans)


def _header_room(inputs: PlanInputs, spans: Sequence[ChunkSpan]) -> int:
    fields = [inputs.field(number) for number in range(len(inputs.source.fields))]
    made_from, names = inputs.provenance, [inputs.source.name]
    if made_from is not None:
        names = list(made_from.checkpoint)
    return estimate_header_room(
        len(fields), len(inputs.kept), len(spans), has_basis=inputs.has_basis,
        table=inputs.table(fields, [section.kind for section in inputs.row_sections()]),
        provenance=provenance_room(
            names, len(fields), made_from, measured=inputs.ranks is None
        ),
    )  # fmt: skip


def _cold_sample(inputs: PlanInputs, spans: Sequence[ChunkSpan]) -> list[Floats] | None:
    """Rows of spread tokens of the cold chunks, by kept layer: float32 (n, width)."""
    cold = [span for span in spans if not span.hot]
    if not cold or inputs.settings.compression == "none":
        return None
    row_bytes = 4 * sum(field.width for field in inputs.kept_fields)
    count = max(1, min(_SAMPLE_TOKENS, _SAMPLE_BYTES // row_bytes))
    sample = inputs.stats.order.tokens_at(spread_slots(cold, count))
    return [inputs.source.field_rows(layer)(sample) for layer in inputs.kept]
