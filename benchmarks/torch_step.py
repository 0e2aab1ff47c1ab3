"""What a decode step costs through `ToLMemory`: rows of new ids, layer by layer.

24 layers × 2048 in bfloat16, new ids in every step, batches of 1 and 16, on packs of random rows in
the page cache: 4 bits, 16 bits, entropy-coded steps as ``--bits auto`` makes them, and these as
coefficients of bases. ``hot``: steps one after the other. ``between``: before each step 32 MB of
other memory are written and a matrix product is made, so the core's caches are theirs. ``all at
once``: `ToLMemory.all_layers`, where the checkout has it. ``bounds``: the parts that no Python can
save, alone: reading the record, its checksum, decoding it in compiled loops, cutting the views.

Checkouts take turns in processes of their own; a number is the least and the median of the medians
of all rounds.

    git worktree add build/before v0.1.0
    python benchmarks/torch_step.py --before build/before --json benchmarks/results/torch_step.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from machine import described
from random_packs import make_pack

import tolpack
from tolpack.codecs import kernels
from tolpack.container.crc import place_checksum
from tolpack.torch import ToLMemory

LAYERS, HIDDEN, VOCAB, RANK = 24, 2048, 4096, 256
BATCHES = (1, 16)
# Name → frame and rank, see `make_pack`.
PACKS: dict[str, tuple[str, int | None]] = {
    "4 bits": ("raw", None),
    "16 bits": ("f16", None),
    "auto": ("zstd-runs", None),
    f"auto, rank {RANK}": ("zstd-runs", RANK),
}
Times = dict[str, float]


def main() -> None:
    """Run the checkouts in turn, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/bench-step"))
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--here", action="store_true", help="measure in this process")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure(arguments.folder, arguments.steps)))
        return
    make_files(arguments.folder)
    checkouts = {"now": Path(__file__).parent.parent}
    if arguments.before:
        checkouts = {"before": arguments.before, **checkouts}
    found: dict[str, list[Times]] = {name: [] for name in checkouts}
    for _ in range(arguments.rounds):
        for name, checkout in checkouts.items():
            found[name].append(in_process(checkout, arguments))
    result = {name: summary(times) for name, times in found.items()}
    for name in result["now"]:
        sides = [f"{side} {one[name]['least']:7.1f} {one[name]['median']:7.1f}"
                 for side, one in result.items() if name in one]  # fmt: skip
        print(f"{name:36} µs, least and median: {'   '.join(sides)}")
    if arguments.json:
        described_result = {**described("numpy", "torch", "numba"),
                            "threads": torch.get_num_threads(), "us": result}  # fmt: skip
        arguments.json.write_text(json.dumps(described_result, indent=1) + "\n")


def make_files(folder: Path) -> None:
    """Packs, made once."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (frame, rank) in PACKS.items():
        if not (folder / f"{name}.tolpack").exists():
            make_pack(folder / f"{name}.tolpack", LAYERS, HIDDEN, VOCAB, frame, rank)


def in_process(checkout: Path, arguments: argparse.Namespace) -> Times:
    """Measure a checkout in a process of its own."""
    command = [sys.executable, __file__, "--here", "--steps", str(arguments.steps),
               "--folder", str(arguments.folder)]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    times: Times = json.loads(done.stdout)
    return times


def summary(rounds: list[Times]) -> dict[str, dict[str, float]]:
    """Least and median of the rounds, by measurement."""
    columns = {name: [one[name] for one in rounds] for name in rounds[0]}
    return {
        name: {"least": round(min(own), 1), "median": round(statistics.median(own), 1)}
        for name, own in columns.items()
    }


def measure(folder: Path, steps: int) -> Times:
    """Median microseconds of a step, by pack, batch and what lies between steps."""
    torch.set_num_threads(1)
    found: Times = {}
    with torch.inference_mode():
        for name in PACKS:
            with tolpack.open(folder / f"{name}.tolpack") as pack:
                pack.rows(np.arange(VOCAB)[:256])  # loads the compiled loops
                memory = ToLMemory(pack, torch.bfloat16)
                for batch in BATCHES:
                    for way, step in ways(memory).items():
                        key = f"{name}, batch {batch}{way}"
                        found[f"{key}, hot"] = timed(step, batch, steps, lambda: None)
                        found[f"{key}, between"] = timed(step, batch, steps, other_work())
        found.update(bounds(folder / "4 bits.tolpack", steps))
    return found


def ways(memory: ToLMemory) -> dict[str, Callable[[torch.Tensor], object]]:
    """Steps: a call for each layer, and one for all."""
    found: dict[str, Callable[[torch.Tensor], object]] = {
        "": lambda ids: [memory(layer, ids) for layer in range(LAYERS)]
    }
    if hasattr(memory, "all_layers"):
        found[", all at once"] = memory.all_layers
    return found


def timed(
    step: Callable[[torch.Tensor], object], batch: int, steps: int, work: Callable[[], object]
) -> float:
    """Median microseconds of a step with new ids, `work` before each."""
    source, times = torch.Generator().manual_seed(batch), []
    for number in range(steps + 10):
        ids = torch.randint(VOCAB, (batch, 1), generator=source)
        work()
        begin = time.perf_counter()
        kept = step(ids)
        if number >= 10:
            times.append(time.perf_counter() - begin)
        del kept
    return 1e6 * statistics.median(times)


def other_work() -> Callable[[], object]:
    """Return what writes 32 MB and multiplies matrices."""
    memory, weight = torch.zeros(8 << 20), torch.randn(512, 512)

    def work() -> object:
        memory.add_(1)
        return weight @ weight

    return work


def bounds(path: Path, steps: int) -> Times:
    """Median microseconds of the parts of a step of one token with 4 bits, each alone."""
    with tolpack.open(path) as pack:
        extents = pack.extents(np.arange(VOCAB)).tolist()
        layout, columns = pack.decoder.layouts[0], pack.decoder.columns
    assert kernels.load() is not None
    out, place = np.empty((1, LAYERS * HIDDEN), np.uint16), np.zeros(1, np.int64)
    fd, parts = os.open(path, os.O_RDONLY), dict[str, Callable[[int], object]]()
    record = os.pread(fd, extents[0][1], extents[0][0])
    records = np.frombuffer(record, np.uint8)[None]
    rows = torch.from_numpy(out).view(torch.bfloat16).view(1, 1, LAYERS, HIDDEN)
    parts["read"] = lambda n: os.pread(fd, extents[n][1], extents[n][0])
    parts["checksum"] = lambda _: place_checksum(memoryview(record), 0, 0)
    parts["decoding"] = lambda _: layout.decode_into(records, columns, out, place)
    parts["views"] = lambda _: rows.unbind(2)
    found = {}
    for name, part in parts.items():
        times = []
        for number in np.random.default_rng(0).integers(0, VOCAB, steps).tolist():
            begin = time.perf_counter()
            part(number)
            times.append(time.perf_counter() - begin)
        found[f"bound: {name}"] = 1e6 * statistics.median(times)
    os.close(fd)
    return found


if __name__ == "__main__":
    main()
