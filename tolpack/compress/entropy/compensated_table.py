"""Dropped layers of ``--bits auto``: the layers around them compensate for them.

Dropping layer ``d`` is an error ``-T_d`` known beforehand, so layers on both sides can compensate
for it (`tolpack.compress.entropy.compensation_matrices`): the kept layers ``W`` beside it store
``T_W + T_d A`` instead, with ``A = G_{d,W} G_{W,W}⁻¹``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.calibration.model_losses import CalibratedModel
from tolpack.compress.entropy.compensation_matrices import compensation_matrix, neighbours
from tolpack.runtime.array_types import Floats
from tolpack.runtime.scratch import Scratch, SpilledArray
from tolpack.sources.protocol import FieldRows, TableSource
from tolpack.sources.uniform_table import DerivedTable


@dataclass(frozen=True, slots=True)
class DroppedTerm:
    """A dropped layer's share in the rows of kept layer ``layer``: its rows times ``matrix``,
    float32 (hidden, hidden).
    """

    layer: int
    dropped: int
    matrix: SpilledArray


def dropped_terms(
    model: CalibratedModel | None,
    kept: Sequence[int],
    num_layers: int,
    damping: float,
    scratch: Scratch,
) -> tuple[DroppedTerm, ...]:
    """Return how kept layers compensate for dropped ones; nothing where no losses of layers
    together are known.

    Parameters
    ----------
    model : CalibratedModel or None
        The metrics.
    kept : sequence of int
        Layers that are stored, ascending.
    num_layers : int
        Of the table.
    damping : float
        As of `tolpack.compress.entropy.compensation_matrices.error_compensations`.
    scratch : Scratch
        Keeps the matrices.
    """
    found: list[DroppedTerm] = []
    if model is None or not any(model.crossed):
        return ()
    for dropped in sorted(set(range(num_layers)) - set(kept)):
        others = neighbours(dropped, kept)
        if not others:
            continue
        matrix = compensation_matrix(model, dropped, others, damping).astype(np.float32)
        for layer, part in zip(others, np.split(matrix, len(others), axis=1)):
            found.append(DroppedTerm(layer, dropped, scratch.spill(np.ascontiguousarray(part))))
    return tuple(found)


class CompensatedTable(DerivedTable):
    """A table whose kept layers compensate for the dropped ones; as a `TableSource`.

    Parameters
    ----------
    source : TableSource
        The whole table.
    terms : sequence of DroppedTerm
        The shares of dropped layers.
    """

    def __init__(self, source: TableSource, terms: Sequence[DroppedTerm]) -> None:
        super().__init__(source)
        self._terms = tuple(terms)

    def field_rows(self, field: int) -> FieldRows:
        """See `TableSource`; a kept layer's rows hold the shares of dropped ones."""
        own = self._source.field_rows(field)
        shares = [
            (self._source.field_rows(term.dropped), term.matrix.load())
            for term in self._terms
            if term.layer == field
        ]
        if not shares:
            return own

        def rows(token_ids: NDArray[np.int64]) -> Floats:
            total = torch.from_numpy(own(token_ids).copy())
            for dropped, matrix in shares:
                total.addmm_(torch.from_numpy(dropped(token_ids)), torch.from_numpy(matrix))
            return np.asarray(total.numpy())

        return rows
