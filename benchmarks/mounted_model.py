"""A Gemma 3n with its table in memory against the same one with a 4-bit pack: memory and time.

Makes a folder for transformers with random weights: 16 layers whose per-layer embeddings take
``--gigabytes``, and a small rest, so that a lookup weighs as much as it can. Then:

* processes of their own load it, as transformers does and by `tolpack.hf.load`, and tell their
  resident memory: after loading, and after each row was looked up once. Transformers maps files
  whose dtype it keeps, so that rows become resident as they are read; the same is measured with
  the dtype float16, to which it converts them at once;
* one process loads both, and decodes random tokens with the one and the other in turns, at batch 1
  and 16: with the pack in the page cache, and with its pages dropped before every step. The tables'
  own modules are timed beside it.

    python benchmarks/mounted_model.py FOLDER --json benchmarks/results/mounted_model.json

FOLDER must not exist; it is removed in the end. It takes 1.3 × ``--gigabytes`` of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from machine import described
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Gemma3nForCausalLM, Gemma3nTextConfig

import tolpack
import tolpack.hf

LAYERS, WIDTH, HIDDEN = 16, 256, 256
TABLE = "model.embed_tokens_per_layer.weight"
# Rows that are made at random; the table repeats them.
BLOCK_ROWS = 4096
PROMPT, STEPS, WARM_UP = 8, 60, 10
# As stored, and converted.
DTYPES = ("bfloat16", "float16")


def main() -> None:
    """Make the model and its pack, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=2.15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--resident", nargs=2, metavar=("KIND", "DTYPE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if arguments.resident:
        print(json.dumps(resident(arguments.folder, *arguments.resident)))
        return
    arguments.folder.mkdir()
    try:
        found = measure(arguments.folder, arguments.gigabytes)
    finally:
        shutil.rmtree(arguments.folder)
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def measure(folder: Path, gigabytes: float) -> dict[str, Any]:
    """Return all results for a table of that size."""
    rows = round(gigabytes * 1e9 / (2 * LAYERS * WIDTH) / BLOCK_ROWS) * BLOCK_ROWS
    table_bytes = 2 * LAYERS * WIDTH * rows
    make_model(folder / "model", rows)
    start = time.perf_counter()
    built = tolpack.build(folder / "model", folder / "ple.tolpack", bits=4, max_memory="2GB")
    found: dict[str, Any] = {
        **described("torch", "transformers"), "rows": rows, "table_bytes": table_bytes,
        "pack_bytes": Path(built.path).stat().st_size,
        "build_s": round(time.perf_counter() - start, 1), "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    found["memory"] = {dtype: memory(folder, dtype, table_bytes) for dtype in DTYPES}
    print(json.dumps(found["memory"]), flush=True)
    found["decoding"] = decoding(folder, rows)
    return found


def make_model(folder: Path, rows: int) -> None:
    """Write a folder with random weights, without holding the table."""
    config = Gemma3nTextConfig(
        vocab_size=rows, vocab_size_per_layer_input=rows, hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN, hidden_size_per_layer_input=WIDTH, num_hidden_layers=LAYERS,
        num_kv_shared_layers=4, num_attention_heads=4, num_key_value_heads=1, head_dim=64,
        laurel_rank=32, activation_sparsity_pattern=[0.0] * LAYERS, dtype="bfloat16",
    )  # fmt: skip
    config.architectures = ["Gemma3nForCausalLM"]
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = Gemma3nForCausalLM(config)
    source = torch.Generator().manual_seed(0)
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    tensors = {
        name: (torch.randn(shape, generator=source) / 20).to(torch.bfloat16)
        for name, shape in shapes.items()
        if name != TABLE
    }
    files = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    save_file(tensors, folder / files[0], metadata={"format": "pt"})
    write_table(folder / files[1], rows, source)
    weight_map = dict.fromkeys(tensors, files[0]) | {TABLE: files[1]}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_table(path: Path, rows: int, source: torch.Generator) -> None:
    """Write the table as a file of safetensors, block by block."""
    width = LAYERS * WIDTH
    block = (torch.randn(BLOCK_ROWS, width, generator=source) / 16).to(torch.bfloat16)
    data = block.view(torch.uint8).numpy().tobytes()
    entry = {"dtype": "BF16", "shape": [rows, width], "data_offsets": [0, 2 * rows * width]}
    header = json.dumps({"__metadata__": {"format": "pt"}, TABLE: entry}).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(rows // BLOCK_ROWS):
            file.write(data)


def load(folder: Path, kind: str, dtype: str = "auto") -> Any:
    """Load the model with its table in memory, or with the pack."""
    if kind == "table":
        return AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype)
    return tolpack.hf.load(folder / "model", folder / "ple.tolpack", dtype=dtype)[0]


def memory(folder: Path, dtype: str, table_bytes: int) -> dict[str, Any]:
    """Return the resident bytes of both, and which share of the table the pack saves."""
    found: dict[str, Any] = {}
    for kind in ("table", "pack"):
        command = [sys.executable, __file__, str(folder), "--resident", kind, dtype]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[kind] = json.loads(done.stdout.splitlines()[-1])
    for when in found["table"]:
        saved = found["table"][when] - found["pack"][when]
        found[f"saved_share_{when}"] = round(saved / table_bytes, 4)
    return found


def resident(folder: Path, kind: str, dtype: str) -> dict[str, int]:
    """Return this process's resident bytes after loading, and after reading every row."""
    decoder = Decoder(load(folder, kind, dtype), 1)
    for ids in random_ids(decoder.rows, 1, WARM_UP):
        decoder.step(ids)
    found = {"loaded": status("VmRSS")}
    with torch.inference_mode():
        for start in range(0, decoder.rows, 128):
            decoder.table(torch.arange(start, start + 128))
    return found | {"every_row": status("VmRSS"), "peak": status("VmHWM")}


def status(name: str) -> int:
    """Return a number of bytes that Linux tells of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[name].split()[0]) * 1024


class Decoder:
    """Decodes one token of each sequence of a batch at a time."""

    def __init__(self, model: Any, batch: int) -> None:
        self.model, self.rows = model, model.config.vocab_size
        self.table = model.model.embed_tokens_per_layer
        (prompt,) = random_ids(self.rows, batch, 1, PROMPT)
        with torch.inference_mode():
            self._cache = model(prompt, use_cache=True).cache

    def step(self, ids: torch.Tensor) -> None:
        """Decode ids (batch, 1)."""
        with torch.inference_mode():
            self.model(ids, cache=self._cache, use_cache=True)


def random_ids(rows: int, batch: int, count: int, length: int = 1) -> list[torch.Tensor]:
    """Return ids (batch, length), `count` times."""
    source = np.random.default_rng([rows, batch, count, length])
    return list(torch.from_numpy(source.integers(0, rows, (count, batch, length))))


def decoding(folder: Path, rows: int) -> dict[str, Any]:
    """Return milliseconds a token with both, step by step in turns."""
    models = {kind: load(folder, kind) for kind in ("table", "pack")}
    pack, found = folder / "ple.tolpack", dict[str, Any]()
    for batch in (1, 16):
        pack.read_bytes()  # into the page cache
        hot = in_turns({kind: Decoder(model, batch) for kind, model in models.items()}, batch)
        decoders = {"pack": Decoder(models["pack"], batch)}
        cold = in_turns(decoders, batch, lambda: drop_pages(pack))
        steps = {"table": hot["step"]["table"], "pack": hot["step"]["pack"]}
        ratio = float(np.median(np.array(steps["pack"]) / np.array(steps["table"])))
        more = np.median(hot["lookup"]["pack"]) - np.median(hot["lookup"]["table"])
        found[f"batch {batch}"] = {
            "table_ms": milliseconds(steps["table"]),
            "pack_ms": milliseconds(steps["pack"]),
            "slower_pct": round(100 * (ratio - 1), 2),
            # What the lookups alone account for: other work on the machine blurs whole steps.
            "slower_by_lookups_pct": round(100 * float(more / np.median(steps["table"])), 3),
            "pack_cold_ms": milliseconds(cold["step"]["pack"]),
            "lookup_table_ms": milliseconds(hot["lookup"]["table"]),
            "lookup_pack_ms": milliseconds(hot["lookup"]["pack"]),
            "lookup_pack_cold_ms": milliseconds(cold["lookup"]["pack"]),
        }
        print(batch, json.dumps(found[f"batch {batch}"]), flush=True)
    return found


def in_turns(
    decoders: dict[str, Decoder], batch: int, before: Callable[[], None] = lambda: None
) -> dict[str, dict[str, list[float]]]:
    """Return seconds of steps and of lookups alone, by decoder; `before` is called before each."""
    rows = next(iter(decoders.values())).rows
    work: dict[str, dict[str, Callable[[torch.Tensor], Any]]] = {
        "step": {kind: one.step for kind, one in decoders.items()},
        "lookup": {kind: one.table for kind, one in decoders.items()},
    }
    found: dict[str, dict[str, list[float]]] = {}
    for what, functions in work.items():
        seconds = found[what] = {kind: [] for kind in functions}
        for number, ids in enumerate(random_ids(rows, batch, WARM_UP + STEPS)):
            # Each goes first in every other step: the second finds the shared weights in the cache.
            order = list(functions.items())[:: 1 if number % 2 else -1]
            for kind, function in order:
                before()
                start = time.perf_counter()
                with torch.inference_mode():
                    function(ids)
                if number >= WARM_UP:
                    seconds[kind].append(time.perf_counter() - start)
    return found


def drop_pages(path: Path) -> None:
    """Have the system forget what it holds of a file."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def milliseconds(seconds: list[float]) -> float:
    """Return the median."""
    return round(1e3 * float(np.median(seconds)), 4)


if __name__ == "__main__":
    main()
