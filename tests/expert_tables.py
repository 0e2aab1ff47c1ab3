"""Small folders of MeKi, STEM and MoLE, and slow computations of the papers' formulas."""

import json
import math

import numpy as np
import torch
from safetensors.torch import save_file

VOCAB, HIDDEN, WIDTH, INNER = 37, 12, 8, 6
MEKI = {"model_type": "meki", "rms_norm_eps": 1e-5, "mem_dim": WIDTH}
MOLE = {
    "model_type": "llama", "rms_norm_eps": 1e-5, "num_hidden_layers": 2, "num_experts": 3,
    "hidden_size": HIDDEN, "vocab_size": VOCAB,
}  # fmt: skip


def write(folder, tensors, config):
    """Write a folder of two shards and a config; returns it."""
    names = sorted(tensors)
    index = {name: f"model-{n % 2 + 1:05}-of-00002.safetensors" for n, name in enumerate(names)}
    for shard in set(index.values()):
        mine = {name: tensors[name] for name in names if index[name] == shard}
        save_file(mine, folder / shard)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": index}), encoding="utf-8"
    )
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def random_tensors(shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()
    }


def doubles(tensors, name):
    return tensors[name].double().numpy()


def rms_norm(x, weight, eps=1e-5):
    return [
        value / math.sqrt(sum(v * v for v in x) / len(x) + eps) * w for value, w in zip(x, weight)
    ]


def meki_tensors(
    layers=(0, 2), folded=False, dtype=torch.float32, prefix="", words="word_emb", vocab=VOCAB
):  # fmt: skip
    shapes = {f"{prefix}{words}.weight": (vocab, HIDDEN)}
    for layer in layers:
        module = f"{prefix}layers.{layer}.meki_module."
        shapes |= {
            f"{module}embeddings.weight": (vocab, WIDTH),
            f"{module}gate_proj.weight": (WIDTH, HIDDEN),
            f"{module}out_proj.weight": (HIDDEN, WIDTH),
        }
        if not folded:
            projection = f"{module}word_emb_projection."
            shapes |= {
                f"{projection}gate_proj.weight": (INNER, HIDDEN),
                f"{projection}up_proj.weight": (INNER, HIDDEN),
                f"{projection}down_proj.weight": (WIDTH, INNER),
                f"{module}beta_scale": (),
                f"{module}alpha_scale": (),
                f"{module}mix_norm.weight": (WIDTH,),
            }
    return random_tensors(shapes, dtype)


def meki_row(tensors, module, words, token):
    """RMSNorm(E[t] + β · SwiGLU(emb[t])) · α, value by value in float64."""
    word = doubles(tensors, words)[token]
    gate, up, down = (
        doubles(tensors, f"{module}word_emb_projection.{part}_proj.weight")
        for part in ("gate", "up", "down")
    )
    inner = [
        g / (1 + math.exp(-g)) * u
        for g, u in ((float(row @ word), float(other @ word)) for row, other in zip(gate, up))
    ]
    mixed = [
        e + float(tensors[f"{module}beta_scale"]) * float(row @ np.array(inner))
        for e, row in zip(doubles(tensors, f"{module}embeddings.weight")[token], down)
    ]
    normed = rms_norm(mixed, doubles(tensors, f"{module}mix_norm.weight"))
    return np.array(normed) * float(tensors[f"{module}alpha_scale"])


def mole_tensors(dtype=torch.float32, vocab=VOCAB):
    shapes = {"model.embed_tokens.weight": (vocab, HIDDEN)}
    for layer in range(2):
        base = f"model.layers.{layer}."
        shapes[f"{base}expert_layernorm.weight"] = (HIDDEN,)
        shapes[f"{base}router.weight"] = (3, HIDDEN)
        for expert in range(3):
            shapes[f"{base}experts.{expert}.up_proj.weight"] = (INNER, HIDDEN)
            shapes[f"{base}experts.{expert}.down_proj.weight"] = (HIDDEN, INNER)
    return random_tensors(shapes, dtype)


def mole_row(tensors, layer, expert, token):
    """Expert(RMSNorm(emb[t])), value by value in float64."""
    base = f"model.layers.{layer}."
    word = doubles(tensors, "model.embed_tokens.weight")[token]
    x = np.array(rms_norm(word, doubles(tensors, f"{base}expert_layernorm.weight")))
    up = doubles(tensors, f"{base}experts.{expert}.up_proj.weight") @ x
    inner = np.array([value / 2 * (1 + math.erf(value / math.sqrt(2))) for value in up])
    return doubles(tensors, f"{base}experts.{expert}.down_proj.weight") @ inner
