"""Builds through Dask against builds by threads, and builds of which something is killed.

``compare`` builds one table with two threads, and with two workers of a Dask cluster of processes
on the same cores to one file and to parts, in turn, and takes the medians; the workers are warm, as
those of a cluster are. Scheduler traffic is what distributed counts on the connections of the
scheduler with its client and its workers, and all results, which the scheduler passes on.

``kills`` starts a scheduler, two workers and ``tolpack build --cluster``, and kills one of the four
at a random time (SIGKILL). The build must end with the bytes of a threaded build, or with an error
of one line; then the same command is given again. A manifest that is there must be of a whole set.

    python benchmarks/executor_build.py compare FOLDER --json benchmarks/results/executor_build.json
    python benchmarks/executor_build.py kills FOLDER --json benchmarks/results/executor_kills.json
"""

from __future__ import annotations

import argparse
import importlib
import json
import pickle
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from machine import described

import tolpack

WIDTH = 512
PART_SIZE = "16MB"
PORT = 28786
# Seconds after which a build that waits for what was killed is interrupted, and given again.
MOST_SECONDS = 120.0


def main() -> None:
    """Run one of the two measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("compare", "kills"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, help="default: 500,000; for kills: 60,000")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bits", default="lossless")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rows = arguments.rows or (500_000 if arguments.what == "compare" else 60_000)
    table = make_table(arguments.folder / "table.npy", rows)
    found: dict[str, Any] = {
        **described("numpy", "zstandard", "distributed"), "table_bytes": table.stat().st_size,
        "bits": arguments.bits,
    }  # fmt: skip
    bits = int(arguments.bits) if arguments.bits.isdigit() else arguments.bits
    if arguments.what == "compare":
        found |= compare(table, arguments.folder, bits, arguments.repeats)
    else:
        found |= kills(table, arguments.folder, bits, arguments.kills, arguments.seed)
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def make_table(path: Path, rows: int) -> Path:
    """Write a table of two layers of normal float16 values."""
    source = np.random.default_rng(0)
    table = np.lib.format.open_memmap(path, "w+", np.float16, (rows, 2, WIDTH))
    for start in range(0, rows, 50_000):
        part = table[start : start + 50_000]
        part[:] = source.normal(size=part.shape)
    del table
    return path


# -- against threads -----------------------------------------------------------------------------


class Counted(Executor):
    """Gives tasks to another executor, and counts the bytes of their results."""

    def __init__(self, executor: Executor) -> None:
        self.executor, self.result_bytes = executor, 0

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """See `Executor`."""
        future = self.executor.submit(function, *arguments, **named)
        future.add_done_callback(self._count)
        return future

    def _count(self, future: Future[Any]) -> None:
        self.result_bytes += len(pickle.dumps(future.result()))


def compare(table: Path, folder: Path, bits: int | str, repeats: int) -> dict[str, Any]:
    """Build by threads and through Dask in turn; returns medians, their ratio and traffic."""
    distributed: Any = importlib.import_module("distributed")
    threads, dask, parts = (folder / name for name in ("threads.tolpack", "dask.tolpack", "parts"))
    seconds: dict[str, list[float]] = {"threads": [], "dask": [], "dask_parts": []}
    with (
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        executor = Counted(client.get_executor())
        for repeat in range(repeats + 1):
            counted = traffic(client) + 2 * executor.result_bytes
            times = {"dask": timed(table, dask, bits, executor=executor, processes=None)}
            passed = traffic(client) + 2 * executor.result_bytes - counted
            times["threads"] = timed(table, threads, bits, threads=2)
            shutil.rmtree(parts, ignore_errors=True)
            times["dask_parts"] = timed(table, parts, bits, executor=executor, part_size=PART_SIZE)
            for name, one in times.items() if repeat else ():  # the first one imports torch
                seconds[name].append(one)
            joined = folder / "joined.tolpack"
            tolpack.join(parts, joined, force=True)
            if not same(threads, dask) or not same(threads, joined):
                raise SystemExit("the packs differ")
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "pack_bytes": dask.stat().st_size, "same_bytes": True,
        "seconds": {name: [round(one, 2) for one in times] for name, times in seconds.items()},
        "ratio": round(medians["dask"] / medians["threads"], 3),
        "ratio_of_parts": round(medians["dask_parts"] / medians["threads"], 3),
        "scheduler_bytes": passed,
        "scheduler_share_pct": round(100 * passed / table.stat().st_size, 4),
    }  # fmt: skip


def timed(table: Path, output: Path, bits: int | str, **settings: Any) -> float:
    """Build, and return how long it took."""
    start = time.perf_counter()
    tolpack.build(table, output, bits=bits, force=True, **settings)
    return time.perf_counter() - start


def traffic(client: Any) -> int:
    """Return the bytes that the scheduler has exchanged with its client and its workers so far."""

    def of_scheduler(dask_scheduler: Any) -> int:
        comms = [*dask_scheduler.stream_comms.values(), *dask_scheduler.client_comms.values()]
        return sum(comm.byte_count for comm in comms)

    def of_worker(dask_worker: Any) -> int:
        return int(dask_worker.batched_stream.byte_count)

    time.sleep(0.1)  # streams are sent in batches
    workers = client.run(of_worker).values()
    own = client.scheduler_comm.byte_count
    return int(own + client.run_on_scheduler(of_scheduler) + sum(workers))


def same(one: Path, other: Path) -> bool:
    """Whether two files are equal."""
    with one.open("rb") as first, other.open("rb") as second:
        while data := first.read(1 << 24):
            if second.read(len(data)) != data:
                return False
        return not second.read(1)


# -- with something killed -----------------------------------------------------------------------


def kills(table: Path, folder: Path, bits: int | str, count: int, seed: int) -> dict[str, Any]:
    """Kill a random process at a random time, `count` times; returns what came of it."""
    source, expected = random.Random(seed), folder / "threads.tolpack"
    tolpack.build(table, expected, bits=bits, force=True)
    with cluster() as processes:
        start = time.perf_counter()
        run = build(table, folder, bits)
        run.wait()
        whole = time.perf_counter() - start
        stop(run, *processes)
    found = [
        one_kill(table, folder, bits, source.choice(("scheduler", "worker", "client")),
                 source.uniform(0.2, 1.0) * whole)
        for _ in range(count)
    ]  # fmt: skip
    right = sum(one["same_bytes"] for one in found)
    print(f"{right} of {count} right in the end", file=sys.stderr)
    return {"kills": count, "right_in_the_end": right, "seconds_of_a_build": round(whole, 1),
            "each": found}  # fmt: skip


def one_kill(
    table: Path, folder: Path, bits: int | str, victim: str, after: float
) -> dict[str, Any]:
    """Kill `victim` so many seconds after the build began, and build again if that ended it."""
    output = folder / "parts"
    shutil.rmtree(output, ignore_errors=True)
    with cluster() as processes:
        client = build(table, folder, bits)
        time.sleep(after)
        {"scheduler": processes[0], "worker": processes[1], "client": client}[victim].kill()
        kept = parts(output)
        check_whole(output)
        code, error = ended(client)
    found = {"victim": victim, "after_s": round(after, 2), "parts_then": kept, "ended": code}
    found["error"] = error
    if code:
        check_whole(output)
        with cluster():
            again = build(table, folder, bits)
            code, error = ended(again)
        if code and "exists: use --force" not in error:  # the client died after its last act
            raise SystemExit(f"the second build failed: {error}")
    joined = folder / "joined.tolpack"
    tolpack.join(output, joined, force=True)
    found |= {"same_bytes": same(joined, folder / "threads.tolpack"), "parts": parts(output)}
    print(json.dumps(found), file=sys.stderr)
    return found


@contextmanager
def cluster() -> Iterator[list[subprocess.Popen[str]]]:
    """Yield a scheduler and two workers, each a process that nobody starts again."""
    address = f"tcp://127.0.0.1:{PORT}"
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1",
                 "--port", str(PORT), "--no-dashboard"]  # fmt: skip
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-dashboard",
              "--nthreads", "1", "--no-nanny", "--death-timeout", "30"]  # fmt: skip
    processes = [started(command, subprocess.DEVNULL) for command in (scheduler, worker, worker)]
    try:
        yield processes
    finally:
        stop(*processes)


def started(command: Sequence[str], errors: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """Start a process; what it says on standard error is by default kept for its end."""
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=errors, text=True, errors="replace"
    )


def build(table: Path, folder: Path, bits: int | str) -> subprocess.Popen[str]:
    """Start a build in parts on the cluster."""
    return started([
        sys.executable, "-m", "tolpack.cli", "build", str(table), "-o", str(folder / "parts"),
        "--bits", str(bits), "--part-size", "4MB", "--cluster", f"tcp://127.0.0.1:{PORT}",
    ])  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a build; returns its exit status and its error, the last line that it said."""
    try:
        _, said = process.communicate(timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    errors = [line for line in said.splitlines() if line.startswith("Error: ")]
    return process.returncode, errors[-1] if errors else ""


def stop(*processes: subprocess.Popen[str]) -> None:
    """End processes."""
    for process in processes:
        process.kill()
        with suppress(ValueError):  # its end was read already
            process.communicate()


def parts(output: Path) -> int:
    """Return how many part files there are."""
    return len(list(output.glob("*.part"))) if output.exists() else 0


def check_whole(output: Path) -> None:
    """Raise if there is a manifest, and not all of its pack."""
    if (output / "manifest.json").exists():
        with tolpack.open(output) as pack:
            if pack.verify():
                raise SystemExit("a reader sees a half-made set")


if __name__ == "__main__":
    main()
