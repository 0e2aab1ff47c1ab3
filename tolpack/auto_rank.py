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

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.allocate import Allocation, Point
from tolpack.codecs.lowrank import Doubles
from tolpack.codecs.values import Floats, decode_values, encode_values
from tolpack.container.encodings import FieldEncoding
from tolpack.layout import LEADING_CHOICES, field_encoding, smooth_field_bytes
from tolpack.passes import Moments, sample_tokens
from tolpack.progress import Reporter
from tolpack.reference.calibrate import (
    MAX_LOSS_TOKENS,
    TruncatedLayer,
    measured_tokens,
    truncation_slopes,
    window_losses,
)
from tolpack.reference.decoder import Decoder, Memory
from tolpack.sources.table import TableSource
from tolpack.weighing import CalibratedModel, Weighing

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
    moments : mapping of int to Moments
        Of the kept layers.
    weighing : Weighing
        Token weights, metrics, and the model to measure with, if there is one.
    bits : int
        16, 8 or 4.
    """

    def __init__(
        self,
        source: TableSource,
        moments: Mapping[int, Moments],
        weighing: Weighing,
        bits: int,
    ) -> None:
        self._source = source
        self._moments = moments
        self._weighing = weighing
        self._bits = bits
        self._full = min(source.hidden_size, source.vocab_size)
        self._tails = {layer: self._tail(layer) for layer in moments}
        self._marginal = dict.fromkeys(moments, 1.0)
        self._share = dict.fromkeys(moments, 1.0)
        sample = sample_tokens(weighing.weights, _SAMPLE_TOKENS)
        self._rounding: dict[int, dict[int, Doubles]] = {}
        self.plain_rounding = 0.0
        for layer in moments:
            rows = source.layer(layer)(sample)
            plain = field_encoding(source.hidden_size, bits, "f16")
            metric = self._metric(layer)
            self.plain_rounding += _mean_loss(_rounding_error(rows, plain), metric)
            self._rounding[layer] = self._rounding_by_leading(layer, rows)

    @property
    def factors(self) -> dict[int, float]:
        """Measured factor of what a component at the cut is worth, by kept layer; 1 at first."""
        return dict(self._marginal)

    def points(self, layer: int) -> list[Point]:
        """Everything that layer `layer` may be stored as."""
        return [
            self.point(layer, rank, leading)
            for leading in self._rounding[layer]
            for rank in range(max(RANK_STEP, leading), self._full + RANK_STEP, RANK_STEP)
        ]

    def point(self, layer: int, rank: int, leading: int) -> Point:
        """Predict one way of storing layer `layer`; the rank is moved into what is possible."""
        rank = min(max(rank, RANK_STEP, leading), self._full)
        leading = min(leading, rank)
        hidden = self._source.hidden_size
        size = smooth_field_bytes(rank, self._bits, leading) * self._source.vocab_size
        tail = float(self._tails[layer][rank])
        loss = tail * self._marginal[layer] + float(self._rounding_loss(layer, leading)[rank])
        return Point(rank, leading, size + 2.0 * hidden * rank, tail * self._share[layer], loss)

    def _rounding_loss(self, layer: int, leading: int) -> Doubles:
        """Rounding loss by rank for the nearest number of leading values that was measured."""
        known = self._rounding[layer]
        return known[min(known, key=lambda choice: abs(choice - leading))]

    def measure(self, allocation: Allocation, reporter: Reporter) -> None:
        """Measure each layer's factor at `allocation`'s ranks, if there is a model to run."""
        if self._weighing.model is None:
            return
        ranks = {layer: point.rank for layer, point in zip(self._moments, allocation)}
        cuts: list[TruncatedLayer | None] = [None] * self._source.num_layers
        for layer, moments in self._moments.items():
            vectors = moments.spectrum.vectors.astype(np.float32)
            cuts[layer] = TruncatedLayer(moments.mean.astype(np.float32), vectors, ranks[layer])
        model = self._weighing.model
        tokens = measured_tokens(len(model.token_ids), model.context)
        with reporter.phase("measuring truncation", tokens, "tok") as done:
            slopes = truncation_slopes(model.decoder, model.token_ids, model.context, cuts, done)
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
        return tuple(self._moments)

    @property
    def runnable(self) -> CalibratedModel | None:
        """The model to run, if there is one."""
        return self._weighing.model

    @property
    def full_rank(self) -> int:
        """Largest possible rank."""
        return self._full

    def uniform(self, rank: int) -> Allocation:
        """Give every layer the same rank, all coefficients at the same bits."""
        return tuple(self.point(layer, rank, 0) for layer in self.layers)

    def blend(self, a: Allocation, b: Allocation, step: int) -> Allocation:
        """Mean ranks of two allocations with `a`'s leading values, moved so as to end at `step`.

        `step` counts the rank of the first layer; the others keep their distance to it.
        """
        means = [(p.rank + q.rank) // 2 for p, q in zip(a, b)]
        offset = step - min(means)
        return tuple(
            self.point(layer, mean + offset, point.leading)
            for layer, mean, point in zip(self.layers, means, a)
        )

    def next_point(self, layer: int, point: Point) -> Point:
        """Return `point` with the next larger rank; the same rank if there is none."""
        return self.point(layer, point.rank + RANK_STEP, point.leading)

    def worth(self, layer: int, point: Point, larger: Point) -> float:
        """Loss saved per byte by going from `point` to `larger`; 0 if it is not larger."""
        fresh = self.point(layer, point.rank, point.leading)  # by today's factors
        extra = larger.bytes - fresh.bytes
        return (fresh.loss - larger.loss) / extra if extra > 0 else 0.0

    def trial(self, allocation: Allocation, reporter: Reporter) -> Doubles:
        """Run the calibration text with memory stored as `allocation`.

        Returns
        -------
        ndarray
            float64 (windows,): nats per token of each window.
        """
        model = self._weighing.model
        if model is None:
            raise ValueError("no model to run")
        memory = _StoredMemory(model.decoder, dict(zip(self.layers, allocation)), self._moments,
                               self._bits)  # fmt: skip
        tokens = measured_tokens(len(model.token_ids), model.context, MAX_LOSS_TOKENS)
        with reporter.phase("trying ranks", tokens, "tok") as done:
            decoder = model.decoder.with_memory(memory)
            return window_losses(decoder, model.token_ids, model.context, done)

    def _tail(self, layer: int) -> Doubles:
        """Uncorrected truncation loss by rank, float64 (hidden + 1,)."""
        spectrum = self._moments[layer].spectrum
        vectors, metric = spectrum.vectors, self._metric(layer)
        carried = 0.5 * spectrum.values * np.einsum("ji,jk,ki->i", vectors, metric, vectors)
        return np.append(np.cumsum(carried[::-1])[::-1], 0.0)

    def _rounding_by_leading(self, layer: int, rows: Floats) -> dict[int, Doubles]:
        """Rounding loss by rank, float64 (hidden + 1,), for each number of leading values."""
        moments, metric = self._moments[layer], self._metric(layer)
        vectors = moments.spectrum.vectors
        coefficients = ((rows - moments.mean) @ vectors).astype(np.float32)
        weight = np.einsum("ji,jk,ki->i", vectors, metric, vectors)
        result = {}
        for leading in LEADING_CHOICES if self._bits == 4 else (0,):
            encoding = field_encoding(self._source.hidden_size, self._bits, "f16", leading)
            error = np.square(_rounding_error(coefficients, encoding)).mean(axis=0)
            result[leading] = np.concatenate([[0.0], np.cumsum(0.5 * weight * error)])
        return result

    def _metric(self, layer: int) -> Doubles:
        if self._weighing.model is None:
            return np.eye(self._source.hidden_size)
        return np.asarray(self._weighing.model.metrics[layer])


def choose(
    model: LossModel,
    sloped: Allocation,
    fits: Callable[[Allocation], bool],
    reporter: Reporter,
) -> Allocation:
    """Hold the allocation by slope against one uniform rank, and the mean of both, by trial.

    Predictions are noisy, and where layers are much alike a uniform rank is hard to beat; the loss
    is convex, so the mean of two good allocations is often better than either. All are run on the
    calibration text, coefficients rounded as they will be stored. A less uniform one is taken only
    if it is better by more than the paired standard error.

    Parameters
    ----------
    sloped : tuple of Point
        The allocation by slope.
    fits : callable
        Whether an allocation takes no more bytes than it may.
    """
    uniform = _largest(model.uniform, fits, model.full_rank)
    if model.runnable is None or uniform is None:
        return sloped
    candidates = {"uniform rank": _filled(model, uniform, fits)}
    blended = _largest(partial(model.blend, sloped, uniform), fits, model.full_rank)
    if blended is not None:
        candidates["between both"] = _filled(model, blended, fits)
    candidates["by slope"] = sloped
    losses = {name: model.trial(found, reporter) for name, found in candidates.items()}
    best = "uniform rank"
    for name, loss in losses.items():
        difference = losses[best] - loss
        if difference.mean() > difference.std() / np.sqrt(len(difference)):
            best = name
    listed = ", ".join(f"{name} {loss.mean():.4f}" for name, loss in losses.items())
    reporter.say(f"rank auto: nats per token on the calibration text: {listed}; taking {best}")
    return candidates[best]


def _filled(
    model: LossModel, allocation: Allocation, fits: Callable[[Allocation], bool]
) -> Allocation:
    """Raise single layers' ranks, the most useful first, until no more fits."""
    chosen = list(allocation)
    open_layers = set(range(len(chosen)))
    while open_layers:
        steps = {n: model.next_point(model.layers[n], chosen[n]) for n in open_layers}
        worth = {n: model.worth(model.layers[n], chosen[n], step) for n, step in steps.items()}
        best = max(worth, key=lambda n: (worth[n], -n))
        raised = [*chosen[:best], steps[best], *chosen[best + 1 :]]
        if worth[best] <= 0 or not fits(tuple(raised)):
            open_layers.discard(best)
        else:
            chosen = raised
    return tuple(chosen)


def _largest(
    make: Callable[[int], Allocation], fits: Callable[[Allocation], bool], full: int
) -> Allocation | None:
    """Return the last of ``make(RANK_STEP), make(2 · RANK_STEP), …`` that fits, by bisection."""
    low, high = 0, -(-full // RANK_STEP)
    while low < high:
        middle = (low + high + 1) // 2
        if fits(make(middle * RANK_STEP)):
            low = middle
        else:
            high = middle - 1
    return make(low * RANK_STEP) if low else None


def _rounding_error(values: Floats, encoding: FieldEncoding) -> NDArray[np.float64]:
    """Decoded minus given values, float64 (rows, values)."""
    decoded = []
    start = 0
    for part in encoding:
        piece = values[:, start : start + part.values]
        decoded.append(decode_values(*encode_values(piece, part), part))
        start += part.values
    return np.concatenate(decoded, axis=1).astype(np.float64) - values


def _mean_loss(errors: NDArray[np.float64], metric: Doubles) -> float:
    """``½ E[e G eᵀ]`` over rows of `errors`."""
    return float(0.5 * np.einsum("ti,ij,tj->", errors, metric, errors, optimize=True) / len(errors))


def describe(allocation: Sequence[Point], factors: Mapping[int, float]) -> str:
    """Say the predicted loss of an allocation, and the measured factors behind it."""
    truncation = sum(point.truncation for point in allocation)
    return (
        f"rank auto: truncation is predicted to add {truncation:.2e} nats per token (a component "
        f"at the cut is worth {min(factors.values()):.1f} … {max(factors.values()):.1f} times its "
        "own quadratic form)"
    )


class _StoredMemory:
    """A decoder's own memory, rounded and truncated as an allocation would store it."""

    def __init__(
        self,
        decoder: Decoder,
        points: Mapping[int, Point],
        moments: Mapping[int, Moments],
        bits: int,
    ) -> None:
        if decoder.memory is None:
            raise ValueError("a dense decoder has no memory")
        self._exact: Memory = decoder.memory
        self._points = points
        self._moments = moments
        self._bits = bits

    def __call__(self, layer: int, token_ids: torch.Tensor) -> torch.Tensor:
        distinct, inverse = torch.unique(token_ids, return_inverse=True)
        rows = self._exact(layer, distinct)
        point = self._points.get(layer)
        if point is None:
            return torch.zeros_like(rows)[inverse]
        mean = torch.from_numpy(self._moments[layer].mean.astype(np.float32))
        basis = self._moments[layer].spectrum.vectors[:, : point.rank].astype(np.float32)
        kept = ((rows - mean) @ torch.from_numpy(basis)).numpy()
        encoding = field_encoding(point.rank, self._bits, "f16", point.leading)
        stored = kept + _rounding_error(kept, encoding)
        restored = torch.from_numpy(stored.astype(np.float32)) @ torch.from_numpy(basis).T
        return (restored + mean)[inverse]
