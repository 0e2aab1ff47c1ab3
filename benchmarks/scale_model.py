"""Hold the model of ``tolpack plan --machines`` against builds with 1, 2 and 4 workers here.

Two inputs are made in a temporary folder: a table of random numbers, and a MemoryLLM of random
weights with a table as large, whose rows are computed. For each setting a sample of rows is
measured, as ``tolpack plan`` does, and the disk by reading and writing the table past the page
cache. Then the input is built into part files with each number of workers, one thread each, and
every phase that `tolpack.build` reports is compared with its prediction. ``error_pct`` is how far
the predicted time is above the measured one. The comparison of a few rows at the end of a build is
not in the model; it counts in the measured total.

    python benchmarks/scale_model.py --json benchmarks/results/scale_model.json
    python benchmarks/scale_model.py --show benchmarks/results/scale_model.json   # as Markdown
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
import torch
from machine import described
from safetensors.torch import save_file

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

LAYERS, WIDTH, INNER = 6, 512, 1024
WORKERS = (1, 2, 4)
# Name: input, bits.
SETTINGS: dict[str, tuple[str, int | str]] = {
    "stored rows, 4 bits": ("table.npy", 4),
    "stored rows, lossless": ("table.npy", "lossless"),
    "computed rows, 4 bits": ("model", 4),
}
PART_BYTES = 4_000_000
BLOCK_BYTES = 4 << 20


def main() -> None:
    """Make the inputs, predict and build, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=400, help="of the table in FP16")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for temporary files [default: TMPDIR]")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--show", type=Path, help="print the table of docs/scale.md, and end")
    arguments = parser.parse_args()
    if arguments.show:
        print(markdown(json.loads(arguments.show.read_text())["runs"]))
        return
    rows = arguments.megabytes * 10**6 // (2 * LAYERS * WIDTH)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        make_table(folder / "table.npy", rows)
        make_model(folder / "model", rows)
        disk = disk_rates(folder / "table.npy")
        runs = [
            run
            for setting in SETTINGS
            for run in compare(folder, setting, disk, arguments.repetitions)
        ]
    print(markdown(runs))
    if arguments.json:
        facts = {
            "shape": [rows, LAYERS, WIDTH], "inner_size": INNER, "part_bytes": PART_BYTES,
            "cores": processor_count(), "disk_reads_bytes_per_second": disk[0],
            "disk_writes_bytes_per_second": disk[1], "repetitions": arguments.repetitions,
        }  # fmt: skip
        result = {**described("numpy", "torch"), **facts, "runs": runs}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def make_table(path: Path, rows: int) -> None:
    """Write a table of normally distributed FP16 values."""
    source = np.random.default_rng(0)
    table = np.lib.format.open_memmap(path, "w+", np.float16, (rows, LAYERS, WIDTH))
    for start in range(0, rows, 8192):
        shape = table[start : start + 8192].shape
        table[start : start + 8192] = source.standard_normal(shape, np.float32)
    table.flush()


def make_model(folder: Path, rows: int) -> None:
    """Write what tables need of a MemoryLLM of random bfloat16 weights."""
    folder.mkdir()
    source = torch.Generator().manual_seed(0)

    def weights(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=source).mul_(shape[-1] ** -0.5).bfloat16()

    tensors = {"model.embed_tokens.weight": weights(rows, WIDTH)}
    for layer in range(LAYERS):
        base = f"model.layers.{layer}.memory"
        tensors[f"{base}_layernorm.weight"] = torch.ones(WIDTH, dtype=torch.bfloat16)
        for name in ("gate", "up"):
            tensors[f"{base}_mlp.{name}_proj.weight"] = weights(INNER, WIDTH)
        tensors[f"{base}_mlp.down_proj.weight"] = weights(WIDTH, INNER)
    save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "memoryllm", "vocab_size": rows, "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS, "memory_intermediate_size": INNER, "norm": "rmsnorm",
        "rms_norm_eps": 1e-5, "hidden_act": "silu",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def markdown(runs: list[dict[str, Any]]) -> str:
    """Return a table of Markdown: predicted and measured seconds, and how far they are apart."""
    lines = [
        "| build | workers | input checked | parts made | all | error | encoding bound by |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        cells = [run["setting"], str(run["workers"])]
        for name in ("check the input", "parts", "all"):
            both = (run[f"{kind}_seconds"][name] for kind in ("predicted", "measured"))
            cells.append("{:.1f} s, measured {:.1f} s".format(*both))
        cells += [f"{run['error_pct']['all']:+.0f} %", run["bounds"]["encode parts"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def evict(path: Path) -> None:
    """Have the next read of a file, or of those of a folder, come from the disk."""
    for file in path.iterdir() if path.is_dir() else [path]:
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def disk_rates(path: Path) -> tuple[float, float]:
    """Bytes that the disk reads, and those that it writes and syncs, a second."""
    evict(path)
    size, begin = path.stat().st_size, time.perf_counter()
    with open(path, "rb", buffering=0) as source:
        while source.read(BLOCK_BYTES):
            pass
    read, copy = time.perf_counter(), path.with_suffix(".copy")
    with open(path, "rb", buffering=0) as source, open(copy, "wb", buffering=0) as target:
        while data := source.read(BLOCK_BYTES):
            target.write(data)
        os.fsync(target.fileno())
    written = time.perf_counter()
    copy.unlink()
    return size / (read - begin), size / (written - read)


def compare(
    folder: Path, setting: str, disk: tuple[float, float], repetitions: int
) -> list[dict[str, Any]]:
    """Predict builds of a setting with each number of workers, and build."""
    name, bits = SETTINGS[setting]
    cluster = Cluster(1, processor_count(), disk[0], disk[0], disk_write=disk[1])
    request = PlanRequest(
        folder / name, BuildSettings.parse("none", bits, "none", None, None),
        CalibrationInputs(), CheckpointOptions(), None, None, Resources("float32"),
    )  # fmt: skip
    size, plan = predict_build(request, "none", ClusterBuild(cluster, PART_BYTES), Reporter())
    found = []
    for workers in WORKERS:
        predicted = plan_cluster(replace(cluster, workers=workers), plan.work, plan.rates)
        times = [measured(folder / name, bits, workers) for _ in range(repetitions)]
        typical = {name: statistics.median(one[name] for one in times) for name in times[0]}
        run = {"setting": setting, "workers": workers, "pack_bytes": size.bytes}
        run |= described_run(predicted, typical)
        print(json.dumps(run), flush=True)
        found.append(run)
    return found


def described_run(plan: ClusterPlan, measured: dict[str, float]) -> dict[str, Any]:
    """Return the phases of a build, predicted and measured, and how far apart they are."""
    seconds = {phase.name: phase.seconds for phase in plan.phases}
    check = seconds["check the input"]
    predicted = {"check the input": check, "parts": plan.seconds - check, "all": plan.seconds}
    errors = {name: 100 * (predicted[name] / measured[name] - 1) for name in predicted}
    return {
        "bounds": {phase.name: phase.bound for phase in plan.phases}, "phases": seconds,
        "predicted_seconds": predicted, "measured_seconds": measured, "error_pct": errors,
    }  # fmt: skip


def measured(source: Path, bits: int | str, workers: int) -> dict[str, float]:
    """Build an input into part files; return how long its phases took."""
    folder, times = source.with_name("parts"), PhaseTimes()
    shutil.rmtree(folder, ignore_errors=True)
    evict(source)
    begin = time.perf_counter()
    tolpack.build(
        source, folder, bits=bits, compute="float32", processes=workers, threads=1,
        part_size=PART_BYTES, reporter=times,
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
