"""Compare rows as models store them, raw and in ``zstd-planes`` frames: bytes, and time of lookups.

Tables of Gaussian numbers (standard deviation 0.02) in the shapes of known models, whose rows come
back bit for bit either way. Packs of one table are written first; then lookups of 1 and 16 random
rows go through all of them in turn, from the page cache. Bytes are those of blocks, checksums and
index; ``bound_pct`` is what an ideal coder would save that knows the frequencies of the bytes of
each plane and nothing else.

    python benchmarks/lossless_frames.py --json result.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import described

import tolpack
from tolpack.codecs import kernels
from tolpack.codecs.byte_planes import split_planes
from tolpack.codecs.encodings import Encoding, Part, record_words
from tolpack.codecs.float8 import E4M3_VALUES
from tolpack.codecs.record import record_layout
from tolpack.compress.fixed.encoding_choice import raw_encoding
from tolpack.container.blocks import encode_blocks
from tolpack.container.header import Chunk, Field, Header, Table
from tolpack.container.writer import PackWriter

# Name: codec, width, fields.
TABLES = {
    "n-grams, bf16, 160": ("bf16", 160, 1),
    "n-grams, fp8 with E8M0, 256": ("f8e4m3-e8m0", 256, 1),
    "PLE, bf16, 35 layers of 256": ("bf16", 256, 35),
    "embeddings, fp16, 2048": ("f16", 2048, 1),
    "STEM, bf16, 8960": ("bf16", 8960, 1),
}
BLOCK_BYTES = (4096, 8192, 16384, 65536)
COUNTS = (1, 16)


def main() -> None:
    """Write packs, time lookups, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/bench-lossless"))
    parser.add_argument("--megabytes", type=int, default=64, help="of each table")
    parser.add_argument("--lookups", type=int, default=300)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    kernels.load()
    found = {}
    for name, table in TABLES.items():
        found[name] = compare(arguments.folder, *table, arguments.megabytes, arguments.lookups)
        print(name, f"{found[name]['bound_pct']:.1f} % at best")
        for side, one in found[name]["sides"].items():
            print(f"  {side:<24}", {key: round(value, 2) for key, value in one.items()})
    if arguments.json:
        settings = {"megabytes": arguments.megabytes, "lookups": arguments.lookups}
        result = {**described("numpy", "zstandard"), **settings, "tables": found}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def compare(
    folder: Path, codec: str, width: int, fields: int, megabytes: int, lookups: int
) -> dict[str, Any]:
    """Write a table raw and in frames, and time lookups of each."""
    parts = ((Part(codec, width, 32 if codec == "f8e4m3-e8m0" else None),),) * fields
    layout, words = record_layout(parts), record_words(parts)
    rows = (megabytes << 20) // layout.record_bytes
    records = gaussian_records(parts, rows)
    sides = {"raw": raw_encoding(parts)}
    for size in BLOCK_BYTES:
        each = max(1, round(size / layout.record_bytes))
        encoding = Encoding("zstd-planes", each, parts)
        if encoding not in sides.values():  # a row may be larger than several of the sizes
            sides[f"planes, {each} row{'s' if each > 1 else ''} a block"] = encoding
    result = {side: write(folder / side, encoding, records) for side, encoding in sides.items()}
    for one in result.values():
        one["saved_pct"] = 100 * (1 - one["bytes"] / result["raw"]["bytes"])
    for count in COUNTS:
        for side, microseconds in times(folder, list(sides), rows, count, lookups).items():
            result[side][f"us_{count}_rows"] = microseconds
    planes = split_planes(records[: 1 + (8 << 20) // layout.record_bytes].tobytes(), words)
    sizes = [len(plane) for plane in planes]
    bound = float(np.average([entropy(plane) for plane in planes], weights=sizes))
    facts = {"rows": rows, "record_bytes": layout.record_bytes}
    return {**facts, "bound_pct": 100 * (1 - bound / 8), "sides": result}


def gaussian_records(parts: tuple[tuple[Part, ...], ...], rows: int) -> np.ndarray:
    """Records of random numbers; those of fp8 with the scale that just holds a group's largest."""
    source, layout = np.random.default_rng(0), record_layout(parts)
    records = np.zeros((rows, layout.record_bytes), np.uint8)
    for kept, (part,) in enumerate(parts):
        for start in range(0, rows, 4096):
            own = records[start : start + 4096]
            values = source.normal(0, 0.02, (len(own), part.values)).astype(np.float32)
            if part.codec.startswith("f8"):
                layout.place(own, kept, *to_fp8(values, int(part.group_size or 1)))
            else:
                layout.encode(own, kept, values)
    return records


def to_fp8(values: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales (E8M0) and codes (E4M3, the nearest) of numbers."""
    groups = values.reshape(len(values), -1, group)
    exponent = np.ceil(np.log2(np.abs(groups).max(axis=2) / 448))
    scaled = groups / np.exp2(exponent)[:, :, None]
    grid = E4M3_VALUES[:127]
    codes = np.searchsorted((grid[1:] + grid[:-1]) / 2, np.abs(scaled)).astype(np.uint8)
    codes |= np.signbit(scaled).astype(np.uint8) << 7
    return (exponent + 127).astype(np.uint8), codes.reshape(len(values), -1)


def write(path: Path, encoding: Encoding, records: np.ndarray) -> dict[str, float]:
    """Write a pack, and return the bytes of its rows and how fast they were encoded."""
    parts, begin = [field[0] for field in encoding.fields], time.perf_counter()
    blocks = [list(encode_blocks([records], encoding, 0, int.from_bytes(b"benchmar", "little")))]
    seconds = time.perf_counter() - begin
    with PackWriter(path, b"benchmark", 1 << 16) as writer:
        data, index = writer.add_chunk(encoding, 0, lambda: blocks[0])
        fields = [Field(f"layer.{n}", n, part.values) for n, part in enumerate(parts)]
        table = Table("t", len(records), tuple(fields), (Chunk(len(records), 0, data, index),))
        writer.commit(Header((table,), (encoding,), tuple(writer.sections), "benchmark"))
        size = sum(section.length_bytes for section in writer.sections)
    return {"bytes": size, "mb_per_s": records.size / seconds / 1e6}


def times(folder: Path, sides: list[str], rows: int, count: int, lookups: int) -> dict[str, float]:
    """Median microseconds of lookups of `count` random rows, the sides in turn; rows are equal."""
    source = np.random.default_rng(count)
    found: dict[str, list[float]] = {side: [] for side in sides}
    packs = {side: tolpack.open(folder / side, io="pread") for side in sides}
    for number in range(lookups + 20):
        ids, first = source.integers(0, rows, count), None
        for side, pack in packs.items():
            begin = time.perf_counter()
            got = pack.rows(ids)
            if number >= 20:
                found[side].append(1e6 * (time.perf_counter() - begin))
            first = got if first is None else first
            if got.tobytes() != first.tobytes():
                raise SystemExit(f"{side}: other rows")
    for pack in packs.values():
        pack.close()
    return {side: statistics.median(one) for side, one in found.items()}


def entropy(plane: bytes) -> float:
    """Bits of a byte."""
    share = np.bincount(np.frombuffer(plane, np.uint8), minlength=256) / len(plane)
    return -float((share[share > 0] * np.log2(share[share > 0])).sum())


if __name__ == "__main__":
    main()
