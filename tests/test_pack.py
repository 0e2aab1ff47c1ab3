"""`Pack`: the right rows for any ids, layers, dtype and I/O mode, from any thread."""

import contextlib
import errno
import os
import pickle
import sys
import threading
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import RECIPES, WITH_BASIS, Layer, Recipe, Run, int4, reference_rows, write

import tolpack
from tolpack.codecs.encodings import Part
from tolpack.container.verified_reader import Container
from tolpack.errors import ChecksumError, ConfigError, FileAccessError, FormatError, TokenIdError

MODES = ("auto", "pread", "mmap", "direct", "memory")
sys.path.insert(0, str(Path(__file__).parents[1] / "formats" / "v1"))

from decode import Pack as Decoder  # noqa: E402 (found by the line above)


@pytest.fixture(scope="module")
def references(samples):
    return {name: reference_rows(sample.data) for name, sample in samples.items()}


@pytest.fixture
def everything(samples):
    with tolpack.open(samples["everything"].path) as pack:
        yield pack


def agree(name, found, expected):
    """Exactly without a basis; within 1e-5 of each row's largest value with one."""
    if name not in WITH_BASIS:
        return found.astype(np.float64).tobytes() == np.asarray(expected, np.float64).tobytes()
    limit = 1e-5 * np.abs(expected).max(axis=2, keepdims=True)
    return bool((np.abs(found - expected) <= limit).all())


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("io", MODES)
def test_all_rows_equal_the_slow_decoders(name, io, samples, references):
    """In every I/O mode the rows are those of an independent decoder of the file's bytes."""
    with tolpack.open(samples[name].path, io=io) as pack:
        found = pack.rows(range(pack.vocab_size))
    assert found.dtype == np.float32
    assert agree(name, found, references[name])


@pytest.mark.parametrize("window", [1, 2 << 20])
def test_scattered_rows_are_read_a_window_at_a_time(tmp_path, monkeypatch, window):
    """Of rows in many chunks no more blocks are read together than a window holds, or one."""
    recipe = Recipe(8, (Layer((int4(8),)),), tuple(Run(2, "raw", 2) for _ in range(6)))
    sample, together = write(tmp_path / "pack", recipe), []
    read = Container.read_blocks

    def counted(self, wanted):
        together.append(len(wanted))
        return read(self, wanted)

    monkeypatch.setattr(Container, "read_blocks", counted)
    monkeypatch.setattr("tolpack.reading.record_reader._WINDOW_BYTES", window)
    with tolpack.open(sample.path) as pack:
        found = pack.rows(range(12))
    assert agree("int4", found, reference_rows(sample.data))
    assert together == ([1] * 12 if window == 1 else [6])


@pytest.mark.parametrize("name", RECIPES)
def test_all_rows_equal_those_of_the_formats_own_decoder(name, samples):
    """``formats/v1/decode.py`` reads the same rows, one token at a time."""
    decoder = Decoder(samples[name].data)
    with tolpack.open(samples[name].path) as pack:
        found = pack.rows(range(pack.vocab_size))
    expected = np.stack([decoder.row(token) for token in range(len(found))])
    assert agree(name, found, expected)


@pytest.mark.parametrize("name", RECIPES)
def test_row_by_row_equals_bulk(name, samples):
    """One row at a time gives what all rows at once give."""
    with tolpack.open(samples[name].path) as pack:
        bulk = pack.rows(range(pack.vocab_size))
        single = np.concatenate([pack.rows([n]) for n in range(pack.vocab_size)])
    assert agree(name, single, bulk.astype(np.float64))


@pytest.mark.parametrize("name", ["f32", "f16", "int8", "int4", "hot-and-cold", "dropped"])
def test_rows_are_those_that_were_written(name, samples):
    """Rows come back under their own token ids, as near as their codec allows."""
    sample = samples[name]
    with tolpack.open(sample.path) as pack:
        found = pack.rows(range(pack.vocab_size))
        kept = found[:, list(pack.kept_layers)]
    written = np.stack(sample.values, axis=1)[sample.slots]
    bound = {"f32": 0, "f16": 2e-3, "int8": 0.02}.get(name, 0.3)
    assert np.abs(kept - written).max() <= bound


@settings(max_examples=120)
@given(data=st.data())
def test_any_choice_of_ids_and_layers_is_a_choice_of_the_bulk(samples, data):
    """Ids in any order with duplicates and layers with repeats select from the full array."""
    name = data.draw(st.sampled_from(sorted(set(RECIPES) - set(WITH_BASIS))))
    with tolpack.open(samples[name].path) as pack:
        ids = data.draw(st.lists(st.integers(0, pack.vocab_size - 1), max_size=30))
        layers = data.draw(st.lists(st.integers(0, pack.num_layers - 1), max_size=6))
        bulk = pack.rows(range(pack.vocab_size))
        found = pack.rows(ids, layers=layers)
    assert found.shape == (len(ids), len(layers), bulk.shape[2])
    assert found.tobytes() == bulk[np.array(ids, int)][:, np.array(layers, int)].tobytes()


def test_layers_with_a_basis_can_be_chosen(everything):
    """Repeats and order of layers hold for dropped layers and those with a basis, too."""
    bulk = everything.rows(range(12))
    layers = [3, 1, 2, 2, 0, 1, 3]
    found = everything.rows([7, 0, 7, 11], layers=layers)
    assert np.allclose(found, bulk[[7, 0, 7, 11]][:, layers], rtol=0, atol=1e-5)
    assert not found[:, [1, 5]].any()


def test_dropped_layers_are_zeros(samples):
    """Dropped layers are zeros even in a buffer that held something else."""
    with tolpack.open(samples["dropped"].path) as pack:
        assert pack.kept_layers == (1, 3)
        out = np.full((6, 4, 6), np.nan, np.float32)
        pack.rows(range(6), out=out)
        assert not out[:, [0, 2]].any()
        assert out[:, [1, 3]].any(axis=2).all()
        assert pack.rows([1, 2], layers=[0, 2, 2]).tobytes() == bytes(2 * 3 * 6 * 4)


def test_the_multiplier_scales_all_rows(samples):
    """A table's multiplier is part of its rows."""
    sample = samples["multiplier"]
    stored = np.stack(sample.values, axis=1).astype(np.float16).astype(np.float32)
    with tolpack.open(sample.path) as pack:
        assert (pack.rows(range(4)) == 16 * stored).all()


def test_properties_describe_the_pack(samples):
    """Sizes and layers are those of the recipe; bytes are the file's."""
    sample = samples["everything"]
    with tolpack.open(str(sample.path)) as pack:
        assert (pack.vocab_size, pack.num_layers, pack.hidden_size) == (12, 4, 8)
        assert pack.kept_layers == (0, 2, 3)
        assert pack.nbytes == sample.path.stat().st_size
        assert pack.macs_per_token == 3 * 8
        sizes = [s.length_bytes for s in sample.header.sections if s.kind != "blocks"]
        assert pack.resident_bytes == 4096 + sum(sizes)
        assert "12 tokens" in repr(pack)


@pytest.mark.parametrize("name", ["int4", "f16", "everything", "dropped"])
def test_float16_is_the_rounded_float32(name, samples):
    """`dtype="float16"` rounds the same rows."""
    with tolpack.open(samples[name].path) as pack:
        ids = [3, 1, 1, 0]
        wide, narrow = pack.rows(ids), pack.rows(ids, dtype=np.float16)
    assert narrow.dtype == np.float16
    assert (narrow == wide.astype(np.float16)).all()


@pytest.mark.parametrize("dtype", [
    "float64", "int8", ">f4", "bfloat16", "nonsense", object, "", 7, "float32,float32",
])  # fmt: skip
def test_other_dtypes_are_refused(dtype, everything):
    """Anything but float32 and float16, known to numpy or not, gives ConfigError."""
    with pytest.raises(ConfigError):
        everything.rows([1], dtype=dtype)


def test_out_is_filled_and_returned(everything):
    """The given buffer, contiguous or not, is filled completely and returned itself."""
    expected = everything.rows([5, 1, 5])
    wide = np.full((6, 8, 16), np.nan, np.float32)
    for out in (np.full((3, 4, 8), np.nan, np.float32), wide[::2, ::2, ::2], wide[::-2, :4, 8:]):
        assert everything.rows([5, 1, 5], out=out) is out
        assert (out == expected).all()
    half = np.empty((3, 4, 8), np.float16)
    assert everything.rows([5, 1, 5], dtype="float16", out=half) is half


READ_ONLY = np.zeros((3, 4, 8), np.float32)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize("out", [
    np.zeros((2, 4, 8), np.float32), np.zeros((3, 4, 9), np.float32), np.zeros(96, np.float32),
    np.zeros((3, 4, 8), np.float16), np.zeros((3, 4, 8), np.float64), np.zeros((3, 4, 8), ">f4"),
    READ_ONLY, [[[0.0] * 8] * 4] * 3, "a buffer", 7,
])  # fmt: skip
def test_an_out_that_does_not_fit_is_refused(out, everything):
    """A buffer of another shape, dtype or kind, or a read-only one, gives ConfigError."""
    with pytest.raises(ConfigError):
        everything.rows([5, 1, 5], out=out)


@pytest.mark.parametrize("ids", [
    [-1], [12], [0, 12, 0], [2**31], [2**32], [2**63 - 1], [2**63], [2**64 - 1], [2**64], [10**30],
    [-(2**63)], [-(2**70)], np.array([-1]), np.array([2**64 - 1], np.uint64),
    np.array([-1], np.int8), np.array([200], np.uint8), np.array([12], ">u4"),
    [0, -1, 2**63], [0.0], [1.5], np.array([1.0]), [True],
    np.array([True, False]), ["1"], [b"1"], [None], None, "1", 3, np.int64(3), [[1, 2]],
    np.zeros((2, 0), np.int64), np.zeros((1, 1, 1), np.int32), [[1], [1, 2]], [1, [2]], {1, 2},
    {"a": 1}, object(), [1 + 0j], np.array(["2020-01-01"], "M8[D]"), np.array([1], "m8[s]"),
], ids=lambda ids: repr(ids)[:40])  # fmt: skip
def test_hostile_ids_are_refused(ids, everything):
    """Ids out of range, of another kind or shape give TokenIdError, which is an IndexError."""
    for lookup in (everything.rows, everything.extents, everything.prefetch):
        with pytest.raises(TokenIdError) as caught:
            lookup(ids)
        assert isinstance(caught.value, IndexError)


def _read_only(ids):
    ids.flags.writeable = False
    return ids


@pytest.mark.parametrize("ids", [
    (5, 1), range(5, 0, -4), np.array([5, 1], np.int8), np.array([5, 1], np.uint64),
    np.array([5, 1], ">i4"), np.array([5, 9, 1, 9])[::2], np.array([1, 5])[::-1],
    _read_only(np.array([5, 1])), [np.int32(5), np.uint8(1)], memoryview(np.array([5, 1])),
], ids=lambda ids: f"{type(ids).__name__}-{ids!r}"[:40])  # fmt: skip
def test_ids_of_any_integer_kind_are_taken(ids, everything):
    """Lists, ranges, views, read-only and byte-swapped arrays of integers mean the same."""
    expected = everything.rows([5, 1])
    assert everything.rows(ids).tobytes() == expected.tobytes()


@pytest.mark.parametrize("ids", [[], (), np.array([]), np.array([], np.uint8), range(0)])
def test_no_ids_give_no_rows(ids, everything):
    """An empty list of ids is a lookup of nothing: no rows, no reads of blocks."""
    assert everything.rows(ids).shape == (0, 4, 8)
    assert everything.rows(ids, layers=[]).shape == (0, 0, 8)
    assert everything.extents(ids).shape == (0, 2)
    everything.prefetch(ids)
    assert everything.stats()["block_reads"] == 0


@pytest.mark.parametrize("layers", [
    [4], [-1], [0, 2**70], ["0"], ["a"], [None], [1.5], [0.0], [True], 1, "01", [[0]],
    np.array([0.5]), object(),
])  # fmt: skip
def test_hostile_layers_are_refused(layers, everything):
    """Layers out of range or of another kind give ConfigError."""
    with pytest.raises(ConfigError):
        everything.rows([1], layers=layers)


@pytest.mark.parametrize("layers", [(2, 0), range(2, -1, -2), np.array([2, 0], np.uint8)])
def test_layers_of_any_integer_kind_are_taken(layers, everything):
    """Tuples, ranges and arrays of integers name layers."""
    assert (everything.rows([4], layers=layers) == everything.rows([4], layers=[2, 0])).all()


@pytest.mark.parametrize("io", ["odirect", "", "PREAD", None, 3, ["mmap"]])
def test_unknown_io_modes_are_refused(io, samples):
    """An I/O mode that does not exist gives ConfigError."""
    with pytest.raises(ConfigError, match="io is"):
        tolpack.open(samples["f32"].path, io=io)


# ---- closing, threads, processes ----------------------------------------------------------------


@pytest.mark.parametrize("io", MODES)
def test_a_closed_pack_refuses_everything(io, samples):
    """After `close`, lookups, hints and checks give FileAccessError; closing again is allowed."""
    pack = tolpack.open(samples["everything"].path, io=io)
    before = pack.rows([1])
    pack.close()
    pack.close()
    for use in (pack.rows, pack.extents, pack.prefetch, lambda ids: pack.verify()):
        with pytest.raises(FileAccessError, match="closed"):
            use([1])
    assert before.any()
    assert pack.vocab_size == 12


def test_rows_outlive_the_pack(samples):
    """Rows are the caller's own memory in every mode."""
    for io in MODES:
        with tolpack.open(samples["f32"].path, io=io) as pack:
            rows = pack.rows(range(7))
            again = rows.copy()
        del pack
        assert (rows == again).all()
        rows[:] = 0


@pytest.mark.parametrize("io", MODES)
def test_opening_leaks_no_descriptor(io, samples, tmp_path):
    """Neither a closed pack nor one that could not be opened keeps a file descriptor."""
    bad = tmp_path / "bad"
    bad.write_bytes(samples["f32"].data[:-1])
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        tolpack.open(samples["f32"].path, io=io).close()
        with pytest.raises(FormatError):
            tolpack.open(bad, io=io)
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("io", MODES)
def test_close_during_a_lookup_lets_it_end(io, samples, monkeypatch):
    """A lookup that runs while another thread closes the pack ends with its rows."""
    pack = tolpack.open(samples["int4"].path, io=io)
    expected = pack.rows(range(10))
    container = pack.container
    plain = type(container).read_blocks
    started, closed = threading.Event(), threading.Event()

    def slow(self, wanted):
        started.set()
        assert closed.wait(20)
        return plain(self, wanted)

    monkeypatch.setattr(type(container), "read_blocks", slow)
    found = []

    def lookup():
        try:
            found.append(pack.rows(range(10)))
        except tolpack.TolpackError as error:
            found.append(error)

    thread = threading.Thread(target=lookup)
    thread.start()
    assert started.wait(20)
    pack.close()
    closed.set()
    thread.join(20)
    assert not isinstance(found[0], Exception), repr(found[0])
    assert (found[0] == expected).all()
    with pytest.raises(FileAccessError, match="closed"):
        pack.rows([1])


@pytest.mark.parametrize("io", ["pread", "mmap"])
def test_closing_at_any_moment_gives_rows_or_an_error(io, samples):
    """Threads that look up while the pack is closed get right rows or FileAccessError."""
    wrong = []
    with tolpack.open(samples["everything"].path, io=io) as pack:
        expected = pack.rows(range(12))
    for _ in range(10):
        pack = tolpack.open(samples["everything"].path, io=io)
        started = threading.Barrier(5)

        def lookup(pack=pack, started=started):
            started.wait(20)
            try:
                for _ in range(200):
                    if not (pack.rows(range(12)) == expected).all():
                        wrong.append("rows")
            except FileAccessError:
                pass
            except BaseException as error:  # noqa: BLE001
                wrong.append(repr(error))

        threads = [threading.Thread(target=lookup) for _ in range(4)]
        for thread in threads:
            thread.start()
        started.wait(20)
        pack.close()
        for thread in threads:
            thread.join(20)
    assert wrong == []


@pytest.mark.parametrize("io", MODES)
def test_sixteen_threads_get_their_own_rows(io, samples):
    """Concurrent lookups in one pack, from the first one on, give each thread its own rows."""
    with tolpack.open(samples["everything"].path) as pack:
        expected = [pack.rows([n, (n + 5) % 12]) for n in range(12)]
    wrong, start = [], threading.Barrier(16)

    def work(number):
        rng = np.random.default_rng(number)
        start.wait(20)
        for n in rng.integers(0, 12, 40):
            try:
                if not np.array_equal(shared.rows([n, (n + 5) % 12]), expected[n]):
                    wrong.append(n)
            except BaseException as error:  # noqa: BLE001
                wrong.append(repr(error))

    with tolpack.open(samples["everything"].path, io=io) as shared:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        stats = shared.stats()
    assert wrong == []
    assert stats["rows"] == 16 * 40 * 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("io", MODES)
def test_a_forked_process_reads_the_same_rows(io, samples):
    """A pack that is open across a fork works in both processes, closed in one of them or not."""
    with tolpack.open(samples["everything"].path, io=io) as pack:
        expected = pack.rows(range(12))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            try:
                same = all((pack.rows(range(12)) == expected).all() for _ in range(5))
                pack.close()
                os._exit(0 if same else 1)
            finally:
                os._exit(2)
        assert all((pack.rows(range(12)) == expected).all() for _ in range(5))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (pack.rows(range(12)) == expected).all()


# ---- what is read -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("io", MODES)
def test_opening_makes_at_most_two_small_reads(name, io, samples):
    """Opening reads preamble and header and nothing else."""
    with tolpack.open(samples[name].path, io=io) as pack:
        stats = pack.stats()
    assert stats.pop("io") == io
    assert stats.pop("kernels") in ("numba", "numpy")
    assert 1 <= stats.pop("open_reads") <= 2
    assert 64 < stats.pop("open_bytes") <= 8192
    assert set(stats.values()) == {0}


def test_a_long_header_takes_two_reads(tmp_path):
    """A header of more than 4 KiB is read in two steps, and the pack is the same."""
    layers = tuple(Layer((int4(8),)) for _ in range(120))
    sample = write(tmp_path / "pack", Recipe(8, layers, (Run(2),), header_room=20_000))
    with tolpack.open(sample.path) as pack:
        assert pack.stats()["open_reads"] == 2
        assert agree("int4", pack.rows([0, 1]), reference_rows(sample.data))


@pytest.mark.parametrize("name", RECIPES)
def test_each_block_is_read_once(name, samples):
    """A lookup reads one block per distinct token's block, as long as its extent, and no more."""
    recipe = RECIPES[name]
    with tolpack.open(samples[name].path) as pack:
        slots = samples[name].slots
        ids = [n for n in range(recipe.rows) if n % 3 != 1] * 2
        extents = {tuple(e) for e in pack.extents(ids).tolist()}
        pack.rows(ids)
        stats = pack.stats()
    starts = np.cumsum([0] + [run.rows for run in recipe.runs])
    blocks = set()
    for slot in (slots[n] for n in ids):
        chunk = int(np.searchsorted(starts, slot, side="right")) - 1
        blocks.add((chunk, (slot - starts[chunk]) // recipe.runs[chunk].rows_per_block))
    assert stats["block_reads"] == len(blocks) == len(extents)
    assert stats["block_bytes"] == sum(length for _, length in extents)
    assert stats["rows"] == len(ids)


def test_each_block_is_read_once_by_large_lookups(tmp_path):
    """A lookup that is decoded in several steps does not read a block in two of them."""
    width = 16384  # 64 KiB of float32 a row: 16 rows are decoded at a time
    recipe = Recipe(width, (Layer((int4(width, 64),)),), (Run(64, "raw", 4),))
    sample = write(tmp_path / "pack", recipe)
    ids = range(1, 64)
    with tolpack.open(sample.path) as pack:
        pack.rows(ids)
        assert pack.stats()["block_reads"] == 16


def test_arrays_are_read_once_and_only_if_needed(samples):
    """Map, bases and means are read by the first lookup that needs them."""
    with tolpack.open(samples["everything"].path) as pack:
        pack.rows([1], layers=[0])
        assert pack.stats()["array_reads"] == 1  # the token map
        for _ in range(3):
            pack.rows(range(12))
        stats = pack.stats()
    assert stats["array_reads"] == 4  # and a basis and two means
    assert stats["index_reads"] == 1


@pytest.mark.parametrize("name", RECIPES)
def test_extents_hold_all_that_a_token_needs(name, samples):
    """The row of a token depends on the bytes of its extent and on no other block's."""
    sample = samples[name]
    data = sample.data
    with tolpack.open(sample.path) as pack:
        extents = pack.extents(range(pack.vocab_size))
        expected = pack.rows(range(pack.vocab_size))
    assert extents.dtype == np.int64
    blocks = [s for s in sample.header.sections if s.kind == "blocks"]
    inside = [[s.offset_bytes <= o and o + n <= s.end_bytes for s in blocks] for o, n in extents]
    assert all(sum(row) == 1 for row in inside)
    token = sample.recipe.rows // 2
    offset, length = extents[token]
    other = bytearray(data)
    for section in blocks:
        other[section.offset_bytes : section.end_bytes] = b"\xaa" * section.length_bytes
    other[offset : offset + length] = data[offset : offset + length]
    path = sample.path.with_suffix(".other")
    path.write_bytes(other)
    with tolpack.open(path) as pack:
        assert agree(name, pack.rows([token]), expected[token : token + 1])


def test_equal_ids_have_equal_extents(everything):
    """Extents come in the order of the ids, duplicates included."""
    all_extents = everything.extents(range(12))
    assert (everything.extents([7, 0, 7]) == all_extents[[7, 0, 7]]).all()
    assert len(np.unique(all_extents, axis=0)) == 2 + 3 + 4


@pytest.mark.parametrize("io", MODES)
def test_prefetch_is_a_hint(io, samples):
    """Prefetching changes no result, reads no block, and takes duplicates."""
    with tolpack.open(samples["everything"].path, io=io) as pack:
        assert pack.prefetch([3, 3, 11]) is None
        assert pack.stats()["block_reads"] == 0
        assert (pack.rows([3, 11]) == pack.rows([3, 11])).all()


def test_many_frames_use_several_index_blocks(tmp_path):
    """A chunk of more frames than an index block holds finds each of them, by few index reads."""
    recipe = Recipe(2, (Layer((Part("f32", 2),)),), (Run(1300, "zstd", 1),), shuffled=True)
    sample = write(tmp_path / "pack", recipe)
    expected = sample.values[0][sample.slots]
    with tolpack.open(sample.path) as pack:
        one = int(np.flatnonzero(sample.slots == 600)[0])
        assert (pack.rows([one])[:, 0] == expected[one]).all()
        assert pack.stats()["index_reads"] == 1
        assert (pack.rows(range(1300))[:, 0] == expected).all()
        assert pack.stats()["index_reads"] == 3
        assert pack.verify() == []


# ---- verify -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("io", MODES)
def test_good_packs_verify(name, io, samples):
    """`verify` finds nothing in a good pack, and reports all its bytes as progress."""
    done = []
    with tolpack.open(samples[name].path, io=io) as pack:
        assert pack.verify(done.append) == []
    assert sum(done) == samples[name].path.stat().st_size


def _flip(path, offset, bit=0):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


@pytest.mark.parametrize("number", range(8))
def test_verify_names_what_is_damaged(number, tmp_path):
    """One flipped bit in a section gives damage there, with the slots that it hits."""
    sample = write(tmp_path / "pack", RECIPES["everything"])
    section = sample.header.sections[number]
    _flip(sample.path, section.offset_bytes + 1)
    with tolpack.open(sample.path) as pack:
        damages = pack.verify()
    place = {
        0: "token map", 1: "basis of layer 2", 2: "mean of layer 2", 3: "mean of layer 3",
        4: "chunk 0, block 0", 5: "chunk 1, block 0", 6: "index of chunk 1", 7: "chunk 2, block 0",
    }[number]  # fmt: skip
    assert damages[0].place == place
    slots = {4: (0, 2), 5: (3, 2), 6: (3, 5), 7: (8, 1)}.get(number, (0, 12))
    (damage,) = damages
    assert (damage.first_slot, damage.rows) == slots
    assert "checksum" in damage.message
    assert damage.code == damage.message.split(":")[0]


def _ids(ranges):
    return [token for first, last in ranges for token in range(first, last + 1)]


def test_verify_names_the_tokens_that_are_hit(tmp_path):
    """The tokens of a finding are those whose lookup fails; with a damaged map they are unknown."""
    sample = write(tmp_path / "pack", RECIPES["everything"])
    sections = sample.header.sections
    _flip(sample.path, sections[5].offset_bytes + 1)
    with tolpack.open(sample.path) as pack:
        (damage,) = pack.verify()
        hit = []
        for token in range(12):
            try:
                pack.rows([token])
            except ChecksumError:
                hit.append(token)
    assert _ids(damage.token_ranges) == hit
    assert len(hit) == damage.rows == 2
    _flip(sample.path, sections[0].offset_bytes)
    with tolpack.open(sample.path) as pack:
        found = {damage.place: damage.token_ranges for damage in pack.verify()}
    assert found == {"token map": ((0, 11),), "chunk 1, block 0": None}


def test_neighbouring_blocks_are_one_finding(tmp_path):
    """Blocks that are damaged alike and lie side by side are named together; others are not."""
    sample = write(tmp_path / "pack", RECIPES["int8"])  # 10 rows, 3 in a block
    with tolpack.open(sample.path) as pack:
        length = pack.extents([0])[0, 1]
        start = sample.header.tables[0].chunks[0].blocks
        offset = sample.header.sections[start].offset_bytes
        for block in (0, 1, 3):
            _flip(sample.path, offset + block * length)
        found = [(damage.place, damage.first_slot, damage.rows) for damage in pack.verify()]
    assert found == [("chunk 0, blocks 0 … 1", 0, 6), ("chunk 0, block 3", 9, 1)]


def test_verify_goes_on_behind_what_cannot_be_read(samples, monkeypatch):
    """A bad sector is named like other damage, and what lies behind it is still checked."""
    plain, plain_into, sample = os.pread, os.preadv, samples["int8"]
    section = sample.header.sections[sample.header.tables[0].chunks[0].blocks]

    def pread(fd, length, offset):
        if offset == section.offset_bytes:
            raise OSError(errno.EIO, "Input/output error")
        return plain(fd, length, offset)

    def preadv(fd, buffers, offset, flags):
        pread(fd, 0, offset)
        return plain_into(fd, buffers, offset, flags)

    with tolpack.open(sample.path) as pack:
        monkeypatch.setattr(os, "pread", pread)
        monkeypatch.setattr(os, "preadv", preadv)
        (damage,) = pack.verify()
    assert (damage.place, damage.code, damage.rows) == ("chunk 0, block 0", "unreadable", 3)
    assert "Input/output error" in damage.message


@pytest.mark.parametrize("io", MODES)
def test_verify_notices_a_file_that_grew(io, tmp_path):
    """Bytes that were appended after opening are damage, whatever the mode."""
    sample = write(tmp_path / "pack", RECIPES["int8"])
    with tolpack.open(sample.path, io=io) as pack:
        with open(sample.path, "ab") as file:
            file.write(b"more")
        (damage,) = pack.verify()
    assert (damage.place, damage.code) == ("header", "changed")


# ---- without checksums --------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("io", MODES)
def test_rows_are_the_same_without_checksums(name, io, samples):
    """Switching checksums off changes no row of a good pack."""
    with tolpack.open(samples[name].path, io=io) as pack:
        expected = pack.rows(range(pack.vocab_size))
    with tolpack.open(samples[name].path, io=io, checksums=False) as pack:
        assert pack.rows(range(pack.vocab_size)).tobytes() == expected.tobytes()
        with pytest.raises(ConfigError, match="checksums=True"):
            pack.verify()


@pytest.mark.parametrize("number", range(8))
def test_damage_without_checksums_is_never_a_foreign_error(number, tmp_path):
    """Each damaged byte gives rows or one of our errors; only a token map is checked still."""
    sample = write(tmp_path / "pack", RECIPES["everything"])
    section, rows = sample.header.sections[number], 0
    offsets = range(section.offset_bytes, section.end_bytes)
    for offset in offsets:
        _flip(sample.path, offset, offset % 8)
        with (
            tolpack.open(sample.path, checksums=False) as pack,
            contextlib.suppress(FormatError),
        ):
            rows += pack.rows(range(12)).shape == (12, *pack.rows([0]).shape[1:])
        _flip(sample.path, offset, offset % 8)
    assert (rows > 0) == (number != 0)


def test_damage_in_one_block_leaves_the_others_readable(tmp_path):
    """Only the tokens of a damaged block are lost, and their lookup says so."""
    sample = write(tmp_path / "pack", RECIPES["int8"])
    expected = reference_rows(sample.data)
    with tolpack.open(sample.path) as pack:
        extents = pack.extents(range(10)).tolist()
        _flip(sample.path, extents[4][0] + 5)
        for token in range(10):
            if extents[token] == extents[4]:
                with pytest.raises(ChecksumError) as caught:
                    pack.rows([token])
                assert caught.value.code == "block-checksum"
            else:
                assert agree("int8", pack.rows([token]), expected[[token]])


@pytest.mark.parametrize("number", range(8))
def test_verify_reads_again_what_was_read_before(number, tmp_path):
    """Damage that came after a lookup is found, also in what the lookup keeps in memory."""
    sample = write(tmp_path / "pack", RECIPES["everything"])
    with tolpack.open(sample.path) as pack:
        pack.rows(range(12))
        assert pack.verify() == []
        _flip(sample.path, sample.header.sections[number].offset_bytes + 1)
        assert pack.verify() != []


# ---- what the system does -----------------------------------------------------------------------


def test_short_reads_are_continued(samples, monkeypatch):
    """A system call that returns fewer bytes than asked for is repeated for the rest."""
    with tolpack.open(samples["everything"].path) as pack:
        expected = pack.rows(range(12))
    plain = os.pread
    calls = Counter()

    def short(fd, length, offset):
        calls["pread"] += 1
        return plain(fd, min(length, 7), offset)

    monkeypatch.setattr(os, "pread", short)
    for io in ("pread", "memory"):
        with tolpack.open(samples["everything"].path, io=io) as pack:
            assert (pack.rows(range(12)) == expected).all()
    assert calls["pread"] > 100


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EINTR, errno.EINVAL])
def test_errors_of_the_system_are_access_errors(number, samples, monkeypatch):
    """A failing read gives FileAccessError, which is an OSError, at opening and later."""
    pack = tolpack.open(samples["everything"].path)

    def fail(fd, length, offset):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pread", fail)
    before = len(os.listdir("/proc/self/fd"))
    for use in (
        lambda: pack.rows([1]),
        lambda: tolpack.open(samples["everything"].path),
        lambda: tolpack.open(samples["everything"].path, io="memory"),
    ):
        with pytest.raises(FileAccessError) as caught:
            use()
        assert isinstance(caught.value, OSError)
    assert len(os.listdir("/proc/self/fd")) == before
    pack.close()


def test_errors_of_the_format_can_be_pickled():
    """An error that a worker process meets comes to its parent with code, place and words."""
    error = tolpack.ChecksumError("block-checksum", "chunk 0", 7, b"x" * 500)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is tolpack.ChecksumError
    assert str(again) == str(error)
    assert (again.code, again.place) == ("block-checksum", "chunk 0")
