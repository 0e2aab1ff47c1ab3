"""Planning for ``--bits auto``: one quantization step for everything, and an entropy coder.

In coordinates where the loss metric is the identity, every value's rounding error costs the same,
so one step serves all layers and components; small components round to zeros, which cost nothing.
The step of a token falls with its frequency (`tolpack.compress.entropy.slot_sample`). The error of
one layer is compensated for in the layers above it (`tolpack.compress.entropy.error_compensation`).
One number decides the size, the step: `tolpack.compress.entropy.step_search` finds it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.ans.trellis import levels_and_sets, run_length
from tolpack.codecs.code_entropy import code_bytes
from tolpack.codecs.encodings import Encoding, FieldEncoding, Part
from tolpack.compress.chunks import ChunkSpan, chunks_by_step, step_exponent
from tolpack.compress.entropy.code_histograms import SampledCodes
from tolpack.compress.entropy.coded_sections import CodedSections
from tolpack.compress.entropy.encoder import EntropyCodedEncoder
from tolpack.compress.entropy.held_out_validation import HeldOutValidation
from tolpack.compress.entropy.layer_basis import MAX_CODE, MAX_WIDE_CODE, CodedBasis
from tolpack.compress.entropy.loss_measure import Loss, loss_limit, measure_for
from tolpack.compress.entropy.quantizers import layer_step, layer_steps
from tolpack.compress.entropy.rank_choice import Component, choose_components
from tolpack.compress.entropy.slot_sample import FrequencySteps, SlotSample, sample_slots
from tolpack.compress.entropy.step_search import search_error, search_loss, search_size
from tolpack.compress.entropy.table_coding import TableCoding, trellis_lanes
from tolpack.compress.entropy.table_quantizer import Candidate, TableQuantizer
from tolpack.compress.entropy.trellis_search import STEP_RATIO
from tolpack.compress.header_size import PlannedHeader
from tolpack.compress.measured_loss import MeasuredLoss
from tolpack.compress.plan import Plan, PlanInputs, PlannedChunk
from tolpack.container.index import index_bytes
from tolpack.container.preamble import SMALL_SECTION_ALIGNMENT
from tolpack.errors import ConfigError
from tolpack.runtime.array_types import Floats

# Rows of a chunk at least.
_MIN_CHUNK_ROWS = 64
# What a chunk takes beside its rows: two halves of an alignment, its own in the header, and there a
# part for each field; and a class for each value, of which a basis leaves about so many.
_CHUNK_BYTES, _PART_BYTES, _VALUES_LEFT = SMALL_SECTION_ALIGNMENT + 300, 60, 0.6
# Blocks that are shorter on average, in bytes, are taken to differ by less than a byte of an index
# holds. They may yet differ by more, and then the size is met by another attempt.
_EVEN_BLOCK = 200
# A sample's largest code may be passed by this factor before a component's codes get 16 bits.
_CODE_MARGIN = 1.5
# A step that rounds as 4 bits do, in units of the root mean square: groups of 64 have their largest
# value at three of it, and seven codes.
_STEP_OF_4_BITS = 0.43


@dataclass(frozen=True, slots=True)
class Choice:
    """The candidate that meets the settings; ``loss``: what it costs on the held-out part, in the
    unit of the planner's measure, where the model can be run.
    """

    candidate: Candidate
    loss: Loss | None


@dataclass(frozen=True, slots=True)
class EntropyCodedPlanner:
    """What plans of one table and setting share: its chunks, a sample of them, and quantizers.

    ``validation``: measures losses, where the model can be run; ``known``: the choice that meets
    the settings, where it was made before.
    """

    inputs: PlanInputs
    spans: tuple[ChunkSpan, ...]
    steps: FrequencySteps
    sample: SlotSample
    quantizer: TableQuantizer
    validation: HeldOutValidation | None
    known: Choice | None = None

    @classmethod
    def of(cls, inputs: PlanInputs) -> EntropyCodedPlanner:
        """Measure the table: one pass over it, if rows are stored as coefficients."""
        given, measure = inputs.settings, measure_for(inputs.settings)
        if inputs.stats.model is None and (given.max_kld or given.max_ppl_increase) is not None:
            raise ConfigError(
                f"{measure.option} is measured, but the model cannot be run: use --size or "
                "--max-relative-error"
            )
        source, order, kept = inputs.source, inputs.stats.order, len(inputs.kept)
        rows, values = source.rows, kept * inputs.width
        row_bytes = values / 8 if inputs.size_limit is None else inputs.size_limit / rows
        classes = values * (_VALUES_LEFT if inputs.has_basis else 1)
        chunk_bytes = _CHUNK_BYTES + _PART_BYTES * kept + classes
        exponent = step_exponent(inputs.stats.model)
        spans = tuple(chunks_by_step(order, _MIN_CHUNK_ROWS, row_bytes, chunk_bytes, exponent))
        steps = FrequencySteps(order, spans, exponent)
        sample = sample_slots(order, spans, len(source.fields) * inputs.width)
        model, reporter = inputs.stats.model, inputs.workspace.reporter
        validation = None if model is None else HeldOutValidation(model, measure, reporter)
        quantizer = TableQuantizer.of(inputs, steps)
        return cls(inputs, spans, steps, sample, quantizer, validation)

    def plan(self, reserve_bytes: int = 0) -> Plan:
        """Decide everything; see `Plan` for `reserve_bytes`."""
        inputs, order = self.inputs, self.inputs.stored_order([span.rows for span in self.spans])
        choice, quantizer = self.choice(reserve_bytes), self.quantizer
        candidate = choice.candidate
        stored = {
            n: b.stored(candidate.components[n], candidate.lanes)
            for n, b in quantizer.bases.items()
        }
        layers = [quantizer.planned_layer(n, candidate, stored.get(n)) for n in inputs.kept]
        bases = quantizer.coded_bases(candidate)
        sections = CodedSections(inputs, bases, self._coding(candidate, bases), quantizer.means)
        self._say_rates(candidate, sections.coding)
        encodings, numbers = self._encodings(candidate, sections)
        chunks = [
            PlannedChunk(span.first_slot, span.rows, number, self.steps.of_chunk(n, candidate.step))
            for n, (span, number) in enumerate(zip(self.spans, numbers))
        ]
        encoder = EntropyCodedEncoder(tuple(layers), quantizer.terms)
        return Plan(
            inputs.key, inputs.source.fingerprint(), order,
            sections.table, sections.arrays(), encodings, tuple(chunks), encoder,
            self._header(candidate, sections).room_bytes, self._file_bytes(candidate, sections),
            inputs.size_limit, reserve_bytes, measured=self._measured(choice),
            provenance=inputs.provenance,
        )  # fmt: skip

    # ---- choosing a candidate --------------------------------------------------------------------

    @property
    def chosen(self) -> Candidate:
        """The candidate of `choice`."""
        return self.choice().candidate

    def choice(self, reserve_bytes: int = 0) -> Choice:
        """Search the candidate that meets the size or the loss asked for."""
        if self.known is not None and not reserve_bytes:
            return self.known
        inputs, reporter, start = self.inputs, self.inputs.workspace.reporter, self._first_step
        target = inputs.target(reserve_bytes)
        if target is not None:
            found = search_size(self.candidate, self.predicted_bytes, target, start, reporter)
            return self._tried(found)
        if inputs.settings.max_relative_error is not None:
            limit = inputs.settings.max_relative_error
            return self._tried(
                search_error(self.candidate, self.relative_error_pct, limit, start, reporter)
            )
        if self.validation is None:
            return Choice(self.candidate(start), None)
        limit, measure = loss_limit(inputs.settings), self.validation.measure
        return Choice(
            *search_loss(self.candidate, self.measured_loss, limit, start, reporter, measure)
        )

    def _tried(self, candidate: Candidate) -> Choice:
        """Measure what a candidate costs that was chosen by something else, and say it."""
        if self.validation is None:
            return Choice(candidate, None)
        loss = self.measured_loss(candidate)
        shown = self.validation.measure.with_error(loss)
        self.inputs.workspace.reporter.say(
            f"auto: chose step {candidate.step:.3g}, which costs {shown}"
        )
        return Choice(candidate, loss)

    def _measured(self, choice: Choice) -> MeasuredLoss | None:
        """Return what a choice costs, as plans carry it."""
        if choice.loss is None:
            return None
        return self.measured_on.measured(choice.loss, choice.candidate.step)

    def candidate(self, step: float) -> Candidate:
        """Decide ranks and large codes for a step, on a sample; with a trellis by plain rounding to
        a step of about the same error.

        A step that is too fine for codes of 16 bits gives the candidate of the finest that is not.
        """
        inputs = self.inputs
        hidden, unit = inputs.width, self.quantizer.unit
        plain, codes = self._widest_codes(step / self._step_ratio)
        step = plain * self._step_ratio
        limit = self._step_ratio * MAX_CODE / _CODE_MARGIN
        if not inputs.has_basis:
            large = {n: np.abs(codes[n]).max() > limit * unit(n) for n in inputs.kept}
            components = {n: Component(hidden, hidden if large[n] else 0) for n in inputs.kept}
            return Candidate(step, components, self._trellis_lanes(hidden * len(components)))
        steps = self.steps.of_slots(self.sample.all_slots, plain)
        weights = self.sample.text * steps.astype(np.float64) ** 2
        scales, row_bytes = {}, {}
        for layer, basis in self.quantizer.bases.items():
            square = weights @ np.square(codes[layer], dtype=np.float64)
            scales[layer] = basis.scales(np.sqrt(square / weights.sum()))
            row_bytes[layer] = basis.row_bytes(scales[layer])
        chosen = choose_components(
            codes, self.sample, steps, row_bytes, fixed=inputs.ranks is not None, limit=limit
        )
        found = {n: replace(one, scales=scales[n][: one.rank]) for n, one in chosen.items()}
        values = sum(one.rank for one in found.values())
        return Candidate(step, found, self._trellis_lanes(values))

    @property
    def _step_ratio(self) -> float:
        """The step, in steps of plain rounding of about the same error."""
        return STEP_RATIO if self.inputs.settings.trellis else 1.0

    def _trellis_lanes(self, values: int) -> int:
        """Return the lanes of a trellis through rows of so many stored values, or 0 without one."""
        return trellis_lanes(values) if self.inputs.settings.trellis else 0

    def _widest_codes(self, step: float) -> tuple[float, dict[int, Floats]]:
        """Return the step, or the finest whose codes fit 16 bits, and the sample's codes by layer,
        all components with 16 bits, by plain rounding: stored values in steps.
        """
        inputs, unit = self.inputs, self.quantizer.unit
        full = min(inputs.width, inputs.source.rows) if inputs.has_basis else inputs.width
        ranks = inputs.ranks or (None,) * len(inputs.source.fields)
        widest = {n: Component(ranks[n] or full, ranks[n] or full) for n in inputs.kept}
        most = self._step_ratio * MAX_WIDE_CODE / _CODE_MARGIN
        while True:
            sampled = self._sampled(Candidate(step, widest, 0))
            steps = self.steps.of_slots(self.sample.all_slots, step)
            codes = {layer: stored / steps[:, None] for layer, stored in sampled.items()}
            largest = max(float(np.abs(codes[n]).max()) / unit(n) for n in inputs.kept)
            if largest <= most:
                return step, codes
            clipped = largest > 0.99 * MAX_WIDE_CODE  # they would be larger still
            step *= 8.0 if clipped else 1.01 * largest / most

    @property
    def _first_step(self) -> float:
        """Without a model, as coarse as 4 bits: 0.43 of the rows' root mean square; with one, where
        errors are predicted to add half of the limit.
        """
        if self.validation is None:
            square = self._mean_square or 1.0
            plain = _STEP_OF_4_BITS * math.sqrt(square / self.steps.mean_square)
            return self._step_ratio * plain
        values = len(self.inputs.kept) * self.inputs.width
        per_square = 0.5 * values / 12 * self.steps.mean_square
        limit_nats = self.validation.measure.nats(loss_limit(self.inputs.settings))
        return self._step_ratio * math.sqrt(0.5 * limit_nats / per_square)

    @property
    def _mean_square(self) -> float:
        """Mean square of the table's values, on the sample."""
        ids = self.inputs.stats.order.tokens_at(self.sample.all_slots)
        rows = (self.quantizer.table.field_rows(layer)(ids) for layer in self.inputs.kept)
        return float(np.mean([np.square(part, dtype=np.float64).mean() for part in rows]))

    # ---- bytes and loss of a candidate - --------------------------------------------------------

    def _sampled(self, candidate: Candidate) -> dict[int, Floats]:
        ids = self.inputs.stats.order.tokens_at(self.sample.all_slots)
        return self.quantizer.stored(candidate, ids)

    def predicted_bytes(self, candidate: Candidate) -> int:
        """Predict the file's size from what the codes of the sample cost."""
        bases = self.quantizer.coded_bases(candidate)
        coding = self._coding(candidate, bases)
        sections = CodedSections(self.inputs, bases, coding, self.quantizer.means)
        return self._file_bytes(candidate, sections)

    def _file_bytes(self, candidate: Candidate, sections: CodedSections) -> int:
        coding, header = sections.coding, self._header(candidate, sections)
        sizes: list[float] = [section.length_bytes for section in header.arrays]
        for chunk, number in enumerate(header.numbers):
            blocks = -(-self.spans[chunk].rows // header.encodings[number].rows_per_block)
            size = coding.chunk_bytes(chunk)
            sizes += [size, index_bytes(blocks, 1 if size < _EVEN_BLOCK * blocks else 2)]
        return header.file_bytes(sizes)

    def _coding(self, candidate: Candidate, bases: dict[int, CodedBasis]) -> TableCoding:
        """Fit the entropy coder to the sample's codes."""
        found = self._levels(candidate)
        counts = [slots.size for slots in self.sample.slots]
        levels, sets = (
            np.split(np.concatenate(one, axis=1), np.cumsum(counts)[:-1])
            for one in zip(*(found[layer] for layer in self.inputs.kept))
        )
        rows = [span.rows / count for span, count in zip(self.spans, counts)]
        sampled = SampledCodes(levels, rows, sets if candidate.lanes else None)
        return TableCoding.of(sampled, self.spans, bases, candidate.lanes)

    def _say_rates(self, candidate: Candidate, coding: TableCoding) -> None:
        """Tell what the rows' codes take, next to a bound."""
        least = sum(
            float(code_bytes(levels.astype(np.float32), self.sample.rows, sets).sum())
            for levels, sets in self._levels(candidate).values()
        )
        stored = sum(coding.chunk_bytes(chunk) for chunk in range(len(self.spans)))
        by_models = sum(coding.rows.bits) / 8
        self.inputs.workspace.reporter.say(
            f"auto: rows take {stored:,.0f} bytes: their codes {by_models:,.0f} by the models, and "
            f"{least:,.0f} by their adaptive entropy"
        )

    def _levels(
        self, candidate: Candidate
    ) -> dict[int, tuple[NDArray[np.int16], NDArray[np.uint8]]]:
        """Return what is coded of the sample by layer, and of which set it is, (n, stored values);
        without a trellis the codes themselves, all of one set.
        """
        steps, found = self.steps.of_slots(self.sample.all_slots, candidate.step), {}
        for layer, stored in self._sampled(candidate).items():
            codes = np.rint(stored / layer_steps(steps, self.quantizer.unit(layer))[:, None])
            whole = codes.astype(np.int16)
            if candidate.lanes:
                length = run_length(whole.shape[1], candidate.lanes)
                found[layer] = levels_and_sets(whole, length)
            else:
                found[layer] = whole, np.zeros(whole.shape, np.uint8)
        return found

    def layer_bytes(self, candidate: Candidate) -> dict[int, float]:
        """Predict what each kept layer takes of the file, its basis included."""
        found = {}
        for layer, (levels, sets) in self._levels(candidate).items():
            each = code_bytes(levels.astype(np.float32), self.sample.rows, sets)
            found[layer] = float(each.sum())
            scales = candidate.components[layer].scales
            if scales is not None:
                found[layer] += float(self.quantizer.bases[layer].row_bytes(scales).sum())
        return found

    def measured_loss(self, candidate: Candidate) -> Loss:
        """Loss on the held-out part, in the unit of its measure."""
        validation = self.measured_on
        return validation.loss(self.quantizer.decoded(candidate, validation.token_ids))

    def relative_error_pct(self, candidate: Candidate) -> float:
        """Return ``√(Σ‖row - packed row‖² / Σ‖row‖²)`` in percent, on the sample, each row weighted
        by how often it is read.
        """
        table = self.quantizer.table
        ids = self.inputs.stats.order.tokens_at(self.sample.all_slots)
        decoded = self.quantizer.decoded(candidate, ids)
        errors = squares = 0.0
        for layer in self.inputs.kept:
            rows = table.field_rows(layer)(ids).astype(np.float64)
            squares += float(self.sample.text @ np.square(rows).sum(axis=1))
            errors += float(self.sample.text @ np.square(decoded[:, layer] - rows).sum(axis=1))
        return 100 * math.sqrt(errors / (squares or 1.0))

    @property
    def measured_on(self) -> HeldOutValidation:
        """Where losses are measured."""
        if self.validation is None:
            raise ValueError("a table that cannot be run has no losses")
        return self.validation

    # ---- header and encodings --------------------------------------------------------------------

    def _header(self, candidate: Candidate, sections: CodedSections) -> PlannedHeader:
        """The header to come; sections of arrays in the order of the file."""
        encodings, numbers = self._encodings(candidate, sections)
        return PlannedHeader(
            sections.table, self.spans, encodings, numbers, sections.planned(),
            self.inputs.provenance,
        )  # fmt: skip

    def _encodings(
        self, candidate: Candidate, sections: CodedSections
    ) -> tuple[tuple[Encoding, ...], list[int]]:
        """Return the encodings, and the number of each chunk's."""
        found: list[Encoding] = []
        numbers = []
        for chunk in range(len(self.spans)):
            fields = self._field_encodings(candidate, chunk)
            rows, coder = sections.coding.rows_per_block(chunk), sections.chunk_settings(chunk)
            encoding = Encoding("ans", rows, fields, coder)
            if encoding not in found:
                found.append(encoding)
            numbers.append(found.index(encoding))
        return tuple(found), numbers

    def _field_encodings(self, candidate: Candidate, chunk: int) -> tuple[FieldEncoding, ...]:
        step = self.steps.of_chunk(chunk, candidate.step)
        found = []
        for layer in self.inputs.kept:
            component = candidate.components[layer]
            own = layer_step(step, self.quantizer.unit(layer))
            counts = {"step16": component.leading, "step8": component.rank - component.leading}
            found.append(
                tuple(Part(codec, count, step=own) for codec, count in counts.items() if count)
            )
        return tuple(found)
