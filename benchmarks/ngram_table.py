"""Build and read packs of a synthetic n-gram table with the layout of Qwen4Exp's.

Makes a folder with the tensor names, shards and configuration of the model, and values of a normal
distribution in bfloat16. Then, in one run:

* the disk's sequential speed: the table read past the page cache, and a plain copy of it, synced;
* one pass of each codec in memory, which bounds a build, too;
* builds (``--bits lossless`` with and without frames, ``--bits 4``) in processes of their own, with
  their time and peak resident memory;
* lookups of one token's rows from packs: reads, bytes, and bytes of the file for each byte of the
  rows, against ``pread`` of the rows in the shards and ``np.memmap``.

    python benchmarks/ngram_table.py FOLDER --gigabytes 8 --json benchmarks/results/ngram_table.json
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import described

import tolpack
from tolpack.codecs.encodings import Encoding
from tolpack.codecs.record import record_layout
from tolpack.compress.fixed.encoding_choice import field_encoding
from tolpack.compress.lossless.planner import lossless_encodings
from tolpack.container.blocks import encode_blocks
from tolpack.ngrams import qwen4_exp_hash
from tolpack.runtime.array_types import Bytes, Floats
from tolpack.sources.open_source import open_source

WIDTH, HEADS, SHARDS = 160, 16, 16
VOCAB, EOS = 248_320, 248_044
PREFIX = "model.language_model.layers.1.ple.ple_embedding.ngram_embedding"
SETTINGS = {
    "lossless": ("--bits", "lossless"),
    "lossless raw": ("--bits", "lossless", "--compression", "none"),
    "4 bits": ("--bits", "4"),
}
TOKENS = 200


def main() -> None:
    """Make the table, build packs, and read them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--max-memory", default="1GB")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    folder = arguments.folder
    rows = make_folder(folder, arguments.gigabytes)
    nbytes = 2 * WIDTH * rows
    found: dict[str, Any] = {**described("numpy", "zstandard"), "rows": rows, "bytes": nbytes}
    found["GB_per_s"] = bounds(folder)
    found["builds"] = {}
    for name, options in SETTINGS.items():
        pack = folder / f"{name.replace(' ', '-')}.tolpack"
        found["builds"][name] = build(folder, pack, options, arguments.max_memory, nbytes)
        found["builds"][name]["lookup"] = look_up(pack)
        pack.unlink()
        print(name, json.dumps(found["builds"][name]), flush=True)
    found["lookups_of_the_shards"] = raw_lookups(folder)
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def make_folder(folder: Path, gigabytes: float) -> int:
    """Write config.json and the shards, unless they are there; return the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    base = int(gigabytes * 1e9 / (2 * WIDTH * HEADS))
    ngrams = qwen4_exp_hash(vocab_size=VOCAB, eos_token_id=EOS, ngram_vocab_size_base=base)
    rows = -(-ngrams.table_rows // 128) * 128
    config = {
        "model_type": "qwen4_exp",
        "text_config": {
            "model_type": "qwen4_exp_text", "vocab_size": VOCAB, "eos_token_id": EOS,
            "hidden_size": 2560, "ple_embed_dim": WIDTH * HEADS, "ple_layer_ids": [2],
            "ngram_vocab_size_base": base, "split_ngram_parts": SHARDS,
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    sizes = [len(part) for part in np.array_split(np.arange(rows, dtype=np.int8), SHARDS)]
    for number, size in enumerate(sizes):
        path = folder / f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        head = {f"{PREFIX}.shard_{number}.weight": {
            "dtype": "BF16", "shape": [size, WIDTH], "data_offsets": [0, 2 * WIDTH * size],
        }}  # fmt: skip
        if not path.exists():
            write_shard(path, json.dumps(head).encode(), size, number)
    return rows


def write_shard(path: Path, head: bytes, rows: int, seed: int) -> None:
    """Write a shard of random rows, synced."""
    source = np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for start in range(0, rows, 1 << 18):
            count = min(1 << 18, rows - start)
            values = source.standard_normal((count, WIDTH), np.float32) * np.float32(0.02)
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).data)
        file.flush()
        os.fsync(file.fileno())


def bounds(folder: Path) -> dict[str, float]:
    """Return what bounds a build, in GB of the table a second."""
    shards = sorted(folder.glob("*.safetensors"))
    size, copy = sum(shard.stat().st_size for shard in shards), folder / "copy"
    buffer = mmap.mmap(-1, 16 << 20)

    def read() -> None:
        for shard in shards:
            drop_cache(shard)
            with shard.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    def copy_all() -> None:
        for shard in shards:
            drop_cache(shard)
        with copy.open("wb", buffering=0) as out:
            for shard in shards:
                with shard.open("rb", buffering=0) as file:
                    while count := file.readinto(buffer):
                        out.write(memoryview(buffer)[:count])
            os.fsync(out.fileno())

    # The whole table once, as a part of it fits into the page cache.
    rates = {
        "read": size / seconds(read, 1) / 1e9,
        "copy to disk": size / seconds(copy_all, 1) / 1e9,
    }
    copy.unlink()
    rates |= codec_rates(folder)
    return {name: round(rate, 3) for name, rate in rates.items()}


def codec_rates(folder: Path) -> dict[str, float]:
    """Return what one pass of each codec in memory takes on two threads, in GB of rows a second."""
    table = open_source(folder)
    raw, planes = lossless_encodings(table.fields)
    int4 = field_encoding(WIDTH, 4, "bf16")
    pieces = [np.arange(start, start + 4096) for start in range(0, 1 << 18, 4096)]
    codes = [table.stored_rows(0)(ids)[1] for ids in pieces]
    values = [table.field_rows(0)(ids) for ids in pieces]
    nbytes, layout = sum(one.nbytes for one in codes), record_layout((int4,))

    def blocks(encoding: Encoding, piece: Bytes) -> None:
        for _ in encode_blocks([piece], encoding, 0, 0):
            pass

    def quantize(piece: Floats) -> None:
        records = np.zeros((len(piece), layout.record_bytes), np.uint8)
        layout.encode(records, 0, piece)

    def rate(work: Callable[[Any], object], given: list[Any]) -> float:
        with ThreadPoolExecutor(2) as pool:
            return nbytes / seconds(lambda: list(pool.map(work, given))) / 1e9

    return {
        "memcpy": rate(lambda piece: piece.copy(), codes),
        "codec, raw blocks": rate(partial(blocks, raw), codes),
        "codec, planes": rate(partial(blocks, planes), codes),
        "codec, 4 bits": rate(quantize, values),
    }


def drop_cache(path: Path) -> None:
    """Let the page cache forget a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(run: Callable[[], object], repeat: int = 2) -> float:
    """Return the best time of some runs."""
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def build(
    folder: Path, pack: Path, options: tuple[str, ...], max_memory: str, nbytes: int
) -> dict[str, Any]:
    """Build a pack from a cold page cache, in a process of its own."""
    for shard in folder.glob("*.safetensors"):
        drop_cache(shard)
    command = [
        sys.executable, "-m", "tolpack.cli", "build", str(folder), "-o", str(pack), "--force",
        "--max-memory", max_memory, *options,
    ]  # fmt: skip
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    took = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    size = pack.stat().st_size
    return {
        "s": round(took, 1), "GB_per_s": round(nbytes / took / 1e9, 3), "bytes": size,
        "bits_per_value": round(16 * size / nbytes, 3), "peak_MB": round(peak),
    }  # fmt: skip


def look_up(path: Path) -> dict[str, Any]:
    """Look up the rows of single tokens, cold and warm."""
    found: dict[str, Any] = {}
    ids = np.random.default_rng(1).integers(0, VOCAB, TOKENS + 2)
    with tolpack.open(path, io="pread") as pack:  # compiled loops are loaded by many rows
        for _ in range(4):
            pack.rows(np.arange(1024))
    drop_cache(path)
    with tolpack.open(path, io="pread") as pack:
        opened = pack.stats()
        found["open_reads"], found["open_bytes"] = opened["open_reads"], opened["open_bytes"]
        rows = [pack.row_ids(ids[n : n + 3])[2] for n in range(TOKENS)]
        distinct = [len(np.unique(pack.extents(one), axis=0)) for one in rows]
        before = pack.stats()
        start = time.perf_counter()
        for one in rows:
            pack.rows(one)
        found["cold_ms"] = 1e3 * (time.perf_counter() - start) / TOKENS
        after = pack.stats()
        start = time.perf_counter()
        for one in rows:
            pack.rows(one)
        found["warm_ms"] = 1e3 * (time.perf_counter() - start) / TOKENS
    reads = int(after["block_reads"]) - int(before["block_reads"])
    size = int(after["block_bytes"]) - int(before["block_bytes"])
    found |= {
        "reads_per_token": reads / TOKENS, "distinct_extents_per_token": sum(distinct) / TOKENS,
        "bytes_per_token": size / TOKENS, "bytes_per_read": size / reads,
        "bytes_per_byte_of_a_row": size / (TOKENS * HEADS * 2 * WIDTH),
    }  # fmt: skip
    return {name: round(float(value), 3) for name, value in found.items()}


def raw_lookups(folder: Path) -> dict[str, Any]:
    """Read the same rows from the shards with pread and with np.memmap, cold."""
    shards = sorted(folder.glob("*.safetensors"))
    table = open_source(folder)
    assert table.ngrams is not None
    ids = np.random.default_rng(1).integers(0, VOCAB, TOKENS + 2)
    rows = [table.ngrams.rows(ids[n : n + 3])[2] for n in range(TOKENS)]
    heads = [int.from_bytes(shard.open("rb").read(8), "little") + 8 for shard in shards]
    starts = np.cumsum([0, *((s.stat().st_size - h) // (2 * WIDTH) for s, h in zip(shards, heads))])
    found: dict[str, Any] = {}
    for name in ("pread", "np.memmap"):
        for shard in shards:
            drop_cache(shard)
        if name == "pread":
            files = [os.open(shard, os.O_RDONLY) for shard in shards]

            def take(part: int, row: int, files: list[int] = files) -> bytes:
                return os.pread(files[part], 2 * WIDTH, heads[part] + 2 * WIDTH * row)
        else:
            maps = [
                np.memmap(shard, np.uint16, "r", head, (int(stop - start), WIDTH))
                for shard, head, start, stop in zip(shards, heads, starts, starts[1:])
            ]

            def take(part: int, row: int, maps: list[Any] = maps) -> bytes:  # type: ignore[misc]
                return bytes(maps[part][row].tobytes())

        before, start = disk_bytes(), time.perf_counter()
        for one in rows:
            for row in one.tolist():
                part = int(np.searchsorted(starts, row, side="right")) - 1
                take(part, row - int(starts[part]))
        took = time.perf_counter() - start
        read = (disk_bytes() - before) / (TOKENS * HEADS * 2 * WIDTH)
        found[name] = {"cold_ms": round(1e3 * took / TOKENS, 3),
                       "disk_bytes_per_byte_of_a_row": round(read, 1)}  # fmt: skip
    return found


def disk_bytes() -> int:
    """Return the bytes that this process had read from the disk."""
    text = Path("/proc/self/io").read_text(encoding="utf-8")
    return int(dict(line.split(": ") for line in text.splitlines())["read_bytes"])


if __name__ == "__main__":
    main()
