"""The kept layers of a table as ``--bits auto`` quantizes them: metrics, bases and steps.

`TableQuantizer` gives rows of any tokens as a candidate stores them, and as a reader will see them.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tolpack.compress.entropy.compensated_table import CompensatedTable, DroppedTerm, dropped_terms
from tolpack.compress.entropy.compensation_matrices import error_compensations
from tolpack.compress.entropy.error_compensation import (
    ErrorCompensation,
    QuantizedLayer,
    decoded_rows,
    stored_rows,
)
from tolpack.compress.entropy.layer_basis import (
    MAX_CODE,
    MAX_WIDE_CODE,
    CodedBasis,
    LayerBasis,
    StoredBasisQuantizer,
    mean_pays,
)
from tolpack.compress.entropy.quantizers import (
    Quantizer,
    StoredDirectQuantizer,
    direct_quantizer,
    whitened_basis,
)
from tolpack.compress.entropy.rank_choice import Component
from tolpack.compress.entropy.slot_sample import FrequencySteps
from tolpack.compress.plan import PlanInputs
from tolpack.compress.second_moments import second_moments
from tolpack.runtime.array_types import Floats
from tolpack.sources.protocol import TableSource
from tolpack.workspace.workers import worker_threads

# Shares of a metric's mean eigenvalue that are added to its diagonal: with a basis, without one.
_BASIS_DAMPING, _DIRECT_DAMPING = 0.01, 0.1


@dataclass(frozen=True, slots=True)
class Candidate:
    """The pack that follows from a step: each kept layer's components, and the lanes that a
    trellis cuts its rows into, or 0 for plain rounding.
    """

    step: float
    components: dict[int, Component]
    lanes: int


def damping(inputs: PlanInputs) -> float:
    """Return the share of a metric's mean eigenvalue that is added to its diagonal."""
    return _BASIS_DAMPING if inputs.has_basis else _DIRECT_DAMPING


@dataclass(frozen=True, slots=True)
class TableQuantizer:
    """See the module; all by kept layer.

    ``table``: the source, whose kept layers compensate for dropped ones by ``terms``; ``bases``, or
    without a basis ``direct``: what quantizes a layer's rows.
    """

    inputs: PlanInputs
    table: TableSource
    terms: tuple[DroppedTerm, ...]
    steps: FrequencySteps
    compensations: dict[int, ErrorCompensation]
    bases: dict[int, LayerBasis]
    direct: dict[int, StoredDirectQuantizer]

    @classmethod
    def of(cls, inputs: PlanInputs, steps: FrequencySteps) -> TableQuantizer:
        """Measure the table: one pass over it, if rows are stored as coefficients."""
        source, kept, scratch = inputs.source, inputs.kept, inputs.workspace.scratch
        model, share = inputs.stats.model, damping(inputs)
        terms = dropped_terms(model, kept, len(source.fields), share, scratch)
        table = CompensatedTable(source, terms) if terms else source
        if model is None and not inputs.has_basis:
            plain = StoredDirectQuantizer(None, 1.0, inputs.width)
            alone = dict.fromkeys(kept, ErrorCompensation(None, (), None))
            return cls(inputs, table, terms, steps, alone, {}, dict.fromkeys(kept, plain))
        compensations = error_compensations(model, kept, inputs.width, share, scratch)
        bases, direct = {}, {}
        if inputs.has_basis:
            bases = _bases(inputs, table, compensations)
        else:
            for layer in kept:
                made = direct_quantizer(compensations[layer].load_metric(), MAX_CODE)
                factor = scratch.spill(made.factor)
                direct[layer] = StoredDirectQuantizer(factor, made.unit, inputs.width)
        return cls(inputs, table, terms, steps, compensations, bases, direct)

    def stored(self, candidate: Candidate, ids: NDArray[np.int64]) -> dict[int, Floats]:
        """Return stored values of tokens `ids` (n,), by kept layer: float32 (n, stored values)."""
        layers, steps = self._layers(candidate), self._steps_of(candidate, ids)
        with worker_threads(self.inputs.workspace.limits.threads) as pool:
            return stored_rows(self.table, layers, ids, steps, pool)

    def decoded(self, candidate: Candidate, ids: NDArray[np.int64]) -> Floats:
        """Return tokens `ids` (n,) as a reader will see them: float32 (n, num_layers, hidden)."""
        layers, steps = self._layers(candidate), self._steps_of(candidate, ids)
        with worker_threads(self.inputs.workspace.limits.threads) as pool:
            return decoded_rows(self.table, layers, ids, steps, pool)

    def planned_layer(
        self, layer: int, candidate: Candidate, basis: StoredBasisQuantizer | None
    ) -> QuantizedLayer:
        """Return how a layer is quantized, as plans keep it; `basis` as of `LayerBasis.stored`."""
        load = self._direct(layer, candidate).load if basis is None else basis.load
        return QuantizedLayer(layer, self.mean(layer), load, self.compensations[layer])

    def mean(self, layer: int) -> Floats:
        """Return the mean that is subtracted from a layer's rows, float32 (hidden,)."""
        if self.inputs.has_basis:
            return self.bases[layer].mean
        return np.zeros(self.inputs.width, np.float32)

    @property
    def means(self) -> dict[int, Floats]:
        """The means that are not zero, by kept layer."""
        return {layer: basis.mean for layer, basis in self.bases.items() if basis.has_mean}

    def coded_bases(self, candidate: Candidate) -> dict[int, CodedBasis]:
        """Return the bases as a candidate stores them, by kept layer."""
        return {n: basis.coded(candidate.components[n]) for n, basis in self.bases.items()}

    def unit(self, layer: int) -> float:
        """Return a step of 1 in units of a layer's stored values."""
        return 1.0 if self.inputs.has_basis else self.direct[layer].unit

    def _layers(self, candidate: Candidate) -> list[QuantizedLayer]:
        return [
            QuantizedLayer(
                layer,
                self.mean(layer),
                partial(self._quantizer, layer, candidate),
                self.compensations[layer],
            )
            for layer in self.inputs.kept
        ]

    def _quantizer(self, layer: int, candidate: Candidate) -> Quantizer:
        if self.inputs.has_basis:
            return self.bases[layer].quantizer(candidate.components[layer], candidate.lanes)
        return self._direct(layer, candidate).load()

    def _direct(self, layer: int, candidate: Candidate) -> StoredDirectQuantizer:
        limit = MAX_WIDE_CODE if candidate.components[layer].leading else MAX_CODE
        return self.direct[layer].coding_to(limit, candidate.lanes)

    def _steps_of(self, candidate: Candidate, ids: NDArray[np.int64]) -> Floats:
        return self.steps.of_slots(self.inputs.stats.order.slots_of(ids), candidate.step)


def _bases(
    inputs: PlanInputs, table: TableSource, compensations: dict[int, ErrorCompensation]
) -> dict[int, LayerBasis]:
    """Mean and whitened basis of every kept layer: one pass over the table."""
    found, workspace, stats = {}, inputs.workspace, inputs.stats
    cache = workspace.moments if table is inputs.source else None
    moments = second_moments(table, inputs.kept, stats.weights, workspace, cache)
    with closing(moments):
        for layer, second, mean in moments:
            metric = compensations[layer].load_metric()
            if not mean_pays(second, mean, metric, table.rows):
                mean = np.zeros_like(mean)
            basis = whitened_basis(second, mean, metric)
            rows = workspace.scratch.spill(basis.rows.astype(np.float32))
            found[layer] = LayerBasis(
                mean.astype(np.float32), rows, compensations[layer].load_metric, workspace.scratch
            )
    return found
