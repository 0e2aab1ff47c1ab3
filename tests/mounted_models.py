"""Tiny models of all families with a table, saved by transformers, and lossless packs of them."""

import torch
from saved_tables import GEMMA, QWEN, save_models

import tolpack

# Every id has a row, a width whose root no dtype holds, and a layer of attention, which
# transformers' cache asks for.
ALL_IDS = GEMMA | {"vocab_size": 48, "hidden_size_per_layer_input": 12}
ATTENTION = QWEN | {
    "num_hidden_layers": 4, "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "indexer_budget": 64, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8,
    "indexer_compress_ratio": 4, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = ("gemma3n", "gemma4", "gemma4_multimodal", "qwen4_exp", "qwen4_exp_two")


def save_with_packs(root):
    """Save a model of each family and a lossless pack; returns name → folder and pack."""
    saved, found = save_models(root, ALL_IDS, ATTENTION), {}
    saved["gemma4_multimodal"] = _multimodal(), root / "gemma4_multimodal"
    for name, (model, folder) in saved.items():
        _randomize(model)
        model.save_pretrained(folder, max_shard_size="6KB")
        pack = root / f"{name}.tolpack"
        tolpack.build(folder, pack, bits="lossless")
        found[name] = folder, pack
    return found


def _multimodal():
    """Make a Gemma 4 that has a text part only, within the class of the whole model."""
    from transformers import AutoModelForCausalLM, Gemma4Config

    text = ALL_IDS | {
        "global_head_dim": 8, "num_kv_shared_layers": 0, "layer_types": ["full_attention"] * 3
    }  # fmt: skip
    tokens = {name: 40 + n for n, name in enumerate(
        ("image_token_id", "audio_token_id", "video_token_id", "boi_token_id", "eoi_token_id")
    )}  # fmt: skip
    config = Gemma4Config(text_config=text, vision_config=None, audio_config=None, **tokens)
    return AutoModelForCausalLM.from_config(config).to(torch.bfloat16)


def _randomize(model):
    """Fill all weights: some that are zero at first would hide what the table gives."""
    source = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape, generator=source).to(weight.dtype) / 3


def stock(folder, **options):
    """Load a folder as transformers does."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **options)


def logits(model, ids, **more):
    """Return the logits of ids."""
    with torch.no_grad():
        return model(ids, **more).logits


def decoded(model, ids, count=64, **more):
    """Decode `count` tokens greedily; returns the ids and the logits of each step."""
    found = model.generate(
        ids, max_new_tokens=count, min_new_tokens=count, do_sample=False, output_logits=True,
        return_dict_in_generate=True, **more,
    )  # fmt: skip
    return found.sequences, torch.stack(found.logits)
