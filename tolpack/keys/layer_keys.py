"""The keys of a layer's memory FFN: how much of each value a token's row has.

A row is a sum over keys, ``FFN(x̂) = Σ_k c_k · W_down[:, k]`` with
``c_k = (W_up x̂)_k · act(W_gate x̂)_k`` and ``x̂ = Norm_L(x0)`` (MemoryLLM, arXiv 2602.00398 §3).
The column ``W_up[:, k]`` is the key, ``W_down[:, k]`` its value, ``c_k`` the coefficient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.sources.checkpoint.checkpoint import Checkpoint
from tolpack.sources.ffn import GatedFFN, Norm, load_memory_ffn


@dataclass(frozen=True, slots=True)
class LayerKeys:
    """The keys of layer ``layer``; made by `load_layer_keys`."""

    layer: int
    _checkpoint: Checkpoint
    _norm: Norm
    _ffn: GatedFFN

    @property
    def count(self) -> int:
        """Number of keys."""
        return self._ffn.gate.shape[0]

    @property
    def values(self) -> torch.Tensor:
        """The value of each key, ``W_down`` transposed: (keys, hidden), a view."""
        return self._ffn.down.T

    def value_norms(self) -> torch.Tensor:
        """Return the norm of each value: float32 (keys,).

        The strength of key k for a token is ``|c_k| · ‖W_down[:, k]‖``: the norm of what the key
        adds to the token's row.
        """
        norms: torch.Tensor = torch.linalg.norm(self._ffn.down.float(), dim=0)
        return norms

    @torch.inference_mode()
    def coefficients(self, token_ids: NDArray[np.int64]) -> torch.Tensor:
        """Return ``c_k`` of each token: (ids, keys), in the dtype that the keys were loaded in.

        Parameters
        ----------
        token_ids : ndarray
            int64 (ids,), each in the vocabulary.
        """
        x = self._checkpoint.rows("embed_tokens.weight", torch.from_numpy(token_ids)).float()
        return self._ffn.coefficients(self._norm(x))

    def randomized(self, seed: int) -> LayerKeys:
        """Return keys that were not learned: a control with the same norms, values and tokens.

        The rows of ``W_gate`` and ``W_up`` get random directions. Similar embeddings still give
        similar coefficients, as random projections keep angles.
        """
        generator = torch.Generator().manual_seed(seed)
        gate, up = (_random_rows(one, generator) for one in (self._ffn.gate, self._ffn.up))
        return replace(self, _ffn=replace(self._ffn, gate=gate, up=up))


def _random_rows(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return rows of random directions with the norms of those of `weight`, in its dtype."""
    rows = torch.randn(weight.shape, generator=generator)
    scale = weight.float().norm(dim=1, keepdim=True) / rows.norm(dim=1, keepdim=True)
    random: torch.Tensor = (rows * scale).to(weight.dtype)
    return random


def load_layer_keys(
    checkpoint: Checkpoint, layer: int, dtype: torch.dtype = torch.float32
) -> LayerKeys:
    """Load the keys of layer `layer` of a MemoryLLM or Flex checkpoint in `dtype`.

    Raises
    ------
    CheckpointError
        The checkpoint has no memory FFNs, or not all of their tensors.
    """
    norm, ffn = load_memory_ffn(checkpoint, layer, dtype)
    return LayerKeys(layer, checkpoint, norm, ffn)
