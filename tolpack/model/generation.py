"""Text that a model continues, token by token, with a key–value cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from tolpack.errors import ConfigError
from tolpack.model.language_model import LanguageModel


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompt: Sequence[int],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[int]:
    """Yield token ids that continue `prompt`.

    Parameters
    ----------
    model : LanguageModel
        The model.
    prompt : sequence of int
        Token ids, at least one.
    max_new_tokens : int
        How many ids are yielded. Positions beyond ``max_position_embeddings`` are computed but were
        not trained.
    temperature : float
        0 takes the most likely token; else tokens are sampled from ``softmax(logits/temperature)``.
    seed : int
        Of the samples.

    Raises
    ------
    ConfigError
        The prompt is empty.
    """
    if not len(prompt):
        raise ConfigError("prompt is empty: give at least one token id")
    cache = model.new_cache()
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor([list(prompt)], dtype=torch.int64)
    for _ in range(max_new_tokens):
        ids = sample(model(ids, cache)[:, -1], temperature, generator)
        yield int(ids[0, 0])


def sample(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    """Choose one id per row of `logits` (batch, vocab): int64 (batch, 1); greedy at 0."""
    if temperature <= 0:
        return logits.argmax(-1, keepdim=True)
    return torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator)
