"""What packs of tables cost and save against what engines hold today: bfloat16, and GGML's types.

Takes a table of each kind: the token embedding of a trained checkpoint, its token-wise lookups (a
trained table of several layers, as MeKi's), and rows of a normal distribution, which tables of
hashed n-grams look like. For each it measures, in one run: bytes, bits per value and relative error
``√(Σ‖row - stored row‖² / Σ‖row‖²)`` of GGML's types that the ``gguf`` package can make, and of
packs; and the time of a warm lookup of 16 rows.

    python benchmarks/families_cost.py CHECKPOINT --json benchmarks/results/families_cost.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from machine import described
from safetensors.numpy import save_file

import tolpack
from tolpack.runtime.array_types import Floats
from tolpack.sources.open_source import open_source

GGML = ("Q8_0", "Q5_0", "Q4_0")
RANDOM = 200_000, 160
LOOKUPS = 400


def main() -> None:
    """Measure every table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tensor", default="model.embed_tokens.weight")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, Any] = {**described("numpy", "zstandard", "gguf"), "tables": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, (rows, layers) in tables(arguments.checkpoint, arguments.tensor).items():
            found["tables"][name] = measure(rows, layers, Path(folder))
            print(name, json.dumps(found["tables"][name], indent=1), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def tables(checkpoint: Path, tensor: str) -> dict[str, tuple[Floats, int]]:
    """Return the tables, float32 (rows, layers · width) of bfloat16 values, and their layers."""
    found: dict[str, tuple[Floats, int]] = {}
    embedding = open_source(checkpoint, tensor=tensor)
    lookups = open_source(checkpoint)
    for name, source in (("token embedding", embedding), ("token-wise lookups", lookups)):
        ids, layers = np.arange(source.rows), len(source.fields)
        values = np.concatenate([source.field_rows(n)(ids) for n in range(layers)], axis=1)
        found[name] = bfloat16(values), layers
    random = np.random.default_rng(0).standard_normal(RANDOM, np.float32)
    found["normal distribution"] = bfloat16(np.float32(0.02) * random), 1
    return found


def bfloat16(values: Floats) -> Floats:
    """Round to bfloat16 by dropping the lower half."""
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def measure(rows: Floats, layers: int, folder: Path) -> dict[str, Any]:
    """Measure GGML's types and packs of one table."""
    found: dict[str, Any] = {
        "shape": [len(rows), layers, rows.shape[1] // layers],
        "bfloat16": {"bytes": 2 * rows.size, "bits_per_value": 16, "relative_error_pct": 0},
    }
    for name in GGML:
        kind = gguf.GGMLQuantizationType[name]
        stored = gguf.quants.quantize(rows, kind)
        found[f"GGUF {name}"] = entry(stored.nbytes, gguf.quants.dequantize(stored, kind), rows)
    path = folder / "table.safetensors"
    bits = (rows.view(np.uint32) >> 16).astype(np.uint16)
    save_bfloat16(path, bits.reshape(len(rows), layers, -1))
    settings: dict[str, dict[str, Any]] = {
        "lossless": {"bits": "lossless"},
        "lossless, raw": {"bits": "lossless", "compression": "none"},
        "8 bits": {"bits": 8},
        "4 bits": {"bits": 4},
    }
    for name in GGML:
        size = found[f"GGUF {name}"]["bytes"]
        settings[f"auto, size of {name}"] = {"bits": "auto", "size": size}
        error = f"{found[f'GGUF {name}']['relative_error_pct']}%"
        settings[f"auto, error of {name}"] = {"bits": "auto", "max_relative_error": error}
    for name, options in settings.items():
        pack = tolpack.build(path, folder / "table.tolpack", force=True, **options)
        found[f"pack, {name}"] = packed(Path(pack.path), rows)
    return found


def save_bfloat16(path: Path, bits: np.ndarray) -> None:
    """Write a .safetensors of one bfloat16 tensor, which numpy has no dtype for."""
    save_file({"table": bits}, path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    head = data[8 : 8 + length].replace(b'"U16"', b'"BF16"')
    path.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + length :])


def entry(nbytes: int, stored: Floats, rows: Floats) -> dict[str, Any]:
    """Return size and error."""
    difference = stored.reshape(rows.shape).astype(np.float64) - rows
    error = np.sqrt(np.square(difference).sum() / np.square(rows, dtype=np.float64).sum())
    return {
        "bytes": nbytes, "bits_per_value": round(8 * nbytes / rows.size, 3),
        "relative_error_pct": round(100 * float(error), 4),
    }  # fmt: skip


def packed(path: Path, rows: Floats) -> dict[str, Any]:
    """Return size and error of a pack, and the time of lookups."""
    ids = np.random.default_rng(0).integers(0, len(rows), (LOOKUPS, 16))
    with tolpack.open(path) as pack:
        found = entry(pack.nbytes, pack.rows(np.arange(len(rows))), rows)
        times = []
        for one in ids:
            start = time.perf_counter()
            pack.rows(one)
            times.append(time.perf_counter() - start)
    return {**found, "us_of_16_rows": round(1e6 * float(np.median(times)), 1)}


if __name__ == "__main__":
    main()
