"""One pass over the vocabulary: what a layer's keys do, without holding all coefficients.

The coefficients of a vocabulary are a matrix (tokens, keys): 2.8 GB in float32 for 128,256 tokens
and 5,464 keys. The pass computes them for a block of tokens at a time, and keeps of them:

* for each token, its strongest keys, and its coefficients projected on few principal components;
* for each key, its strongest tokens, and the moments that tell how few tokens use it;
* the cosine of every token's coefficients with those of tokens that were asked for.

The principal components are those of a sample of tokens. Coefficients of a token are divided by
their norm first, so that distances follow the angle between tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.errors import CheckpointError
from tolpack.keys.layer_keys import LayerKeys
from tolpack.runtime.array_types import Doubles, Floats, Ints

KEYS_PER_TOKEN = 8
TOKENS_PER_KEY = 16
# Principal components that are kept of a token's coefficients: they hold 57 % of the variance of
# a trained model of 768 keys, and cost 4 % of an FFN pass for 5,464 keys.
_COMPONENTS = 256
_BLOCK_VALUES = 1 << 22


@dataclass(frozen=True, slots=True)
class LayerScan:
    """What one pass over the vocabulary found in a layer.

    Attributes
    ----------
    token_keys : ndarray
        int32 (tokens, n): the strongest keys of each token, strongest first.
    key_tokens, key_strengths : ndarray
        int64 and float32 (keys, m): the strongest tokens of each key, and its strength for them
        with the sign of the coefficient.
    kurtosis : ndarray
        float64 (keys,): ``E[(c − μ)⁴] / σ⁴`` over the vocabulary; 3 for normal values, and 1 for a
        key that never changes.
    rms_strengths : ndarray
        float64 (keys,): root of the mean squared strength over the vocabulary.
    coordinates : ndarray
        float32 (tokens, components): coefficients of norm 1 on the principal components, scaled to
        norm 1 again.
    similarities : ndarray
        float32 (tokens, asked): cosines with the coefficients of the tokens that were asked for.
    """

    token_keys: NDArray[np.int32]
    key_tokens: Ints
    key_strengths: Floats
    kurtosis: NDArray[np.float64]
    rms_strengths: NDArray[np.float64]
    coordinates: Floats
    similarities: Floats

    def used_by(self) -> Ints:
        """Return in how many tokens each key is one of the strongest: int64 (keys,)."""
        return np.bincount(self.token_keys.ravel(), minlength=len(self.kurtosis))


def check_finite(values: Floats | Doubles, layer: int) -> None:
    """Raise `CheckpointError` unless coefficients of a layer, or their moments, are finite."""
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"the key coefficients of layer {layer} are not finite, or too large for float32: "
            "the checkpoint is damaged"
        )


@torch.inference_mode()
def scan_layer(
    keys: LayerKeys,
    vocab_size: int,
    sample: torch.Tensor,
    asked: Ints,
    done: Callable[[int], object] = lambda tokens: None,
) -> LayerScan:
    """Pass over the vocabulary once.

    Parameters
    ----------
    keys : LayerKeys
        The layer.
    vocab_size : int
        Number of tokens.
    sample : Tensor
        Coefficients of a sample of tokens (sample, keys), for the principal components.
    asked : ndarray
        int64 (asked,): tokens whose cosine with every token is wanted.
    done : callable, optional
        Receives the number of tokens since the last call.

    Raises
    ------
    CheckpointError
        A coefficient is not finite.
    """
    check_finite(sample.numpy(), keys.layer)
    components = principal_components(sample)
    targets = _units(keys.coefficients(asked).float()).T if asked.size else None
    norms, tops, moments = keys.value_norms(), _TopTokens(keys.count), _Moments(keys.count)
    token_keys = np.empty((vocab_size, min(KEYS_PER_TOKEN, keys.count)), np.int32)
    coordinates = np.empty((vocab_size, components.shape[1]), np.float32)
    similarities = np.empty((vocab_size, asked.size), np.float32)
    for block in _blocks(vocab_size, keys.count):
        c = keys.coefficients(np.arange(block.start, block.stop)).float()
        coordinates[block] = _units(c @ components).numpy()
        if targets is not None:
            similarities[block] = (c @ targets / _norms(c)).numpy()
        c *= norms
        moments.add(c)
        strengths = c.abs()
        token_keys[block] = strengths.topk(token_keys.shape[1], dim=1).indices.numpy()
        tops.add(c, strengths, block.start)
        done(len(c))
    kurtosis, rms = moments.finish(vocab_size, keys.layer)
    return LayerScan(
        token_keys, tops.tokens.T.numpy(), tops.signed.T.numpy(), kurtosis, rms, coordinates,
        similarities,
    )  # fmt: skip


def principal_components(sample: torch.Tensor) -> torch.Tensor:
    """Return the main directions of coefficients (tokens, keys) of norm 1: (keys, components)."""
    centred = _units(sample)
    centred = centred - centred.mean(dim=0)
    count = min(_COMPONENTS, *centred.shape)
    with torch.random.fork_rng(devices=[]):  # it starts from random directions
        torch.manual_seed(0)
        components: torch.Tensor = torch.svd_lowrank(centred, count, niter=2)[2]
    return components


def project(coefficients: torch.Tensor, sample: torch.Tensor) -> Floats:
    """Return `LayerScan.coordinates` of coefficients (tokens, keys), on a sample's components."""
    return np.asarray(_units(coefficients @ principal_components(sample)).numpy(), np.float32)


def kurtosis_of(sample: torch.Tensor, layer: int) -> NDArray[np.float64]:
    """Return the kurtosis of each key over coefficients (tokens, keys)."""
    moments = _Moments(sample.shape[1])
    moments.add(sample)
    return moments.finish(len(sample), layer)[0]


def cosines(coefficients: torch.Tensor) -> Floats:
    """Return the cosine of each two rows of coefficients (tokens, keys): (tokens, tokens)."""
    units = _units(coefficients)
    return np.asarray((units @ units.T).numpy(), np.float32)


def _norms(rows: torch.Tensor) -> torch.Tensor:
    norms: torch.Tensor = torch.linalg.norm(rows, dim=1, keepdim=True)
    return norms.clamp_min(1e-20)


def _units(rows: torch.Tensor) -> torch.Tensor:
    return rows / _norms(rows)


def _blocks(tokens: int, keys: int) -> list[slice]:
    """Cut the vocabulary into blocks of bounded size, at least 32 tokens each."""
    size = max(32, _BLOCK_VALUES // keys)
    return [slice(start, min(tokens, start + size)) for start in range(0, tokens, size)]


class _TopTokens:
    """The strongest tokens of each key so far: (m, keys) each, strongest first."""

    def __init__(self, keys: int) -> None:
        self.signed = torch.empty(0, keys)
        self.tokens = torch.empty(0, keys, dtype=torch.int64)

    def add(self, signed: torch.Tensor, strengths: torch.Tensor, first: int) -> None:
        """Add a block of tokens (tokens, keys), of which `first` is the first; `strengths` are the
        magnitudes of `signed`.
        """
        found = strengths.topk(min(TOKENS_PER_KEY, len(strengths)), dim=0).indices
        both = torch.cat([self.signed, signed.gather(0, found)])
        tokens = torch.cat([self.tokens, found + first])
        kept = both.abs().topk(min(TOKENS_PER_KEY, len(both)), dim=0).indices
        self.signed, self.tokens = both.gather(0, kept), tokens.gather(0, kept)


class _Moments:
    """Sums of the first four powers over tokens, float64 (4, keys)."""

    def __init__(self, keys: int) -> None:
        self._sums = torch.zeros(4, keys, dtype=torch.float64)

    def add(self, values: torch.Tensor) -> None:
        """Add a block of tokens (tokens, keys)."""
        squares = values * values
        self._sums[0] += values.sum(dim=0)
        self._sums[1] += squares.sum(dim=0)
        self._sums[2] += torch.linalg.vecdot(squares, values, dim=0)
        self._sums[3] += torch.linalg.vecdot(squares, squares, dim=0)

    def finish(self, count: int, layer: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return kurtosis and root mean square of each key."""
        mean, m2, m3, m4 = (self._sums / count).numpy()
        check_finite(m4, layer)
        variance = m2 - mean**2
        fourth = m4 - 4 * mean * m3 + 6 * mean**2 * m2 - 3 * mean**4
        varies = variance > 1e-12 * m2
        kurtosis = np.ones_like(mean)
        np.divide(fourth, variance**2, out=kurtosis, where=varies)
        return np.maximum(kurtosis, 1.0), np.sqrt(m2)
