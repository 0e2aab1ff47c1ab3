"""``--rank auto``, the last word: allocations are run on the calibration text before one is taken.

Predicted losses come from factors that were measured on one text, and are noisy. Where layers are
much alike, a uniform rank is hard to beat; the loss is convex, so the mean of two good allocations
is often better than either. So three are run, coefficients rounded as they will be stored: a
uniform rank, the ranks by slope, and their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch

from tolpack.calibration.loss_metrics import loss_tokens, window_losses
from tolpack.calibration.model_losses import CalibratedModel
from tolpack.compress.fixed.encoding_choice import field_encoding
from tolpack.compress.fixed.loss_model import RANK_STEP, LossModel, rounding_error
from tolpack.compress.fixed.principal_components import PrincipalComponents
from tolpack.compress.fixed.rank_allocation import Allocation, RankOption
from tolpack.model.language_model import Memory
from tolpack.runtime.array_types import Doubles
from tolpack.runtime.progress import Reporter

Fits = Callable[[Allocation], bool]


def choose(model: LossModel, sloped: Allocation, fits: Fits, reporter: Reporter) -> Allocation:
    """Compare the allocation by slope with a uniform rank, and the mean of both, on the text.

    A less uniform one is taken only if it is better by more than two paired standard errors over
    windows. Without a model to run, the allocation by slope is returned.

    Parameters
    ----------
    model : LossModel
        Predictions, and the model to run.
    sloped : tuple of RankOption
        The allocation by slope.
    fits : callable
        Whether an allocation takes no more bytes than it may.
    reporter : Reporter
        Receives progress and the result.
    """
    uniform = _largest(partial(_uniform, model), fits, model.full_rank)
    if model.calibrated is None or uniform is None:
        return sloped
    candidates = {"uniform rank": _filled(model, uniform, fits)}
    blended = _largest(partial(_blended, model, sloped, uniform), fits, model.full_rank)
    if blended is not None:
        candidates["between both"] = _filled(model, blended, fits)
    candidates["by slope"] = _filled(model, sloped, fits)
    losses = {
        name: _losses(model, model.calibrated, found, reporter)
        for name, found in candidates.items()
    }
    best = "uniform rank"
    for name, loss in losses.items():
        difference = losses[best] - loss
        if difference.mean() > 2 * difference.std() / np.sqrt(len(difference)):
            best = name
    listed = ", ".join(f"{name} {loss.mean():.4f}" for name, loss in losses.items())
    reporter.say(f"rank auto: nats per token on the calibration text: {listed}; taking {best}")
    return candidates[best]


def _uniform(model: LossModel, rank: int) -> Allocation:
    """Give every layer the same rank, all coefficients at the same bits."""
    return tuple(model.point(layer, rank, 0) for layer in model.layers)


def _blended(model: LossModel, a: Allocation, b: Allocation, smallest: int) -> Allocation:
    """Mean ranks of two allocations, with `a`'s leading values, moved together so that the
    smallest rank is `smallest`.
    """
    means = [(p.rank + q.rank) // 2 for p, q in zip(a, b)]
    offset = smallest - min(means)
    return tuple(
        model.point(layer, mean + offset, point.leading)
        for layer, mean, point in zip(model.layers, means, a)
    )


def _largest(make: Callable[[int], Allocation], fits: Fits, full: int) -> Allocation | None:
    """Return the last of ``make(RANK_STEP), make(2 · RANK_STEP), …`` that fits, by bisection."""
    low, high = 0, -(-full // RANK_STEP)
    while low < high:
        middle = (low + high + 1) // 2
        if fits(make(middle * RANK_STEP)):
            low = middle
        else:
            high = middle - 1
    return make(low * RANK_STEP) if low else None


def _filled(model: LossModel, allocation: Allocation, fits: Fits) -> Allocation:
    """Raise single layers' ranks, the most useful first, until no more fits."""
    chosen = list(allocation)
    open_layers = set(range(len(chosen)))
    while open_layers:
        steps = {n: _next(model, model.layers[n], chosen[n]) for n in open_layers}
        best = max(steps, key=lambda n: (steps[n][0], -n))
        worth, point = steps[best]
        raised = [*chosen[:best], point, *chosen[best + 1 :]]
        if worth <= 0 or not fits(tuple(raised)):
            open_layers.discard(best)
        else:
            chosen = raised
    return tuple(chosen)


def _next(model: LossModel, layer: int, point: RankOption) -> tuple[float, RankOption]:
    """Loss saved per byte by the next larger rank, and that point; 0 if there is none."""
    now = model.point(layer, point.rank, point.leading)  # by the factors measured last
    larger = model.point(layer, point.rank + RANK_STEP, point.leading)
    extra = larger.bytes - now.bytes
    return ((now.loss - larger.loss) / extra if extra > 0 else 0.0), larger


def _losses(
    model: LossModel, calibrated: CalibratedModel, allocation: Allocation, reporter: Reporter
) -> Doubles:
    """Nats per token of each window of the calibration text, memory stored as `allocation`."""
    points = dict(zip(model.layers, allocation))
    memory = stored_memory(calibrated, points, model.components, model.bits)
    ids, context = calibrated.token_ids, calibrated.context
    tokens = loss_tokens(calibrated.model, len(ids), context)
    with reporter.phase("trying ranks", tokens, "tok") as done:
        return window_losses(calibrated.model.with_memory(memory), ids, context, done)


def stored_memory(
    calibrated: CalibratedModel,
    points: Mapping[int, RankOption],
    components: Mapping[int, PrincipalComponents],
    bits: int,
) -> Memory:
    """Return the model's own memory, rounded and truncated as `points` would store it."""
    exact = calibrated.model.memory

    def memory(layer: int, token_ids: torch.Tensor) -> torch.Tensor:
        distinct, inverse = torch.unique(token_ids, return_inverse=True)
        if exact is None or layer not in points:
            return torch.zeros(*token_ids.shape, len(next(iter(components.values())).mean))
        rows, point = exact(layer, distinct), points[layer]
        mean = torch.from_numpy(components[layer].mean.astype(np.float32))
        basis = components[layer].vectors[:, : point.rank]
        kept = ((rows - mean) @ torch.from_numpy(basis)).numpy()
        encoding = field_encoding(point.rank, bits, "f16", point.leading)
        stored = (kept + rounding_error(kept, encoding)).astype(np.float32)
        return (torch.from_numpy(stored) @ torch.from_numpy(basis).T + mean)[inverse]

    return memory
