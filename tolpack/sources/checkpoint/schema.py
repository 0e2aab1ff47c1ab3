"""The checkpoint schema: every tensor that tolpack knows, and the shape its configuration asks for.

Names are HF-Llama-like, without the optional ``model.`` prefix; ``{N}`` stands for a layer number.
Checkpoints under other names are brought here by a key map (`tolpack.sources.checkpoint.key_map`),
so that nothing beyond this package sees any other name. ``docs/checkpoints.md`` shows the same
table.
"""

from __future__ import annotations

import re

from tolpack.sources.checkpoint.config import ModelConfig

FFN_PARTS = ("gate_proj", "up_proj", "down_proj")

# Dimensions: V vocabulary, H hidden, M memory FFN, C FFN-C or dense FFN, K key-value heads.
_SHAPES: dict[str, str] = {
    "embed_tokens.weight": "VH",
    "layers.{N}.input_layernorm.weight": "H",
    "layers.{N}.self_attn.q_proj.weight": "HH",
    "layers.{N}.self_attn.k_proj.weight": "KH",
    "layers.{N}.self_attn.v_proj.weight": "KH",
    "layers.{N}.self_attn.o_proj.weight": "HH",
    "layers.{N}.memory_layernorm.weight": "H",
    "layers.{N}.memory_mlp.gate_proj.weight": "MH",
    "layers.{N}.memory_mlp.up_proj.weight": "MH",
    "layers.{N}.memory_mlp.down_proj.weight": "HM",
    "layers.{N}.post_attention_layernorm.weight": "H",
    "layers.{N}.mlp.gate_proj.weight": "CH",
    "layers.{N}.mlp.up_proj.weight": "CH",
    "layers.{N}.mlp.down_proj.weight": "HC",
    "layers.{N}.mlp.weight": "HH",
    "norm.weight": "H",
    "lm_head.weight": "VH",
}
PATTERNS = tuple(_SHAPES)


def pattern_of(name: str) -> str:
    """Return `name` with its layer number replaced by ``{N}``."""
    return re.sub(r"\.\d+(?=\.)", ".{N}", name)


def is_known(pattern: str) -> bool:
    """Whether `pattern` is in the schema; the ``.bias`` of a weight counts as known."""
    weight = pattern.removesuffix("bias") + "weight" if pattern.endswith(".bias") else pattern
    return weight in _SHAPES


def expected_shape(config: ModelConfig, name: str) -> tuple[int, ...]:
    """Return the shape that `config` asks for.

    Raises
    ------
    CheckpointError
        A field that the shape follows from is missing, or heads do not fit.
    """
    pattern = pattern_of(name)
    if pattern.endswith(".bias"):
        return (expected_shape(config, name.removesuffix("bias") + "weight")[0],)
    return tuple(_dimension(config, letter, name) for letter in _SHAPES[pattern])


def _dimension(config: ModelConfig, letter: str, name: str) -> int:
    if letter == "K":
        return config.kv_heads() * config.head_dim()
    if letter == "M":
        return int(config.require("memory_intermediate_size", "the memory FFNs"))
    if letter == "C":
        return int(config.require("intermediate_size", name))
    return config.vocab_size if letter == "V" else config.hidden_size
