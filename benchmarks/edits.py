"""Time packs with edits: how long opening takes, and lookups of edited and of other tokens.

Edits are new rows of 1,000 random tokens. The packs have 4 bits and 8,192 tokens, in the shapes of
a model of 1B parameters (24 × 2048 values a row) and of one of 11M (8 × 256). Lookups are of tokens
that are not edited, or that are, in the pack with edits and in the same pack without, by turns, by
one thread. All files are in the page cache.

    python benchmarks/edits.py --json benchmarks/results/edits.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import described
from random_packs import make_pack

import tolpack
from tolpack.edits.write_edits import write_edits

SHAPES = {"1B": (24, 2048), "11M": (8, 256)}
VOCAB, EDITED = 8192, 1000
# Rows of a lookup, and lookups of each side.
LOOKUPS = {1: 6000, 512: 200}
Step = Callable[[np.ndarray], object]


def main() -> None:
    """Make the files, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/bench-edits"))
    parser.add_argument("--opens", type=int, default=41)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = described("numpy", "zstandard")
    for name, shape in SHAPES.items():
        for bits in (32, 16):
            measured = measure(arguments.folder, name, shape, bits, arguments.opens)
            result[f"{name}, {bits} bits"] = measured
            print(name, bits, json.dumps(measured, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def measure(
    folder: Path, name: str, shape: tuple[int, int], bits: int, opens: int
) -> dict[str, Any]:
    """Measure edits of a pack of one shape."""
    pack, edits = folder / f"{name}.tolpack", folder / f"{name}-{bits}.edits"
    if not pack.exists():
        make_pack(pack, *shape, VOCAB, "raw", None)
    source = np.random.default_rng(0)
    ids = np.sort(source.choice(VOCAB, EDITED, replace=False))
    with tolpack.open(pack) as plain:
        rows = source.standard_normal((EDITED, *shape), np.float32)
        written = write_edits(plain, edits, ids, {plain.table: rows}, bits=bits, force=True)
    others = np.setdiff1d(np.arange(VOCAB), ids)
    with (
        tolpack.open(pack, threads=1) as plain,
        tolpack.open(pack, threads=1, edits=[edits]) as edited,
        tolpack.open(pack, threads=1) as control,
    ):
        sides = plain.rows, edited.rows, control.rows
        return {
            "pack_bytes": plain.nbytes,
            "edits_bytes": written.nbytes,
            "open": opening(pack, edits, opens),
            "unedited": {f"{n} rows": compared(sides, others, n, k) for n, k in LOOKUPS.items()},
            "edited": {f"{n} rows": compared(sides, ids, n, k // 8) for n, k in LOOKUPS.items()},
        }


def opening(pack: Path, edits: Path, opens: int) -> dict[str, float]:
    """Milliseconds of opening with and without edits, by turns; medians."""
    found: dict[str, list[float]] = {"without edits": [], "with edits": []}
    for _ in range(opens):
        for name, own in (("without edits", []), ("with edits", [edits])):
            begin = time.perf_counter()
            opened = tolpack.open(pack, edits=own)
            found[name].append(1e3 * (time.perf_counter() - begin))
            opened.close()
    return {f"{name}, ms": round(statistics.median(times), 3) for name, times in found.items()}


def compared(sides: Sequence[Step], ids: np.ndarray, count: int, lookups: int) -> dict[str, float]:
    """Microseconds of lookups without edits, with edits, and in another pack without, of the same
    ids, by turns: medians, and the medians of the turns' ratios to the first.

    The ratio of the two without edits tells what a ratio is worth on this machine. Who begins
    changes with each lookup.
    """
    source = np.random.default_rng(count)
    times: list[list[float]] = [[] for _ in sides]
    for number in range(lookups + 20):
        asked = source.choice(ids, count, replace=False)
        for turn in range(len(sides)):
            side = (number + turn) % len(sides)
            begin = time.perf_counter()
            sides[side](asked)
            if number >= 20:
                times[side].append(1e6 * (time.perf_counter() - begin))
    plain, edited, _ = (round(statistics.median(one), 2) for one in times)
    ratios = [statistics.median(b / a for a, b in zip(times[0], one)) for one in times[1:]]
    return {
        "without edits, us": plain,
        "with edits, us": edited,
        "ratio": round(ratios[0], 4),
        "ratio of two without edits": round(ratios[1], 4),
    }


if __name__ == "__main__":
    main()
