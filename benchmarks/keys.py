"""Time the keys of one layer of the 1B shape against one pass of its FFN over the vocabulary.

The script writes a checkpoint of random weights with one memory FFN (128,256 tokens, hidden 2048,
5,464 keys), and runs in one process, in float32: a pass of the FFN over the vocabulary, all that
`tolpack keys --report` does for a layer, and the FFN's pass again. Beside wall-clock time it takes
the process's time on processors, which other work on the machine disturbs less. Layers are read one
after the other, so the time of a model is that of a layer times their number, and the memory is the
same.

    python benchmarks/keys.py --json benchmarks/results/keys.json
    python benchmarks/keys.py --tokens 8192 --hidden 256 --keys 768
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from machine import described
from numpy.typing import NDArray
from safetensors.torch import save_file

from tolpack.keys import analysis, layer_keys
from tolpack.sources.checkpoint.checkpoint import Checkpoint, open_checkpoint
from tolpack.sources.ffn_table import FFNTable

_BLOCK_TOKENS = 1024


def main() -> None:
    """Run both sides, and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=128_256)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--keys", type=int, default=5464)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), args.tokens, args.hidden, args.keys)
        checkpoint = open_checkpoint(Path(folder))
        checkpoint.check_finite_rows("embed_tokens.weight")
        first = ffn_seconds(checkpoint)
        began = now()
        keys = layer_keys.load_layer_keys(checkpoint, 0)
        settings = analysis.KeySettings(projection="tsne", tokens=(300, 3000))
        analysis.analyse_layer(keys, args.tokens, settings)
        seconds = now() - began
        second = ffn_seconds(checkpoint)
    ffn = (first + second) / 2
    result = {
        "shape": {"tokens": args.tokens, "hidden": args.hidden, "keys": args.keys, "layers": 1},
        "dtype": "float32",
        "threads": args.threads,
        "ffn_pass_seconds": [first.round(2).tolist(), second.round(2).tolist()],
        "keys_seconds": seconds.round(2).tolist(),
        "keys_per_ffn_pass": (seconds / ffn).round(3).tolist(),
        "each": ["wall-clock", "on processors"],
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **described("torch", "scikit-learn", "numpy"),
    }
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


def write_checkpoint(folder: Path, tokens: int, hidden: int, keys: int) -> None:
    """Write random weights in bfloat16: the embedding, and one memory FFN."""
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        values: torch.Tensor = torch.randn(rows, columns, generator=generator) / columns**0.5
        return values.to(torch.bfloat16)

    state = {
        "embed_tokens.weight": matrix(tokens, hidden),
        "layers.0.memory_layernorm.weight": torch.ones(hidden, dtype=torch.bfloat16),
        "layers.0.memory_mlp.gate_proj.weight": matrix(keys, hidden),
        "layers.0.memory_mlp.up_proj.weight": matrix(keys, hidden),
        "layers.0.memory_mlp.down_proj.weight": matrix(hidden, keys),
    }
    save_file(state, folder / "model.safetensors")
    config = {
        "model_type": "memoryllm",
        "vocab_size": tokens,
        "hidden_size": hidden,
        "num_hidden_layers": 1,
        "memory_intermediate_size": keys,
        "norm": "rmsnorm",
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


def now() -> NDArray[np.float64]:
    """Return the time on the wall, and the process's on processors, in seconds: float64 (2,)."""
    return np.array([time.perf_counter(), time.process_time()])


def ffn_seconds(checkpoint: Checkpoint) -> NDArray[np.float64]:
    """Return what a pass over the vocabulary takes, weights loaded as by a build; as `now`."""
    began = now()
    table = FFNTable(checkpoint)
    rows, tokens = table.field_rows(0), checkpoint.config.vocab_size
    for start in range(0, tokens, _BLOCK_TOKENS):
        rows(np.arange(start, min(tokens, start + _BLOCK_TOKENS)))
    return now() - began


if __name__ == "__main__":
    main()
