"""Forks of busy processes, and packs that travel to others: rows, or an error, never a hang."""

import copy
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from packs import RECIPES, TARGET, write

import tolpack
from tolpack.codecs import kernels
from tolpack.errors import FileAccessError, FormatError
from tolpack.runtime.buffers import Buffers

MODES = ("auto", "pread", "mmap", "direct", "memory")
ROOT = Path(__file__).parents[1]
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def in_child(work, patience=30):
    """Do `work` in a forked child; whether it ended by itself, and returned something true."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(patience)
            code = 0 if work() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class Holder:
    """A thread that holds locks until it is told to let go."""

    def __init__(self, locks):
        self._held, self._go, self._locks = threading.Event(), threading.Event(), locks
        self._thread = threading.Thread(target=self._hold)

    def _hold(self):
        for lock in self._locks:
            lock.acquire()
        self._held.set()
        self._go.wait(60)
        for lock in reversed(self._locks):
            lock.release()

    def __enter__(self):
        self._thread.start()
        assert self._held.wait(60)

    def __exit__(self, *_):
        self._go.set()
        self._thread.join()


def locks_of(*owners):
    """Return the locks among the owners' attributes, each of which must have one."""
    found = [[one for one in vars(owner).values() if hasattr(one, "acquire")] for owner in owners]
    assert all(found)
    return [lock for some in found for lock in some]


# ---- forks ---------------------------------------------------------------------------------------


@forks
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("io", MODES)
def test_no_lock_of_another_thread_is_held_in_a_child(io, samples):
    """Whatever was locked when the process forked: lookups, prefetches and `close` go on."""
    sample = samples["everything"]
    with tolpack.open(sample.path, io=io, cache=100, threads=2) as pack:
        ids = np.arange(pack.vocab_size)
        expected = pack.rows(ids)
        buffers = Buffers(1 << 26)
        owners = [pack, pack.container, pack.container.source, pack._reader, pack._ahead]
        owners += [pack._reader._pool, pack._ahead._pool, pack._tokens, pack.decoder, buffers]

        def work():
            pack.prefetch(ids)
            right = np.array_equal(pack.rows(ids), expected)
            right &= np.allclose(pack.rows(ids[:1]), expected[:1], rtol=1e-5, atol=1e-5)
            right &= buffers.array((1 << 19,), np.float32).nbytes == 1 << 21
            pack.stats()
            pack.close()
            return right

        with Holder(locks_of(*owners)):
            assert in_child(work)
        assert np.array_equal(pack.rows(ids), expected)


@forks
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_lease_taken_before_a_fork_ends_in_the_child(samples):
    """A child that was forked within a lookup closes its file all the same."""
    with tolpack.open(samples["f32"].path) as pack:
        source = pack.container.source

        def work():
            pack.close()
            return source._fd == -1

        with source.lease():
            assert in_child(work)

        def within():
            with source.lease():
                lease.__exit__(None, None, None)  # the one of the parent's thread
            pack.close()
            return source._fd == -1

        lease = source.lease()
        with lease:
            assert in_child(within)


@forks
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_waits_while_loops_are_loaded():
    """Numba's own locks are not held in a child, as nobody was importing or compiling."""
    done = []

    def load():
        with kernels._lock:
            begun.set()
            time.sleep(0.3)
            done.append(True)

    begun = threading.Event()
    thread = threading.Thread(target=load)
    thread.start()
    assert begun.wait(60)
    assert in_child(lambda: done and kernels._lock.acquire(blocking=False))
    thread.join()
    assert in_child(lambda: threading.Thread(target=kernels.load).start() is None)


@forks
@pytest.mark.parametrize("work", [["--forks=200", "--threads=3"], ["--forks=20", "--loading"]],
                         ids=["looking-up", "loading"])  # fmt: skip
def test_children_of_a_busy_process_get_their_rows(work):
    """Threads look up one row and many in every I/O mode, prefetch, or load the loops meanwhile."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "fuzz" / "forks.py"), *work]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    found = json.loads(done.stdout)
    assert found["right"] == found["forks"] >= 20, done.stderr[-3000:]


# ---- pickled packs -------------------------------------------------------------------------------


def rows_of(pack, ids):
    """Look rows up, in a process that was spawned."""
    return pack.rows(ids), pack.stats()


def test_packs_travel_to_spawned_processes(samples):
    """A pickled pack is opened again there, with the same settings."""
    with tolpack.open(samples["everything"].path, io="pread", cache=100, threads=1) as pack:
        ids = list(range(pack.vocab_size))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows, stats = pool.apply_async(rows_of, (pack, ids)).get(120)
        assert np.array_equal(rows, pack.rows(ids))
        assert stats["io"] == "pread"
        assert stats["cache_bytes"] > 0


def pickled(pack):
    return pickle.loads(pickle.dumps(pack))


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickled])
def test_copies_are_packs_of_their_own(again, samples, monkeypatch, tmp_path):
    """A copy stays open when its origin is closed, wherever the process has gone meanwhile."""
    shutil.copy(samples["int8"].path, tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    pack = tolpack.open("a", checksums=False)
    monkeypatch.chdir("/")
    with again(pack) as other:
        expected = pack.rows([1, 2])
        pack.close()
        assert np.array_equal(other.rows([1, 2]), expected)
        with pytest.raises(tolpack.ConfigError, match="checksums"):
            other.verify()


def test_a_pickled_pack_that_is_gone_or_another_says_so(tmp_path):
    """With what to do: no rows of another pack come in its place."""
    path = write(tmp_path / "pack", TARGET).path
    with tolpack.open(path) as pack:
        stored = pickle.dumps(pack)
    path.unlink()
    with pytest.raises(FileAccessError, match="No such file.*pickle its path"):
        pickle.loads(stored)
    for recipe, key in ((TARGET, bytes(32)), (RECIPES["f32"], bytes(range(1, 33)))):
        write(path, recipe, key=key)
        before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        with pytest.raises(FileAccessError, match="no longer the pack.*pickle its path"):
            pickle.loads(stored)
        if before:
            assert len(os.listdir("/proc/self/fd")) == before
    path.write_bytes(b"no pack")
    with pytest.raises(FormatError):
        pickle.loads(stored)


def test_a_closed_pack_cannot_be_pickled(samples):
    """It says that it is closed."""
    pack = tolpack.open(samples["f32"].path)
    pack.close()
    for again in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(FileAccessError, match="closed"):
            again(pack)
