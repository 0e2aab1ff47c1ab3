"""What a checkpoint must have for tables and for a decoder, checked before a weight is loaded.

Tables need the embedding, and each layer's norm and memory FFN. A decoder needs everything, and
nothing may be left over that it would not use: its results could be wrong without.
"""

from __future__ import annotations

from collections.abc import Iterable

from tolpack.errors import CheckpointError
from tolpack.sources.checkpoint.checkpoint import Checkpoint
from tolpack.sources.checkpoint.schema import (
    decoder_names,
    decoder_patterns,
    memory_ffn_names,
    pattern_of,
)
from tolpack.sources.checkpoint.schema_tensors import SchemaTensor


def check_memory_ffns(checkpoint: Checkpoint) -> dict[str, SchemaTensor]:
    """Check the tensors that the tables are made of, and return them by name.

    Raises
    ------
    CheckpointError
        The model is dense, or a tensor is missing, misshapen or of no use.
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
    for name in memory_ffn_names(config):
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
        A tensor or config field is missing, misshapen, or would not be used.
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
    for name in decoder_names(config, linear_mlp=linear, tied=tied):
        checkpoint.check(name)
    _refuse_extra_layers(checkpoint)
    _refuse_unused(checkpoint)


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
    patterns = decoder_patterns(checkpoint.config)
    tensors = checkpoint.schema_tensors.items()
    unused = [tensor.stored for name, tensor in tensors if pattern_of(name) not in patterns]
    left = sorted({*unused, *checkpoint.unknown})
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise CheckpointError(
            f"tensor {left[0]!r}{more} would not be used by a {checkpoint.config.model_type}, and "
            "results could be wrong: correct model_type or --arch, or, if it is no part of the "
            "model, remove it or name it under 'ignore' in a --key-map"
        )
