"""Time lookups with and without checksums, in every I/O mode, cold and warm.

Makes packs of random rows of two shapes (24 × 2048 values, the paper's 1B model, and 8 × 256, a
small one) at 4 bits, in blocks as `tolpack build` makes them, raw and as zstd frames, and times
`Pack.rows` of random ids on two open packs, one with ``checksums=False``, in turn. "Cold" means
that the file's pages were dropped from the page cache before each lookup (checked with mincore);
the token map is read before.

    python benchmarks/integrity.py --json result.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from machine import described
from random_packs import drop, make_pack

import tolpack

SHAPES = {"24 x 2048": (24, 2048, 8192), "8 x 256": (8, 256, 65536)}
MODES = ("pread", "mmap", "memory")


@dataclass(frozen=True)
class Row:
    """Median seconds of one lookup with and without checksums, and what they add in per cent."""

    shape: str
    frame: str
    mode: str
    state: str
    ids: int
    checked_us: float
    unchecked_us: float
    price_pct: float


def main() -> None:
    """Make the packs, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/bench-integrity"))
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in measure_all(arguments.folder, arguments.rounds):
        print(
            f"{row.shape:>9} {row.frame:>5} {row.mode:>7} {row.state:>5} {row.ids:>4} ids "
            f"{row.checked_us:10.1f} µs {row.unchecked_us:10.1f} µs {row.price_pct:+6.1f} %",
            flush=True,
        )
        rows.append(asdict(row))
    result = {
        **described("numpy"),
        "rows": rows,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def measure_all(folder: Path, rounds: int) -> Iterator[Row]:
    """Measure every combination."""
    for shape, (layers, width, vocab) in SHAPES.items():
        for frame in ("raw", "zstd"):
            path = folder / f"{layers}x{width}-{frame}.tolpack"
            if not path.exists():
                make_pack(path, layers, width, vocab, frame)
            for mode in MODES:
                for state in ("warm", "cold"):
                    if (mode, state) == ("memory", "cold"):
                        continue  # nothing is read
                    for ids in (1, 512):
                        repeats = rounds if ids == 1 else max(20, rounds // 5)
                        times = measure(path, mode, state, ids, repeats)
                        yield Row(shape, frame, mode, state, ids, *times)


def measure(path: Path, mode: str, state: str, count: int, rounds: int) -> tuple[float, ...]:
    """Median microseconds with and without checksums, and the median price of a pair."""
    source = np.random.default_rng(0)
    packs = [tolpack.open(path, io=mode, checksums=checked) for checked in (True, False)]
    shape = (count, packs[0].num_layers, packs[0].hidden_size)
    out, vocab = np.empty(shape, np.float32), packs[0].vocab_size
    if state == "warm":
        for pack in packs:
            for start in range(0, vocab, 256):
                pack.rows(range(start, start + 256))
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        ids = source.choice(vocab, count, replace=False)
        for which in (0, 1) if number % 2 else (1, 0):
            if state == "cold":
                for pack in packs:  # pages that are mapped cannot be dropped
                    pack.close()
                packs[which] = tolpack.open(path, io=mode, checksums=which == 0)
                packs[which].rows([0])  # reads the token map
                drop(path)
            begin = time.perf_counter()
            packs[which].rows(ids, out=out)
            times[which].append(time.perf_counter() - begin)
    for pack in packs:
        pack.close()
    medians = [1e6 * statistics.median(one) for one in times]
    price = statistics.median(a - b for a, b in zip(*times)) * 1e6
    return medians[0], medians[1], 100 * price / medians[1]


if __name__ == "__main__":
    main()
