"""Compare a whole decoder with FFNs and with a pack: milliseconds per token, resident memory.

The paper's 1B shape (24 layers, hidden 2048, FFN 5464, vocabulary 50,304; Table 6 of arXiv
2602.00398 is the pattern) with random bfloat16 weights, batch 1, after a context of 128 tokens.
Each side runs in a process of its own, several times in turn, and reports its median time and its
resident memory (anonymous and file pages).

    python benchmarks/decode_loop.py --json result.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import described
from random_packs import make_pack
from torch.nn import functional as F

import tolpack
from tolpack.torch import ToLMemory

LAYERS, HIDDEN, INTERMEDIATE, HEADS, VOCAB, CONTEXT = 24, 2048, 5464, 16, 50304, 128
SIDES = ("ffn", "pack")
Memory = Callable[[int, torch.Tensor], torch.Tensor]


def main() -> None:
    """Run the sides in turn, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/bench-decode"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--side", choices=SIDES, help="run one side here, and print its result")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "1b-int4.tolpack"
    if arguments.side:
        print(json.dumps(run(arguments.side, path, arguments.tokens)))
        return
    if not path.exists():
        make_pack(path, LAYERS, HIDDEN, VOCAB, "raw")
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(arguments.rounds):
        for side in SIDES:
            found[side].append(in_process(side, arguments))
            print(side, found[side][-1], flush=True)
    median = {
        side: {key: statistics.median(one[key] for one in runs) for key in runs[0]}
        for side, runs in found.items()
    }
    ratios = {key: median["ffn"][key] / median["pack"][key] for key in median["ffn"]}
    print("times less with the pack:", {key: round(value, 2) for key, value in ratios.items()})
    if arguments.json:
        result = {**described("torch"), "threads": torch.get_num_threads(), **median,
                  "ratios": ratios}  # fmt: skip
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def in_process(side: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Run one side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--tokens", str(arguments.tokens),
               "--folder", str(arguments.folder)]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def run(side: str, path: Path, tokens: int) -> dict[str, float]:
    """Decode, and return milliseconds per token and resident bytes."""
    with torch.inference_mode():
        if side == "pack":
            with tolpack.open(path) as pack:
                return decode(Decoder(ToLMemory(pack, torch.bfloat16)), tokens)
        decoder = Decoder(None)
        decoder.memory = ffn_memory(decoder.embedding)
        return decode(decoder, tokens)


def decode(decoder: Decoder, tokens: int) -> dict[str, float]:
    """Decode `tokens` after the context, and time each."""
    source = torch.Generator().manual_seed(0)
    decoder.step(torch.randint(VOCAB, (CONTEXT,), generator=source))
    times = []
    for number in range(tokens + 5):
        begin = time.perf_counter()
        logits = decoder.step(torch.randint(VOCAB, (1,), generator=source))
        logits[-1].argmax()
        if number >= 5:
            times.append(time.perf_counter() - begin)
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    resident = sum(1024 * int(fields[name].split()[0]) for name in ("RssAnon", "RssFile"))
    return {"ms_per_token": 1e3 * statistics.median(times), "resident_bytes": resident}


def weight(*shape: int) -> torch.Tensor:
    """Random bfloat16 weights."""
    return torch.empty(*shape, dtype=torch.bfloat16).normal_(0, 0.02)


class Decoder:
    """A MemoryLLM decoder in bfloat16 with a key–value cache."""

    def __init__(self, memory: Memory | None) -> None:
        self.memory = memory
        self.embedding, self.head = weight(VOCAB, HIDDEN), weight(VOCAB, HIDDEN)
        self.layers = [(weight(3 * HIDDEN, HIDDEN), weight(HIDDEN, HIDDEN)) for _ in range(LAYERS)]
        self.cache: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * LAYERS

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits (ids, vocabulary) of new tokens `ids`."""
        x = self.embedding[ids]
        for layer, (qkv, out) in enumerate(self.layers):
            x = x + self.attention(layer, F.rms_norm(x, (HIDDEN,)) @ qkv.T) @ out.T
            if self.memory is not None:
                x = x + self.memory(layer, ids)
        return F.rms_norm(x[-1:], (HIDDEN,)) @ self.head.T

    def attention(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """Causal attention over what was seen, (ids, hidden)."""
        q, k, v = (part.view(len(qkv), HEADS, -1).transpose(0, 1) for part in qkv.chunk(3, dim=1))
        past = self.cache[layer]
        if past is not None:
            k, v = torch.cat([past[0], k], dim=1), torch.cat([past[1], v], dim=1)
        self.cache[layer] = k, v
        y = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        return y.transpose(0, 1).reshape(len(qkv), HIDDEN)


def ffn_memory(embedding: torch.Tensor) -> Memory:
    """The FFNs that the pack replaces, computed."""
    weights = [
        (weight(INTERMEDIATE, HIDDEN), weight(INTERMEDIATE, HIDDEN), weight(HIDDEN, INTERMEDIATE))
        for _ in range(LAYERS)
    ]

    def memory(layer: int, ids: torch.Tensor) -> torch.Tensor:
        gate, up, down = weights[layer]
        x = F.rms_norm(embedding[ids], (HIDDEN,))
        return F.silu(x @ gate.T).mul_(x @ up.T) @ down.T

    return memory


if __name__ == "__main__":
    main()
