"""When memory runs out at any point of opening, looking up and verifying: rows, or our error."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from packs import Layer, Recipe, Run, write

import tolpack
from tolpack.codecs.encodings import Part
from tolpack.errors import OutOfMemoryError, TolpackError

SCRIPT = """
import collections, os, re, resource, sys
import numpy as np
import tolpack
from tolpack.errors import TolpackError

path, step, io = sys.argv[1], int(sys.argv[2]), sys.argv[3]
ids = np.arange(1500)
with tolpack.open(path, io=io, threads=1) as pack:
    expected = pack.rows(ids)
del pack


def use():
    with tolpack.open(path, io=io, threads=1) as pack:
        rows = pack.rows(ids)
        pack.verify()
    return rows


def size():
    return int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10


found = collections.Counter()
for number in range(1000):
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_AS, (size() + number * step, resource.RLIM_INFINITY))
        try:
            rows = use()
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
            code = 0 if (rows == expected).all() else 3
        except TolpackError:
            code = 1
        except BaseException:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
            import traceback
            traceback.print_exc()
            code = 2
        os._exit(code)
    code = os.waitpid(child, 0)[1]
    found[code >> 8 if code & 127 == 0 else -(code & 127)] += 1
    if found[0] >= 3:
        break
print(dict(found))
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A pack with a token map, raw records and frames, whose rows take 12 MB."""
    layers = (Layer((Part("int8", 1024, 64),)), Layer((Part("int8", 1024, 64),)))
    runs = (Run(500), Run(500, "zstd", 8), Run(500, "raw", 16))
    recipe = Recipe(1024, layers, runs, shuffled=True)
    return write(tmp_path_factory.mktemp("memory") / "p", recipe).path


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and a limit of address space")
@pytest.mark.parametrize("io", ["auto", "mmap", "memory"])
def test_memory_that_runs_out_anywhere_is_an_error(io, path):
    """Under every limit of memory, from none left to enough: right rows or a `TolpackError`."""
    command = [sys.executable, "-c", SCRIPT, str(path), str(192 << 10), io]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    found = ast.literal_eval(done.stdout)
    assert set(found) == {0, 1}, done.stderr
    assert found[1] > 20


def test_every_hundredth_allocation_may_fail(samples):
    """Let single allocations of the interpreter fail: no wrong rows, and no foreign error."""
    pytest.importorskip("_testcapi")
    script = Path(__file__).parents[1] / "fuzz" / "allocations.py"
    command = [sys.executable, str(script), str(samples["everything"].path), "--step", "101"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = ast.literal_eval(done.stdout)
    assert found["error"] > 20
    assert found["right"] >= 20


def test_no_memory_is_one_error_of_ours(samples, monkeypatch):
    """What numpy raises becomes `OutOfMemoryError`, which is a `MemoryError` too and says more."""

    def none_left(*_, **__):
        raise MemoryError

    with tolpack.open(samples["everything"].path) as pack:
        monkeypatch.setattr("tolpack.reading.record_reader.RecordReader.read", none_left)
        with pytest.raises(
            OutOfMemoryError, match="not enough memory: ask for fewer rows"
        ) as caught:
            pack.rows([0, 1])
    assert isinstance(caught.value, TolpackError)
    assert isinstance(caught.value, MemoryError)
