"""The same weights under the names of other trainers, spelled out here without tolpack's maps.

Every function takes a state under schema names and its config and returns what that trainer would
have saved. `in_place` leaves the memory FFN under the names of the dense FFN, as a plain MemoryLLM
may.
"""

import torch


def hf_llama(state, config, in_place=False):
    """Hugging Face Llama: tolpack's own names, with the prefix."""
    return _renamed(state, in_place, "model.layers.{n}.", {
        "embed_tokens": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head",
    }, {}, dense=("mlp.", "post_attention_layernorm"), memory=("memory_mlp.", "memory_layernorm"),
        ffn={"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"})  # fmt: skip


def meta(state, config, in_place=False):
    """Meta native: w1/w3/w2, and queries and keys in the order of neighbouring pairs."""
    turned = dict(state)
    for name in state:
        if "q_proj" in name or "k_proj" in name:
            turned[name] = _pairs(state[name], config)
    return _renamed(turned, in_place, "layers.{n}.", {
        "embed_tokens": "tok_embeddings", "norm": "norm", "lm_head": "output",
    }, {
        "input_layernorm": "attention_norm", "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo",
    }, dense=("feed_forward.", "ffn_norm"), memory=("memory_feed_forward.", "memory_norm"),
        ffn={"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"})  # fmt: skip


def lit_gpt(state, config, in_place=False, grouped=False):
    """LitGPT: fc_1/fc_2/proj and fused attention; `grouped`: as versions before 0.5 fused it."""
    fused = "attn.attn" if grouped else "attn.qkv"
    state = _fuse_attention(state, config, fused, grouped)
    return _renamed(state, in_place, "transformer.h.{n}.", {
        "embed_tokens": "transformer.wte", "norm": "transformer.ln_f", "lm_head": "lm_head",
    }, {
        "input_layernorm": "norm_1", fused: fused, "self_attn.o_proj": "attn.proj",
    }, dense=("mlp.", "norm_2"), memory=("memory_mlp.", "memory_norm"),
        ffn={"gate_proj": "fc_1", "up_proj": "fc_2", "down_proj": "proj"})  # fmt: skip


def lit_gpt_grouped(state, config, in_place=False):
    """LitGPT with attention fused head group by head group."""
    return lit_gpt(state, config, in_place, grouped=True)


def olmo(state, config, in_place=False):
    """OLMo: ff_proj holds up, then gate."""
    state = _fuse_attention(state, config, "att_proj", False)
    state = _fuse_ffn(state, ("up_proj", "gate_proj"))
    return _renamed(state, in_place, "transformer.blocks.{n}.", {
        "embed_tokens": "transformer.wte", "norm": "transformer.ln_f",
        "lm_head": "transformer.ff_out",
    }, {
        "input_layernorm": "attn_norm", "att_proj": "att_proj", "self_attn.o_proj": "attn_out",
    }, dense=("ff_", "ff_norm"), memory=("memory_ff_", "memory_norm"),
        ffn={"fused": "proj", "down_proj": "out"})  # fmt: skip


def openlm(state, config, in_place=False):
    """OpenLM: w12 holds gate, then up; w3 is the down projection."""
    state = _fuse_attention(state, config, "attention.in_proj", False)
    state = _fuse_ffn(state, ("gate_proj", "up_proj"))
    return _renamed(state, in_place, "layers.{n}.", {
        "embed_tokens": "tok_embeddings", "norm": "norm", "lm_head": "output",
    }, {
        "input_layernorm": "attention_norm", "attention.in_proj": "attention.in_proj",
        "self_attn.o_proj": "attention.out_proj",
    }, dense=("feed_forward.", "ffn_norm"), memory=("memory_feed_forward.", "memory_norm"),
        ffn={"fused": "w12", "down_proj": "w3"})  # fmt: skip


FAMILIES = {
    "hf-llama": hf_llama,
    "meta": meta,
    "lit-gpt": lit_gpt,
    "lit-gpt grouped": lit_gpt_grouped,
    "olmo": olmo,
    "openlm": openlm,
}


def _renamed(state, in_place, layer, outer, inner, *, dense, memory, ffn):
    """Spell every name: `outer` modules, `inner` modules of a layer, and the two FFNs."""
    memory = dense if in_place else memory
    result = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if not module.startswith("layers."):
            result[f"{outer[module]}.{kind}"] = tensor
            continue
        _, number, rest = module.split(".", 2)
        if rest.startswith("memory_mlp."):
            rest = memory[0] + ffn[rest.removeprefix("memory_mlp.")]
        elif rest.startswith("mlp."):
            rest = dense[0] + ffn[rest.removeprefix("mlp.")]
        elif rest == "memory_layernorm":
            rest = memory[1]
        elif rest == "post_attention_layernorm":
            rest = dense[1]
        else:
            rest = inner.get(rest, rest)
        result[f"{layer.format(n=number)}{rest}.{kind}"] = tensor
    return result


def _pairs(weight, config):
    """Reorder rows of each head from halves (i, i + half) to pairs (2i, 2i + 1)."""
    width = config["hidden_size"] // config["num_attention_heads"]
    heads = weight.reshape(-1, 2, width // 2, weight.shape[1])
    return heads.transpose(1, 2).reshape(weight.shape)


def _fuse_attention(state, config, fused, grouped):
    result = {
        n: t for n, t in state.items() if n.split(".")[-2] not in ("q_proj", "k_proj", "v_proj")
    }
    kv_heads = config.get("num_key_value_heads", config["num_attention_heads"])
    for layer in range(config["num_hidden_layers"]):
        q, k, v = (state[f"layers.{layer}.self_attn.{part}_proj.weight"] for part in "qkv")
        if grouped:
            groups = zip(*(torch.chunk(part, kv_heads) for part in (q, k, v)))
            whole = torch.cat([torch.cat(group) for group in groups])
        else:
            whole = torch.cat([q, k, v])
        result[f"layers.{layer}.{fused}.weight"] = whole
    return result


def _fuse_ffn(state, order):
    result = {n: t for n, t in state.items() if n.split(".")[-2] not in order}
    for name in state:
        if name.endswith("gate_proj.weight"):
            base = name.removesuffix("gate_proj.weight")
            result[f"{base}fused.weight"] = torch.cat([state[f"{base}{p}.weight"] for p in order])
    return result
