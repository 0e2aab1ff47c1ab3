"""The checkpoint schema: every tensor that tolpack knows, and the shape its configuration asks for.

Names are HF-Llama-like, without the optional ``model.`` prefix; ``{N}`` stands for a layer number.
Checkpoints under other names are brought here by a key map (`tolpack.sources.checkpoint.key_map`),
so that nothing beyond this package sees any other name. ``docs/checkpoints.md`` shows the same
table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

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
# Norms may have a bias (LayerNorm); the other modules' biases have no place in the equations.
_NORMS = ("input_layernorm", "memory_layernorm", "post_attention_layernorm", "norm")


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


def memory_ffn_names(config: ModelConfig) -> Iterator[str]:
    """Names of the tensors that the tables are computed from, norm biases left out.

    One at a time: a config may say that there are more layers than names fit in memory.
    """
    yield "embed_tokens.weight"
    for layer in range(config.num_hidden_layers):
        base = f"layers.{layer}"
        yield f"{base}.memory_layernorm.weight"
        yield from (f"{base}.memory_mlp.{part}.weight" for part in FFN_PARTS)


def decoder_names(config: ModelConfig, *, linear_mlp: bool, tied: bool) -> Iterator[str]:
    """Names of the tensors that a decoder needs beside the memory's, one at a time.

    `linear_mlp`: FFN-C is one linear map; `tied`: the embedding is also the head.
    """
    yield from ("embed_tokens.weight", "norm.weight", *(() if tied else ("lm_head.weight",)))
    inner = ["mlp"] if linear_mlp else [f"mlp.{part}" for part in FFN_PARTS]
    for layer in range(config.num_hidden_layers):
        base = f"layers.{layer}"
        yield f"{base}.input_layernorm.weight"
        yield from (f"{base}.self_attn.{part}_proj.weight" for part in "qkvo")
        if config.model_type != "memoryllm":
            yield f"{base}.post_attention_layernorm.weight"
            yield from (f"{base}.{module}.weight" for module in inner)


def decoder_patterns(config: ModelConfig) -> set[str]:
    """Patterns that a decoder of `config` reads, with every alternative."""
    left_out = set()
    if config.model_type == "memoryllm":
        left_out |= {p for p in _SHAPES if ".mlp." in p or "post_attention" in p}
    if config.model_type == "llama":
        left_out |= {p for p in _SHAPES if ".memory_" in p}
    norm_biases = {p.replace(".weight", ".bias") for p in _SHAPES if p.split(".")[-2] in _NORMS}
    return (set(_SHAPES) | norm_biases) - left_out


def _dimension(config: ModelConfig, letter: str, name: str) -> int:
    if letter == "K":
        return config.kv_heads() * config.head_dim()
    if letter == "M":
        return int(config.require("memory_intermediate_size", "the memory FFNs"))
    if letter == "C":
        return int(config.require("intermediate_size", name))
    return config.vocab_size if letter == "V" else config.hidden_size
