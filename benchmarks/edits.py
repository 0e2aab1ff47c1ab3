"""Time packs with edits: how long opening takes, and lookups of edited and of other tokens.

Edits are new rows of 1,000 random tokens. The packs have 4 bits and 8,192 tokens, in the shapes of
a model of 1B parameters (24 × 2048 values a row) and of one of 11M (8 × 256). Lookups are of tokens
that are not edited, in the pack with edits and in the same pack without, by turns; a ratio is the
median of those of each turn. All files are in the page cache.

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
    with tolpack.open(pack) as plain, tolpack.open(pack, edits=[edits]) as edited:
        return {
            "pack_bytes": plain.nbytes,
            "edits_bytes": written.nbytes,
            "open": opening(pack, edits, opens),
            "unedited": {
                f"{count} rows": compared(plain.rows, edited.rows, others, count, lookups)
                for count, lookups in LOOKUPS.items()
            },
            "edited": {
                f"{count} rows": compared(
                    plain.rows, edited.rows, ids, count, lookups // 4, bound=False
                )
                for count, lookups in LOOKUPS.items()
            },
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


def compared(
    plain: Step, edited: Step, ids: np.ndarray, count: int, lookups: int, *, bound: bool = True
) -> dict[str, float]:
    """Microseconds of lookups in both packs, of the same ids, by turns: medians, and the median of
    the turns' ratios.

    Who begins changes with each lookup. Without `bound` there is no ratio to hold.
    """
    source = np.random.default_rng(count)
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(lookups + 20):
        asked = source.choice(ids, count, replace=False)
        order: Sequence[int] = (0, 1) if number % 2 else (1, 0)
        for side in order:
            lookup = (plain, edited)[side]
            begin = time.perf_counter()
            lookup(asked)
            if number >= 20:
                times[side].append(1e6 * (time.perf_counter() - begin))
    medians = [statistics.median(one) for one in times]
    found = {"without edits, us": round(medians[0], 2), "with edits, us": round(medians[1], 2)}
    ratio = statistics.median(b / a for a, b in zip(*times))
    return found | ({"ratio": round(ratio, 4)} if bound else {})


if __name__ == "__main__":
    main()
