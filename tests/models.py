"""Tiny random models in every spelling, and naive float64 code that says what they compute.

Nothing here uses tolpack: `Naive` is loops over layers, heads and positions in numpy, so that the
package's decoder, tables and gradients are held against an implementation of their own.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file


def make_config(model_type="memoryllm", **changes):
    """Return a complete config of a tiny model; a value of None removes the field."""
    config = {
        "model_type": model_type,
        "vocab_size": 97,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "memory_intermediate_size": 20,
        "intermediate_size": 28,
        "norm": "rmsnorm",
        "rms_norm_eps": 1e-5,
        "rope_theta": 100.0,
        "rope_interleaved": False,
        "max_position_embeddings": 16,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "flex_input": "post_attention",
    }
    config.update(changes)
    return {name: value for name, value in config.items() if value is not None}


def make_state(config, dtype=torch.float32, seed=0, bias=False, linear_mlp=False):
    """Return random weights under schema names without prefix.

    `bias` gives every norm a bias; `linear_mlp` makes FFN-C one linear map ``mlp.weight``.
    """
    source = torch.Generator().manual_seed(seed)
    hidden, state = config["hidden_size"], {}

    def matrix(name, *shape):
        state[name] = torch.randn(shape, generator=source) / math.sqrt(shape[-1])

    def norm(name):
        state[f"{name}.weight"] = 1 + 0.3 * torch.randn(hidden, generator=source)
        if bias:
            state[f"{name}.bias"] = 0.3 * torch.randn(hidden, generator=source)

    def gated(name, inner):
        matrix(f"{name}.gate_proj.weight", inner, hidden)
        matrix(f"{name}.up_proj.weight", inner, hidden)
        matrix(f"{name}.down_proj.weight", hidden, inner)

    matrix("embed_tokens.weight", config["vocab_size"], hidden)
    state["embed_tokens.weight"] *= 2
    heads = config["num_attention_heads"]
    kv = hidden // heads * config.get("num_key_value_heads", heads)
    for layer in range(config["num_hidden_layers"]):
        base = f"layers.{layer}"
        norm(f"{base}.input_layernorm")
        for part, rows in (("q", hidden), ("k", kv), ("v", kv), ("o", hidden)):
            matrix(f"{base}.self_attn.{part}_proj.weight", rows, hidden)
        if config["model_type"] != "llama":
            norm(f"{base}.memory_layernorm")
            gated(f"{base}.memory_mlp", config["memory_intermediate_size"])
        if config["model_type"] != "memoryllm":
            norm(f"{base}.post_attention_layernorm")
            if linear_mlp:
                matrix(f"{base}.mlp.weight", hidden, hidden)
            else:
                gated(f"{base}.mlp", config["intermediate_size"])
    norm("norm")
    if not config["tie_word_embeddings"]:
        matrix("lm_head.weight", config["vocab_size"], hidden)
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def prefixed(state):
    """Return `state` under names with the ``model.`` prefix (the head has none)."""
    return {n if n.startswith("lm_head") else f"model.{n}": t for n, t in state.items()}


def save_pt(path, state, config=None):
    """Save ``{"model", "config"}``, or a bare state dict without `config`; returns `path`."""
    torch.save(state if config is None else {"model": state, "config": config}, path)
    return path


def save_safetensors(path, state):
    """Save one ``.safetensors``; returns `path`."""
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def save_folder(folder, state, config, shards=1):
    """Save a folder with config.json and one or more shards with their index; returns it."""
    folder.mkdir()
    save_config(folder / "config.json", config)
    if shards == 1:
        save_safetensors(folder / "model.safetensors", state)
        return folder
    names, weight_map = sorted(state), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: state[name] for name in names[shard::shards]}
        save_safetensors(folder / file, part)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def save_config(path, config):
    """Write `config` as JSON; returns `path`."""
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def save_model(folder, model_type="memoryllm", name="model.pt", seed=0, **changes):
    """Save a tiny model of `model_type` as a ``.pt`` with its config; returns the path."""
    config = make_config(model_type, **changes)
    return save_pt(Path(folder) / name, make_state(config, seed=seed), config)


def zipf_ids(count, vocab_size, seed=0):
    """Token ids with frequencies like 1/rank, ranks shuffled over ids: int64 (count,)."""
    random = np.random.default_rng(seed)
    weights = 1 / np.arange(1, vocab_size + 1)
    order = random.permutation(vocab_size)
    return order[random.choice(vocab_size, count, p=weights / weights.sum())].astype(np.int64)


class Naive:
    """A decoder in float64, written with loops from the equations alone."""

    def __init__(self, state, config):
        self.config = config
        self.w = {name: tensor.double().numpy() for name, tensor in state.items()}
        self.layers = range(config["num_hidden_layers"])

    def norm(self, x, name):
        """Return RMSNorm or LayerNorm of one vector."""
        weight, eps = self.w[f"{name}.weight"], self.config["rms_norm_eps"]
        if self.config["norm"] == "rmsnorm":
            return x / math.sqrt(float((x * x).mean()) + eps) * weight
        centred = x - x.mean()
        scaled = centred / math.sqrt(float((centred * centred).mean()) + eps)
        return scaled * weight + self.w.get(f"{name}.bias", 0.0)

    def ffn(self, x, name):
        """Return the gated FFN, or the single linear map, of one vector."""
        if f"{name}.weight" in self.w:
            return self.w[f"{name}.weight"] @ x
        gate = self.w[f"{name}.gate_proj.weight"] @ x
        if self.config["hidden_act"] == "silu":
            gate = gate / (1 + np.exp(-gate))
        else:
            gate = np.array([g * 0.5 * (1 + math.erf(g / math.sqrt(2))) for g in gate])
        return self.w[f"{name}.down_proj.weight"] @ (gate * (self.w[f"{name}.up_proj.weight"] @ x))

    def table(self):
        """Return the whole table, float64 (vocab, layers, hidden)."""
        return np.array(
            [
                [
                    self.ffn(
                        self.norm(row, f"layers.{n}.memory_layernorm"), f"layers.{n}.memory_mlp"
                    )
                    for n in self.layers
                ]
                for row in self.w["embed_tokens.weight"]
            ]
        )

    def logits(self, ids, table=None, added=None):
        """Return float64 (length, vocab) for one sequence.

        `table` replaces the memory's own; `added` (layers, length, hidden) is added to its output.
        """
        config = self.config
        if table is None and config["model_type"] != "llama":
            table = self.table()
        xs = [self.w["embed_tokens.weight"][i] for i in ids]
        for n in self.layers:
            base = f"layers.{n}"
            attended = self.attention([self.norm(x, f"{base}.input_layernorm") for x in xs], base)
            for t, x in enumerate(xs):
                after = x + attended[t]
                out = after
                if config["model_type"] != "memoryllm":
                    residual = (
                        config["model_type"] != "llama" and config["flex_input"] == "residual"
                    )
                    read = self.norm(x if residual else after, f"{base}.post_attention_layernorm")
                    out = out + self.ffn(read, f"{base}.mlp")
                if config["model_type"] != "llama":
                    out = out + table[ids[t], n] + (0 if added is None else added[n][t])
                xs[t] = out
        head = self.w["embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
        return np.array([head @ self.norm(x, "norm") for x in xs])

    def attention(self, xs, base):
        """Return causal attention of a list of vectors, head by head and position by position."""
        config = self.config
        heads = config["num_attention_heads"]
        kv_heads = config.get("num_key_value_heads", heads)
        width = config["hidden_size"] // heads
        q, k, v = (
            [self.w[f"{base}.self_attn.{part}_proj.weight"] @ x for x in xs] for part in "qkv"
        )
        outputs = []
        for t in range(len(xs)):
            joined = []
            for head in range(heads):
                mine = slice(head * width, (head + 1) * width)
                shared = head // (heads // kv_heads)
                theirs = slice(shared * width, (shared + 1) * width)
                query = self.rotate(q[t][mine], t)
                scores = np.array([query @ self.rotate(k[s][theirs], s) for s in range(t + 1)])
                weights = np.exp((scores - scores.max()) / math.sqrt(width))
                weights /= weights.sum()
                joined.append(sum(weight * v[s][theirs] for s, weight in enumerate(weights)))
            outputs.append(self.w[f"{base}.self_attn.o_proj.weight"] @ np.concatenate(joined))
        return outputs

    def rotate(self, x, position):
        """Rotate one head's vector pair by pair: (i, i + half), or (2i, 2i + 1) if interleaved."""
        half, out = len(x) // 2, np.empty_like(x)
        for i in range(half):
            interleaved = self.config["rope_interleaved"]
            a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
            angle = position * self.config["rope_theta"] ** (-2 * i / len(x))
            out[a] = x[a] * math.cos(angle) - x[b] * math.sin(angle)
            out[b] = x[b] * math.cos(angle) + x[a] * math.sin(angle)
        return out

    def nll(self, ids, table=None, added=None):
        """Return the summed negative log-likelihood of one window that feeds ``ids[:-1]``."""
        logits = self.logits(ids[:-1], table, added)
        return sum(
            math.log(np.exp(row - row.max()).sum()) + row.max() - row[target]
            for row, target in zip(logits, ids[1:])
        )
