"""Checks that a checkpoint is ready for tables, or for a decoder, before a weight is loaded.

Tables need the embedding, and each layer's norm and memory FFN. A decoder needs all tensors of its
model type. It also has to use all tensors of the checkpoint: one that is left over means that the
model is another than the decoder, and results could be wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tolpack.errors import CheckpointError
from tolpack.sources.checkpoint.checkpoint import Checkpoint
from tolpack.sources.checkpoint.config import ModelConfig
from tolpack.sources.checkpoint.schema import FFN_PARTS, PATTERNS, pattern_of
from tolpack.sources.checkpoint.schema_tensors import SchemaTensor

# Norms may have a bias (LayerNorm); the other modules' biases have no place in the equations.
_NORMS = ("input_layernorm", "memory_layernorm", "post_attention_layernorm", "norm")


def check_memory_ffns(checkpoint: Checkpoint) -> dict[str, SchemaTensor]:
    """Check the tensors that the tables are made of, and return them by name.

    Raises
    ------
    CheckpointError
        The model is dense, or a tensor or config field is missing or cannot be used.
    """
    config = checkpoint.config
    if not config.has_memory:
        raise CheckpointError(
            f"{checkpoint.path} is a dense model (model_type {config.model_type!r}): its FFNs read "
            "the residual stream, so no lookup table exists. If it is a MemoryLLM, set "
            "model_type to 'memoryllm' or 'flex_memoryllm' in its config, or say --arch "
            "memoryllm or --arch flex_memoryllm"
        )
    found = {}
    for name in _memory_ffn_names(config):
        found[name] = checkpoint.check(name)
        bias = name.removesuffix("weight") + "bias"
        if "norm" in name and checkpoint.has(bias):
            found[bias] = checkpoint.check(bias)
    kind = config.require("norm", "the norms")
    for field in ("rms_norm_eps", "hidden_act"):
        config.require(field, "the memory FFNs and their norms")
    modules = [name.removesuffix(".weight") for name in found if ".memory_" in name]
    biased = [m for m in modules if "norm" not in m or kind == "rmsnorm"]
    checkpoint.refuse_bias(*(module for module in biased if not module.endswith(".bias")))
    _refuse_extra_layers(checkpoint)
    _refuse_unknown_in_ffns(checkpoint, found.values())
    return found


def check_decoder(checkpoint: Checkpoint) -> None:
    """Check that a decoder can be made: every tensor is there, and none is left over.

    Raises
    ------
    CheckpointError
        A tensor or config field is missing or cannot be used, or a tensor would not be used.
    """
    config = checkpoint.config
    if config.unsupported:
        raise CheckpointError(
            f"the config sets {', '.join(config.unsupported)}, which the decoder does not "
            "know: its results would be wrong"
        )
    tied = config.require("tie_word_embeddings", "the output head")
    for field in ("rope_theta", "rope_interleaved"):
        config.require(field, "rotary embeddings")
    if config.model_type == "flex_memoryllm":
        config.require("flex_input", "Flex-MemoryLLM ('post_attention' or 'residual')")
    if config.has_memory:
        check_memory_ffns(checkpoint)
    linear = checkpoint.has("layers.0.mlp.weight")
    for name in _decoder_names(config, linear_mlp=linear, tied=tied):
        checkpoint.check(name)
    _refuse_extra_layers(checkpoint)
    _refuse_unused(checkpoint)


def _memory_ffn_names(config: ModelConfig) -> Iterator[str]:
    """Names of the tensors that the tables are computed from, norm biases left out.

    One at a time: a config may say that there are more layers than names fit in memory.
    """
    yield "embed_tokens.weight"
    for layer in range(config.num_hidden_layers):
        base = f"layers.{layer}"
        yield f"{base}.memory_layernorm.weight"
        yield from (f"{base}.memory_mlp.{part}.weight" for part in FFN_PARTS)


def _decoder_names(config: ModelConfig, *, linear_mlp: bool, tied: bool) -> Iterator[str]:
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


def _decoder_patterns(config: ModelConfig) -> set[str]:
    """Patterns that a decoder of `config` reads, with every alternative."""
    left_out = set()
    if config.model_type == "memoryllm":
        left_out |= {p for p in PATTERNS if ".mlp." in p or "post_attention" in p}
    if config.model_type == "llama":
        left_out |= {p for p in PATTERNS if ".memory_" in p}
    norm_biases = {p.replace(".weight", ".bias") for p in PATTERNS if p.split(".")[-2] in _NORMS}
    return (set(PATTERNS) | norm_biases) - left_out


def _refuse_extra_layers(checkpoint: Checkpoint) -> None:
    layers = checkpoint.config.num_hidden_layers
    for name, tensor in checkpoint.schema_tensors.items():
        if name.startswith("layers.") and int(name.split(".")[1]) >= layers:
            raise CheckpointError(
                f"{checkpoint.path} holds {tensor.stored!r}, but the config says num_hidden_layers "
                f"= {layers}: correct config.json"
            )


def _refuse_unknown_in_ffns(checkpoint: Checkpoint, tensors: Iterable[SchemaTensor]) -> None:
    """Refuse a tensor that no map knows, but that belongs to the memory: rows would be wrong."""
    modules = tuple({tensor.stored.rpartition(".")[0] + "." for tensor in tensors})
    for stored in checkpoint.unknown:
        if stored.startswith(modules) or "memory" in stored:
            raise CheckpointError(
                f"tensor {stored!r} seems to be part of the memory, but key map "
                f"{checkpoint.key_map.name} does not know it: merge or remove it, or name it in a "
                "--key-map"
            )


def _refuse_unused(checkpoint: Checkpoint) -> None:
    patterns = _decoder_patterns(checkpoint.config)
    tensors = checkpoint.schema_tensors.items()
    unused = [tensor.stored for name, tensor in tensors if pattern_of(name) not in patterns]
    left = sorted({*unused, *checkpoint.unknown})
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise CheckpointError(
            f"tensor {left[0]!r}{more} would not be used by a {checkpoint.config.model_type}, and "
            "results could be wrong: correct model_type or --arch, or, if it is not part of the "
            "model, remove it or name it under 'ignore' in a --key-map"
        )
