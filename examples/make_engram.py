"""A stand-in for DeepSeek-V4.1-Flash: its n-gram tables by name, shape and dtype.

    python examples/make_engram.py FOLDER

The 202.8 GB (188.8 GiB) of the tables are holes in a sparse file, which takes 30 MB of the disk. So
``tolpack plan --machines`` can be tried on tables of this size (docs/scale.md). Where it takes its
sample of rows, values are random; all others are zeros. The tokenizer has a few words.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tokenizers import Tokenizer, models

# Rows of the table of each layer that has one; a row has 256 values and 8 scales of 1 byte each.
LAYERS = {1: 384_006_168, 14: 384_016_682}
WIDTH, GROUP = 256, 32
PLACES, SAMPLED_ROWS = 8, 8192
CONFIG = {
    "model_type": "deepseek_v41",
    "text_config": {
        "engram_layer_ids": list(LAYERS), "engram_vocab_size": 16_000_000,
        "engram_max_ngram_size": 4, "engram_n_heads": 8, "engram_head_dim": WIDTH,
        "engram_pad_token_id": 2,
    },
}  # fmt: skip


def make_engram(folder: Path) -> None:
    """Write the folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG), "utf-8")
    words = {f"w{number}": number for number in range(100)}
    Tokenizer(models.WordLevel(words, "w0")).save(str(folder / "tokenizer.json"))
    tensors: dict[str, Any] = {}
    end = 0
    for layer, rows in LAYERS.items():
        for name, dtype, width in (
            ("weight", "F8_E4M3", WIDTH), ("scale", "F8_E8M0", WIDTH // GROUP)
        ):  # fmt: skip
            offsets = [end, end + rows * width]
            tensors[f"layers.{layer}.engram.embed.{name}"] = {
                "dtype": dtype, "shape": [rows, width], "data_offsets": offsets,
            }  # fmt: skip
            end = offsets[1]
    header = json.dumps(tensors).encode()
    with open(folder / "model.safetensors", "xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
        for tensor in tensors.values():
            write_samples(file, tensor, 8 + len(header))


def write_samples(file: BinaryIO, tensor: dict[str, Any], start: int) -> None:
    """Write random rows at the places of a sample: evenly spread, the first and the last included.
    A byte below 127 is a finite number of either dtype.
    """
    rows, width = tensor["shape"]
    for first in np.linspace(0, rows - SAMPLED_ROWS, PLACES).astype(int):
        file.seek(start + tensor["data_offsets"][0] + int(first) * width)
        file.write(np.random.default_rng(first).integers(0, 127, SAMPLED_ROWS * width, "u1").data)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/make_engram.py FOLDER")
    make_engram(Path(sys.argv[1]))
