"""Small folders of Gemma and Qwen4Exp, saved by transformers."""

import json

import torch
from safetensors.torch import load_file, save_file

GEMMA = {
    "vocab_size": 64, "vocab_size_per_layer_input": 48, "hidden_size": 16,
    "hidden_size_per_layer_input": 16, "intermediate_size": 16, "num_hidden_layers": 3,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
QWEN = {
    "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8, "num_experts": 2, "num_experts_per_tok": 1,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 2, "hc_count": 2, "hc_lowrank": 4, "ple_embed_dim": 64,
    "ngram_size": 3, "heads_per_ngram": 4, "ngram_vocab_size_base": 50,
    "make_ngram_vocab_size_divisible_by": 16, "split_ngram_parts": 4, "eos_token_id": 1,
    "layer_types": ["linear_attention"] * 3,
}  # fmt: skip
PLE = "embed_tokens_per_layer.weight"
NGRAMS = "model.layers.1.ple.ple_embedding"


def save_models(root, gemma=GEMMA, qwen=QWEN, noise=0.0):
    """Save a tiny random model of each family; returns name → the model and its folder.

    With `noise` all weights get so much, as some begin as constants, and the models returned are
    those saved in bfloat16, loaded in float32.
    """
    from transformers import Gemma3nTextConfig, Gemma4TextConfig
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nForCausalLM
    from transformers.models.gemma4.modeling_gemma4 import Gemma4ForCausalLM
    from transformers.models.qwen4_exp.configuration_qwen4_exp import Qwen4ExpTextConfig
    from transformers.models.qwen4_exp.modeling_qwen4_exp import Qwen4ExpForCausalLM

    torch.manual_seed(0)
    gemma3n = {"altup_num_inputs": 2, "laurel_rank": 4, "num_kv_shared_layers": 1,
               "activation_sparsity_pattern": [0.0] * 3}  # fmt: skip
    gemma4 = {
        "global_head_dim": 8,
        "num_kv_shared_layers": 0,
        "layer_types": ["full_attention"] * 3,
    }
    models = {
        "gemma3n": Gemma3nForCausalLM(Gemma3nTextConfig(**gemma, **gemma3n)),
        "gemma4": Gemma4ForCausalLM(Gemma4TextConfig(**gemma, **gemma4)),
        "qwen4_exp": Qwen4ExpForCausalLM(Qwen4ExpTextConfig(**qwen, ple_layer_ids=[2])),
        "qwen4_exp_two": Qwen4ExpForCausalLM(Qwen4ExpTextConfig(**qwen, ple_layer_ids=[1, 3])),
    }
    found = {}
    for name, model in models.items():
        folder = root / name
        with torch.no_grad():
            for weight in model.parameters() if noise else ():
                weight.add_(noise * torch.randn_like(weight))
        model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="6KB")
        if noise:
            model = type(model).from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
        found[name] = model, folder
    return found


def read(folder):
    """Return tensors and config of a folder."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors, json.loads((folder / "config.json").read_text(encoding="utf-8"))


def write(folder, tensors, config):
    """Write a folder of one file and a config; returns it."""
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
