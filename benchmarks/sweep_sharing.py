"""Time a sweep of twelve settings, which shares work, against its two slowest settings alone.

Every run begins with an empty cache and takes one process: twelve settings together, then
`tolpack eval --sweep` with each of the two that took longest, baseline and calibration included.

    python benchmarks/sweep_sharing.py CHECKPOINT --text TEXT --calibrate TEXT --json result.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import described

GRID = "rank=none,25%,50%,auto bits=4,8,16"


def main() -> None:
    """Run the three, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibrate", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    inputs = [str(arguments.checkpoint), "--text", str(arguments.text)]
    inputs += ["--calibrate", str(arguments.calibrate)]
    inputs += ["--tokenizer", str(arguments.tokenizer)] if arguments.tokenizer else []
    together, found = seconds(inputs, GRID)
    slowest = sorted(found, key=lambda one: one["build_seconds"] + one["eval_seconds"])[-2:]
    alone = []
    for one in slowest:
        setting = one["setting"]
        alone.append(seconds(inputs, f"rank={setting['rank']} bits={setting['bits']}")[0])
    ratio = together / sum(alone)
    result: dict[str, Any] = {
        **described("numpy", "torch"),
        "grid": GRID,
        "settings": len(found),
        "together_s": round(together, 1),
        "slowest": [one["options"] for one in slowest],
        "alone_s": [round(one, 1) for one in alone],
        "ratio": round(ratio, 2),
    }
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def seconds(inputs: list[str], grid: str) -> tuple[float, list[dict[str, Any]]]:
    """Sweep `grid` with an empty cache; returns seconds and the results."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "tolpack.cli", "eval", *inputs, "--sweep", grid, "--json"]
        begin = time.perf_counter()
        done = subprocess.run(
            command, env={**os.environ, "TOLPACK_CACHE": cache}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        taken = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(done.stderr)
    print(f"{grid}: {taken:.0f} s", file=sys.stderr, flush=True)
    packs: list[dict[str, Any]] = json.loads(done.stdout)["packs"]
    return taken, packs


if __name__ == "__main__":
    main()
