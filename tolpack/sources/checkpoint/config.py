"""The model configuration that stands beside the weights (``docs/checkpoints.md``).

A field that is missing is ``None``, and code that needs it calls `ModelConfig.require`. Tables need
the norm and the activation; the decoder also needs heads and rotary settings. No field is guessed,
because a wrong guess gives plausible garbage.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, fields
from typing import Any

from tolpack.container.file_kind import CONFIG, JSON, file_kind
from tolpack.errors import CheckpointError, printable
from tolpack.sources.checkpoint.lfs import lfs_hint
from tolpack.sources.json_file import read_json
from tolpack.storage.inputs import InputPath, input_path
from tolpack.storage.locations import Location

# Configurations of large models have some kilobytes.
_MAX_BYTES = 2 << 20
# Values inside one setting, such as rope_scaling, which has some ten.
_MAX_VALUES = 1000
_SHORT = reprlib.Repr()
_SHORT.maxstring = 160
MODEL_TYPES = ("memoryllm", "flex_memoryllm", "llama")
_CHOICES: dict[str, tuple[str, ...]] = {
    "model_type": MODEL_TYPES,
    "norm": ("rmsnorm", "layernorm"),
    "hidden_act": ("silu", "gelu"),
    "flex_input": ("post_attention", "residual"),
}
# Settings of other decoders, with the values at which they change nothing in tolpack's decoder.
_USUAL: dict[str, tuple[object, ...]] = {
    "rope_scaling": (None, {"rope_type": "default"}, {"type": "default"}),
    "partial_rotary_factor": (None, 1),
    "rotary_percentage": (None, 1),
    "rope_pct": (None, 1),
    "alibi": (None, False),
    "sliding_window": (None,),
    "clip_qkv": (None,),
    "attention_multiplier": (None,),
    "query_pre_attn_scalar": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "logits_scaling": (None, 1),
    "residual_multiplier": (None, 1),
    "embedding_multiplier": (None, 1),
    "scale_embeddings": (None, False),
    "parallel_residual": (None, False),
}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Settings of a MemoryLLM, Flex-MemoryLLM or dense Llama-style decoder.

    ``model_type``, ``vocab_size``, ``hidden_size`` and ``num_hidden_layers`` are always there;
    every other field is ``None`` when the file does not give it. ``unsupported`` names settings
    of the file that change what a decoder computes in ways that tolpack's does not know.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    memory_intermediate_size: int | None = None
    intermediate_size: int | None = None
    norm: str | None = None
    rms_norm_eps: float | None = None
    rope_theta: float | None = None
    rope_interleaved: bool | None = None
    max_position_embeddings: int | None = None
    hidden_act: str | None = None
    tie_word_embeddings: bool | None = None
    flex_input: str | None = None
    unsupported: tuple[str, ...] = ()

    @property
    def has_memory(self) -> bool:
        """Whether the model has context-free FFNs, so that token-wise lookups exist."""
        return self.model_type != "llama"

    def require(self, name: str, purpose: str) -> Any:
        """Return field `name`, or raise `CheckpointError` that says what it is needed for."""
        value = getattr(self, name)
        if value is None:
            raise CheckpointError(
                f"config field {name!r} is missing and needed for {purpose}: "
                f"add it to config.json, or give a complete file with --config"
            )
        return value

    def head_dim(self) -> int:
        """Width of an attention head; `CheckpointError` if the heads do not fit hidden_size."""
        hidden = self.hidden_size
        heads = self.require("num_attention_heads", "attention")
        kv_heads = self.num_key_value_heads or heads
        if hidden % heads or heads % kv_heads or (hidden // heads) % 2:
            raise CheckpointError(
                f"hidden_size {hidden}, num_attention_heads {heads} and num_key_value_heads "
                f"{kv_heads} do not fit: heads must divide hidden_size into an even width, and be "
                "a multiple of the key–value heads"
            )
        return int(hidden // heads)

    def kv_heads(self) -> int:
        """Number of key–value heads: all heads, unless the config says otherwise."""
        return int(self.num_key_value_heads or self.require("num_attention_heads", "attention"))


_LOOKED_AT = (
    *(field.name for field in fields(ModelConfig) if field.name != "unsupported"),
    *("rope_parameters", "head_dim", *_USUAL),
)


def parse_config(raw: object, arch: str | None = None) -> ModelConfig:
    """Check a decoded JSON object and return it as `ModelConfig`; unknown keys are ignored.

    Parameters
    ----------
    raw : object
        The decoded JSON.
    arch : str, optional
        Replaces ``model_type``, whatever it is.

    Raises
    ------
    CheckpointError
        A field is missing, of the wrong type, or outside its choices.
    """
    if not isinstance(raw, dict):
        raise CheckpointError(f"config must be a JSON object, found {type(raw).__name__}")
    raw = {name: _plain(name, raw[name]) for name in _LOOKED_AT if name in raw}
    if arch is not None:
        raw["model_type"] = arch
    rotary = raw.get("rope_parameters")  # where newer Hugging Face files keep it
    if isinstance(rotary, dict) and raw.get("rope_theta") is None:
        raw["rope_theta"] = rotary.get("rope_theta")
    elif isinstance(rotary, dict) and rotary.get("rope_theta") not in (None, raw["rope_theta"]):
        raise CheckpointError(
            f"config field 'rope_theta' is {shown_value(raw['rope_theta'])}, but 'rope_parameters' "
            f"says {shown_value(rotary['rope_theta'])}: remove one of them"
        )
    values = {
        f.name: _field(f.name, str(f.type), raw.get(f.name))
        for f in fields(ModelConfig)
        if f.name != "unsupported"
    }
    for name in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers"):
        if values[name] is None:
            raise CheckpointError(f"config field {name!r} is missing: add it{_hint(name)}")
    unsupported = [
        f"{name} {shown_value(raw[name])}"
        for name, usual in _USUAL.items()
        if name in raw and raw[name] not in usual
    ]
    if isinstance(rotary, dict) and rotary.get("rope_type") not in (None, "default"):
        unsupported.append(f"rope_parameters {shown_value(rotary)}")
    head_dim, heads = raw.get("head_dim"), values["num_attention_heads"]
    number = isinstance(head_dim, (int, float))  # a list times a number is a long list
    fits = number and heads and head_dim * heads == values["hidden_size"]
    if head_dim is not None and heads and not fits:
        unsupported.append(f"head_dim {shown_value(head_dim)}")
    return ModelConfig(**values, unsupported=tuple(unsupported))


def read_config(path: InputPath, arch: str | None = None) -> ModelConfig:
    """Read a ``config.json``; see `parse_config`."""
    return parse_config(_read(path), arch)


def find_config(
    path: InputPath, given: Location | None, embedded: object, arch: str | None
) -> ModelConfig:
    """Return the configuration of checkpoint `path`; parameters as of `find_raw_config`.

    Raises
    ------
    CheckpointError
        There is none, or `parse_config` refuses it.
    """
    raw = find_raw_config(path, given, embedded)
    if raw is None:
        raise CheckpointError(
            f"{path} carries no config: give one with --config config.json, or put it beside"
        )
    return parse_config(raw, arch)


def find_raw_config(path: InputPath, given: Location | None, embedded: object) -> object:
    """Return the decoded configuration of checkpoint `path`: the one that was `given` by the user,
    or the one `embedded` in its file, or the ``config.json`` beside it; ``None`` if there is none.

    Raises
    ------
    CheckpointError
        It cannot be read.
    """
    if given is not None:
        return _read(input_path(given))
    if embedded is not None:
        return embedded
    beside = (path if path.is_dir() else path.parent) / "config.json"
    return _read(beside) if beside.exists() else None


def _json_reason(path: InputPath, error: ValueError) -> str:
    """What another kind of file is, or where JSON is wrong."""
    kind = file_kind(path)
    if kind is None or kind in (CONFIG, JSON):
        return str(error)
    return f"it is {kind.name}"


def _read(path: InputPath) -> object:
    try:
        return read_json(path, _MAX_BYTES)
    except OSError as error:
        raise CheckpointError(f"cannot read config {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(
            f"config {path} is not valid JSON: {_json_reason(path, error)}{lfs_hint(path)}"
        ) from error


def _hint(name: str) -> str:
    choices = f" (one of {', '.join(_CHOICES[name])})" if name in _CHOICES else ""
    return choices + (", or say it with --arch" if name == "model_type" else "")


def _field(name: str, annotation: str, value: Any) -> Any:
    if value is None:
        return None
    kind = annotation.split(" | ")[0]
    if kind == "int":
        ok = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31
        expected = "a positive integer below 2^31"
    elif kind == "float":
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        ok = number and 0 < value < 1e300
        expected = "a positive number below 1e300"
    elif kind == "bool":
        ok, expected = isinstance(value, bool), "true or false"
    else:
        ok, expected = value in _CHOICES[name], f"one of {', '.join(_CHOICES[name])}"
    if not ok:
        remedy = ": if it is a MemoryLLM, say so with --arch; others can be built, not run"
        remedy = remedy if name == "model_type" else ""
        raise CheckpointError(
            f"config field {name!r} is {shown_value(value)}, expected {expected}{remedy}"
        )
    return value


def _plain(name: str, value: Any) -> Any:
    """Return a value that consists of few plain values, as in JSON, or raise `CheckpointError`.

    A ``.pt`` may hold tensors here, and lists that hold one another many times over.
    """
    level = [value]
    for _ in range(_MAX_VALUES):
        if not level:
            return value
        item = level.pop()
        if isinstance(item, dict):
            level += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple)):
            level += item
        elif not isinstance(item, (str, int, float, bool, type(None))):
            raise CheckpointError(
                f"config field {name!r} holds a {type(item).__name__}, expected plain JSON values"
            )
    raise CheckpointError(f"config field {name!r} holds over {_MAX_VALUES} values: shorten it")


def shown_value(value: object) -> str:
    """Write a setting out, but only the beginning of a long one."""
    if isinstance(value, int) and abs(value) >= 2**63:  # may have more digits than Python writes
        return "a huge integer"
    return printable(_SHORT.repr(value))
