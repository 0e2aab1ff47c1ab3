"""Small folders with tables of hashed n-grams: LongCat-Flash-Lite, Engram, MTPLX and EXL3."""

import json
import struct

import numpy as np
import torch
from safetensors.torch import save_file
from slow_ngrams import save_tokenizer, slow_compressed_ids

VOCAB = 30
TEXTS = ["<s>", "</s>", "<pad>", "A", "a", "é", "e", " e", *(f"w{n}" for n in range(VOCAB - 8))]
LONGCAT_CONFIG = {
    "model_type": "longcat_flash_ngram", "vocab_size": VOCAB, "eos_token_id": 2,
    "hidden_size": 48, "ngram_vocab_size_ratio": 3, "emb_neighbor_num": 4, "emb_split_num": 2,
}  # fmt: skip
DEEPSEEK_CONFIG = {
    "model_type": "deepseek_v41",
    "image_token_id": 9,
    "text_config": {
        "engram_layer_ids": [1, 14], "engram_vocab_size": 40, "engram_max_ngram_size": 4,
        "engram_n_heads": 2, "engram_head_dim": 64, "engram_pad_token_id": 2,
        "engram_compressed_vocab_size": len(set(slow_compressed_ids(TEXTS))),
    },
}  # fmt: skip
DEMO_CONFIG = {
    "engram_config": {
        "engram_vocab_size": [101, 103], "max_ngram_size": 3, "n_embed_per_ngram": 16,
        "n_head_per_ngram": 2, "layer_ids": [15, 1], "pad_id": 2, "seed": 5,
    },
}  # fmt: skip
TEXT = np.random.default_rng(0).integers(0, 8, 40).tolist()


def random(rows, width, seed=0):
    """Return random bfloat16 rows."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=source).bfloat16()


def longcat(name="model.ngram_embeddings.embedders.{}.weight", padding=0, ratio=3):
    """Return the tensors of a small LongCat-Flash-Lite."""
    return {
        name.format(n): random(ratio * VOCAB + 2 * n + 1 + padding, 8, n) for n in range(6)
    } | {"model.embed_tokens.weight": random(VOCAB, 48)}  # fmt: skip


def deepseek(base=40):
    """Return the tensors of two Engram layers in E4M3, with scales of 32 values in E8M0."""
    source = torch.Generator().manual_seed(0)
    tensors = {"embed.weight": random(VOCAB, 8)}
    for layer, rows in engram_rows([base] * 3, [1, 14], 2).items():
        codes = torch.randint(0, 256, (rows, 64), generator=source, dtype=torch.uint8)
        codes[codes & 127 == 127] = 5  # those are NaN
        scales = torch.randint(100, 150, (rows, 2), generator=source, dtype=torch.uint8)
        name = f"layers.{layer}.engram.embed"
        tensors[f"{name}.weight"] = codes.view(torch.float8_e4m3fn)
        tensors[f"{name}.scale"] = scales.view(torch.float8_e8m0fnu)
        tensors[f"layers.{layer}.engram.wkv.weight"] = random(4, 4)
    return tensors


def demo(bases=(101, 103)):
    """Return the tensors of two Engram layers of the demo."""
    tensors = {}
    for layer, sizes in primes(bases, [15, 1], 2).items():
        name = f"model.layers.{layer}.engram.multi_head_embedding"
        tensors[f"{name}.embedding.weight"] = random(sum(sizes), 8, layer)
        tensors[f"{name}.offsets"] = torch.tensor(np.cumsum([0, *sizes[:-1]]))
    return tensors


def primes(bases, layers, heads):
    """Return the sizes of each layer's heads."""
    used, sizes = [], {}
    for layer in layers:
        found = []
        for base in bases:
            for _ in range(heads):
                size = base
                while size in used or any(size % d == 0 for d in range(2, size)):
                    size += 1
                used.append(size)
                found.append(size)
        sizes[layer] = found
    return sizes


def engram_rows(bases, layers, heads):
    """Return how many rows each layer's table has."""
    return {layer: sum(sizes) for layer, sizes in primes(bases, layers, heads).items()}


def save(folder, tensors, config):
    """Save a folder of three shards, with its config and tokenizer, and return its path."""
    folder.mkdir(exist_ok=True)
    for number in range(3):
        part = {name: tensors[name] for name in sorted(tensors)[number::3]}
        save_file(part, folder / f"model-0000{number + 1}-of-00003.safetensors")
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    save_tokenizer(folder, TEXTS)
    return folder


ROWS = 41
KEY = "model.language_model.layers.1.ple.ple_embedding.ngram_embedding"


def uint32(values):
    return torch.from_numpy(values.astype("<u4").view("<i4")).view(torch.uint32)


def save_mtplx(path, bits, group, width=160, dtype=torch.bfloat16, rows=ROWS, **changes):
    """Write a random table as MTPLX does; returns the codes, scales and biases."""
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 2**bits, (rows, width))
    words = np.zeros((rows, width * bits // 32), np.int64)
    for value in range(width):  # from the lowest bits of each word on
        words[:, value * bits // 32] |= codes[:, value] << value * bits % 32
    scales = torch.from_numpy(rng.normal(size=(rows, width // group))).to(dtype)
    biases = torch.from_numpy(rng.normal(size=(rows, width // group))).to(dtype)
    tensors = {"ngram.weight": uint32(words), "ngram.scales": scales, "ngram.biases": biases}
    metadata = {"ngram_bits": str(bits), "ngram_group_size": str(group)}
    for key, value in changes.items():
        (metadata if key.startswith("ngram_") else tensors)[key] = value
    save_file(tensors, path, {key: value for key, value in metadata.items() if value is not None})
    return codes, scales.float().numpy(), biases.float().numpy()


def decode_mul1(state):
    """Return the value of a state, by the codebook's definition."""
    product = state * 0x83DCD12D & 0xFFFFFFFF
    total = 1024 + sum(product.to_bytes(4, "little"))
    slope, shift = (struct.unpack("<e", struct.pack("<H", bits))[0] for bits in (0x1EEE, 0xC931))
    return np.float32(np.float16(total * slope + shift))


def decode_ring(words, bits, width):
    """Return the values of a row without its bias: states read bit by bit around the ring."""
    scale = np.float32(np.frombuffer(struct.pack("<H", int(words[0])), np.float16)[0])
    stream = [int(word) >> bit & 1 for word in words[1:] for bit in range(16)]
    row = np.empty(width, np.float32)
    for place in range(width):
        state = 0
        for bit in range(16):
            symbol = (place - bit // bits) % width
            state |= stream[symbol * bits + bit % bits] << bit
        row[place] = decode_mul1(state) * scale
    return row


def save_exl3(path, bits, shards=3, width=160, key=KEY, rows=ROWS, **changes):
    """Write a random table as exllamav3 does; returns its words, uint16."""
    rng = np.random.default_rng(bits)
    words = rng.integers(0, 1 << 16, (rows, 1 + width * bits // 16)).astype(np.uint16)
    words[:, 0] = rng.normal(size=rows).astype(np.float16).view(np.uint16)
    cuts = np.array_split(words, shards)
    names = [f".shard_{n}.trellis" for n in range(shards)] if shards > 1 else [".trellis"]
    tensors = {
        key + name: torch.from_numpy(part.view(np.int16).copy()) for name, part in zip(names, cuts)
    }
    tensors |= {
        f"{key}.head_bias": torch.from_numpy(rng.normal(size=(2, width)).astype(np.float16)),
        f"{key}.head_offsets": torch.tensor([0, 8]),
    }
    metadata = {"format": "exl3_ngram_trellis", "version": "1", "codebook": "mul1"}
    for name, value in changes.items():
        if name in metadata:
            metadata[name] = value
        elif value is None:
            del tensors[f"{key}.{name}"]
        else:
            tensors[f"{key}.{name}"] = value
    save_file(tensors, path, metadata)
    return words, tensors[
        f"{key}.head_bias"
    ].float().numpy() if "head_bias" not in changes else None


CONFIG = {
    "model_type": "qwen4_exp",
    "text_config": {
        "vocab_size": 50, "hidden_size": 320, "eos_token_id": 3, "ple_layer_ids": [2],
        "ngram_size": 3, "heads_per_ngram": 1, "ngram_vocab_size_base": 10,
    },
}  # fmt: skip


def save_folder(folder, save):
    """Write a folder whose index does not list the n-gram table, as converters do."""
    save_file({"model.norm.weight": torch.ones(4)}, folder / "model.safetensors")
    index = {"weight_map": {"model.norm.weight": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    save(folder)
