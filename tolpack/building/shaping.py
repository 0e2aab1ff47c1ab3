"""Noise shaping: what rounding one layer does to the loss is made up for in the layers above it.

The memory outputs of all layers are added to one residual stream, so gradients at neighbouring
layers are nearly the same vector, and an error ``e_l`` costs ``½ Σ_{l,m} e_l G_{l,m} e_mᵀ`` with
large terms off the diagonal. Layers are rounded from the first to the last. When layer ``l`` is
rounded with error ``e_l``, the best that the layers ``W`` above it can do is to take up the error
``-e_l A`` with ``A = G_{l,W} G_{W,W}⁻¹``: that much is added to what they are to store. What then
remains costs ``½ e_l S_l e_lᵀ``, with the Schur complement ``S_l = G_{l,l} - A G_{W,l}``: a tenth
to a quarter of ``G_{l,l}`` (docs/compression.md). This is the block form of the
elimination that GPTQ (arXiv 2210.17323) does column by column inside a weight matrix.

``W`` is the next `REACH` kept layers: gradients form nearly a Markov chain along the layers, so
two see nearly as much as all.

Metrics come from a short text, and errors of the size of a step are not infinitesimal. So a share
of each metric's mean eigenvalue is added to its diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from tolpack.building.weighing import CalibratedModel
from tolpack.codecs.lowrank import Doubles
from tolpack.codecs.values import Floats
from tolpack.scratch import Kept, Scratch

# Layers above that make up for a layer's errors (docs/lab-notes.md: one loses 4 %, all gain 1 %).
REACH = 2


@dataclass(frozen=True, slots=True)
class Shaping:
    """What an error of one layer still costs, and which layers make up for the rest.

    ``metric``: ``S_l``, float64 (hidden, hidden), nats per squared unit; ``above``: the layers of
    ``W``; ``carry``: ``A``, float32 (hidden, len(above) · hidden), or ``None`` without any.
    """

    metric: Kept
    above: tuple[int, ...]
    carry: Kept | None

    def load_carry(self) -> Floats | None:
        """Return ``A``."""
        return None if self.carry is None else self.carry.load()


def shape(
    model: CalibratedModel | None,
    kept: Sequence[int],
    num_layers: int,
    hidden_size: int,
    floor: float,
    scratch: Scratch,
) -> list[Shaping]:
    """Work out `Shaping` for every layer, dropped ones included: theirs is an error like another.

    Parameters
    ----------
    model : CalibratedModel or None
        The metrics, measured with a reach of `REACH`; without them every direction of every
        layer counts alike, and nothing is carried.
    kept : sequence of int
        Layers that are stored, ascending.
    num_layers, hidden_size : int
        Of the table.
    floor : float
        Share of a metric's mean eigenvalue that is added to its diagonal.
    scratch : Scratch
        Keeps the results.
    """
    if model is None:
        same = Shaping(scratch.keep(np.eye(hidden_size)), (), None)
        return [same] * num_layers
    return [_shape_layer(model, layer, kept, floor, scratch) for layer in range(num_layers)]


def _shape_layer(
    model: CalibratedModel, layer: int, kept: Sequence[int], floor: float, scratch: Scratch
) -> Shaping:
    own = _floored(model, layer, floor)
    above = tuple(n for n in kept if layer < n <= layer + REACH)
    if not above:
        return Shaping(scratch.keep(own), (), None)
    to_above = np.hstack([_block(model, layer, n, floor) for n in above])
    among = np.block([[_block(model, n, m, floor) for m in above] for n in above])
    carry = scipy.linalg.solve(among, to_above.T, assume_a="pos").T
    metric = own - carry @ to_above.T
    metric = (metric + metric.T) / 2
    return Shaping(scratch.keep(metric), above, scratch.keep(carry.astype(np.float32)))


def _block(model: CalibratedModel, row: int, column: int, floor: float) -> Doubles:
    """``G_{row,column}``, floored on the diagonal."""
    if row == column:
        return _floored(model, row, floor)
    if row > column:
        return _block(model, column, row, floor).T
    return np.asarray(model.crossed[row][column - row - 1].load())


def _floored(model: CalibratedModel, layer: int, floor: float) -> Doubles:
    metric: Doubles = model.metrics[layer].load().copy()
    metric[np.diag_indices_from(metric)] += floor * np.trace(metric) / len(metric)
    return metric
