"""MemoryLLM and Flex-MemoryLLM as models of transformers.

Attention, gated FFNs, RMSNorm and rotary embeddings are the modules of transformers' Llama; with
``rope_interleaved``, attention and rotary embeddings are those of Cohere, which rotate neighbouring
pairs. The equations are those of `tolpack.model.decoder`. A layer's memory is computed by its own
``memory_mlp`` from the token's embedding, unless `MemoryLLMModel.set_memory` put another module in
the place of all of them.
"""

# Much of transformers has no annotations, and it declares attributes of classes as of instances.
# mypy: disable-error-code="no-untyped-call, untyped-decorator"
# ruff: noqa: RUF012

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.cohere.modeling_cohere import CohereAttention, CohereRotaryEmbedding
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaForCausalLM,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from tolpack.errors import CheckpointError, ConfigError
from tolpack.hf.memoryllm.configuration import FlexMemoryLLMConfig, MemoryLLMConfig
from tolpack.hf.table_modules import check_vocabulary
from tolpack.model.language_model import Memory

# Ends of names outside of the layers; of a tied head, transformers misses no weight.
_NEEDED = ("embed_tokens.weight", "norm.weight", "lm_head.weight")
# Modules of Llama name Llama's configuration, and read no more of it than ours has.
_Config = Any


class MemoryLLMDecoderLayer(GradientCheckpointingLayer):
    """A layer: attention, and the memory of the token.

    Parameters
    ----------
    config : MemoryLLMConfig
        The model's configuration.
    layer_idx : int
        Number of the layer, from 0.
    """

    def __init__(self, config: _Config, layer_idx: int) -> None:
        super().__init__()
        attention = CohereAttention if config.rope_interleaved else LlamaAttention
        self.self_attn = attention(config, layer_idx)
        self.input_layernorm = _norm(config)
        # None once `MemoryLLMModel.set_memory` gave the memory another place.
        self.memory_layernorm: nn.Module | None = _norm(config)
        self.memory_mlp: nn.Module | None = _gated_ffn(config, config.memory_intermediate_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        inputs_embeds: torch.Tensor,
        memory_rows: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the residual stream after the layer, (batch, length, hidden).

        Parameters
        ----------
        hidden_states : torch.Tensor
            The residual stream before the layer.
        inputs_embeds : torch.Tensor
            The tokens' embeddings, of the same shape.
        memory_rows : torch.Tensor, optional
            Memory outputs, of the same shape; default: those of the layer's own FFN.
        **kwargs
            For attention: ``attention_mask``, ``position_embeddings``, ``cache``, …
        """
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        if memory_rows is None:
            memory_rows = self.own_memory_rows(inputs_embeds)
        return self._add_ffn(hidden_states, hidden_states + attended) + memory_rows

    def own_memory_rows(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Return the output of the layer's memory FFN for the tokens' embeddings (…, hidden).

        Raises
        ------
        ConfigError
            It has none, because `MemoryLLMModel.set_memory` freed it.
        """
        if self.memory_mlp is None or self.memory_layernorm is None:
            raise ConfigError("the layer has no memory FFN: call it with memory_rows")
        rows: torch.Tensor = self.memory_mlp(self.memory_layernorm(inputs_embeds))
        return rows

    def _add_ffn(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Add what else the layer computes from the stream before and after attention."""
        return after


class FlexMemoryLLMDecoderLayer(MemoryLLMDecoderLayer):
    """A layer with an FFN of the residual stream beside the memory; parameters as of its base."""

    def __init__(self, config: _Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.reads_residual = config.flex_input == "residual"
        self.post_attention_layernorm = _norm(config)
        self.mlp = _gated_ffn(config, config.intermediate_size)

    def _add_ffn(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        read = before if self.reads_residual else after
        added: torch.Tensor = self.mlp(self.post_attention_layernorm(read))
        return after + added


class MemoryLLMPreTrainedModel(PreTrainedModel):
    """What transformers asks of a family of models."""

    config_class = MemoryLLMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MemoryLLMDecoderLayer", "FlexMemoryLLMDecoderLayer"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True
    _can_record_outputs = {
        "hidden_states": MemoryLLMDecoderLayer,
        "attentions": [LlamaAttention, CohereAttention],
    }
    # LayerNorms may lack a bias, which is then zero.
    _keys_to_ignore_on_load_missing = [r"norm\.bias$"]

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, *arguments: Any, **named: Any
    ) -> Any:
        """Resize the vocabulary, as in transformers.

        Raises
        ------
        ConfigError
            Rows of the memory come from elsewhere, for the tokens that there are.
        """
        if getattr(self, "memory", None) is not None:
            check_vocabulary(self.config.vocab_size, new_num_tokens)
        return super().resize_token_embeddings(new_num_tokens, *arguments, **named)

    def _adjust_missing_and_unexpected_keys(self, loading_info: Any) -> None:
        """Refuse a checkpoint that lacks weights, or whose layers are others than the model's.

        transformers would fill what is missing with random values and only warn.
        """
        super()._adjust_missing_and_unexpected_keys(loading_info)
        missing, unknown = (
            sorted(name for name in names if "layers." in name)
            for names in (loading_info.missing_keys, loading_info.unexpected_keys)
        )
        if missing or unknown:
            raise CheckpointError(
                f"layers of the checkpoint are not those of a {self.config.model_type}: "
                f"{_some(missing)} missing, {_some(unknown)} without a place. Correct model_type; "
                "if the memory is in a pack, load it by tolpack.hf.load(folder, pack)"
            )
        lost = sorted(name for name in loading_info.missing_keys if name.endswith(_NEEDED))
        if lost:
            raise CheckpointError(
                f"the checkpoint lacks {', '.join(lost)}: copy all files of the model"
            )


class MemoryLLMModel(MemoryLLMPreTrainedModel):
    """MemoryLLM without the output head.

    Attributes
    ----------
    memory : torch.nn.Module or None
        What `set_memory` mounted; None: each layer's own FFN.
    """

    layer_class: type[MemoryLLMDecoderLayer] = MemoryLLMDecoderLayer

    def __init__(self, config: _Config) -> None:
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            [self.layer_class(config, n) for n in range(config.num_hidden_layers)]
        )
        self.norm = _norm(config)
        rotary = CohereRotaryEmbedding if config.rope_interleaved else LlamaRotaryEmbedding
        self.rotary_emb = rotary(config=config)
        self.memory: nn.Module | None = None
        self.gradient_checkpointing = False
        self.post_init()

    def set_memory(self, memory: nn.Module) -> None:
        """Let `memory` take the place of all memory FFNs, which are freed.

        Parameters
        ----------
        memory : torch.nn.Module
            ``memory(layer, token_ids)`` returns (*token_ids.shape, hidden), such as
            `tolpack.torch.ToLMemory`.
        """
        self.memory = memory
        for layer in self.layers:
            layer.register_module("memory_layernorm", None)
            layer.register_module("memory_mlp", None)

    def memory_rows(self, layer: int, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the memory's output for `token_ids` in a layer, whatever the memory is.

        Parameters
        ----------
        layer : int
            Number of the layer.
        token_ids : torch.Tensor
            Integers of any shape.

        Returns
        -------
        torch.Tensor
            ``(*token_ids.shape, hidden)``, with gradients of the layer's own FFN.
        """
        block: Any = self.layers[layer]
        rows: torch.Tensor = (
            block.own_memory_rows(self.embed_tokens(token_ids))
            if self.memory is None
            else self.memory(layer, token_ids)
        )
        return rows

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        memory: Memory | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Return the residual stream after the last norm; arguments as of transformers' Llama.

        ``inputs_embeds`` may be given instead of ``input_ids``, or beside them: the layers' own
        FFNs read the embeddings. A mounted memory needs ``input_ids``. ``memory`` is used for this
        call in place of the model's own.

        Raises
        ------
        ConfigError
            Neither is given, or not the ids that the memory needs.
        """
        memory = self.memory if memory is None else memory
        if input_ids is None and (inputs_embeds is None or memory is not None):
            raise ConfigError(
                "input_ids is missing: give token ids"
                if inputs_embeds is None
                else "inputs_embeds is given without input_ids, but rows of the memory are looked "
                "up by token id: give input_ids too"
            )
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            seen = cache.get_seq_length() if cache is not None else 0
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen
            position_ids = position_ids.unsqueeze(0)
        shared = {
            "attention_mask": create_causal_mask(
                config=self.config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                cache=cache,
                position_ids=position_ids,
            ),
            "position_embeddings": self.rotary_emb(inputs_embeds, position_ids=position_ids),
            "position_ids": position_ids,
            "cache": cache,
            "use_cache": use_cache,
        }
        hidden_states: torch.Tensor = inputs_embeds
        for n, layer in enumerate(self.layers):
            rows = None
            if memory is not None and input_ids is not None:
                rows = memory(n, input_ids).to(hidden_states)
            hidden_states = layer(hidden_states, inputs_embeds, rows, **shared, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), cache=cache)


class FlexMemoryLLMModel(MemoryLLMModel):
    """Flex-MemoryLLM without the output head; attributes as of its base."""

    config_class = FlexMemoryLLMConfig
    layer_class = FlexMemoryLLMDecoderLayer


class MemoryLLMForCausalLM(MemoryLLMPreTrainedModel, GenerationMixin):
    """MemoryLLM with its output head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    model_class: type[MemoryLLMModel] = MemoryLLMModel

    def __init__(self, config: _Config) -> None:
        super().__init__(config)
        self.model = self.model_class(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    # It asks nothing of `self` that is Llama's alone.
    forward = LlamaForCausalLM.forward

    @property
    def memory(self) -> nn.Module | None:
        """See `MemoryLLMModel`."""
        memory: nn.Module | None = self.model.memory
        return memory

    def set_memory(self, memory: nn.Module) -> None:
        """See `MemoryLLMModel.set_memory`."""
        self.model.set_memory(memory)

    def memory_rows(self, layer: int, token_ids: torch.Tensor) -> torch.Tensor:
        """See `MemoryLLMModel.memory_rows`."""
        rows: torch.Tensor = self.model.memory_rows(layer, token_ids)
        return rows

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        *args: Any,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return arguments of `forward`: token ids also beside embeddings of the same tokens.

        transformers gives one or the other. It looks for the names ``inputs_embeds`` and
        ``kwargs`` in this signature.
        """
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, *args, inputs_embeds=inputs_embeds, **kwargs
        )
        embeds = inputs.get("inputs_embeds")
        if embeds is not None and 0 < embeds.shape[1] <= input_ids.shape[1]:
            inputs["input_ids"] = input_ids[:, -embeds.shape[1] :]
        return inputs


class FlexMemoryLLMForCausalLM(MemoryLLMForCausalLM):
    """Flex-MemoryLLM with its output head."""

    config_class = FlexMemoryLLMConfig
    model_class = FlexMemoryLLMModel


def _some(names: list[str]) -> str:
    """Write out the first of some names."""
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else "".join(names) or "none"


def _norm(config: _Config) -> nn.Module:
    if config.norm == "layernorm":
        return nn.LayerNorm(config.hidden_size, eps=config.rms_norm_eps)
    return LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)


def _gated_ffn(config: _Config, intermediate_size: int | None) -> nn.Module:
    """Make an FFN of Llama of another inner width than ``config.intermediate_size``."""
    settings = SimpleNamespace(
        hidden_size=config.hidden_size,
        intermediate_size=intermediate_size,
        hidden_act=config.hidden_act,
        mlp_bias=False,
    )
    return LlamaMLP(settings)
