"""Time lookups of packs and of the alternatives without tolpack, in one run.

A row has 24 × 2048 random values, and a table has 8,192 tokens. Lookups are of distinct random
tokens. Warm lookups read files that are in the page cache, opened, and looked up before. Cold
lookups read files whose pages were dropped before each lookup and checked with mincore; header,
token map and bases are in memory. The sides of a comparison take turns.

    python benchmarks/serve.py --json result.json

``lmdb``, ``h5py``, ``safetensors`` and ``gguf`` are used if they are installed.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import described
from random_packs import drop, make_pack

import tolpack
from tolpack.torch import ToLMemory

LAYERS, HIDDEN, VOCAB, INTERMEDIATE = 24, 2048, 8192, 5464
PACKS = {
    "int4": ("raw", None),
    "runs": ("zstd-runs", None),
    "models": ("ans", None),
    "rank1024": ("raw", 1024),
}
Lookup = Callable[[np.ndarray], object]


def main() -> None:
    """Make the files, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/bench-serve"))
    parser.add_argument("--only", default="", help="a part of the names of the sections wanted")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    files = make_files(arguments.folder)
    result: dict[str, object] = described("numpy", "torch", "zstandard")
    result["threads"] = torch.get_num_threads()
    sections = {"warm": warm, "cold": cold, "memory": memory}
    for name, section in sections.items():
        if arguments.only in name:
            result[name] = section(files, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def make_files(folder: Path) -> dict[str, Path]:
    """Packs and the FP16 table, made once."""
    files = {name: folder / f"{name}.tolpack" for name in PACKS}
    for name, (frame, rank) in PACKS.items():
        if not files[name].exists():
            make_pack(files[name], LAYERS, HIDDEN, VOCAB, frame, rank)
    files["fp16"] = folder / "table.fp16"
    if not files["fp16"].exists():
        source = np.random.default_rng(1)
        with open(files["fp16"], "wb") as file:
            for _ in range(0, VOCAB, 512):
                values = source.standard_normal((512, LAYERS, HIDDEN), np.float32)
                file.write(values.astype(np.float16).tobytes())
    os.sync()
    return files


# ---- warm ----------------------------------------------------------------------------------------


def warm(files: dict[str, Path], rounds: int) -> list[dict[str, object]]:
    """Median milliseconds of one row and of 512, and times faster than its baseline."""
    sides: dict[str, Lookup] = dict(peers(files))
    for path in files["fp16"].parent.iterdir():
        with open(path, "rb") as file:  # into the page cache
            while file.read(1 << 24):
                pass
    packs = {name: tolpack.open(files[name]) for name in PACKS}
    sides["tolpack 4 bits"] = packs["int4"].rows
    sides["tolpack zstd-runs"] = packs["runs"].rows
    sides["tolpack coded by models"] = packs["models"].rows
    for name, dtype in (("int4", torch.bfloat16), ("models", torch.bfloat16)):
        sides[f"ToLMemory {name}, bf16"] = step_of(ToLMemory(packs[name], dtype))
    sides["ToLMemory rank 1024, bf16"] = step_of(ToLMemory(packs["rank1024"], torch.bfloat16))
    sides["FFNs in bf16"] = ffns()
    found = []
    for count, in_a_row in ((1, 10), (1, 1), (512, 1)):
        times = take_turns(sides, count, in_a_row, 40 if in_a_row < 10 > count else rounds)
        for name, ms in times.items():
            row: dict[str, object] = {"side": name, "rows": count, "in_a_row": in_a_row, "ms": ms}
            for baseline in ("np.memmap FP16", "FFNs in bf16"):
                row[f"× {baseline}"] = times[baseline] / ms
            found.append(row)
            print(
                f"{name:28} {count:4} rows, {in_a_row:2} in a row {ms:10.3f} ms"
                f"  × {row['× np.memmap FP16']:8.2f} memmap  × {row['× FFNs in bf16']:8.1f} FFNs",
                flush=True,
            )
    return found


def take_turns(
    sides: dict[str, Lookup], count: int, in_a_row: int, rounds: int
) -> dict[str, float]:
    """Median milliseconds of each side for `count` distinct rows, the same ids for all.

    A side has `in_a_row` lookups in its turn. With one, what the others did stands between it and
    its last one, and the core's caches are theirs.
    """
    source = np.random.default_rng(count)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 2):
        turns = [source.choice(VOCAB, count, replace=False) for _ in range(in_a_row)]
        for name in source.permutation(list(sides)).tolist():
            lookup = sides[name]
            for ids in turns[:1] if name == "FFNs in bf16" else turns:
                begin = time.perf_counter()
                kept = lookup(ids)
                if number > 1:  # the first warm up
                    times[name].append(time.perf_counter() - begin)
                del kept
    return {name: 1e3 * statistics.median(one) for name, one in times.items()}


def peers(files: dict[str, Path]) -> Iterator[tuple[str, Lookup]]:
    """What one would use without tolpack, FP16 rows to float32."""
    shape = (VOCAB, LAYERS, HIDDEN)
    table = np.memmap(files["fp16"], np.float16, "r", shape=shape)
    np.add.reduce(table.reshape(-1)[::2048], dtype=np.float32)  # every page is in memory
    yield "np.memmap FP16", lambda ids: table[ids].astype(np.float32)
    folder = files["fp16"].parent
    try:
        from safetensors import safe_open
        from safetensors.numpy import save_file

        path = folder / "table.safetensors"
        if not path.exists():
            save_file({"tol": np.asarray(table)}, str(path))
        opened: Any = safe_open(str(path), "np")
        view = opened.__enter__().get_slice("tol")
        yield (
            "safetensors slices",
            lambda ids: np.stack([view[int(n)] for n in ids]).astype(np.float32),
        )
    except ImportError:
        pass
    try:
        import h5py

        path = folder / "table.h5"
        if not path.exists():
            with h5py.File(path, "w") as file:
                file.create_dataset("tol", data=table, chunks=(1, LAYERS, HIDDEN))
        dataset = h5py.File(path)["tol"]
        yield "h5py, one row a chunk", lambda ids: dataset[np.sort(ids)].astype(np.float32)
    except ImportError:
        pass
    try:
        import lmdb

        path = folder / "table.lmdb"
        new = not path.exists()
        env = lmdb.open(str(path), map_size=1 << 31, subdir=False, readahead=False)
        if new:
            with env.begin(write=True) as writing:
                for n in range(VOCAB):
                    writing.put(n.to_bytes(4, "big"), table[n].tobytes())
        reading = env.begin(buffers=True)

        def from_lmdb(ids: np.ndarray) -> np.ndarray:
            stored = [reading.get(int(n).to_bytes(4, "big")) or b"" for n in ids]
            blobs = [np.frombuffer(one, np.float16) for one in stored]
            return np.stack(blobs).astype(np.float32)

        yield "LMDB blobs", from_lmdb
    except ImportError:
        pass
    try:
        import gguf

        kind = gguf.GGMLQuantizationType.Q4_0
        codes = gguf.quants.quantize(np.asarray(table[:1024], np.float32), kind)
        yield "GGUF Q4_0, gguf-py", lambda ids: gguf.quants.dequantize(codes[ids % 1024], kind)
    except ImportError:
        pass


def step_of(module: ToLMemory) -> Lookup:
    """A decode step: every layer's call, with the same ids."""

    def step(ids: np.ndarray) -> object:
        tokens = torch.from_numpy(ids)
        with torch.inference_mode():
            return [module(layer, tokens) for layer in range(LAYERS)]

    return step


def ffns() -> Lookup:
    """The gated FFNs that the table replaces."""
    source = torch.Generator().manual_seed(0)
    shapes = ((INTERMEDIATE, HIDDEN), (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE))
    weights = [
        [torch.randn(*shape, generator=source).mul_(0.02).bfloat16() for shape in shapes]
        for _ in range(LAYERS)
    ]
    embedding = torch.randn(VOCAB, HIDDEN, generator=source).bfloat16()

    def compute(ids: np.ndarray) -> object:
        with torch.inference_mode():
            x = embedding[torch.from_numpy(ids)]
            return [
                torch.nn.functional.silu(x @ gate.T).mul_(x @ up.T) @ down.T
                for gate, up, down in weights
            ]

    return compute


# ---- cold ----------------------------------------------------------------------------------------


def cold(files: dict[str, Path], rounds: int) -> list[dict[str, object]]:
    """Median milliseconds of 2,048 rows and of one, nothing in the page cache."""
    found: list[dict[str, object]] = []
    for name in ("int4", "models"):
        for count in (2048, 1):
            sides = cold_sides(files, name, count)
            times = cold_turns(sides, count, rounds if count > 1 else 6 * rounds)
            for side, ms in times.items():
                found.append({"pack": name, "side": side, "rows": count, "ms": ms})
                print(f"{name:8} {side:32} {count:4} cold rows {ms:10.3f} ms", flush=True)
    return found


def cold_sides(files: dict[str, Path], name: str, count: int) -> dict[str, Lookup]:
    """Lookups that drop what they read before; each returns its own seconds."""
    shape = (VOCAB, LAYERS, HIDDEN)

    def mapped(ids: np.ndarray) -> float:
        drop(files["fp16"])
        table = np.memmap(files["fp16"], np.float16, "r", shape=shape)
        begin = time.perf_counter()
        table[ids].astype(np.float32)
        return time.perf_counter() - begin

    array = np.zeros((count, LAYERS, HIDDEN), np.float32)

    def rows(io: str, *, fetch: bool, out: np.ndarray | None = None) -> Lookup:
        def lookup(ids: np.ndarray) -> float:
            with tolpack.open(files[name], io=io) as pack:
                pack.rows([0])  # the token map
                extents = [(int(o), int(n)) for o, n in pack.extents(np.arange(VOCAB))[ids]]
                drop(files[name])
                begin = time.perf_counter()
                if fetch:
                    pack.container.source.read_many(sorted(extents))
                else:
                    pack.rows(ids, out=out)
                return time.perf_counter() - begin

        return lookup

    def raw(threads: int) -> Lookup:
        def read(ids: np.ndarray) -> float:
            with tolpack.open(files[name]) as pack:
                extents = sorted((int(o), int(n)) for o, n in pack.extents(np.arange(VOCAB))[ids])
            fd = os.open(files[name], os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            drop(files[name])
            begin = time.perf_counter()

            def some(part: list[tuple[int, int]]) -> None:
                for offset, length in part:
                    os.pread(fd, length, offset)

            with ThreadPoolExecutor(threads) as pool:
                if threads == 1:
                    some(extents)
                else:
                    list(pool.map(some, [extents[n::threads] for n in range(threads)]))
                seconds = time.perf_counter() - begin
            os.close(fd)
            return seconds

        return read

    sides: dict[str, Lookup] = {"np.memmap FP16": mapped} if name == "int4" else {}
    for io in ("auto", "direct", "mmap"):
        sides[f"tolpack io={io}"] = rows(io, fetch=False)
    if count == 1:
        return {**sides, "one pread": raw(1)}
    sides["tolpack io=auto, into an array"] = rows("auto", fetch=False, out=array)
    for io in ("auto", "direct"):
        sides[f"fetching alone, io={io}"] = rows(io, fetch=True)
    return {**sides, **{f"pread, {n} threads": raw(n) for n in (1, 4, 16, 64)}}


def cold_turns(sides: dict[str, Lookup], count: int, rounds: int) -> dict[str, float]:
    """Median milliseconds that each side tells."""
    source = np.random.default_rng(count)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        ids = source.choice(VOCAB, count, replace=False)
        for name, lookup in sides.items():
            times[name].append(float(lookup(ids)))  # type: ignore[arg-type]
    return {name: 1e3 * statistics.median(one) for name, one in times.items()}


# ---- memory --------------------------------------------------------------------------------------


def memory(files: dict[str, Path], _: int) -> list[dict[str, object]]:
    """Growth of resident memory over a million Zipf lookups, the cache a tenth of the file."""
    # A process each: memory that one had would be there for the next.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        modes = ("auto", "pread", "direct", "mmap")
        return pool.map(partial(growth_in, files["int4"]), modes, chunksize=1)


def growth_in(path: Path, io: str) -> dict[str, object]:
    """Growth in one mode."""
    budget = path.stat().st_size // 10
    source = np.random.default_rng(0)
    with tolpack.open(path, io=io, cache=budget) as pack:
        by_frequency = pack.most_frequent(VOCAB)
        out = np.empty((64, LAYERS, HIDDEN), np.float32)
        pack.rows(np.arange(64), out=out)
        gc.collect()
        before = resident_bytes()
        for _ in range(10**6 // 64 + 1):
            ranks = np.minimum(VOCAB ** source.random(64), VOCAB - 1).astype(int)  # P ∝ 1 / rank
            pack.rows(by_frequency[ranks], out=out)
        growth = resident_bytes() - before
        stats = pack.stats()
    hits = int(stats["cache_hits"]) / (int(stats["cache_hits"]) + int(stats["cache_misses"]))
    print(f"io={io:7} budget {budget:,} growth {growth:,} bytes, {hits:.1%} hits", flush=True)
    return {"io": io, "budget": budget, "growth": growth, "hits": hits}


def resident_bytes() -> int:
    """Anonymous and file pages of this process that are in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return sum(1024 * int(fields[name].split()[0]) for name in ("RssAnon", "RssFile"))


if __name__ == "__main__":
    main()
