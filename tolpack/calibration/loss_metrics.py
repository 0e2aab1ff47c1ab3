"""What an error in each layer's memory does to the loss, measured on a calibration text.

For a small error ``e_l`` added to the memory's output of layer ``l`` at every position, the loss
rises by about ``½ Σ_l E[e_l G_l e_lᵀ]`` nats per token, with ``G_l = E[g gᵀ]`` and ``g`` the
gradient of the window's summed negative log-likelihood at that output (the empirical Fisher
matrix in place of the Hessian). ``G_l`` is accumulated in float64 over windows of the text; the
weights get no gradient. Errors of neighbouring layers at one position meet in the residual stream:
``G_{l,l+k} = E[g_l g_{l+k}ᵀ]`` says how far one can compensate for the other.

The model gives the gradients (`LanguageModel.row_gradients`). What a large one costs is bounded by
`affordable_tokens`.

Without a text, one is sampled from the model itself with a fixed seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.calibration.metric_sums import MetricSums, groups, sum_group
from tolpack.model.generation import sample
from tolpack.model.language_model import LanguageModel
from tolpack.runtime.scratch import Scratch, SpilledArray

# 131,072 tokens leave about 1 % noise in G_l's trace at hidden 256 (docs/lab-notes.md).
MAX_GRADIENT_TOKENS = 1 << 17
MAX_LOSS_TOKENS = 1 << 16
SAMPLED_SEQUENCES = 64
# What one measurement may cost in floating-point operations: minutes on two cores. Metrics are
# measured once and kept, and need several tokens for each of a layer's dimensions: they may cost
# more than what is done again and again, 16,000 tokens at 1B. Models below some 25 million weights
# are never cut short by either.
METRIC_OPERATIONS, _MAX_OPERATIONS = 1.5e14, 2e13
_MIN_SAMPLED_LENGTH = 32
_TOKENS_PER_BATCH = 2048
_ACTIVATION_BYTES = 1 << 28

Progress = Callable[[int], object] | None


@dataclass(frozen=True, slots=True)
class LossMetrics:
    """Loss metrics.

    ``metrics``: one per layer, float64 (hidden, hidden), nats per squared unit of table value;
    ``crossed[l][k - 1]``: float64 (hidden, hidden), ``G_{l,l+k}``; ``count_slope``: see
    `tolpack.calibration.count_slope`.
    """

    metrics: tuple[SpilledArray, ...]
    crossed: tuple[tuple[SpilledArray, ...], ...]
    count_slope: float


def measure_loss_metrics(
    model: LanguageModel,
    token_ids: NDArray[np.int64],
    context: int,
    progress: Progress = None,
    scratch: Scratch | None = None,
    reach: int = 0,
) -> LossMetrics:
    """Measure metrics over `metric_tokens` of `token_ids`.

    Parameters
    ----------
    model : LanguageModel
        The model with its own memory.
    token_ids : ndarray
        int64 (tokens,).
    context : int
        Window length in tokens; windows are spread evenly over the text.
    progress : callable, optional
        Called with the number of tokens differentiated since the last call.
    scratch : Scratch, optional
        Keeps the metrics; default: memory.
    reach : int
        How many layers above each one to measure it together with.
    """
    if model.memory is None:
        raise ValueError("a dense model has no memory to calibrate")
    scratch = scratch or Scratch(Path(), 2**63)
    total = new_sums(model, reach, scratch)
    for group in groups(metric_batches(model, token_ids, context)):
        sums = new_sums(model, reach, scratch)
        sum_group(sums, model, group, progress)
        total.add(sums)
    return metrics_of(total, metric_tokens(model, len(token_ids), context))


def new_sums(model: LanguageModel, reach: int, scratch: Scratch) -> MetricSums:
    """Return sums for the rows of `model`, all 0."""
    return MetricSums(len(model.widths), model.widths[0], reach, scratch)


def metric_batches(
    model: LanguageModel, token_ids: NDArray[np.int64], context: int
) -> tuple[torch.Tensor, ...]:
    """Return the windows that metrics are measured on, in batches: int64 (n, context + 1)."""
    windows = _windows(token_ids, context, metric_tokens(model, len(token_ids), context))
    return _batches(model, windows)


def metrics_of(sums: MetricSums, tokens: int) -> LossMetrics:
    """Return the metrics that sums over `tokens` tokens give; their arrays are taken over."""
    for kept in (kept for row in sums.products for kept in row):
        mean = (kept.load() / tokens).astype(np.float32)  # as a cache keeps it
        kept.replace(mean.astype(np.float64))
    metrics, crossed = (row[0] for row in sums.products), (tuple(r[1:]) for r in sums.products)
    return LossMetrics(tuple(metrics), tuple(crossed), sums.slope.slope())


@dataclass(frozen=True, slots=True)
class TruncatedLayer:
    """A layer's basis and where it is cut.

    ``mean`` float32 (hidden,); ``vectors`` gives float32 (hidden, hidden), orthonormal columns;
    ``rank``: the columns that are kept.
    """

    mean: NDArray[np.float32]
    vectors: Callable[[], NDArray[np.float32]]
    rank: int

    def cut(self, output: torch.Tensor) -> torch.Tensor:
        """Leave out the components of `output` behind the rank."""
        directions = torch.from_numpy(self.vectors()[:, self.rank :])
        return output - ((output - torch.from_numpy(self.mean)) @ directions) @ directions.T


def truncation_slopes(
    model: LanguageModel,
    token_ids: NDArray[np.int64],
    context: int,
    layers: Sequence[TruncatedLayer | None],
    progress: Progress = None,
) -> NDArray[np.float64]:
    """Slope of the loss along the loss of each component, with all layers truncated.

    Parameters
    ----------
    layers : sequence of TruncatedLayer or None
        One per layer; ``None`` leaves a layer as it is.

    Returns
    -------
    ndarray
        float64 (num_layers, hidden), nats per token: ``E[-(g · v_i) c_i]`` with ``c_i`` the
        untruncated coefficient of component ``i``; zeros where no layer was given. If the loss
        were quadratic, half the sum over the components cut would be the layer's share of the
        increase.
    """
    windows = _windows(token_ids, context, gradient_tokens(model, len(token_ids), context))
    slopes = torch.zeros(len(layers), model.widths[0], dtype=torch.float64)
    changes = [None if layer is None else layer.cut for layer in layers]
    for batch in _batches(model, windows):
        for number, gradient, output in model.row_gradients(batch, changes):
            layer = layers[number]
            if layer is not None and output is not None:
                vectors = torch.from_numpy(layer.vectors())
                whole = output - torch.from_numpy(layer.mean)
                products = (gradient @ vectors) * (whole @ vectors)
                slopes[number] -= products.flatten(0, -2).double().sum(0)
        if progress is not None:
            progress(batch[:, 1:].numel())
    return np.asarray((slopes / windows[:, 1:].numel()).numpy())


@torch.inference_mode()
def window_losses(
    model: LanguageModel, token_ids: NDArray[np.int64], context: int, progress: Progress = None
) -> NDArray[np.float64]:
    """Nats per token of windows spread over `loss_tokens` of the text.

    The windows are the same for every call, so that two results can be paired.

    Returns
    -------
    ndarray
        float64 (windows,).
    """
    windows = loss_windows(model, token_ids, context)
    losses = []
    for batch in _batches(model, windows):
        losses.append(model.nll(batch).double().mean(1))
        if progress is not None:
            progress(batch[:, 1:].numel())
    return np.asarray(torch.cat(losses).numpy())


def loss_windows(model: LanguageModel, token_ids: NDArray[np.int64], context: int) -> torch.Tensor:
    """Return the windows of `window_losses`, int64 (windows, context + 1)."""
    return _windows(token_ids, context, loss_tokens(model, len(token_ids), context))


@torch.inference_mode()
def sample_text(
    model: LanguageModel, length: int, seed: int = 0, progress: Progress = None
) -> NDArray[np.int64]:
    """Sample 64 sequences of `length` tokens from the model: int64 (64 · length,).

    The first token of each is drawn uniformly, the rest from the model at temperature 1.
    """
    source = torch.Generator().manual_seed(seed)
    shape = (SAMPLED_SEQUENCES, 1)
    ids = torch.randint(model.vocab_size, shape, generator=source)
    cache, sequence = model.new_cache(), [ids]
    for _ in range(length - 1):
        ids = sample(model(ids, cache)[:, -1], 1.0, source)
        sequence.append(ids)
        if progress is not None:
            progress(SAMPLED_SEQUENCES)
    return torch.cat(sequence, 1).flatten().numpy()


def sampled_length(model: LanguageModel, context: int) -> int:
    """Return how long sampled sequences should be: a window, or less for a large model."""
    most = affordable_tokens(model.macs_per_token, MAX_GRADIENT_TOKENS) // SAMPLED_SEQUENCES
    return min(context, max(most, _MIN_SAMPLED_LENGTH))


def metric_tokens(model: LanguageModel, tokens: int, context: int) -> int:
    """Return how many of `tokens` tokens metrics are measured on, in windows of `context`."""
    most = affordable_tokens(model.macs_per_token, MAX_GRADIENT_TOKENS, METRIC_OPERATIONS)
    return _measured(tokens, context, most)


def gradient_tokens(model: LanguageModel, tokens: int, context: int) -> int:
    """Return how many of `tokens` tokens slopes are measured on, in windows of `context`."""
    return _measured(tokens, context, affordable_tokens(model.macs_per_token, MAX_GRADIENT_TOKENS))


def loss_tokens(model: LanguageModel, tokens: int, context: int) -> int:
    """Return how many of `tokens` tokens losses are measured on, in windows of `context`."""
    return _measured(tokens, context, affordable_tokens(model.macs_per_token, MAX_LOSS_TOKENS))


def affordable_tokens(macs_per_token: int, most: int, operations: float = _MAX_OPERATIONS) -> int:
    """Return `most`, or as many tokens as `operations` allow on a large model.

    A token costs about six operations per weight: two forward, four backward.
    """
    return int(min(most, operations / (6 * macs_per_token)))


def _measured(tokens: int, context: int, most: int) -> int:
    window = min(context, tokens - 1)
    return window * min(max(1, (tokens - 1) // window), max(1, most // window))


def _windows(token_ids: NDArray[np.int64], context: int, tokens: int) -> torch.Tensor:
    """Evenly spread windows with `tokens` tokens, int64 (windows, context + 1): each feeds and
    scores its tokens.
    """
    window = min(context, len(token_ids) - 1)
    available = max(1, (len(token_ids) - 1) // window)
    starts = (np.arange(tokens // window) * available // (tokens // window)) * window
    rows = [token_ids[start : start + window + 1] for start in starts]
    return torch.from_numpy(np.stack(rows))


def _batches(model: LanguageModel, windows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Cut windows into batches whose layers' inputs and outputs fit in memory."""
    tokens = min(_TOKENS_PER_BATCH, _ACTIVATION_BYTES // model.activation_bytes)
    return torch.split(windows, max(1, tokens // windows.shape[1]))
