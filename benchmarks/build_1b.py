"""Builds at the paper's 1B shape: time against the FFN passes alone, peak memory, bytes.

The script makes a MemoryLLM of random weights (vocabulary 128,256, 24 layers, hidden 2048,
intermediate 5464). Its singular values decay as those of a trained 11M model: ``σ(x) = exp(-k x)``
for the share ``x`` of the components, with ``k`` 2 for FFNs, 1 for the embedding and 4 for
attention. For each setting it runs ``tolpack.build`` in a process of its own and reports seconds,
in all and by phase, peak resident memory and bytes. It compares them with the FFN passes alone:
plain torch on all cores in the same dtype, timed before and after on some of the tokens. ``--bits
auto`` is calibrated on 20,000 random token ids, of which a fifth is held out. ``seconds`` includes
this calibration; ``ratio`` does not.

    python benchmarks/build_1b.py --vocab 16032 --json result.json      # an eighth
    python benchmarks/build_1b.py --json result.json                    # in full
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import described
from safetensors.torch import save_file
from torch.nn import functional as F

import tolpack
from tolpack.runtime.progress import Reporter
from tolpack.sources.ffn import multiplies_bfloat16

# Ranks, at 4 bits or, behind a stroke, at others; and the passes that each needs at least.
SETTINGS = {"none": 1, "1024": 2, "auto": 2, "none/auto": 1, "auto/auto": 2}
DECAY = {"embed": 1.0, "mlp": 2.0, "attn": 4.0}
HIDDEN, INNER, HEADS = 2048, 5464, 32
CALIBRATION_TOKENS = 20_000


@dataclass(frozen=True)
class Row:
    """One setting; ``passes`` FFN passes are what it has to compute at least, and ``ratio`` is its
    time, calibration aside, against theirs.
    """

    rank: str
    seconds: float
    phase_seconds: dict[str, float]
    passes: int
    ratio: float
    peak_bytes: int
    pack_bytes: int
    ratio_fp16: float
    open_reads: int
    open_bytes: int


def main() -> None:
    """Make the checkpoint, if it is not there, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, default=128_256)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--folder", type=Path, default=Path("build/bench-1b"))
    parser.add_argument("--settings", default=",".join(SETTINGS), help="ranks[/bits], by commas")
    parser.add_argument("--max-memory", default="4GB")
    fastest = "bfloat16" if multiplies_bfloat16() else "float32"
    parser.add_argument("--compute", choices=("float32", "bfloat16"), default=fastest)
    parser.add_argument(
        "--pass-tokens", type=int, default=4096, help="tokens of the timed FFN pass"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--build", help=argparse.SUPPRESS)  # what the processes started here do
    arguments = parser.parse_args()
    if arguments.build:
        build(json.loads(arguments.build))
        return
    checkpoint = arguments.folder / f"{arguments.layers}x{arguments.vocab}"
    if not (checkpoint / "config.json").exists():
        make_checkpoint(checkpoint, arguments.vocab, arguments.layers)
    result: dict[str, object] = {
        **described("torch"),
        "shape": [arguments.vocab, arguments.layers, HIDDEN, INNER],
        "max_memory": arguments.max_memory,
        "compute": arguments.compute,
    }
    print(json.dumps(result), flush=True)
    rows = []
    for rank in arguments.settings.split(","):
        rows.append(measure(checkpoint, rank, arguments))
        print(json.dumps(asdict(rows[-1])), flush=True)
    result["rows"] = [asdict(row) for row in rows]
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def measure(checkpoint: Path, rank: str, arguments: argparse.Namespace) -> Row:
    """Build with one setting, between two timings of the FFN pass."""
    before = ffn_seconds(arguments)
    pack = checkpoint.parent / "bench.tolpack"
    name, _, bits = rank.partition("/")
    settings: dict[str, object] = {
        "checkpoint": str(checkpoint), "output": str(pack), "rank": name,
        "bits": bits if bits == "auto" else int(bits or 4), "compute": arguments.compute,
        "max_memory": arguments.max_memory, "force": True,
    }  # fmt: skip
    if bits == "auto":
        text = checkpoint.parent / "calibration.npy"
        np.save(text, np.random.default_rng(0).integers(0, arguments.vocab, CALIBRATION_TOKENS))
        # Losses of random weights mean nothing.
        settings |= {"calibrate": str(text), "size": "11%"}
    command = [sys.executable, __file__, "--build", json.dumps(settings)]
    start = time.perf_counter()
    environment = {**os.environ, "TOLPACK_CACHE": "off"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout is not None
    phases = json.loads(process.stdout.read() or "{}")
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"tolpack build --rank {rank} failed")
    one_pass = (before + ffn_seconds(arguments)) / 2
    with tolpack.open(pack) as opened:
        stats, size = opened.stats(), opened.nbytes
    passes = SETTINGS.get(rank, 1 if rank.startswith("none") else 2)
    table = 2 * arguments.vocab * arguments.layers * HIDDEN
    pack.unlink()
    return Row(
        rank,
        seconds,
        phases,
        passes,
        (seconds - phases.get("calibration", 0.0)) / (passes * one_pass),
        usage.ru_maxrss * 1024,
        size,
        table / size,
        int(stats["open_reads"]),
        int(stats["open_bytes"]),
    )


class Stopwatch(Reporter):
    """Takes the time of phases; tells on standard error what a build says."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def say(self, text: str) -> None:
        """See `Reporter`."""
        print(text, file=sys.stderr)

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
        """See `Reporter`."""
        start = time.perf_counter()
        yield lambda _: None
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        print(f"{name}: {time.perf_counter() - start:.1f} s", file=sys.stderr)


def build(settings: dict[str, Any]) -> None:
    """Build, and print the seconds of its phases."""
    watch = Stopwatch()
    tolpack.build(**settings, reporter=watch)
    print(json.dumps(watch.seconds))


@torch.inference_mode()
def ffn_seconds(arguments: argparse.Namespace) -> float:
    """Seconds of one pass of all FFNs over the vocabulary, timed on some of its tokens."""
    tokens = min(arguments.pass_tokens, arguments.vocab)
    dtype = getattr(torch, arguments.compute)
    x = torch.randn(tokens, HIDDEN).to(dtype)
    shapes = [(INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)]
    gate, up, down = (torch.randn(shape).to(dtype) for shape in shapes)
    start = time.perf_counter()
    for _ in range(arguments.layers):
        for block in torch.split(x, 2048):
            F.linear(F.silu(F.linear(block, gate)).mul_(F.linear(block, up)), down)
    return float((time.perf_counter() - start) * arguments.vocab / tokens)


def make_checkpoint(folder: Path, vocab: int, layers: int) -> None:
    """Write a folder of bfloat16 shards with their index and config."""
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for number, shard in enumerate(shards(vocab, layers)):
        name = f"model-{number + 1:05}.safetensors"
        save_file(shard, folder / name)
        weight_map.update(dict.fromkeys(shard, name))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "model_type": "memoryllm", "vocab_size": vocab, "hidden_size": HIDDEN,
        "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "memory_intermediate_size": INNER, "norm": "rmsnorm", "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "rope_theta": 500000.0, "rope_interleaved": False,
        "max_position_embeddings": 2048, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def shards(vocab: int, layers: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the tensors of each shard: the embedding, then one layer each."""
    source = torch.Generator().manual_seed(0)
    norm = torch.ones(HIDDEN, dtype=torch.bfloat16)
    embedding = matrix(vocab, HIDDEN, DECAY["embed"], source)
    yield {"model.embed_tokens.weight": embedding, "model.norm.weight": norm}
    for layer in range(layers):
        base = f"model.layers.{layer}"
        tensors = {f"{base}.{name}.weight": norm.clone() for name in
                   ("input_layernorm", "memory_layernorm")}  # fmt: skip
        for part in "qkvo":
            name = f"{base}.self_attn.{part}_proj.weight"
            tensors[name] = matrix(HIDDEN, HIDDEN, DECAY["attn"], source)
        for part, shape in zip(("gate", "up", "down"), [(INNER, HIDDEN)] * 2 + [(HIDDEN, INNER)]):
            name = f"{base}.memory_mlp.{part}_proj.weight"
            tensors[name] = matrix(*shape, DECAY["mlp"], source)
        yield tensors


def matrix(rows: int, columns: int, decay: float, source: torch.Generator) -> torch.Tensor:
    """Make a random bfloat16 matrix of RMS ``0.7 / √hidden`` with decaying singular values."""
    rank = min(rows, columns)
    values = torch.exp(-decay * torch.arange(rank) / rank)
    right = torch.randn(rank, columns, generator=source) * values[:, None]
    scale = 0.7 / HIDDEN**0.5 / float(right.square().sum(0).mean().sqrt())
    parts = [
        (torch.randn(min(8192, rows - start), rank, generator=source) @ right * scale).bfloat16()
        for start in range(0, rows, 8192)
    ]
    return torch.cat(parts)


if __name__ == "__main__":
    main()
