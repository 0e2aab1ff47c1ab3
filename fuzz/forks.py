"""Forks of a process that is busy with packs, whose children must get their rows.

    python fuzz/forks.py --forks 1000                 # while threads look up and prefetch
    python fuzz/forks.py --forks 1000 --loading       # while the compiled loops are being loaded

Threads look up one row and many, of several packs in every I/O mode, and prefetch; the main thread
forks. Each child looks up rows of four packs, in its only thread and in new ones, and holds them
against those that were read before. With ``--loading`` a process is started again for every ten
forks, which fall into the second in which it loads the loops. A child that has not ended after
``--patience`` seconds hangs: it is ended and counted.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import tolpack
from tolpack.codecs import kernels
from tolpack.reading import record_reader
from tolpack.runtime.buffers import Buffers

MODES = ("auto", "pread", "mmap", "direct", "memory")
GOLDEN = Path(__file__).parents[1] / "formats" / "v1" / "golden"
# Golden packs with few and many rows, every frame, and bases.
NAMES = ("int8", "long-index", "runs", "everything", "coded-basis", "ans-trellis", "ans-basis")
FORKS_A_PROCESS = 10


def main() -> None:
    """Fork, count, print one JSON object; exit 1 if a child hangs or has other rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--forks", type=int, default=1000)
    parser.add_argument("--loading", action="store_true")
    parser.add_argument("--threads", type=int, default=6)
    parser.add_argument("--patience", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)  # that this is done on purpose
    record_reader._THREAD_BYTES = 1000  # small lookups are shared among threads, too
    young = given.loading and not given.inner
    ends = loading_processes(given) if young else busy_forks(given)
    found = {"forks": sum(ends.values()), **{k: ends[k] for k in ("right", "wrong", "hung")}}
    print(json.dumps(found))
    sys.exit(0 if given.inner or found["right"] == found["forks"] else 1)


def loading_processes(given: argparse.Namespace) -> Counter[str]:
    """Count how children of many young processes end; what they compiled is kept for each other."""
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as kept:
        environment = os.environ | {"NUMBA_CACHE_DIR": kept}
        for number in range(-(-given.forks // FORKS_A_PROCESS)):
            forks = min(FORKS_A_PROCESS, given.forks - FORKS_A_PROCESS * number)
            command = [sys.executable, __file__, "--inner", "--loading", f"--forks={forks}",
                       f"--patience={given.patience}", f"--seed={given.seed + number}"]  # fmt: skip
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
            ends.update({k: v for k, v in json.loads(done.stdout).items() if k != "forks"})
    return ends


def busy_forks(given: argparse.Namespace) -> Counter[str]:
    """Fork this process while its threads are busy."""
    # Lookups of many rows would load the loops before it is time.
    most = 40 if given.loading else 1 << 20
    subjects = [Subject(name, io, most) for name in NAMES for io in MODES]
    expected = {one.name: one.pack.rows(one.ids).tobytes() for one in subjects}
    over = threading.Event()
    source = random.Random(given.seed)
    if given.loading:
        threads = [threading.Thread(target=load, daemon=True)]
    else:
        kernels.load()
        seeds = range(given.threads)
        threads = [threading.Thread(target=busy, args=(subjects, n, over)) for n in seeds]
    for thread in threads:
        thread.start()
    ends: Counter[str] = Counter()
    sys.setswitchinterval(1e-6)  # threads are interrupted with locks in their hands
    for _ in range(given.forks):
        time.sleep(source.uniform(0, 0.1 if given.loading else 0.003))
        some = source.sample(subjects, 4)
        ends[forked(partial(look_up, some, expected), given.patience)] += 1
    over.set()
    for thread in threads:
        thread.join()
    return ends


class Subject:
    """An open pack, and what is asked of it."""

    def __init__(self, name: str, io: str, most: int) -> None:
        self.name = name
        self.path = GOLDEN / f"{name}.tolpack"
        self.pack = tolpack.open(self.path, io=io, threads=2, cache=2000)
        self.ids = np.random.default_rng(1).permutation(self.pack.vocab_size)[:most]


def load() -> None:
    """Load the compiled loops, and compile those that are not kept from before."""
    found = kernels.load()
    if found is None:
        return
    records, places, columns = np.zeros((1, 4), np.uint8), np.zeros(1, int), np.zeros(1, int)
    rows, steps = np.zeros((1, 2), np.float32), np.ones(1, np.float32)
    for decode in found.decoders.values():
        decode(records, 0, 0, 2, 2, steps, places, columns, rows)
    found.zero_runs(records[0], records[0], records)


def busy(subjects: Sequence[Subject], seed: int, over: threading.Event) -> None:
    """Look rows up, prefetch, and use large buffers, until it is over."""
    source, buffers = np.random.default_rng(seed), Buffers(1 << 26)
    while not over.is_set():
        one = subjects[int(source.integers(len(subjects)))]
        some = source.choice(one.ids, source.integers(1, len(one.ids) + 1))
        one.pack.prefetch(some)
        one.pack.rows(some[:1])
        one.pack.rows(some)
        buffers.array((1 << 19,), np.float32)
        if seed == 0:
            with tolpack.open(one.path, io="direct") as again:
                again.rows(some[:1])


def look_up(subjects: Sequence[Subject], expected: dict[str, bytes]) -> bool:
    """Read packs in a child; whether all is right."""
    kernels.load()
    buffers, right = Buffers(1 << 26), True
    for one in subjects:
        one.pack.prefetch(one.ids)
        whole = one.pack.rows(one.ids)
        single = one.pack.rows(one.ids[:1])
        basis = one.pack.decoder.has_basis  # then many rows are multiplied in another order
        right &= basis or (whole.tobytes() == expected[one.name])
        right &= np.allclose(single, whole[:1], rtol=1e-5, atol=1e-5)
        buffers.array((1 << 19,), np.float32)
        one.pack.stats()
        one.pack.close()
    while not all(one.pack.container.source.is_closed for one in subjects):
        time.sleep(0.001)  # only the child's own prefetches keep a file open
    return right


def forked(work: Callable[[], Any], patience: int) -> str:
    """Fork, do `work` in the child; return ``right``, ``wrong`` or ``hung``."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            faulthandler.dump_traceback_later(patience, exit=False)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(patience + 1)
            code = 0 if work() else 1
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {0: "right", -signal.SIGALRM: "hung"}.get(status, "wrong")


if __name__ == "__main__":
    main()
