"""The kept layers of a table as ``--bits auto`` rounds them: metrics, bases, steps, in one place.

`TableQuantizer` gives rows of any tokens as a candidate stores them, and as a reader will see them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from tolpack.calibration.stats import CalibrationStats
from tolpack.compress.entropy.compensated_table import CompensatedTable
from tolpack.compress.entropy.components import Component
from tolpack.compress.entropy.error_compensation import ErrorCompensation, shape
from tolpack.compress.entropy.frame_sample import FrequencySteps
from tolpack.compress.entropy.layer_basis import MAX_CODE, MAX_WIDE_CODE, LayerBasis, mean_pays
from tolpack.compress.entropy.layer_sweep import QuantizedLayer, decoded_rows, stored_rows
from tolpack.compress.entropy.quantizers import (
    DirectQuantizer,
    Quantizer,
    direct_quantizer,
    whitened_basis,
)
from tolpack.compress.limits import Limits
from tolpack.compress.table_passes import second_moment, worker_threads
from tolpack.runtime.array_types import Floats
from tolpack.runtime.progress import Reporter
from tolpack.runtime.scratch import Scratch, SpilledArray
from tolpack.sources.protocol import TableSource

# Shares of a metric's mean eigenvalue that are added to its diagonal: with a basis, without one.
_BASIS_FLOOR, _PLAIN_FLOOR = 0.01, 0.1


@dataclass(frozen=True, slots=True)
class Candidate:
    """The pack that follows from a step: each kept layer's components."""

    step: float
    components: dict[int, Component]


class TableQuantizer:
    """See the module.

    Parameters
    ----------
    source : TableSource
        The whole table.
    kept : sequence of int
        Layers that are stored, ascending.
    weighing : CalibrationStats
        Token weights and loss metrics.
    steps : FrequencySteps
        Every token's step.
    has_basis : bool
        Whether rows are stored as coefficients.
    limits, scratch, reporter : Limits, Scratch, Reporter
        Workers, where matrices are kept, and who is told of progress.
    """

    def __init__(
        self,
        source: TableSource,
        kept: Sequence[int],
        weighing: CalibrationStats,
        steps: FrequencySteps,
        *,
        has_basis: bool,
        limits: Limits,
        scratch: Scratch,
        reporter: Reporter,
    ) -> None:
        self.source, self.kept, self.weighing, self.steps = source, kept, weighing, steps
        self.has_basis, self.limits = has_basis, limits
        self.scratch, self.reporter = scratch, reporter

    @cached_property
    def table(self) -> TableSource:
        """The table, dropped layers folded into kept ones where losses are known."""
        model = self.weighing.model
        if model is None or len(self.kept) == self.source.num_layers:
            return self.source
        return CompensatedTable(self.source, model, self.kept, self.floor, self.scratch)

    @property
    def floor(self) -> float:
        """Share of a metric's mean eigenvalue that is added to its diagonal."""
        return _BASIS_FLOOR if self.has_basis else _PLAIN_FLOOR

    @cached_property
    def shapings(self) -> dict[int, ErrorCompensation]:
        """By kept layer."""
        hidden = self.source.hidden_size
        return shape(self.weighing.model, self.kept, hidden, self.floor, self.scratch)

    @cached_property
    def bases(self) -> dict[int, LayerBasis]:
        """Mean and whitened basis of every kept layer: one pass over the table."""
        found = {}
        total = self.source.vocab_size * len(self.kept)
        with (
            self.reporter.phase("Gram matrices", total, "rows") as done,
            worker_threads(self.limits.threads) as pool,
        ):
            for layer in self.kept:
                second, mean = second_moment(self.table, layer, self.weighing.weights, pool, done)
                metric = self.shapings[layer].metric
                if not mean_pays(second, mean, metric.load(), self.source.vocab_size):
                    mean = np.zeros_like(mean)
                basis = whitened_basis(second, mean, metric.load())
                rows = self.scratch.spill(basis.rows.astype(np.float32))
                found[layer] = LayerBasis(mean.astype(np.float32), rows, metric, self.scratch)
        return found

    @cached_property
    def plain(self) -> dict[int, tuple[SpilledArray, float]]:
        """Without a basis: factor and unit of every kept layer's rounder."""
        found = {}
        for layer in self.kept:
            rounder = direct_quantizer(self.shapings[layer].metric.load(), MAX_CODE)
            found[layer] = self.scratch.spill(rounder.factor), rounder.unit
        return found

    # ---- rows ------------------------------------------------------------------------------------

    def layers(self, candidate: Candidate) -> list[QuantizedLayer]:
        """Return how every kept layer is rounded."""
        return [
            QuantizedLayer(
                layer,
                self.mean(layer),
                partial(self._rounder, layer, candidate.components[layer]),
                self.shapings[layer],
            )
            for layer in self.kept
        ]

    def stored(self, candidate: Candidate, ids: NDArray[np.int64]) -> dict[int, Floats]:
        """Return what is stored of tokens `ids` (n,), by kept layer: float32 (n, stored values)."""
        with worker_threads(self.limits.threads) as pool:
            steps = self._steps_of(candidate, ids)
            return stored_rows(self.table, self.layers(candidate), ids, steps, pool)

    def decoded(self, candidate: Candidate, ids: NDArray[np.int64]) -> Floats:
        """Return tokens `ids` (n,) as a reader will see them: float32 (n, num_layers, hidden)."""
        with worker_threads(self.limits.threads) as pool:
            steps = self._steps_of(candidate, ids)
            return decoded_rows(self.table, self.layers(candidate), ids, steps, pool)

    def mean(self, layer: int) -> Floats:
        """Return what is taken from a layer's rows before they are rounded, float32 (hidden,)."""
        if self.has_basis:
            return self.bases[layer].mean
        return np.zeros(self.source.hidden_size, np.float32)

    def unit(self, layer: int) -> float:
        """Return what a step of 1 is in units of what is stored of a layer."""
        return 1.0 if self.has_basis else self.plain[layer][1]

    def _rounder(self, layer: int, component: Component) -> Quantizer:
        if self.has_basis:
            return self.bases[layer].rounder(component)
        limit = MAX_WIDE_CODE if component.leading else MAX_CODE
        return DirectQuantizer(self.plain[layer][0].load(), self.unit(layer), limit)

    def _steps_of(self, candidate: Candidate, ids: NDArray[np.int64]) -> Floats:
        return self.steps.of_slots(self.weighing.order.slots[ids], candidate.step)
