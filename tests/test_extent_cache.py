"""The disk cache of remote files: what was read is kept, within a budget, and never believed."""

import errno
import multiprocessing
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from object_server import ObjectServer, flip
from packs import Layer, Part, Recipe, Run, write

pytest.importorskip("obstore")

import tolpack
from tolpack.container import extent_cache
from tolpack.container.extent_cache import ExtentCache

WIDE = Recipe(1000, (Layer((Part("f16", 1000),)),), (Run(150), Run(50, "zstd", 2)), shuffled=True)
PATH = "folder/model.tolpack"


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A pack of 200 rows of 2 KB, and its rows: for reading only."""
    sample = write(tmp_path_factory.mktemp("wide") / "wide.tolpack", WIDE)
    with tolpack.open(sample.path) as pack:
        return sample, pack.rows(range(200))


@pytest.fixture
def server(wide):
    """An object store that holds the pack."""
    with ObjectServer() as one:
        one.objects[PATH] = wide[0].data
        yield one


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the cache is."""
    monkeypatch.setenv("TOLPACK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "remote"


def opened(server, budget="10MB"):
    """Open the pack with a cache that knows what is on the disk and nothing more."""
    extent_cache._caches.clear()
    return tolpack.open(f"{server.url}/{PATH}", disk_cache=budget)


def files(folder, kind="bytes"):
    """Return the files of a cache."""
    return sorted(folder.glob(f"*.{kind}"))


def test_rows_are_asked_for_once(server, folder, wide):
    """A second lookup asks for nothing, in this process and after opening again."""
    with opened(server) as pack:
        assert np.array_equal(pack.rows(range(0, 200, 3)), wide[1][::3])
        asked = len(server.requests)
        assert np.array_equal(pack.rows(range(0, 200, 3)), wide[1][::3])
        assert np.array_equal(pack.rows([3]), wide[1][3:4])
        assert len(server.requests) == asked
        assert pack.stats()["fetched_disk_cache"] >= 67
    with opened(server) as pack:
        assert np.array_equal(pack.rows(range(0, 200, 3)), wide[1][::3])
        assert len(server.requests) == asked + 1
        pack.prefetch(range(0, 200, 3))
        assert len(server.requests) == asked + 1


def damage(path, how):
    """Spoil a file of the cache."""
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[:] = bytes(byte ^ 1 for byte in data)
    elif how == "zeros":
        data[:] = bytes(len(data))
    path.write_bytes(data[: len(data) // 2 + 1] if how == "cut" else data)
    if how == "gone":
        path.unlink()


@pytest.mark.parametrize("how", ["flipped", "zeros", "cut", "gone"])
@pytest.mark.parametrize("kind", ["bytes", "entries"])
def test_damaged_files_are_fetched_again(how, kind, server, folder, wide):
    """Whatever happens to the files, rows are right, and are kept again."""
    with opened(server) as pack:
        pack.rows(range(200))
    for path in files(folder, kind):
        damage(path, how)
    with opened(server) as pack:
        asked = len(server.requests)
        assert np.array_equal(pack.rows(range(200)), wide[1])
        assert len(server.requests) > asked
    with opened(server) as pack:
        asked = len(server.requests)
        assert np.array_equal(pack.rows(range(200)), wide[1])
        assert len(server.requests) == asked


def test_an_answer_that_was_damaged_on_its_way_is_not_kept_for_good(server, folder, wide):
    """Bytes whose checksum does not match are asked for once more, past the cache."""
    with opened(server) as pack:
        server.faults.append(flip)
        assert np.array_equal(pack.rows([7]), wide[1][7:8])
        server.always = flip
        with pytest.raises(tolpack.ChecksumError):
            pack.rows([9])
        server.always = None
        assert np.array_equal(pack.rows([9]), wide[1][9:10])
    with opened(server) as pack:
        assert np.array_equal(pack.rows([7, 9]), wide[1][[7, 9]])


def test_another_version_is_another_file(server, folder, wide, tmp_path):
    """What was kept of a pack is not taken for the one that has replaced it."""
    with opened(server) as pack:
        pack.rows(range(200))
    other = write(tmp_path / "other", WIDE, seed=1)
    server.objects[PATH] = other.data
    with opened(server) as pack, tolpack.open(other.path) as local:
        assert np.array_equal(pack.rows(range(200)), local.rows(range(200)))
        assert not np.array_equal(pack.rows([0]), wide[1][:1])


def test_a_full_disk_is_no_error(server, folder, wide, monkeypatch):
    """If nothing can be written, rows come from the storage each time."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(extent_cache, "_write", full)
    with opened(server) as pack:
        for _ in range(2):
            assert np.array_equal(pack.rows(range(200)), wide[1])


def test_a_folder_that_cannot_be_made_is_no_error(server, wide, tmp_path, monkeypatch):
    """The same if the folder's place is taken by a file."""
    (tmp_path / "cache").write_bytes(b"")
    monkeypatch.setenv("TOLPACK_CACHE", str(tmp_path / "cache"))
    with opened(server) as pack:
        assert np.array_equal(pack.rows(range(200)), wide[1])


@pytest.mark.parametrize("budget", ["much", "0", -1, "1PB5"])
def test_budgets_are_sizes(budget, server, folder):
    """A budget that is not a size is an error that shows what one looks like."""
    with pytest.raises(tolpack.ConfigError, match="disk_cache"):
        opened(server, budget)


def test_a_cache_that_is_off_is_said(server, monkeypatch):
    """A budget where nothing may be kept is a contradiction."""
    monkeypatch.setenv("TOLPACK_CACHE", "off")
    with pytest.raises(tolpack.ConfigError, match="TOLPACK_CACHE"):
        opened(server)


def test_local_packs_need_none(samples, folder):
    """A pack of this machine is read as ever, whatever the budget."""
    with tolpack.open(samples["int4"].path, disk_cache="1MB") as pack:
        pack.rows([0])
    assert not folder.exists()


def extents(first, count, length=1000):
    """Neighbouring extents and their bytes."""
    found = [(n * length, length) for n in range(first, first + count)]
    return found, [memoryview(bytes([n % 251]) * length) for n in range(first, first + count)]


def held(cache, file, some):
    """Which of the extents the cache gives, after a look at their bytes."""
    views = [memoryview(bytearray(length)) for _, length in some[0]]
    missing = set(cache.read_into(file, some[0], views, range(len(views))))
    assert all(views[n] == some[1][n] for n in range(len(views)) if n not in missing)
    return [n not in missing for n in range(len(views))]


def total(folder):
    """Bytes of a cache's files."""
    return sum(path.stat().st_size for path in folder.iterdir())


def test_the_budget_holds(tmp_path):
    """However much is kept, the files stay within the budget, and the newest are there."""
    cache = ExtentCache(tmp_path, 200_000)
    for first in range(0, 2000, 10):
        cache.keep("file", *extents(first, 10))
        assert total(tmp_path) <= 200_000
    assert all(held(cache, "file", extents(1990, 10)))
    assert not any(held(cache, "file", extents(0, 10)))
    assert total(tmp_path) > 150_000


def test_what_was_used_stays(tmp_path, monkeypatch):
    """Segments that were not used for longest are removed first."""
    monkeypatch.setattr(extent_cache, "_NOTED_SECONDS", 0)
    cache = ExtentCache(tmp_path, 160_000)
    cache.keep("file", *extents(0, 9))
    for first in range(10, 300, 9):
        cache.keep("file", *extents(first, 9))
        time.sleep(0.002)
        assert all(held(cache, "file", extents(0, 9)))


def test_long_extents_are_left_out(tmp_path):
    """An extent longer than a segment is not kept, and those beside it are."""
    cache = ExtentCache(tmp_path, 160_000)
    some = [(0, 10), (100, 20_000), (30_000, 10)]
    cache.keep("file", some, [memoryview(bytes(length)) for _, length in some])
    assert cache.has("file", some) == [True, False, True]


def test_files_and_lengths_are_told_apart(tmp_path):
    """The same place of another file, or with another length, is another extent."""
    cache = ExtentCache(tmp_path, 1_000_000)
    cache.keep("file", *extents(0, 3))
    assert cache.has("other", extents(0, 3)[0]) == [False] * 3
    assert cache.has("file", [(0, 999), (0, 1000), (1, 1000)]) == [False, True, False]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_in_the_files_are_survived(data, tmp_path):
    """Whatever stands in the files, what the cache gives is what was kept."""
    place = tmp_path / str(time.monotonic_ns())
    ExtentCache(place, 1_000_000).keep("file", *extents(0, 8, 50))
    for path in (*files(place, "bytes"), *files(place, "entries")):
        content = bytearray(path.read_bytes())
        for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
            content[at] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    cache = ExtentCache(place, 1_000_000)
    held(cache, "file", extents(0, 8, 50))
    cache.keep("file", *extents(0, 8, 50))
    assert all(held(cache, "file", extents(0, 8, 50)))


_CHILD = """
import sys
import numpy as np
import tolpack
url, rows, seed = sys.argv[1], np.load(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(seed)
for _ in range(12):
    with tolpack.open(url, disk_cache="200KB") as pack:
        for _ in range(3):
            ids = rng.choice(200, 40, replace=False)
            assert np.array_equal(pack.rows(ids), rows[ids])
"""


def test_processes_share_a_cache(server, folder, wide, tmp_path):
    """Several processes that write, read and remove at the same time all get the right rows."""
    np.save(tmp_path / "rows.npy", wide[1])
    command = [sys.executable, "-c", _CHILD, f"{server.url}/{PATH}", str(tmp_path / "rows.npy")]
    running = [subprocess.Popen([*command, str(seed)]) for seed in range(3)]
    assert [one.wait(60) for one in running] == [0, 0, 0]
    assert total(folder) <= 200_000 + 3 * 200_000 // 16


def _keep(cache, first):
    cache.keep("file", *extents(first, 10))


def test_forked_children_have_segments_of_their_own(tmp_path):
    """A child goes on with a cache that its parent has open, and neither spoils the other's."""
    cache = ExtentCache(tmp_path, 10_000_000)
    _keep(cache, 0)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_keep, args=(cache, first)) for first in (10, 20)]
    for child in children:
        child.start()
    _keep(cache, 30)
    for child in children:
        child.join(30)
    again = ExtentCache(tmp_path, 10_000_000)
    assert all(held(again, "file", extents(0, 40)))
    assert all(held(cache, "file", extents(30, 10)))


def test_a_segment_is_continued(tmp_path):
    """A process that keeps a little leaves no file of its own, once the last one has ended."""
    for first in range(0, 50, 10):
        cache = ExtentCache(tmp_path, 10_000_000)
        _keep(cache, first)
        del cache
    assert len(files(tmp_path)) == (1 if os.name == "posix" else 5)
    assert all(held(ExtentCache(tmp_path, 10_000_000), "file", extents(0, 50)))
