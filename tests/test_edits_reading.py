"""Packs that are opened with edits: whose rows they give, what they read, and what they refuse."""

import os
import pickle
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from edited_packs import NAMES, edit, equal, expected, fields_of, new_rows, sample_pack, some_ids
from hypothesis import given
from hypothesis import strategies as st
from packs import RECIPES, SHAPES, write

import tolpack
from tolpack.edits.write_edits import write_edits
from tolpack.errors import ConfigError, FileAccessError, TokenIdError
from tolpack.storage.locations import open_folder, split_location


@pytest.fixture
def pack(tmp_path):
    """An open pack without edits."""
    with sample_pack(tmp_path) as opened:
        yield opened


@pytest.fixture
def edits(pack, tmp_path):
    """A file of edits, the edited ids, and their rows by field."""
    return edit(pack, tmp_path / "e.tolpack")


@pytest.mark.parametrize(
    ("io", "name"),
    [("auto", name) for name in NAMES] + [("direct", "int8"), ("memory", "runs"), ("mmap", "ans")],
)
def test_rows_are_the_edited_ones_where_there_are_some(io, name, tmp_path):
    """Whatever the pack's codecs, frames, bases and widths: new rows bit for bit, all others as
    without edits, also if ids repeat; so does each token alone.
    """
    with sample_pack(tmp_path, name) as pack:
        path, ids, rows = edit(pack, tmp_path / "e.tolpack")
        every, exact = np.arange(min(pack.vocab_size, 40)), not pack.decoder.has_basis
        asked = np.concatenate([every, ids, ids[::-1], every[::-1]])
        wanted = expected(pack, asked, (ids, rows))
        with tolpack.open(pack.path, io, edits=[path]) as edited:
            assert equal(fields_of(edited, asked), wanted, exact)
            assert equal(fields_of(edited, ids), expected(pack, ids, (ids, rows)))
            for number in (0, len(every), len(asked) - 1):
                one = asked[number : number + 1]
                assert equal(fields_of(edited, one), expected(pack, one, (ids, rows)))
            assert edited.edited_tokens.tolist() == ids.tolist()
            assert edited.edited_tokens.dtype == np.int64


@given(st.data())
def test_edited_rows_equal_numpys(data):
    """Several edits of any tokens, of which the last one counts, against assigned rows."""
    name = data.draw(st.sampled_from(["int8", "basis", "hot-and-cold", "mixed-widths", "runs"]))
    with tempfile.TemporaryDirectory() as folder, sample_pack(folder, name) as pack:
        tokens = st.sets(st.integers(0, pack.vocab_size - 1), min_size=1)
        chosen = data.draw(st.lists(tokens, min_size=1, max_size=3))
        made = [
            edit(pack, Path(folder) / f"{n}.tolpack", n, ids=sorted(ids))
            for n, ids in enumerate(chosen)
        ]
        asked = np.array(data.draw(st.lists(st.integers(0, pack.vocab_size - 1), max_size=30)), int)
        paths = [path for path, _, _ in made]
        with tolpack.open(pack.path, edits=paths) as edited:
            wanted = expected(pack, asked, *((ids, rows) for _, ids, rows in made))
            assert equal(fields_of(edited, asked), wanted, not pack.decoder.has_basis)
            assert edited.edited_tokens.tolist() == sorted(set.union(*chosen))


@pytest.mark.parametrize(("name", "codec"), [("int8", np.float16), ("bf16", None)])
def test_edits_of_16_bits_are_rounded_to_nearest(name, codec, tmp_path):
    """float16, or bfloat16 where the pack's fields were that."""
    with sample_pack(tmp_path, name) as pack:
        path, ids, rows = edit(pack, tmp_path / "e.tolpack", bits=16)
        with tolpack.open(pack.path, edits=[path]) as edited:
            found = fields_of(edited, ids)
        bf16 = pack.fields[0].dtype == "bfloat16"
        for new, got in zip(rows, found):
            if bf16:
                assert (got.view(np.uint32) & 0xFFFF == 0).all()
                np.testing.assert_allclose(got, new, rtol=2**-8)
            else:
                assert np.array_equal(got, new.astype(np.float16).astype(np.float32))


def test_values_beyond_float16_ask_for_32_bits(pack, tmp_path):
    """They would be infinite."""
    rows = [values * 1e6 for values in new_rows(pack, [1])]
    with pytest.raises(ConfigError, match="float16 ends at 65504: use --bits 32"):
        write_edits(pack, tmp_path / "e", [1], {pack.table: rows}, bits=16)


def test_an_edited_token_reads_nothing_of_the_pack(edits, pack):
    """One token or several: all of it comes from the edits."""
    path, ids, _ = edits
    with tolpack.open(pack.path, edits=[path]) as edited:
        edited.rows(ids[:1])
        edited.rows(ids)
        stats = edited.stats()
    assert stats["array_reads"] == stats["block_reads"] == stats["index_reads"] == 0
    assert stats["rows"] == stats["edited_rows"] == 1 + len(ids)


def test_other_tokens_read_nothing_of_the_edits(edits, pack):
    """And what they read of the pack is what they read without edits."""
    path, ids, _ = edits
    others = np.setdiff1d(np.arange(pack.vocab_size), ids)
    with tolpack.open(pack.path, edits=[path]) as edited, tolpack.open(pack.path) as plain:
        (table,) = edited.edits._tables
        before = table.container.counters.block_reads
        for one in (edited, plain):
            one.rows(others[:1])
            one.rows(others)
        assert table.container.counters.block_reads == before
        own, wanted = edited.stats(), plain.stats()
        assert own["edited_rows"] == 0
        for key in ("array_reads", "block_reads", "block_bytes", "rows"):
            assert own[key] == wanted[key]


def test_a_mixed_lookup_fills_any_output(edits, pack):
    """Layers in any order, float16, and a buffer of the caller's."""
    path, ids, rows = edits
    asked = np.concatenate([ids, np.arange(pack.vocab_size), ids])
    wanted = np.stack(expected(pack, asked, (ids, rows)), axis=1)
    with tolpack.open(pack.path, edits=[path]) as edited:
        out = np.empty((len(asked), 3, pack.hidden_size), np.float16)
        assert edited.rows(asked, [2, 0, 2], "float16", out) is out
        assert np.array_equal(out, wanted[:, [2, 0, 2]].astype(np.float16))
        assert np.array_equal(edited.lookup(asked), wanted)


def test_unpickled_copied_and_forked_packs_have_the_edits(edits, pack):
    """Also one whose lookups began before."""
    path, ids, rows = edits
    wanted = np.stack(expected(pack, ids, (ids, rows)), axis=1)
    with tolpack.open(pack.path, edits=[path]) as edited:
        edited.rows(ids)
        with pickle.loads(pickle.dumps(edited)) as other:
            assert np.array_equal(other.rows(ids), wanted)
            assert other.edit_files == edited.edit_files == (str(path.absolute()),)
        if hasattr(os, "fork"):
            child = os.fork()
            if not child:
                os._exit(0 if np.array_equal(edited.rows(ids), wanted) else 1)
            assert os.waitpid(child, 0)[1] == 0


def test_any_iterable_of_files_will_do(edits, pack, tmp_path):
    """Pickled packs, other tables and converted ones have the edits of an iterator too."""
    path, ids, rows = edits
    with tolpack.open(pack.path, edits=iter([path])) as edited:
        assert edited.edit_files == (str(path.absolute()),)
        for other in (pickle.loads(pickle.dumps(edited)), edited.open_table(edited.table)):
            with other:
                assert equal(fields_of(other, ids), rows)
    tolpack.convert(pack.path, tmp_path / "x.npy", edits=iter([path]))
    assert np.array_equal(np.load(tmp_path / "x.npy")[ids], np.stack(rows, axis=1))


def test_edits_that_were_replaced_are_no_longer_those_that_were_pickled(edits, pack):
    """As for the pack itself."""
    path, ids, _ = edits
    with tolpack.open(pack.path, edits=[path]) as edited:
        stored = pickle.dumps(edited)
    edit(pack, path, 1, ids=ids)
    with pytest.raises(FileAccessError, match="or its edits are others"):
        pickle.loads(stored)


def test_threads_share_edits(edits, pack):
    """All of them get the rows that one would get."""
    path, ids, rows = edits
    asked = np.tile(np.arange(pack.vocab_size), 4)
    wanted = np.stack(expected(pack, asked, (ids, rows)), axis=1)
    wrong = []
    with tolpack.open(pack.path, edits=[path]) as edited:

        def work():
            for _ in range(20):
                if not np.array_equal(edited.rows(asked), wanted):
                    wrong.append(1)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_tables_have_edits_of_their_own(tmp_path):
    """A file may edit several tables of a pack; others of its tables are as they were."""
    path = write(tmp_path / "p.tolpack", SHAPES["two-tables"]).path
    with tolpack.open(path, table="layer.1") as a, tolpack.open(path, table="layer.15") as b:
        ids = [0, 2]
        rows = {one.table: new_rows(one, ids) for one in (a, b)}
        write_edits(a, tmp_path / "e", ids, rows)
        with tolpack.open(path, table="layer.1", edits=[tmp_path / "e"]) as edited:
            assert equal(fields_of(edited, ids), expected(a, np.array(ids), (ids, rows["layer.1"])))
            assert edited.tables == a.tables
            with edited.open_table("layer.15") as other:
                found, new = fields_of(other, ids), rows["layer.15"]
                assert equal(found, expected(b, np.array(ids), (ids, new)))
            with edited.open_table("layer.14") as other:
                assert other.edited_tokens.tolist() == []
                assert other.edits is None


def test_packs_in_parts_take_the_edits_of_the_joined_pack(edits, pack, tmp_path):
    """They are one pack: its preamble and header are the manifest's. So are edits in parts."""
    path, ids, rows = edits
    tolpack.split(pack.path, tmp_path / "parts", part_size="64KB")
    tolpack.split(path, tmp_path / "edits", part_size="64KB")
    for base in (pack.path, tmp_path / "parts"):
        for own in (path, tmp_path / "edits"):
            with tolpack.open(base, edits=[own]) as edited:
                assert equal(fields_of(edited, ids), expected(pack, ids, (ids, rows)))


@pytest.mark.parametrize("remote", [(True, False), (False, True), (True, True)])
def test_packs_and_edits_may_be_named_by_urls(remote, edits, pack, tmp_path):
    """Either of them, or both; so may those that are merged."""
    pytest.importorskip("obstore")
    path, ids, rows = edits
    urls = []
    for name, own, is_remote in zip(("p.tolpack", "e.tolpack"), (pack.path, path), remote):
        folder, last = split_location(f"memory://edits/{name}")
        open_folder(folder).put(last, Path(own))
        urls.append(f"memory://edits/{name}" if is_remote else own)
    with tolpack.open(urls[0], edits=[urls[1]]) as edited:
        assert equal(fields_of(edited, ids), expected(pack, ids, (ids, rows)))
        assert edited.edit_files == (str(urls[1]),)
    tolpack.merge(urls[0], [urls[1]], tmp_path / "m")
    tolpack.merge(pack.path, [path], tmp_path / "n")
    assert (tmp_path / "m").read_bytes() == (tmp_path / "n").read_bytes()


def test_prefetch_and_extents_leave_edited_tokens_out(edits, pack):
    """A lookup of theirs reads no byte of the pack."""
    path, ids, _ = edits
    other = np.setdiff1d(np.arange(pack.vocab_size), ids)[:1]
    with tolpack.open(pack.path, edits=[path]) as edited:
        edited.prefetch(ids)
        extents = edited.extents(np.concatenate([ids, other]))
        assert not extents[: len(ids)].any()
        assert np.array_equal(extents[-1:], pack.extents(other))
        assert np.array_equal(edited.slots(ids), pack.slots(ids))


def test_a_cache_and_edits_go_together(edits, pack):
    """Whatever is cached, edited tokens have their new rows."""
    path, ids, rows = edits
    asked = np.arange(pack.vocab_size)
    wanted = np.stack(expected(pack, asked, (ids, rows)), axis=1)
    with tolpack.open(pack.path, edits=[path], cache="1MB") as edited:
        edited.warm()
        assert np.array_equal(edited.rows(asked), wanted)
        assert edited.stats()["cache_hits"] == len(asked) - len(ids)


# ---- what is refused -----------------------------------------------------------------------------


def test_edits_of_another_pack_are_refused(edits, tmp_path):
    """With both names and the remedy: also an earlier build of the same table."""
    other = write(tmp_path / "other.tolpack", RECIPES["int8"], key=bytes(32)).path
    with pytest.raises(ConfigError) as raised:
        tolpack.open(other, edits=[edits[0]])
    assert str(edits[0]) in str(raised.value)
    assert str(other) in str(raised.value)
    assert "make the edits again from this pack" in str(raised.value)


def test_a_pack_is_no_edits(pack):
    """It is told apart, and the message says what makes edits."""
    with pytest.raises(ConfigError, match="is a pack, and holds no edits.*tolpack edit"):
        tolpack.open(pack.path, edits=[pack.path])


def test_edits_alone_say_how_they_are_opened(edits):
    """They have no rows for most tokens."""
    with pytest.raises(ConfigError, match=r"holds edits of a pack.*edits=\['.*e.tolpack'\]"):
        tolpack.open(edits[0])


def test_edits_of_edits_are_refused(edits, tmp_path):
    """Edits belong to packs alone."""
    with pytest.raises(ConfigError, match="holds edits of a pack, and no rows of its own"):
        tolpack.open(edits[0], edits=[edits[0]])


@pytest.mark.parametrize("kind", [str, Path])
def test_one_file_is_no_list_of_files(kind, edits, pack):
    """A text would be taken for a list of letters."""
    with pytest.raises(ConfigError, match=r"expected a list of files: edits=\[…\]"):
        tolpack.open(pack.path, edits=kind(edits[0]))


def test_edits_that_are_missing_leave_nothing_open(edits, pack, tmp_path):
    """Neither the pack nor the edits before them."""
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for wrong in (tmp_path / "missing", pack.path):
        with pytest.raises((FileAccessError, ConfigError)):
            tolpack.open(pack.path, edits=[edits[0], wrong])
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_closed_pack_reads_no_edits(edits, pack):
    """Edits are closed with it."""
    edited = tolpack.open(pack.path, edits=[edits[0]])
    edited.close()
    with pytest.raises(FileAccessError, match="closed"):
        edited.rows(edits[1])


# ---- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [[3, 1], [2, 2], [], [-1], [10], [0.5]])
def test_ids_must_be_ascending_and_of_the_table(ids, pack, tmp_path):
    """Each one once: a reader refuses others."""
    with pytest.raises(TokenIdError):
        write_edits(pack, tmp_path / "e", ids, {pack.table: new_rows(pack, ids)})
    assert os.listdir(tmp_path) == ["int8.tolpack"]


def test_rows_must_fit_the_table(pack, tmp_path):
    """Table, fields, width, dtype, tokens."""
    rows = new_rows(pack, [1, 2])
    for wrong in (
        {},
        {"other": rows},
        {pack.table: rows[:-1]},
        {pack.table: [one[:, :-1] for one in rows]},
        {pack.table: [one[:1] for one in rows]},
        {pack.table: [one.astype(np.float64) for one in rows]},
        {pack.table: np.zeros((2, 9), np.float32)},
        {pack.table: np.zeros(2, np.float32)},
    ):
        with pytest.raises(ConfigError):
            write_edits(pack, tmp_path / "e", [1, 2], wrong)
    with pytest.raises(ConfigError, match="expected 32 or 16"):
        write_edits(pack, tmp_path / "e", [1, 2], {pack.table: rows}, bits=8)


def test_nothing_is_replaced_without_force(edits, pack):
    """Neither a file of that name, nor the pack."""
    path, ids, rows = edits
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="exists: use --force"):
        write_edits(pack, path, ids, {pack.table: rows})
    with pytest.raises(ConfigError, match="one of the inputs"):
        write_edits(pack, pack.path, ids, {pack.table: rows}, force=True)
    assert path.read_bytes() == before


def test_the_same_edits_are_the_same_bytes(edits, pack, tmp_path):
    """As everything that is written."""
    path, ids, rows = edits
    stacked = np.stack(rows, axis=1)
    write_edits(pack, tmp_path / "again", ids, {pack.table: stacked})
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_zeros_take_a_few_bytes(tmp_path):
    """Rows of zeros are compressed, and random ones at most stored as they are."""
    recipe = RECIPES["runs"]
    with tolpack.open(write(tmp_path / "p", recipe).path) as pack:
        ids = some_ids(pack, most=50)
        shape = len(ids), pack.num_layers, pack.hidden_size
        zeros = write_edits(pack, tmp_path / "0", ids, {pack.table: np.zeros(shape, np.float32)})
        values = np.random.default_rng(0).integers(0, 2**32, shape, np.uint32).view(np.float32)
        noise = write_edits(pack, tmp_path / "1", ids, {pack.table: values})
    assert zeros.nbytes < 4096 < noise.nbytes < values.nbytes + 4096
