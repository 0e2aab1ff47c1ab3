"""Dropped layers of ``--bits auto``: what they held is taken up by the layers around them.

Dropping layer ``d`` is an error ``-T_d`` known beforehand, so layers on both sides can make up for
it (`tolpack.compress.entropy.error_compensation`): the kept layers ``W`` beside it store ``T_W +
T_d A`` instead, with ``A = G_{d,W} G_{W,W}⁻¹``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.calibration.stats import CalibratedModel
from tolpack.compress.entropy.error_compensation import around, carry_into
from tolpack.runtime.array_types import Floats
from tolpack.runtime.scratch import Scratch, SpilledArray
from tolpack.sources.protocol import LayerRows, TableSource


class CompensatedTable:
    """A table whose dropped layers are folded into kept ones; as a `TableSource`.

    Parameters
    ----------
    source : TableSource
        The whole table.
    model : CalibratedModel
        The metrics.
    kept : sequence of int
        Layers that are stored, ascending.
    floor : float
        As of `tolpack.compress.entropy.error_compensation.shape`.
    scratch : Scratch
        Keeps the matrices.
    """

    def __init__(
        self,
        source: TableSource,
        model: CalibratedModel,
        kept: Sequence[int],
        floor: float,
        scratch: Scratch,
    ) -> None:
        self._source = source
        self.vocab_size, self.num_layers = source.vocab_size, source.num_layers
        self.hidden_size, self.inner_size = source.hidden_size, source.inner_size
        self.dtype, self.ffn_bytes = source.dtype, source.ffn_bytes
        self._folds: dict[int, list[tuple[int, SpilledArray]]] = {}
        for dropped in sorted(set(range(source.num_layers)) - set(kept)):
            others = around(dropped, kept)
            if not others:
                continue
            carry = carry_into(model, dropped, others, floor).astype(np.float32)
            for layer, part in zip(others, np.split(carry, len(others), axis=1)):
                matrix = scratch.spill(np.ascontiguousarray(part))
                self._folds.setdefault(layer, []).append((dropped, matrix))

    def layer(self, layer: int) -> LayerRows:
        """See `TableSource`; a kept layer's rows have those of dropped ones folded in."""
        own = self._source.layer(layer)
        folded = [(self._source.layer(n), m.load()) for n, m in self._folds.get(layer, ())]
        if not folded:
            return own

        def rows(token_ids: NDArray[np.int64]) -> Floats:
            total = torch.from_numpy(own(token_ids).copy())
            for others, matrix in folded:
                total.addmm_(torch.from_numpy(others(token_ids)), torch.from_numpy(matrix))
            return np.asarray(total.numpy())

        return rows

    def fingerprint(self) -> bytes:
        """See `TableSource`."""
        return self._source.fingerprint()

    def describe(self) -> list[str]:
        """See `TableSource`."""
        return self._source.describe()
