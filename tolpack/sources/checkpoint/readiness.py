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
    memory_names,
    pattern_of,
)


def check_memory(checkpoint: Checkpoint) -> list[str]:
    """Check the tensors that the tables are made of, and return their names.

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
    names = []
    for name in memory_names(config):
        checkpoint.check(name)
        names.append(name)
        bias = name.removesuffix("weight") + "bias"
        if "norm" in name and checkpoint.has(bias):
            checkpoint.check(bias)
            names.append(bias)
    kind = config.require("norm", "the norms")
    for field in ("rms_norm_eps", "hidden_act"):
        config.require(field, "the memory FFNs and their norms")
    modules = [name.removesuffix(".weight") for name in names if ".memory_" in name]
    biased = [m for m in modules if "norm" not in m or kind == "rmsnorm"]
    checkpoint.refuse_bias(*(module for module in biased if not module.endswith(".bias")))
    _refuse_extra_layers(checkpoint)
    _refuse_unknown_in_memory(checkpoint, names)
    return names


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
        check_memory(checkpoint)
    linear = checkpoint.has("layers.0.mlp.weight")
    for name in decoder_names(config, linear_mlp=linear, tied=tied):
        checkpoint.check(name)
    _refuse_extra_layers(checkpoint)
    _refuse_unused(checkpoint)


def _refuse_extra_layers(checkpoint: Checkpoint) -> None:
    layers = checkpoint.config.num_hidden_layers
    for name, part in checkpoint.parts.items():
        if name.startswith("layers.") and int(name.split(".")[1]) >= layers:
            raise CheckpointError(
                f"{checkpoint.path} holds {part.stored!r}, but the config says num_hidden_layers = "
                f"{layers}: correct config.json"
            )


def _refuse_unknown_in_memory(checkpoint: Checkpoint, names: Iterable[str]) -> None:
    """Refuse what no map knows but what belongs to the memory: rows would be wrong."""
    modules = tuple({checkpoint.parts[name].stored.rpartition(".")[0] + "." for name in names})
    for stored in checkpoint.unknown:
        if stored.startswith(modules) or "memory" in stored:
            raise CheckpointError(
                f"tensor {stored!r} seems to be part of the memory, but key map "
                f"{checkpoint.key_map.name} does not know it: merge or remove it, or name it in a "
                "--key-map"
            )


def _refuse_unused(checkpoint: Checkpoint) -> None:
    patterns = decoder_patterns(checkpoint.config)
    parts = checkpoint.parts.items()
    unused = [part.stored for name, part in parts if pattern_of(name) not in patterns]
    left = sorted({*unused, *checkpoint.unknown})
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise CheckpointError(
            f"tensor {left[0]!r}{more} would not be used by a {checkpoint.config.model_type}, and "
            "results could be wrong: correct model_type or --arch, or, if it is no part of the "
            "model, remove it or name it under 'ignore' in a --key-map"
        )
