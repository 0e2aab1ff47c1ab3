"""Build and open a pack of 4·10⁸ rows: the shape of one Engram table of DeepSeek-V4.1.

384,006,168 rows of 256 fp8 values with an E8M0 scale for each 32, in a sparse file, so that the
table's 101 GB need no disk: what is measured is memory, not compression. Peak resident memory is
that of the build's process; the reads of opening are the library's own count.

    python benchmarks/many_rows.py FOLDER --json benchmarks/results/many_rows.json
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import described

import tolpack

ROWS, WIDTH, GROUP = 384_006_168, 256, 32
TENSOR = "layers.1.engram.embed.weight"


def main() -> None:
    """Make the sparse table, build its pack, and look rows up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--max-memory", default="1GB")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    table, pack = arguments.folder / "model.safetensors", arguments.folder / "model.tolpack"
    make_table(table, arguments.rows)
    command = [
        sys.executable, "-m", "tolpack.cli", "build", str(table), "-o", str(pack), "--force",
        "--tensor", TENSOR, "--bits", "lossless", "--max-memory", arguments.max_memory,
    ]  # fmt: skip
    start = time.perf_counter()
    subprocess.run(command, check=True)
    took = time.perf_counter() - start
    found: dict[str, Any] = {
        **described("numpy", "zstandard"), "rows": arguments.rows,
        "bytes_of_the_table": arguments.rows * (WIDTH + WIDTH // GROUP),
        "max_memory": arguments.max_memory, "build_s": round(took),
        "build_peak_MB": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
        "pack_bytes": pack.stat().st_size, **open_pack(pack, arguments.rows),
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    table.unlink()
    pack.unlink()


def make_table(path: Path, rows: int) -> None:
    """Write a .safetensors whose data are a hole."""
    codes, scales = rows * WIDTH, rows * WIDTH // GROUP
    head = json.dumps({
        TENSOR: {"dtype": "F8_E4M3", "shape": [rows, WIDTH], "data_offsets": [0, codes]},
        TENSOR.replace("weight", "scale"): {
            "dtype": "F8_E8M0", "shape": [rows, WIDTH // GROUP],
            "data_offsets": [codes, codes + scales],
        },
    }).encode()  # fmt: skip
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + codes + scales)


def open_pack(path: Path, rows: int) -> dict[str, Any]:
    """Open the pack, look up 1,000 rows, and return reads, bytes, times and memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    with tolpack.open(path) as pack:
        opened, stats = time.perf_counter() - start, pack.stats()
        ids = np.random.default_rng(0).integers(0, rows, 1000)
        start = time.perf_counter()
        for row in ids.tolist():
            pack.rows([row])
        looked_up = (time.perf_counter() - start) / len(ids)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "open_reads": stats["open_reads"], "open_bytes": stats["open_bytes"],
        "open_ms": round(1e3 * opened, 2), "lookup_us": round(1e6 * looked_up, 1),
        "reader_MB_more": (after - before) // 1024,
    }  # fmt: skip


if __name__ == "__main__":
    main()
