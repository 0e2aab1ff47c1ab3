"""Models of transformers from what the command line names: folders, or files of a MemoryLLM.

Weights of a MemoryLLM are read by `open_checkpoint`, which knows all its spellings and refuses a
checkpoint with a tensor too few or too many, where transformers would only warn. Everything else
is loaded as transformers does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

import tolpack.hf
from tolpack.errors import ConfigError
from tolpack.hf.memoryllm import (
    FlexMemoryLLMConfig,
    FlexMemoryLLMForCausalLM,
    MemoryLLMConfig,
    MemoryLLMForCausalLM,
)
from tolpack.hf.saving import QUANT_METHOD
from tolpack.model.text import TextTokenizer, find_tokenizer
from tolpack.sources.checkpoint.checkpoint import Checkpoint, open_checkpoint
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.checkpoint.readiness import check_decoder
from tolpack.sources.input_kind import check_input
from tolpack.storage.inputs import local_input
from tolpack.storage.locations import Location
from tolpack.storage.remote_path import RemotePath

_MEMORYLLM = {
    "memoryllm": (MemoryLLMConfig, MemoryLLMForCausalLM),
    "flex_memoryllm": (FlexMemoryLLMConfig, FlexMemoryLLMForCausalLM),
}
_USER = "a tokenizer of transformers"
_NOT_IN_CONFIG = ("model_type", "unsupported")


def load_model(
    checkpoint: Path,
    pack: str | Path | None = None,
    tokenizer: Location | RemotePath | None = None,
    *,
    dtype: str = "auto",
    device: str | None = None,
    io: str = "auto",
    edits: Sequence[Location] = (),
    checkpoint_options: CheckpointOptions | None = None,
) -> tuple[Any, Any]:
    """Load a model of transformers and its tokenizer, with a pack or without.

    Parameters are those of `tolpack.lm_eval.model.TolpackLM`; `checkpoint_options` are for a
    MemoryLLM that does not describe itself.

    Raises
    ------
    CheckpointError, ConfigError, FormatError, FileAccessError
        The model, the pack or the tokenizer cannot be read, or they do not belong together.
    """
    check_input(checkpoint)
    if _is_memoryllm(checkpoint, checkpoint_options):
        opened = open_checkpoint(checkpoint, checkpoint_options)
        model = _memoryllm(opened, dtype).to(device or "cpu")
        if pack is not None:
            tolpack.hf.mount(model, pack, io=io, edits=edits)
    else:
        model = _from_folder(checkpoint, pack, dtype, device, io, edits)
    return model, load_tokenizer(checkpoint, tokenizer)


def load_tokenizer(checkpoint: Path, given: Location | RemotePath | None = None) -> Any:
    """Load a tokenizer of transformers.

    Parameters
    ----------
    checkpoint : Path
        A folder or file of a model.
    given : str or Path, optional
        A ``tokenizer.json``, or a folder of transformers; default: what is in the folder, or
        beside the file.

    Raises
    ------
    ConfigError
        There is none, or it cannot be read.
    """
    place = checkpoint if given is None else local_input(given, _USER)
    if (place / "tokenizer_config.json").exists():
        return AutoTokenizer.from_pretrained(place)
    found = place / "tokenizer.json" if place.is_dir() else find_tokenizer(checkpoint, given)
    if found is None or not found.exists():
        raise ConfigError(
            f"{place} has no tokenizer: give a tokenizer.json, or a folder with "
            "tokenizer_config.json"
        )
    TextTokenizer(found)  # reads it in a process of its own, because a bad file may end this one
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_file=str(found))  # type: ignore[no-untyped-call]
    special = [one for one in tokenizer.added_tokens_decoder.values() if one.special]
    if len(special) == 1:
        tokenizer.eos_token = special[0].content
    # lm-eval would add a token for padding, which the model does not have.
    tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def _is_memoryllm(checkpoint: Path, options: CheckpointOptions | None) -> bool:
    """Whether `open_checkpoint` reads the weights, and not transformers."""
    if checkpoint.is_file() or options not in (None, CheckpointOptions()):
        return True
    settings, _ = PreTrainedConfig.get_config_dict(checkpoint)
    return settings.get("model_type") in _MEMORYLLM and "quantization_config" not in settings


def _from_folder(
    folder: Path, pack: str | Path | None, dtype: str, device: str | None, io: str,
    edits: Sequence[Location],
) -> Any:  # fmt: skip
    settings, _ = PreTrainedConfig.get_config_dict(folder)
    quantization = settings.get("quantization_config") or {}
    if pack is not None or quantization.get("quant_method") == QUANT_METHOD:
        return tolpack.hf.load(
            folder, pack, dtype=dtype, device_map=device, io=io, edits=edits
        )[0]  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=device)


def _memoryllm(checkpoint: Checkpoint, dtype: str) -> Any:
    """Make the model of transformers with the weights of a checkpoint."""
    if not checkpoint.config.has_memory:
        raise ConfigError(
            f"{checkpoint.path} is a dense model: give a folder that transformers loads"
        )
    check_decoder(checkpoint)
    if checkpoint.has("layers.0.mlp.weight"):
        raise ConfigError(
            f"FFN-C of {checkpoint.path} is one linear map, which the model of transformers does "
            "not have: measure its perplexity with tolpack eval"
        )
    config_class, model_class = _MEMORYLLM[checkpoint.config.model_type]
    given = {name: value for name, value in asdict(checkpoint.config).items() if value is not None}
    config = config_class(**{name: given[name] for name in given if name not in _NOT_IN_CONFIG})
    state = {}
    for name in checkpoint.schema_tensors:
        if name != "lm_head.weight":
            state[f"model.{name}"] = checkpoint.tensor(name)
        elif not config.tie_word_embeddings:
            state[name] = checkpoint.tensor(name)
    kept = checkpoint.tensor("embed_tokens.weight").dtype
    chosen = kept if dtype == "auto" else getattr(torch, dtype)
    return model_class.from_pretrained(None, config=config, state_dict=state, dtype=chosen)
