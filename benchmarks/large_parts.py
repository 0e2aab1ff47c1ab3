"""Build 10⁸ rows in parts by two processes, open the parts, and look rows up.

The table is thin: 16 float16 values a row, 3.2 GB in a .npy whose values follow from the number of
the row, so that a lookup can be checked. Each step is a process of its own, whose peak of resident
memory is the system's count, the interpreter and numpy included. Opening reads one file, the
manifest; what the library counts as reads of preamble and header comes from it.

    python benchmarks/large_parts.py FOLDER --json benchmarks/results/large_parts.json
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import described
from numpy.typing import NDArray

import tolpack

ROWS, WIDTH = 100_000_000, 16
_ROWS_TOGETHER = 1 << 20


def main() -> None:
    """Make the table, build it in parts, and look rows up in another process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--step", choices=("make", "look-up"), help="What another process does.")
    arguments = parser.parse_args()
    table, parts = arguments.folder / "table.npy", arguments.folder / "parts"
    if arguments.step == "make":
        make_table(table, arguments.rows)
        return
    if arguments.step == "look-up":
        print(json.dumps(look_up(parts, arguments.rows)))
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    again = [sys.executable, __file__, str(arguments.folder), "--rows", str(arguments.rows)]
    subprocess.run([*again, "--step", "make"], check=True)
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "tolpack.cli", "build", str(table), "-o", str(parts), "--layers",
         "1", "--bits", "lossless", "--compression", "none", "--part-size", "256MB",
         "--processes", "2", "--max-memory", "1GB"],
        check=True,
    )  # fmt: skip
    took = time.perf_counter() - start
    looked_up = subprocess.run(
        [*again, "--step", "look-up"], check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = {
        **described("numpy", "zstandard"), "rows": arguments.rows, "width": WIDTH,
        "part_files": len(list(parts.glob("*.part"))),
        "manifest_bytes": (parts / "manifest.json").stat().st_size, "build_s": round(took),
        **json.loads(looked_up.stdout),
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    table.unlink()
    shutil.rmtree(parts)


def values(rows: NDArray[np.int64]) -> NDArray[np.float16]:
    """Return the table's rows of these numbers, float16 (n, WIDTH)."""
    mixed = (rows[:, None] * 2654435761 + np.arange(WIDTH) * 40503) >> 7
    return (mixed % 2048).astype(np.float16)


def make_table(path: Path, rows: int) -> None:
    """Write the table, a few rows at a time."""
    table = np.lib.format.open_memmap(path, "w+", np.float16, (rows, WIDTH))
    for start in range(0, rows, _ROWS_TOGETHER):
        stop = min(rows, start + _ROWS_TOGETHER)
        table[start:stop] = values(np.arange(start, stop))
    table.flush()


def look_up(parts: Path, rows: int) -> dict[str, Any]:
    """Open the parts, look up 100,000 rows one by one and together, check them, and return reads,
    times and memory.
    """
    start = time.perf_counter()
    with tolpack.open(parts) as pack:
        opened, stats = time.perf_counter() - start, pack.stats()
        ids = np.random.default_rng(0).integers(0, rows, 100_000)
        start = time.perf_counter()
        for row in ids[:2000].tolist():
            pack.rows([row])
        one = (time.perf_counter() - start) / 2000
        start = time.perf_counter()
        found = np.concatenate([pack.rows(some)[:, 0] for some in np.split(ids, 100)])
        together = (time.perf_counter() - start) / 100
        wrong = int((found != values(ids)).any(axis=1).sum())
    return {
        "open_reads": stats["open_reads"], "open_ms": round(1e3 * opened, 2),
        "lookup_us": round(1e6 * one, 1), "lookup_1000_ms": round(1e3 * together, 2),
        "wrong_rows": wrong,
        "look_up_peak_MB": peak_bytes() >> 20,
    }  # fmt: skip


def peak_bytes() -> int:
    """Return the peak of this process's resident memory; ``ru_maxrss`` is also that before exec."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


if __name__ == "__main__":
    main()
