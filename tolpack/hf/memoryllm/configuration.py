"""Configurations of MemoryLLM and Flex-MemoryLLM for transformers.

The fields are those of ``docs/checkpoints.md``. A field that the model needs has no default: a
guess would give plausible garbage, so one that is missing is an error.
"""

# Much of transformers has no annotations.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from tolpack.errors import CheckpointError, ConfigError
from tolpack.sources.checkpoint.config import ModelConfig, parse_config

_NEEDED = (
    "num_attention_heads", "memory_intermediate_size", "norm", "rms_norm_eps", "rope_theta",
    "max_position_embeddings", "hidden_act", "tie_word_embeddings",
)  # fmt: skip


class MemoryLLMConfig(PreTrainedConfig):
    """Configuration of a MemoryLLM (arXiv 2602.00398): all FFNs read the token embedding.

    Parameters
    ----------
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads : int
        As of Llama.
    num_key_value_heads : int, optional
        Absent: as many as ``num_attention_heads``.
    memory_intermediate_size : int
        Inner width of the memory FFNs.
    norm : str
        ``"rmsnorm"`` or ``"layernorm"``.
    rms_norm_eps : float
        Epsilon of the norms, of either kind.
    rope_parameters : dict
        With ``rope_theta``, which may also be given by itself.
    rope_interleaved : bool
        Whether rotary embeddings rotate neighbouring pairs, and not halves.
    max_position_embeddings : int
        Length of the training windows.
    hidden_act : str
        ``"silu"`` or ``"gelu"``.
    tie_word_embeddings : bool
        Whether the embedding is also the output head.
    attention_dropout : float
        In training only.
    initializer_range : float
        Standard deviation of new weights.
    use_cache : bool
        Whether a forward pass returns a key–value cache by default.
    pad_token_id, bos_token_id, eos_token_id : int, optional
        Special tokens.

    Raises
    ------
    ConfigError
        A field is missing or invalid, or asks for what the models do not compute.
    """

    model_type: ClassVar[str] = "memoryllm"
    # The layers' own, for the classes of Llama that they are made of; not fields of config.json.
    attention_bias: ClassVar[bool] = False
    use_qk_norm: ClassVar[bool] = False

    vocab_size: int | None = None
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    memory_intermediate_size: int | None = None
    norm: str | None = None
    rms_norm_eps: float | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_interleaved: bool = False
    max_position_embeddings: int | None = None
    hidden_act: str | None = None
    tie_word_embeddings: bool | None = None
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the fields as they were given, then let transformers bring them into its form."""
        given = {field.name: getattr(self, field.name) for field in fields(self)} | kwargs
        checked = _checked(given | {"model_type": self.model_type}, self._needed())
        self.num_key_value_heads = checked.kv_heads()
        super().__post_init__(**kwargs)

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return int(self.hidden_size or 0) // int(self.num_attention_heads or 1)

    def _needed(self) -> tuple[str, ...]:
        return _NEEDED


class FlexMemoryLLMConfig(MemoryLLMConfig):
    """Configuration of a Flex-MemoryLLM: a layer also has an FFN of the residual stream, FFN-C.

    Parameters
    ----------
    intermediate_size : int
        Inner width of FFN-C.
    flex_input : str
        What FFN-C reads: ``"post_attention"``, or ``"residual"``, the stream before attention.

    See Also
    --------
    MemoryLLMConfig : All other fields.
    """

    model_type: ClassVar[str] = "flex_memoryllm"

    intermediate_size: int | None = None
    flex_input: str | None = None

    def _needed(self) -> tuple[str, ...]:
        return (*_NEEDED, "intermediate_size", "flex_input")


def _checked(given: dict[str, Any], needed: tuple[str, ...]) -> ModelConfig:
    """Return fields of a config.json as tolpack reads them, or raise `ConfigError`."""
    for name in ("attention_bias", "mlp_bias"):
        if given.get(name):
            raise ConfigError(f"config field {name!r} is true, but the layers have no biases")
    try:
        config = parse_config(given)
        for name in needed:
            config.require(name, f"a {config.model_type} model")
        config.head_dim()
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    if config.unsupported:
        raise ConfigError(
            f"the config sets {', '.join(config.unsupported)}, which {config.model_type} models "
            "do not know: their results would be wrong"
        )
    return config
