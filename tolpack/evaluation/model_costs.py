"""Weights and multiply-adds of a model's parts: with its FFNs, and with a table instead."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tolpack.sources.checkpoint.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class ModelCosts:
    """Weights by part, and multiply-adds of weights per token.

    Attention's products with earlier tokens, which grow with the text, are left out. ``other``:
    attention, FFN-C, norms. ``table_values``: values of the table, which replaces
    ``memory_weights`` in inference and takes no operation.
    """

    embedding_weights: int
    head_weights: int
    other_weights: int
    memory_weights: int
    head_macs: int
    other_macs: int
    memory_macs: int
    table_values: int


def model_costs(checkpoint: Checkpoint) -> ModelCosts:
    """Count the weights of a checkpoint by its config and the names of its tensors."""
    config = checkpoint.config
    sizes = {"embedding": 0, "head": 0, "other": 0, "memory": 0}
    macs = {"other": 0, "memory": 0}
    for name in checkpoint.schema_tensors:
        shape = checkpoint.check(name).shape
        size, part = math.prod(shape), _part(name)
        sizes[part] += size
        if len(shape) == 2 and part in macs:
            macs[part] += size
    head = config.vocab_size * config.hidden_size
    return ModelCosts(
        embedding_weights=sizes["embedding"],
        head_weights=sizes["head"],
        other_weights=sizes["other"],
        memory_weights=sizes["memory"],
        head_macs=head,
        other_macs=macs["other"],
        memory_macs=macs["memory"],
        table_values=config.vocab_size * config.num_hidden_layers * config.hidden_size,
    )


def _part(name: str) -> str:
    if name.startswith("embed_tokens."):
        return "embedding"
    if name.startswith("lm_head."):
        return "head"
    return "memory" if ".memory_" in name else "other"
