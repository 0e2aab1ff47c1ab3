"""Every way to serve rows gives the same rows: compiled loops, threads, cache, prefetch, modes."""

import gc
import os
import signal
import sys
import threading

import numpy as np
import pytest
from packs import RECIPES, Layer, Recipe, Run, int4, int8, reference_rows, write

import tolpack
from tolpack.codecs import kernels
from tolpack.codecs.encodings import Part
from tolpack.container import direct_file
from tolpack.container.verified_reader import Container
from tolpack.errors import ConfigError, FormatError
from tolpack.reading import record_reader
from tolpack.runtime import pool

MODES = ("auto", "pread", "mmap", "direct", "memory")
WIDE = Recipe(
    48,
    (Layer((int4(48, 16),)), Layer((int8(20, 8), int4(28, 10))), Layer((int4(48, 16),))),
    (Run(300, "raw", 1), Run(200, "raw", 4), Run(500, "zstd", 8)),
    shuffled=True,
)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A pack of 1,000 rows in three chunks: the file, and its rows from the slow decoder."""
    sample = write(tmp_path_factory.mktemp("wide") / "wide.tolpack", WIDE)
    return sample.path, reference_rows(sample.data).astype(np.float32)


@pytest.fixture
def compiled():
    """Kernels are loaded, as after a large lookup."""
    found = kernels.load()
    if found is None:
        pytest.skip("numba is not installed")
    return found


def in_page_cache(path):
    """Whether a file's pages can be dropped from the page cache here."""
    with tolpack.open(path) as pack:
        drop(path)
        pack.rows(range(100))
        return pack.stats()["fetched_queued"] > 0


def drop(path):
    """Drop the file's pages from the page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def damaged(path, folder):
    """Copy a pack, with a bit of token 7's record changed; returns the copy."""
    with tolpack.open(path) as pack:
        offset = int(pack.extents([7])[0, 0])
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    (folder / "bad").write_bytes(data)
    return folder / "bad"


def held_prefetches(monkeypatch):
    """Hold threads that prefetch before they read; returns events: one has begun, they may go."""
    begun, go = threading.Event(), threading.Event()
    truly = Container.read_blocks

    def slow(self, wanted):
        if threading.current_thread().name.startswith("tolpack-ahead"):
            begun.set()
            go.wait(30)
        return truly(self, wanted)

    monkeypatch.setattr(Container, "read_blocks", slow)
    return begun, go


# ---- compiled loops ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_compiled_rows_equal_plain_ones(name, samples, compiled, monkeypatch):
    """The same bits in float32 and float16, for all layers and for some."""
    with tolpack.open(samples[name].path) as pack:
        ids = list(range(pack.vocab_size))
        some = list(range(pack.num_layers))[::-2]
        found = [pack.rows(ids, layers, dtype) for layers in (None, some)
                 for dtype in ("float32", "float16")]  # fmt: skip
        monkeypatch.setattr(kernels, "_loaded", [None])
        expected = [pack.rows(ids, layers, dtype) for layers in (None, some)
                    for dtype in ("float32", "float16")]  # fmt: skip
    for one, other in zip(found, expected):
        assert one.tobytes() == other.tobytes()


def test_compiled_loops_refuse_scales_that_are_not_finite(compiled, tmp_path):
    """As the plain ones do, for every codec with scales of 16 bits and E8M0."""
    half, power = b"\x00\x7c", b"\xff\xff"
    bad = {"int8": b"\x80\x7f", "int4": b"\x80\x7f", "q8_0": half, "q4_0": half}
    for codec, scale in {**bad, "f8e4m3-e8m0": power}.items():
        part = Part(codec, 8, 4)
        sample = write(tmp_path / "pack", Recipe(8, (Layer((part,)),), (Run(3),)))
        with tolpack.open(sample.path, checksums=False, io="memory") as pack:
            offset = int(pack.extents([1])[0, 0])
        data = bytearray(sample.data)
        data[offset : offset + 2] = scale
        (tmp_path / "bad").write_bytes(data)
        with tolpack.open(tmp_path / "bad", checksums=False) as pack:
            with pytest.raises(FormatError) as caught:
                pack.rows([1])
            assert caught.value.code == "scale-not-finite"


def test_kernels_are_compiled_where_nothing_can_be_kept(monkeypatch):
    """Numba refuses to keep its results where no folder can be written to."""
    numba = pytest.importorskip("numba")

    def njit(signatures, nogil, cache=False):
        def compiled(function):
            if cache:
                raise RuntimeError("cannot cache function: no locator available")
            return lambda *arguments: (function.__name__, arguments)

        return compiled

    monkeypatch.setattr(numba, "njit", njit)
    found = kernels._compile.__wrapped__()
    assert found.decoders["int4"](1, 2) == ("decode_int4", (1, 2))


def test_without_numba_there_are_no_kernels(monkeypatch):
    """Nor when they are left out on purpose."""
    monkeypatch.setitem(sys.modules, "numba", None)
    assert kernels._compile.__wrapped__() is None
    monkeypatch.undo()
    monkeypatch.setenv("TOLPACK_KERNELS", "off")
    assert kernels._compile.__wrapped__() is None


def test_large_lookups_load_the_kernels(wide, monkeypatch):
    """A lookup of many rows, or the one after many; `stats` tells."""
    path, _ = wide
    monkeypatch.setattr(kernels, "_loaded", [])
    available = kernels._compile() is not None
    with tolpack.open(path) as pack:
        pack.rows([1, 2])
        assert pack.stats()["kernels"] == "numpy"
        pack.rows(range(100))
        assert pack.stats()["kernels"] == ("numba" if available else "numpy")


# ---- threads and modes ---------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("io", MODES)
def test_large_lookups_are_shared_among_threads(io, threads, wide, monkeypatch):
    """Duplicates in any order, for any number of threads."""
    monkeypatch.setattr(record_reader, "_THREAD_BYTES", 10_000)
    monkeypatch.setattr(record_reader, "_WINDOW_BYTES", 5_000)
    monkeypatch.setattr(record_reader, "_DECODE_BYTES", 3_000)
    path, expected = wide
    ids = np.random.default_rng(0).integers(0, 1000, 1500)
    with tolpack.open(path, io=io, threads=threads) as pack:
        assert np.array_equal(pack.rows(ids), expected[ids])


@pytest.mark.parametrize("threads", [0, -1, 2.0, True, "2", 5000])
def test_numbers_of_threads_that_cannot_be_are_refused(threads, wide):
    """With what is allowed."""
    with pytest.raises(ConfigError, match="1 … 1024"):
        tolpack.open(wide[0], threads=threads)


def test_an_error_in_a_thread_is_the_lookups(wide, tmp_path, monkeypatch):
    """Damage that one of the threads meets is raised by the lookup."""
    monkeypatch.setattr(record_reader, "_THREAD_BYTES", 10_000)
    bad = damaged(wide[0], tmp_path)
    with tolpack.open(bad, threads=3) as pack, pytest.raises(tolpack.ChecksumError):
        pack.rows(range(1000))


def test_all_modes_at_once_over_sixteen_threads(wide):
    """280,000 rows, with duplicates, through shared packs of every mode, some with a cache."""
    path, expected = wide
    packs = [tolpack.open(path, io=io, cache=cache, threads=2)
             for io in MODES for cache in (None, "20KB")]  # fmt: skip
    wrong = []

    def work(number):
        source = np.random.default_rng(number)
        for turn in range(70):
            ids = source.zipf(1.3, 250) % 1000
            pack = packs[(number + turn) % len(packs)]
            if turn % 3 == 0:
                pack.prefetch(ids)
            if not np.array_equal(pack.rows(ids), expected[ids]):
                wrong.append((number, turn))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert wrong == []
    assert sum(pack.stats()["rows"] for pack in packs) == 280_000
    for pack in packs:
        pack.close()


def test_auto_tells_warm_from_cold(wide):
    """What the page cache has is copied; the rest is announced and read; one row is one read."""
    path, expected = wide
    if not in_page_cache(path):
        pytest.skip("the page cache cannot be emptied here")
    with tolpack.open(path) as pack:
        pack.rows([0])  # the token map
        before = pack.stats()
        assert np.array_equal(pack.rows(range(1000)), expected)
        warm = pack.stats()
        assert warm["fetched_warm"] > before["fetched_warm"]
        drop(path)
        assert np.array_equal(pack.rows(range(1000)), expected)
        cold = pack.stats()
        assert cold["fetched_queued"] > warm["fetched_queued"]
        assert cold["io"] == "auto"
        drop(path)
        pack.rows([5])
        one = pack.stats()
        assert one["fetched_single"] == cold["fetched_single"] + 1
        assert one["block_reads"] == cold["block_reads"] + 1


def test_a_file_system_that_cannot_tell_is_asked_once(wide, monkeypatch):
    """Then everything is queued, as with pread."""
    path, expected = wide
    asked = []

    def refused(*arguments):
        asked.append(arguments)
        raise OSError(95, "Operation not supported")

    with tolpack.open(path, threads=1) as pack:
        pack.rows([0])
        monkeypatch.setattr(os, "preadv", refused)
        assert np.array_equal(pack.rows(range(1000)), expected)
        assert pack.stats()["fetched_warm"] == 0
    assert len(asked) == 1


@pytest.mark.parametrize("lacking", ["_HAS_PREADV", "_HAS_FADVISE", "_HAS_MADVISE", "_HAS_PREAD"])
@pytest.mark.parametrize("io", ["auto", "pread", "mmap", "memory"])
def test_other_systems_read_the_same_rows(lacking, io, wide, monkeypatch):
    """Without the calls that Linux has."""
    monkeypatch.setattr(f"tolpack.container.local_file.{lacking}", False)
    path, expected = wide
    with tolpack.open(path, io=io) as pack:
        pack.prefetch(range(1000))
        assert np.array_equal(pack.rows(range(1000)), expected)
        assert pack.verify() == []


def test_a_system_without_direct_reads_says_so(wide, monkeypatch):
    """It does not read in another mode instead."""
    monkeypatch.delattr(os, "O_DIRECT")
    with pytest.raises(tolpack.FileAccessError, match="no direct reads: use another io mode"):
        tolpack.open(wide[0], io="direct")


def test_pread_announces_without_looking(wide):
    """Every lookup of several blocks is queued."""
    path, expected = wide
    with tolpack.open(path, io="pread") as pack:
        pack.rows([0])
        assert np.array_equal(pack.rows(range(1000)), expected)
        stats = pack.stats()
    assert stats["fetched_warm"] == 0
    assert stats["fetched_queued"] > 0


@pytest.mark.parametrize("joined", [1 << 20, 8192])
def test_direct_reads_take_whole_blocks_once(joined, wide, monkeypatch):
    """Neighbouring extents are read together; the amplification is told."""
    monkeypatch.setattr(direct_file, "_JOINED_BYTES", joined)
    path, expected = wide
    with tolpack.open(path, io="direct") as pack:
        pack.rows([0])
        before = pack.stats()["file_bytes"]
        assert before % 4096 == 0
        assert np.array_equal(pack.rows(range(1000)), expected)
        stats = pack.stats()
    assert stats["fetched_direct"] > 0
    whole = path.stat().st_size
    assert 0.5 * whole < stats["file_bytes"] - before < 2 * whole


def test_one_direct_row_reads_one_block(wide):
    """4 KiB for a row of a hundred bytes."""
    path, _ = wide
    with tolpack.open(path, io="direct") as pack:
        pack.rows([0])
        before = pack.stats()
        pack.rows([1])
        after = pack.stats()
    assert after["file_bytes"] - before["file_bytes"] in (4096, 8192)
    assert after["read_amplification"] > 10


# ---- cache ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("io", MODES)
@pytest.mark.parametrize("budget", [1, 1000, 20_000, "1MB"])
def test_a_cache_keeps_the_most_frequent_rows(io, budget, wide):
    """Rows are the same, the budget is kept, and slots that fit are read once."""
    path, expected = wide
    ids = np.random.default_rng(3).permutation(1000)
    with tolpack.open(path, io=io, cache=budget) as pack:
        for _ in range(3):
            assert np.array_equal(pack.rows(ids), expected[ids])
        stats = pack.stats()
        room = pack._cache.rows
        assert stats["cache_bytes"] <= (10**6 if budget == "1MB" else budget)
        assert stats["cache_hits"] == 2 * room
        assert stats["cache_misses"] == 3000 - 2 * room
        held = np.argsort(pack._tokens._slots)[:room]  # the first slots
        before = pack.stats()["block_reads"]
        assert np.array_equal(pack.rows(held), expected[held])
        assert pack.stats()["block_reads"] == before
    assert (room == 1000) == (budget == "1MB")


@pytest.mark.parametrize("io", MODES)
def test_a_cache_can_be_filled_beforehand(io, wide):
    """Then its tokens are not read again."""
    path, expected = wide
    with tolpack.open(path, io=io, cache="20KB") as pack:
        assert 10_000 < pack.warm() <= 20_000
        before = pack.stats()["block_reads"]
        ids = pack.most_frequent(pack._cache.rows)
        assert np.array_equal(pack.rows(ids), expected[ids])
        assert pack.stats()["block_reads"] == before
    with tolpack.open(path, io=io) as pack, pytest.raises(ConfigError, match="no cache to fill"):
        pack.warm()


def test_a_cache_holds_damage_back(wide, tmp_path):
    """What is not verified is not kept."""
    bad = damaged(wide[0], tmp_path)
    with tolpack.open(bad, cache="1MB") as pack:
        for _ in range(2):
            with pytest.raises(tolpack.ChecksumError):
                pack.rows([7])
        assert pack.stats()["cache_hits"] == 0


@pytest.mark.parametrize("cache", ["", "lots", 0, -5, "0MB", 1.5j])
def test_budgets_that_are_none_are_refused(cache, wide):
    """With an example of one that is."""
    with pytest.raises(ConfigError, match="cache"):
        tolpack.open(wide[0], cache=cache)


# ---- prefetch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("io", MODES)
def test_prefetched_rows_are_the_same(io, wide):
    """In every mode, before, during and after."""
    path, expected = wide
    ids = np.arange(0, 1000, 3)
    with tolpack.open(path, io=io) as pack:
        for _ in range(3):
            pack.prefetch(ids)
            assert np.array_equal(pack.rows(ids), expected[ids])


def test_a_direct_lookup_takes_what_was_prefetched(wide):
    """Blocks are read once, by the prefetch; the lookup waits for those that are coming."""
    path, expected = wide
    ids = np.arange(0, 1000, 3)
    with tolpack.open(path, io="direct") as pack:
        pack._ahead.begin(lambda: pack._missing_blocks(ids)).result(30)
        before = pack.stats()
        assert np.array_equal(pack.rows(ids), expected[ids])
        after = pack.stats()
        assert after["block_reads"] == before["block_reads"] == before["prefetched_blocks"]
        assert np.array_equal(pack.rows(ids), expected[ids])  # given away: read again
        assert pack.stats()["block_reads"] == 2 * before["block_reads"]


def test_a_lookup_waits_for_blocks_that_are_coming(wide, monkeypatch):
    """It does not read them a second time."""
    path, expected = wide
    with tolpack.open(path, io="direct") as pack:
        pack.rows([0])
        begun, go = held_prefetches(monkeypatch)
        pack.prefetch([5])
        assert begun.wait(30)
        threading.Timer(0.05, go.set).start()
        before = pack.stats()["block_reads"]
        assert np.array_equal(pack.rows([5]), expected[[5]])
        assert pack.stats()["block_reads"] == before + 1


def test_prefetching_what_is_damaged_is_left_to_the_lookup(wide, tmp_path):
    """A prefetch raises nothing; the lookup does."""
    bad = damaged(wide[0], tmp_path)
    with tolpack.open(bad, io="direct") as pack:
        pack.prefetch([7])
        with pytest.raises(tolpack.ChecksumError):
            pack.rows([7])


def test_what_the_cache_has_is_not_prefetched(wide):
    """It would be read once more, and kept for nobody."""
    path, _ = wide
    with tolpack.open(path, io="direct", cache="1MB") as pack:
        pack.warm()
        before = pack.stats()["block_reads"]
        assert pack._missing_blocks(np.arange(1000)) != []
        pack._ahead.begin(lambda: pack._missing_blocks(np.arange(1000))).result(30)
        assert pack.stats()["block_reads"] == before


def test_a_closed_pack_keeps_nothing(wide, monkeypatch):
    """Neither what a prefetch was reading at the time."""
    path, _ = wide
    pack = tolpack.open(path, io="direct")
    pack.rows([0])
    begun, go = held_prefetches(monkeypatch)
    coming = pack._ahead.begin(lambda: pack._missing_blocks(np.arange(100)))
    assert begun.wait(30)
    pack.close()
    go.set()
    coming.result(30)
    assert not pack._ahead._kept


def test_too_many_hints_are_dropped(wide, monkeypatch):
    """A caller that never looks up what it announces fills no queue."""
    path, expected = wide
    with tolpack.open(path, io="direct") as pack:
        pack.rows([0])
        go = threading.Event()
        hints = [pack._ahead.begin(lambda: go.wait(30) and []) for _ in range(100)]
        assert hints.count(None) > 50
        go.set()
        assert np.array_equal(pack.rows([5]), expected[[5]])


def test_what_is_kept_is_bounded(wide, monkeypatch):
    """The oldest blocks make room."""
    monkeypatch.setattr("tolpack.reading.prefetching._KEPT_BYTES", 2000)
    path, expected = wide
    with tolpack.open(path, io="direct") as pack:
        pack._ahead.begin(lambda: pack._missing_blocks(np.arange(1000))).result(30)
        assert 0 < pack._ahead._kept_bytes <= 2000
        assert np.array_equal(pack.rows(range(1000)), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_during_a_prefetch_waits_for_nobody(wide, monkeypatch):
    """In the child nobody brings what was coming, and leases of other threads are gone."""
    path, expected = wide
    with tolpack.open(path, io="direct") as pack:
        pack.rows([0])
        begun, go = held_prefetches(monkeypatch)
        pack.prefetch([5])
        assert begun.wait(30)
        child = os.fork()
        if child == 0:
            try:
                signal.alarm(20)
                right = np.array_equal(pack.rows([5]), expected[[5]])
                pack.close()
                os._exit(0 if right and pack.container.source._fd == -1 else 1)
            finally:
                os._exit(2)
        go.set()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("io", MODES)
def test_threads_start_again_after_a_fork(io, wide, monkeypatch):
    """Lookups that are shared, direct reads and prefetches work in a forked process."""
    monkeypatch.setattr(record_reader, "_THREAD_BYTES", 10_000)
    path, expected = wide
    with tolpack.open(path, io=io, threads=2) as pack:
        pack.prefetch([1, 2])
        assert np.array_equal(pack.rows(range(1000)), expected)
        child = os.fork()
        if child == 0:
            try:
                pack.prefetch([1, 2])
                os._exit(0 if np.array_equal(pack.rows(range(1000)), expected) else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ---- ends ----------------------------------------------------------------------------------------


def test_an_interrupted_map_leaves_nothing_running(monkeypatch):
    """Whoever takes back an array or a file must not share it with threads."""
    begun, go, ended = threading.Event(), threading.Event(), []
    truly = pool.wait

    def interrupted(futures):
        if not go.is_set():
            assert begun.wait(30)
            go.set()
            raise KeyboardInterrupt
        return truly(futures)

    def work(number):
        begun.set()
        go.wait(30)
        ended.append(number)

    monkeypatch.setattr(pool, "wait", interrupted)
    workers = pool.Pool(2, "test")
    with pytest.raises(KeyboardInterrupt):
        workers.map(work, range(3))
    count = len(ended)
    assert count >= 1
    workers.map(lambda _: None, [0])
    assert len(ended) == count
    workers.close()


def test_packs_that_are_refused_or_forgotten_leave_no_file_open(wide):
    """Wrong settings, and packs that nobody closes."""
    path, _ = wide
    folder = "/proc/self/fd"
    if not os.path.isdir(folder):
        pytest.skip("open files cannot be counted here")
    gc.collect()
    before = len(os.listdir(folder))
    for io in MODES:
        with pytest.raises(ConfigError):
            tolpack.open(path, io=io, threads=0)
        tolpack.open(path, io=io).rows([1])
    gc.collect()
    assert len(os.listdir(folder)) == before


def test_short_direct_reads_go_on(wide, monkeypatch):
    """A read that ends within a block is not the end of the file."""
    path, expected = wide
    truly = os.preadv

    def short(fd, buffers, offset, *flags):
        return (
            truly(fd, [buffers[0][:4608]], offset, *flags)
            if not flags
            else truly(fd, buffers, offset, *flags)
        )

    with tolpack.open(path, io="direct") as pack:
        pack.rows([0])
        monkeypatch.setattr(os, "preadv", short)
        assert np.array_equal(pack.rows(range(1000)), expected)


@pytest.mark.parametrize("count", [-1, 1001])
def test_counts_of_tokens_that_cannot_be_are_refused(count, wide):
    """With the range."""
    with tolpack.open(wide[0]) as pack, pytest.raises(ConfigError, match="0 … 1000"):
        pack.most_frequent(count)
