"""Time the hash of every bit that rows depend on, against the build that it precedes.

The two inputs are a MemoryLLM of random bfloat16 weights and a plain FP16 table. They have the
paper's 1B shape with fewer tokens and layers, so that a run takes minutes. Each is built at 4 bits
without a basis, in one process. ``share`` is the hash's share of the build's seconds. The share is
smaller for a whole model, whose weights are hashed once and multiplied for each token.

    python benchmarks/identity.py --json benchmarks/results/identity.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import described

import tolpack
from tolpack.runtime.progress import Reporter

HIDDEN, INNER = 2048, 5464
_PHASE = "checking the input"


class Clock(Reporter):
    """Adds up the seconds and the units of the check."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.bytes = 0

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
        """See `Reporter`."""
        begin = time.perf_counter()
        yield lambda count: None
        if name == _PHASE:
            self.seconds += time.perf_counter() - begin
            self.bytes += total


def main() -> None:
    """Make both inputs, build from them, and print what the check took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, default=16_032)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, Any] = {**described("numpy", "torch"), "inputs": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, make in (("checkpoint", checkpoint), ("table", table)):
            path = make(folder, arguments.vocab, arguments.layers)
            clock, begin = Clock(), time.perf_counter()
            tolpack.build(path, folder / f"{kind}.tolpack", reporter=clock)
            seconds = time.perf_counter() - begin
            found["inputs"][kind] = {
                "bytes": clock.bytes,
                "check_s": round(clock.seconds, 3),
                "build_s": round(seconds, 2),
                "share": round(clock.seconds / seconds, 4),
                "check_GB_per_s": round(clock.bytes / clock.seconds / 1e9, 2),
            }
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def checkpoint(folder: Path, vocab: int, layers: int) -> Path:
    """Save a MemoryLLM with what its tables are made of."""
    source = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        values = torch.randn(rows, columns, generator=source).mul_(columns**-0.5)
        return values.to(torch.bfloat16)

    state = {"embed_tokens.weight": matrix(vocab, HIDDEN)}
    for layer in range(layers):
        state[f"layers.{layer}.memory_layernorm.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
        for part in ("gate", "up", "down"):
            shape = (HIDDEN, INNER) if part == "down" else (INNER, HIDDEN)
            state[f"layers.{layer}.memory_mlp.{part}_proj.weight"] = matrix(*shape)
    config = {
        "model_type": "memoryllm", "vocab_size": vocab, "hidden_size": HIDDEN,
        "num_hidden_layers": layers, "memory_intermediate_size": INNER, "norm": "rmsnorm",
        "rms_norm_eps": 1e-5, "hidden_act": "silu",
    }  # fmt: skip
    torch.save({"model": state, "config": config}, folder / "model.pt")
    return folder / "model.pt"


def table(folder: Path, vocab: int, layers: int) -> Path:
    """Save a plain table."""
    path = folder / "table.npy"
    shape = (vocab, layers, HIDDEN)
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    source = np.random.default_rng(0)
    for start in range(0, vocab, 1024):
        part = rows[start : start + 1024]
        part[:] = source.normal(size=part.shape).astype(np.float16)
    rows.flush()
    return path


if __name__ == "__main__":
    main()
