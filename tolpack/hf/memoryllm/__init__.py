"""MemoryLLM and Flex-MemoryLLM as models of transformers; importing it registers them."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from tolpack.hf.memoryllm.configuration import FlexMemoryLLMConfig, MemoryLLMConfig
from tolpack.hf.memoryllm.modeling import (
    FlexMemoryLLMForCausalLM,
    FlexMemoryLLMModel,
    MemoryLLMForCausalLM,
    MemoryLLMModel,
)

__all__ = [
    "FlexMemoryLLMConfig",
    "FlexMemoryLLMForCausalLM",
    "FlexMemoryLLMModel",
    "MemoryLLMConfig",
    "MemoryLLMForCausalLM",
    "MemoryLLMModel",
]

for _config, _model, _causal in (
    (MemoryLLMConfig, MemoryLLMModel, MemoryLLMForCausalLM),
    (FlexMemoryLLMConfig, FlexMemoryLLMModel, FlexMemoryLLMForCausalLM),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
    AutoModelForCausalLM.register(_config, _causal)
