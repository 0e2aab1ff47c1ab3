"""Ablations: a decoder's memory scaled, or with layers left out."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tolpack.model.language_model import Memory


@dataclass(frozen=True, slots=True)
class ScaledMemory:
    """Every output times ``factor`` (the paper's α)."""

    memory: Memory
    factor: float

    def __call__(self, layer: int, token_ids: torch.Tensor) -> torch.Tensor:
        """See `tolpack.model.language_model`."""
        return self.memory(layer, token_ids) * self.factor


@dataclass(frozen=True, slots=True)
class MemoryWithoutLayers:
    """Zeros from layers ``first … last``."""

    memory: Memory
    first: int
    last: int
    widths: tuple[int, ...]

    def __call__(self, layer: int, token_ids: torch.Tensor) -> torch.Tensor:
        """See `tolpack.model.language_model`."""
        if self.first <= layer <= self.last:
            return torch.zeros(*token_ids.shape, self.widths[layer])
        return self.memory(layer, token_ids)
