"""``--rank auto``: what each layer's rank and leading bits are predicted to cost in loss.

Two errors, two predictions, both in nats per token:

* Rounding errors are independent between layers and positions, so the quadratic form with the
  layer's own metric holds: ``½ E[e G_l eᵀ]``, measured on sampled tokens.
* Truncation removes the same directions everywhere; its errors add up along the residual stream,
  and the sum of ``½ Σ_{i≥r} λ_i v_iᵀ G_l v_i`` over layers is too small by a factor of 2 to 8
  (docs/lab-notes.md). So two factors of each layer are measured with all layers truncated, from
  the slope ``s_i`` of the loss along losing component ``i``: what the next component to be cut or
  restored is worth (``s_i`` plus or minus its own quadratic part), which decides between layers;
  and the layer's share of the whole increase (``½ Σ_{i≥r} s_i``), which decides where to stop.
  The measurement is repeated at the ranks that follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tolpack.calibration.calibrate import CalibrationStats
from tolpack.calibration.loss_metrics import (
    TruncatedLayer,
    gradient_tokens,
    truncation_slopes,
)
from tolpack.calibration.model_losses import CalibratedModel
from tolpack.codecs.encodings import FieldEncoding
from tolpack.codecs.part_values import decode_values, encode_values
from tolpack.compress.fixed.encoding_choice import (
    LEADING_CHOICES,
    field_encoding,
    smooth_field_bytes,
)
from tolpack.compress.fixed.principal_components import PrincipalComponents
from tolpack.compress.fixed.rank_allocation import Allocation, RankOption
from tolpack.compress.second_moments import sample_tokens
from tolpack.runtime.array_types import Doubles, Floats
from tolpack.runtime.progress import Reporter
from tolpack.sources.protocol import TableSource

# Two 4-bit coefficients share a byte, so ranks go in pairs.
RANK_STEP = 2
# A measured factor outside this range is noise of a short text.
_FACTOR_RANGE = (0.5, 32.0)
# Components on each side of the cut that a layer's marginal factor is measured over.
_NEAR_CUT = 24
_SAMPLE_TOKENS = 512


class LossModel:
    """Predicted loss of storing each kept layer with a basis.

    Parameters
    ----------
    source : TableSource
        The table.
    components : mapping of int to PrincipalComponents
        Of the kept layers.
    stats : CalibrationStats
        Token weights, metrics, and the model to measure with, if there is one.
    bits : int
        16, 8 or 4.
    reporter : Reporter
        Receives progress.
    """

    def __init__(
        self,
        source: TableSource,
        components: Mapping[int, PrincipalComponents],
        stats: CalibrationStats,
        bits: int,
        reporter: Reporter,
    ) -> None:
        self._source = source
        self._reporter = reporter
        self.components = components
        self.bits = bits
        self._stats = stats
        self._width = len(next(iter(components.values())).mean)
        self._full = min(self._width, source.rows)
        self._tails: dict[int, Doubles] = {}
        self._marginal = dict.fromkeys(components, 1.0)
        self._share = dict.fromkeys(components, 1.0)
        sample = sample_tokens(stats.weights, _SAMPLE_TOKENS)
        self._rounding: dict[int, dict[int, Doubles]] = {}
        self.plain_rounding = 0.0
        with reporter.phase("predicting losses", len(components), "layers") as done:
            for layer in components:
                self._predict(layer, source.field_rows(layer)(sample))
                done(1)

    @property
    def factors(self) -> dict[int, float]:
        """Measured factor of the loss of a component at the cut, by kept layer; 1 at first."""
        return dict(self._marginal)

    def points(self, layer: int) -> list[RankOption]:
        """Everything that layer `layer` may be stored as."""
        return [
            self.point(layer, rank, leading)
            for leading in self._rounding[layer]
            for rank in range(max(RANK_STEP, leading), self._full + RANK_STEP, RANK_STEP)
        ]

    def point(self, layer: int, rank: int, leading: int) -> RankOption:
        """Predict one way of storing layer `layer`; the rank is clipped to the possible ones."""
        rank = min(max(rank, RANK_STEP, leading), self._full)
        leading = min(leading, rank)
        size = smooth_field_bytes(rank, self.bits, leading) * self._source.rows
        tail = float(self._tails[layer][rank])
        loss = tail * self._marginal[layer] + float(self._rounding_loss(layer, leading)[rank])
        return RankOption(
            rank, leading, size + 2.0 * self._width * rank, tail * self._share[layer], loss
        )

    def _rounding_loss(self, layer: int, leading: int) -> Doubles:
        """Rounding loss by rank for the nearest number of leading values that was measured."""
        known = self._rounding[layer]
        return known[min(known, key=lambda choice: abs(choice - leading))]

    def measure(self, allocation: Allocation) -> None:
        """Measure each layer's factor at `allocation`'s ranks, if there is a model to run."""
        if self._stats.model is None:
            return
        ranks = {layer: point.rank for layer, point in zip(self.components, allocation)}
        cuts: list[TruncatedLayer | None] = [None] * len(self._source.fields)
        for layer, components in self.components.items():
            mean = components.mean.astype(np.float32)
            cuts[layer] = TruncatedLayer(mean, components.spilled_vectors.load, ranks[layer])
        model, ids, context = (
            self._stats.model.model, self._stats.model.token_ids, self._stats.model.context
        )  # fmt: skip
        tokens = gradient_tokens(model, len(ids), context)
        with self._reporter.phase("measuring truncation", tokens, "tok") as done:
            slopes = truncation_slopes(model, ids, context, cuts, done)
        for layer, rank in ranks.items():
            self._set_factors(layer, rank, slopes[layer])

    def _set_factors(self, layer: int, rank: int, slopes: Doubles) -> None:
        """Set the layer's factors from measured slopes (hidden,) at a cut at `rank`."""
        own = -np.diff(self._tails[layer])
        near = slice(max(rank - _NEAR_CUT, 0), rank + _NEAR_CUT)
        restored = np.arange(len(own)) >= rank
        worth = slopes + np.where(restored, -own, own)
        low, high = _FACTOR_RANGE
        if own[near].sum() > 0:
            self._marginal[layer] = float(np.clip(worth[near].sum() / own[near].sum(), low, high))
        if self._tails[layer][rank] > 0:
            share = 0.5 * slopes[rank:].sum() / self._tails[layer][rank]
            self._share[layer] = float(np.clip(share, low, high))

    @property
    def layers(self) -> tuple[int, ...]:
        """Kept layers, in order: an allocation has one point for each."""
        return tuple(self.components)

    @property
    def calibrated(self) -> CalibratedModel | None:
        """The model to run, if there is one."""
        return self._stats.model

    @property
    def full_rank(self) -> int:
        """Largest possible rank."""
        return self._full

    def _predict(self, layer: int, rows: Floats) -> None:
        """Predict, from a layer's metric and sampled rows (n, hidden), what can be lost by rank:
        by truncation, uncorrected, and by rounding, each float64 (hidden + 1,).
        """
        metric, components = self._metric(layer), self.components[layer]
        vectors = components.vectors.astype(np.float64)
        weight = 0.5 * np.sum(vectors * (metric @ vectors), axis=0)
        losses = weight * components.values
        self._tails[layer] = np.append(np.cumsum(losses[::-1])[::-1], 0.0)
        plain = field_encoding(self._width, self.bits, "f16")
        self.plain_rounding += _mean_loss(rounding_error(rows, plain), metric)
        coefficients = ((rows - components.mean) @ vectors).astype(np.float32)
        self._rounding[layer] = {}
        for leading in LEADING_CHOICES if self.bits == 4 else (0,):
            encoding = field_encoding(self._width, self.bits, "f16", leading)
            error = np.square(rounding_error(coefficients, encoding)).mean(axis=0)
            self._rounding[layer][leading] = np.concatenate([[0.0], np.cumsum(weight * error)])

    def _metric(self, layer: int) -> Doubles:
        if self._stats.model is None:
            return np.eye(self._width)
        return np.asarray(self._stats.model.metrics[layer].load())


def rounding_error(values: Floats, encoding: FieldEncoding) -> NDArray[np.float64]:
    """Return decoded minus given values, float64 (rows, values)."""
    decoded = []
    start = 0
    for part in encoding:
        piece = values[:, start : start + part.values]
        decoded.append(decode_values(*encode_values(piece, part), part))
        start += part.values
    return np.concatenate(decoded, axis=1).astype(np.float64) - values


def _mean_loss(errors: NDArray[np.float64], metric: Doubles) -> float:
    """``½ E[e G eᵀ]`` over rows of `errors`."""
    return float(0.5 * np.sum((errors @ metric) * errors) / len(errors))


def describe(allocation: Sequence[RankOption], factors: Mapping[int, float]) -> str:
    """Say the predicted loss of an allocation, and the measured factors behind it."""
    truncation = sum(point.truncation for point in allocation)
    return (
        f"rank auto: truncation is predicted to add {truncation:.2e} nats per token (a component "
        f"at the cut is worth {min(factors.values()):.1f} … {max(factors.values()):.1f} times its "
        "own quadratic form)"
    )
