"""Hold the model of ``tolpack plan --machines`` against builds with 1, 2 and 4 workers here.

A table of random numbers is made in a temporary folder. For each setting a sample of its rows is
measured, as ``tolpack plan`` does, and the disk by copying a file past the page cache. Then the
table is built into part files with each number of workers, one thread each, and every phase that
`tolpack.build` reports is compared with its prediction. ``error_pct`` is how far the predicted time
is above the measured one. The comparison of a few rows at the end of a build is not in the model;
it counts in the measured total.

    python benchmarks/scale_model.py --json benchmarks/results/scale_model.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import described

import tolpack
from tolpack.calibration.calibrate import CalibrationInputs
from tolpack.compress.cluster_model import Cluster, ClusterPlan, plan_cluster
from tolpack.compress.cluster_plan import ClusterBuild, predict_build
from tolpack.compress.measured_plan import PlanRequest
from tolpack.compress.settings import BuildSettings
from tolpack.runtime.pool import processor_count
from tolpack.runtime.progress import PhaseTimes, Reporter
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.workspace.resources import Resources

LAYERS, WIDTH = 8, 128
WORKERS = (1, 2, 4)
SETTINGS: dict[str, int | str] = {"4 bits": 4, "lossless": "lossless"}
PART_BYTES = 8_000_000
BLOCK_BYTES = 4 << 20


def main() -> None:
    """Make the table, predict and build, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=400, help="of the table")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for temporary files [default: TMPDIR]")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        table = make_table(Path(name) / "table.npy", arguments.megabytes)
        disk = disk_rate(table)
        runs = [
            run
            for setting in SETTINGS
            for run in compare(table, setting, disk, arguments.repetitions)
        ]
    worst = max(runs, key=lambda run: abs(run["error_pct"]["all"]))
    print(f"furthest off: {worst['setting']}, {worst['workers']} workers, "
          f"{worst['error_pct']['all']:+.0f} %")  # fmt: skip
    if arguments.json:
        facts = {
            "table_bytes": arguments.megabytes * 10**6, "part_bytes": PART_BYTES,
            "cores": processor_count(), "disk_bytes_per_second": disk,
            "repetitions": arguments.repetitions,
        }  # fmt: skip
        result = {**described("numpy", "torch"), **facts, "runs": runs}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def make_table(path: Path, megabytes: int) -> Path:
    """Write a table of normally distributed FP16 values."""
    rows, source = megabytes * 10**6 // (2 * LAYERS * WIDTH), np.random.default_rng(0)
    table = np.lib.format.open_memmap(path, "w+", np.float16, (rows, LAYERS, WIDTH))
    for start in range(0, rows, 8192):
        shape = table[start : start + 8192].shape
        table[start : start + 8192] = source.standard_normal(shape, np.float32)
    table.flush()
    return path


def evict(path: Path) -> None:
    """Have the next read of a file come from the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def disk_rate(path: Path) -> float:
    """Bytes that the disk reads and writes a second: those of a copy, synced, count twice."""
    evict(path)
    copy, begin = path.with_suffix(".copy"), time.perf_counter()
    with open(path, "rb", buffering=0) as source, open(copy, "wb", buffering=0) as target:
        while data := source.read(BLOCK_BYTES):
            target.write(data)
        os.fsync(target.fileno())
    seconds = time.perf_counter() - begin
    copy.unlink()
    return 2 * path.stat().st_size / seconds


def compare(table: Path, setting: str, disk: float, repetitions: int) -> list[dict[str, Any]]:
    """Predict builds of a setting with each number of workers, and build."""
    bits = SETTINGS[setting]
    cluster = Cluster(1, processor_count(), disk, disk)
    request = PlanRequest(
        table, BuildSettings.parse("none", bits, "none", None, None), CalibrationInputs(),
        CheckpointOptions(), None, None, Resources(),
    )  # fmt: skip
    size, plan = predict_build(request, "none", ClusterBuild(cluster, PART_BYTES), Reporter())
    found = []
    for workers in WORKERS:
        predicted = plan_cluster(replace(cluster, workers=workers), plan.work, plan.rates)
        times = [measured(table, bits, workers) for _ in range(repetitions)]
        typical = {name: statistics.median(one[name] for one in times) for name in times[0]}
        run = {"setting": setting, "workers": workers, "predicted_bytes": size.bytes}
        run |= described_run(predicted, typical)
        print(json.dumps(run), flush=True)
        found.append(run)
    return found


def described_run(plan: ClusterPlan, measured: dict[str, float]) -> dict[str, Any]:
    """Return the phases of a build, predicted and measured, and how far apart they are."""
    seconds = {phase.name: phase.seconds for phase in plan.phases}
    check = seconds.pop("check the input")
    predicted = {"check the input": check, "parts": sum(seconds.values()), "all": plan.seconds}
    errors = {name: 100 * (predicted[name] / measured[name] - 1) for name in predicted}
    return {
        "bounds": {phase.name: phase.bound for phase in plan.phases},
        "phases": {phase.name: phase.seconds for phase in plan.phases},
        "predicted_seconds": predicted, "measured_seconds": measured, "error_pct": errors,
    }  # fmt: skip


def measured(table: Path, bits: int | str, workers: int) -> dict[str, float]:
    """Build the table into part files; return how long its phases took."""
    folder, times = table.with_name("parts"), PhaseTimes()
    shutil.rmtree(folder, ignore_errors=True)
    evict(table)
    begin = time.perf_counter()
    tolpack.build(
        table, folder, bits=bits, processes=workers, threads=1, part_size=PART_BYTES,
        reporter=times,
    )  # fmt: skip
    total = time.perf_counter() - begin
    found = dict.fromkeys(("checking the input", "encoding", "checking"), 0.0)
    for name, seconds in times.seconds:
        found[name] += seconds
    check, compared = found["checking the input"], found["checking"]
    parts = total - check - compared
    return {"check the input": check, "parts": parts, "compare rows": compared, "all": total}


if __name__ == "__main__":
    main()
