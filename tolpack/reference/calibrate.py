"""What an error in each layer's memory does to the loss, measured on a calibration text.

For a small error ``e_l`` added to the memory's output of layer ``l`` at every position, the loss
rises by about ``½ Σ_l E[e_l G_l e_lᵀ]`` nats per token, with ``G_l = E[g gᵀ]`` and ``g`` the
gradient of the window's summed negative log-likelihood at that output (the empirical Fisher
matrix in place of the Hessian). ``G_l`` is accumulated in float64 over windows of the text; the
weights get no gradient.

Without a text, one is sampled from the model itself with a fixed seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from tolpack.reference.decoder import Decoder, Memory, sample

# 131,072 tokens leave about 1 % noise in G_l's trace at hidden 256 (docs/lab-notes.md).
MAX_GRADIENT_TOKENS = 1 << 17
MAX_LOSS_TOKENS = 1 << 16
_TOKENS_PER_BATCH = 2048
_SAMPLED_SEQUENCES = 64

Progress = Callable[[int], object] | None
_Error = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Token counts and loss metrics.

    ``counts`` int64 (vocab_size,); ``metrics`` float64 (num_layers, hidden, hidden), nats per
    squared unit of table value.
    """

    counts: NDArray[np.int64]
    metrics: NDArray[np.float64]


def calibrate(
    decoder: Decoder, token_ids: NDArray[np.int64], context: int, progress: Progress = None
) -> Calibration:
    """Measure counts over all of `token_ids`, and metrics over at most `MAX_GRADIENT_TOKENS`.

    Parameters
    ----------
    decoder : Decoder
        A MemoryLLM or Flex model with its own memory.
    token_ids : ndarray
        int64 (tokens,).
    context : int
        Window length in tokens; windows are spread evenly over the text.
    progress : callable, optional
        Called with the number of tokens differentiated since the last call.
    """
    config = decoder.config
    windows = _windows(token_ids, context)
    hidden = config.hidden_size
    sums = torch.zeros(config.num_hidden_layers, hidden, hidden, dtype=torch.float64)
    step = max(1, _TOKENS_PER_BATCH // windows.shape[1])
    tokens = 0
    for batch in torch.split(windows, step):
        for layer, (gradient, _) in enumerate(_gradients(decoder, batch)):
            flat = gradient.reshape(-1, hidden)
            sums[layer] += (flat.T @ flat).double()
        tokens += batch[:, 1:].numel()
        if progress is not None:
            progress(batch[:, 1:].numel())
    counts = np.bincount(token_ids, minlength=config.vocab_size)
    return Calibration(counts, (sums / tokens).numpy())


@dataclass(frozen=True, slots=True)
class TruncatedLayer:
    """A layer's basis and where it is cut.

    ``mean`` float32 (hidden,); ``vectors`` float32 (hidden, hidden), orthonormal columns;
    ``rank``: the columns that are kept.
    """

    mean: NDArray[np.float32]
    vectors: NDArray[np.float32]
    rank: int


def truncation_slopes(
    decoder: Decoder,
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
    frames = [
        None
        if layer is None
        else (torch.from_numpy(layer.mean), torch.from_numpy(layer.vectors), layer.rank)
        for layer in layers
    ]
    errors = [None if f is None else _truncation(f[0], f[1][:, f[2] :]) for f in frames]
    windows = _windows(token_ids, context)
    slopes = torch.zeros(len(layers), decoder.config.hidden_size, dtype=torch.float64)
    for batch in torch.split(windows, max(1, _TOKENS_PER_BATCH // windows.shape[1])):
        for number, (gradient, output) in enumerate(_gradients(decoder, batch, errors)):
            frame = frames[number]
            if frame is not None:
                mean, vectors, _ = frame
                whole = output - mean
                products = (gradient @ vectors) * (whole @ vectors)
                slopes[number] -= products.flatten(0, 1).double().sum(0)
        if progress is not None:
            progress(batch[:, 1:].numel())
    return np.asarray((slopes / windows[:, 1:].numel()).numpy())


@torch.inference_mode()
def window_losses(
    decoder: Decoder, token_ids: NDArray[np.int64], context: int, progress: Progress = None
) -> NDArray[np.float64]:
    """Nats per token of windows spread over the text, at most `MAX_LOSS_TOKENS` tokens in all.

    The windows are the same for every call, so that two results can be paired.

    Returns
    -------
    ndarray
        float64 (windows,).
    """
    windows = _windows(token_ids, context, MAX_LOSS_TOKENS)
    losses = []
    for batch in torch.split(windows, max(1, _TOKENS_PER_BATCH // windows.shape[1])):
        logits, targets = decoder(batch[:, :-1]), batch[:, 1:]
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        losses.append(loss.view(targets.shape).double().mean(1))
        if progress is not None:
            progress(targets.numel())
    return np.asarray(torch.cat(losses).numpy())


@torch.inference_mode()
def sample_text(
    decoder: Decoder, length: int, seed: int = 0, progress: Progress = None
) -> NDArray[np.int64]:
    """Sample 64 sequences of `length` tokens from the model: int64 (64 · length,).

    The first token of each is drawn uniformly, the rest from the model at temperature 1.
    """
    source = torch.Generator().manual_seed(seed)
    shape = (_SAMPLED_SEQUENCES, 1)
    ids = torch.randint(decoder.config.vocab_size, shape, generator=source)
    cache, sequence = decoder.new_cache(), [ids]
    for _ in range(length - 1):
        ids = sample(decoder(ids, cache)[:, -1], 1.0, source)
        sequence.append(ids)
        if progress is not None:
            progress(_SAMPLED_SEQUENCES)
    return torch.cat(sequence, 1).flatten().numpy()


def measured_tokens(tokens: int, context: int, most: int = MAX_GRADIENT_TOKENS) -> int:
    """Return how many of `tokens` tokens are measured in windows of `context`."""
    window = min(context, tokens - 1)
    return window * min(max(1, (tokens - 1) // window), max(1, most // window))


def _windows(
    token_ids: NDArray[np.int64], context: int, most: int = MAX_GRADIENT_TOKENS
) -> torch.Tensor:
    """Evenly spread windows, int64 (windows, context + 1): each feeds and scores its tokens."""
    window = min(context, len(token_ids) - 1)
    available = max(1, (len(token_ids) - 1) // window)
    chosen = measured_tokens(len(token_ids), context, most) // window
    starts = (np.arange(chosen) * available // chosen) * window
    rows = [token_ids[start : start + window + 1] for start in starts]
    return torch.from_numpy(np.stack(rows))


def _gradients(
    decoder: Decoder, windows: torch.Tensor, errors: Sequence[_Error | None] | None = None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per layer: gradient of the summed loss at the memory's output, and the output.

    Both are (batch, length, hidden). The gradient is taken with `errors` added to the outputs; the
    output is the one without.
    """
    outputs: list[torch.Tensor] = []
    exact: list[torch.Tensor] = []

    def recorded(memory: Memory) -> Memory:
        def call(layer: int, token_ids: torch.Tensor) -> torch.Tensor:
            output = memory(layer, token_ids)
            error = None if errors is None else errors[layer]
            exact.append(output)
            outputs.append((output if error is None else output + error(output)).requires_grad_())
            return outputs[-1]

        return call

    if decoder.memory is None:
        raise ValueError("a dense decoder has no memory to calibrate")
    logits = decoder(windows[:, :-1], memory=recorded(decoder.memory))
    loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="sum")
    return list(zip(torch.autograd.grad(loss, outputs), exact))


def _truncation(mean: torch.Tensor, directions: torch.Tensor) -> _Error:
    """Error of leaving out `directions` (hidden, n) of what is around `mean`."""
    return lambda output: -((output - mean) @ directions) @ directions.T
