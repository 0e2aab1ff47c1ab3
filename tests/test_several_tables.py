"""Packs of several tables: each reads as if it were alone, and none passes for another."""

import json
import pickle
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from edits import set_value
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import RECIPES, SHAPES, Layer, Recipe, Run, Stopped, forge, int4, int8, write
from test_properties import recipes

import tolpack
from tolpack.cli import main
from tolpack.container.verified_reader import Container
from tolpack.errors import ChecksumError, ConfigError
from tolpack.evaluation.pack_description import describe_pack
from tolpack.pack import open_first_table

RECIPE = SHAPES["two-tables"]
NAMES = ("layer.1", "layer.14", "layer.15")
MODES = ("auto", "pread", "mmap", "direct", "memory")
# Two tables of one encoding, and of as many rows: their blocks differ in content alone.
ALIKE = Recipe(
    8, (Layer((int8(8),)),), (Run(5, "raw", 2), Run(1100, "zstd", 2)), name="a",
    more=(Recipe(8, (Layer((int8(8),)),), (Run(5, "raw", 2), Run(1100, "zstd", 2)), name="b"),),
)  # fmt: skip


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A pack of three tables."""
    return write(tmp_path_factory.mktemp("tables") / "p.tolpack", RECIPE)


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """A pack of two tables whose blocks are of one kind."""
    return write(tmp_path_factory.mktemp("alike") / "p.tolpack", ALIKE)


def alone(path, recipe, number):
    """Write table `number` of a recipe as a pack of its own."""
    one = replace((recipe, *recipe.more)[number], more=())
    return write(path, one, seed=number).path


def run(*arguments):
    """Run a command line in this process."""
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("io", MODES)
def test_a_table_reads_as_a_pack_of_its_own(io, number, sample, tmp_path):
    """Rows, order, and what follows from the fields are those of a pack of this table alone."""
    path = alone(tmp_path / "alone", RECIPE, number)
    settings = {"io": io, "cache": 4000}
    with (
        tolpack.open(path, **settings) as single,
        tolpack.open(sample.path, table=NAMES[number], **settings) as pack,
    ):
        ids = range(pack.vocab_size)
        pack.prefetch(ids)
        for _ in range(2):  # from the file, then in part from the cache
            assert pack.rows(ids).tobytes() == single.rows(ids).tobytes()
            assert pack.rows([2]).tobytes() == single.rows([2]).tobytes()
        assert np.array_equal(pack.most_frequent(3), single.most_frequent(3))
        assert pack.fields == single.fields
        assert pack.verify() == []
        assert (pack.tables, pack.table) == (NAMES, NAMES[number])


@settings(max_examples=30)
@given(tables=st.lists(recipes(), min_size=2, max_size=4), data=st.data())
def test_any_tables_read_as_packs_of_their_own(tables, data):
    """The rows of table t of any pack are those of a pack of table t alone."""
    named = [replace(one, name=f"t{n}", header_room=12224) for n, one in enumerate(tables)]
    number = data.draw(st.integers(0, len(named) - 1))
    recipe = replace(named[0], more=tuple(named[1:]))
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "all", recipe).path
        single = alone(Path(folder) / "one", recipe, number)
        with (
            tolpack.open(path, table=f"t{number}") as pack,
            tolpack.open(single) as expected,
        ):
            ids = range(pack.vocab_size)
            assert pack.rows(ids).tobytes() == expected.rows(ids).tobytes()
            assert pack.verify() == []


def test_a_table_must_be_named(sample, tmp_path):
    """Nothing is guessed: the error lists the names; one table alone needs none."""
    for table in (None, "layer.2"):
        with pytest.raises(ConfigError, match=r"'layer\.1', 'layer\.14', 'layer\.15'"):
            tolpack.open(sample.path, table=table)
    path = alone(tmp_path / "one", RECIPE, 1)
    with tolpack.open(path) as pack, tolpack.open(path, table="layer.14") as named:
        assert pack.rows([1]).tobytes() == named.rows([1]).tobytes()


def test_pickled_packs_keep_their_table(sample):
    """A copy in another process reads the same table."""
    with tolpack.open(sample.path, table="layer.14") as pack:
        with pickle.loads(pickle.dumps(pack)) as copy:
            assert copy.table == "layer.14"
            assert copy.rows([7]).tobytes() == pack.rows([7]).tobytes()
        assert "'layer.14', 1064 rows" in repr(pack)


def _moved(data, source, target, length):
    return data[:target] + data[source : source + length] + data[target + length :]


def test_a_block_of_another_table_is_found(alike, tmp_path):
    """A raw block, a frame, or an index at the same slots of the other table is not a valid one."""
    sections, data = alike.header.sections, alike.data
    raw, frames, index = 0, 1, 2  # of table a; those of b stand three sections further
    frame = min(int.from_bytes(data[sections[n].offset_bytes + 8 :][:4], "little") for n in (2, 5))
    for section, length, slot in ((raw, 64, 0), (frames, frame, 5), (index, 2060, 5)):
        there, here = (sections[n].offset_bytes for n in (section + 3, section))
        path = tmp_path / "p.tolpack"
        path.write_bytes(_moved(data, there, here, length))
        with tolpack.open(path, table="a") as a, tolpack.open(path, table="b") as b:
            with pytest.raises(ChecksumError, match="of a|from slot"):
                a.rows([slot])
            b.rows(range(b.vocab_size))
            assert {damage.table for damage in b.verify()} == {"a"}


def test_swapped_tables_are_found(alike, tmp_path):
    """Blocks of both tables, all of them exchanged with their indexes, are all refused."""
    sections, data = alike.header.sections, alike.data
    a = data[sections[0].offset_bytes : sections[0].end_bytes]
    b = data[sections[3].offset_bytes : sections[3].end_bytes]
    assert len(a) == len(b)
    swapped = _moved(data, sections[3].offset_bytes, sections[0].offset_bytes, len(a))
    start = sections[3].offset_bytes
    swapped = swapped[:start] + a + swapped[start + len(a) :]
    (tmp_path / "p").write_bytes(swapped)
    with open_first_table(tmp_path / "p") as pack:
        found = pack.verify()
    assert [(one.table, one.first_slot, one.rows, one.code) for one in found] == [
        ("a", 0, 5, "block-checksum"), ("b", 0, 5, "block-checksum"),
    ]  # fmt: skip


def test_swapped_names_are_another_pack(alike, tmp_path):
    """What a header says is taken as it stands: with names exchanged, rows go by the new ones."""
    data = forge(alike.data, lambda header: None)
    data = forge(data, set_value("tables.0.name", "c"))
    data = forge(data, set_value("tables.1.name", "a"))
    (tmp_path / "p").write_bytes(data)
    with (
        tolpack.open(tmp_path / "p", table="a") as pack,
        tolpack.open(alike.path, table="b") as b,
    ):
        assert pack.rows([0, 9]).tobytes() == b.rows([0, 9]).tobytes()


@pytest.mark.parametrize("number", range(3))
def test_verify_finds_damage_of_any_table(number, sample, tmp_path):
    """Whichever table is open: the damage is told with its table and the tokens that it hits."""
    header = sample.header
    section = header.sections[header.tables[number].chunks[0].blocks]
    data = bytearray(sample.data)
    data[section.offset_bytes] ^= 1
    (tmp_path / "p").write_bytes(data)
    with tolpack.open(tmp_path / "p", table=NAMES[(number + 1) % 3]) as pack:
        (damage,) = pack.verify()
    assert (damage.table, damage.place) == (NAMES[number], f"chunk 0 of {NAMES[number]}, block 0")
    slots = ([sample.slots, np.arange(1064), np.arange(3)])[number]
    tokens = sorted(np.flatnonzero(slots < damage.rows).tolist())
    assert [t for first, last in damage.token_ranges for t in range(first, last + 1)] == tokens


def test_what_all_tables_need_is_told_once(sample, tmp_path):
    """A byte between sections belongs to no table."""
    data = bytearray(sample.data)
    data[sample.header.sections[1].offset_bytes - 1] ^= 1
    (tmp_path / "p").write_bytes(data)
    with open_first_table(tmp_path / "p") as pack:
        (damage,) = pack.verify()
    rows = sum(table.rows for table in sample.header.tables)
    assert (damage.table, damage.code, damage.rows) == (None, "padding", rows)
    assert damage.token_ranges is None


def test_many_damages_of_tables_are_counted(tmp_path):
    """A thousand places in all are told one by one, whatever table they are in."""
    one = Recipe(4, (Layer((int4(4),)),), (Run(1500),), name="a")
    sample = write(tmp_path / "p", replace(one, more=(replace(one, name="b"),)))
    data = bytearray(sample.data)
    for section in sample.header.sections:
        for block in range(0, 1500, 2):
            data[section.offset_bytes + 64 * block] ^= 1
    sample.path.write_bytes(data)
    with open_first_table(sample.path) as pack:
        found = pack.verify()
    assert [one.table for one in found] == ["a"] * 750 + ["b"] * 251
    assert sum(one.places for one in found) == 1500


def test_interrupted_packs_of_several_tables_go_on(sample, tmp_path):
    """A kill after any section: the rest is written, to the same bytes."""
    for sections in range(1, len(sample.header.sections)):
        path = tmp_path / f"{sections}"
        with pytest.raises(Stopped):
            write(path, RECIPE, stop_after=sections)
        assert write(path, RECIPE, resume=True).data == sample.data


def test_counts_are_those_of_the_table(sample):
    """Resident bytes are those of its sections; reads are counted from opening on."""
    with (
        tolpack.open(sample.path, table="layer.1") as first,
        tolpack.open(sample.path, table="layer.15") as last,
    ):
        header = 64 + first.container.preamble.header_length
        assert last.resident_bytes == header  # neither map nor index
        assert first.resident_bytes == header + 4 * 1106 + (12 * 2 + 4 * 550)
        last.rows([0])
        stats = last.stats()
        assert (stats["open_reads"], stats["block_reads"], stats["array_reads"]) == (1, 1, 0)


def test_a_memory_reads_its_table(sample):
    """`ToLMemory` of an open table takes the numbers of its fields, whatever their layers."""
    torch = pytest.importorskip("torch")
    from tolpack.torch import ToLMemory

    ids = torch.tensor([[2, 0], [1, 2]])
    for table in NAMES:
        with tolpack.open(sample.path, table=table) as pack:
            memory = ToLMemory(pack, hot_rows=2)
            expected = pack.rows(ids.ravel().tolist())
            for n in range(pack.num_layers):
                assert np.array_equal(memory(n, ids).reshape(4, -1), expected[:, n])


# ---- descriptions and commands -------------------------------------------------------------------


def test_descriptions_have_an_object_for_each_table(sample, tmp_path):
    """`inspect --json` gives what it says of a pack of one table under ``tables``, by table."""
    with open_first_table(sample.path) as pack:
        found = describe_pack(pack)
    file_keys = {
        "format_version",
        "producer",
        "bytes",
        "ratio_fp16",
        "bits_per_weight",
        "provenance",
        "ffn_bytes",
        "ffn_bytes_16",
        "table_bytes",
    }
    assert set(found) == file_keys | {"tables"}
    values = sum(table.values for table in sample.header.tables)
    assert found["ratio_fp16"] == 2 * values / found["bytes"]
    for number, one in enumerate(found["tables"]):
        with tolpack.open(alone(tmp_path / str(number), RECIPE, number)) as single:
            expected = describe_pack(single)
        same = set(expected) - file_keys - {"resident_bytes"}
        assert {key: one[key] for key in same} == {key: expected[key] for key in same}
    assert [layer["layer"] for layer in found["tables"][1]["layers"]] == [14]
    assert tuple(found["tables"][1]["ngrams"]["orders"]) == (1, 2, 4)


def test_commands_take_a_table(sample):
    """`rows` and `bench` read the table that is named; `inspect` and `verify` look at all."""
    text = run("inspect", sample.path).output
    assert all(f"{name}: " in text for name in NAMES)
    assert "3 tables" in text
    assert "1,064 rows × 1 layers × 8, dropped layers: none, 3 for each token" in text
    found = json.loads(run("inspect", sample.path, "--json").stdout)
    assert [one["name"] for one in found["tables"]] == list(NAMES)
    assert run("verify", sample.path).output.endswith("ok\n")
    for command in ("rows", "bench"):
        refused = run(command, sample.path, *["5"] * (command == "rows"))
        assert refused.exit_code == 1
        assert "--table NAME" in refused.stderr
    found = json.loads(run("rows", sample.path, 2, "--table", "layer.15", "--json").stdout)
    with tolpack.open(sample.path, table="layer.15") as pack:
        assert found["rows"] == pack.rows([2]).tolist()
    timed = run("bench", sample.path, "--table", "layer.14", "--rows", 4, "--seconds", 0.01)
    assert timed.exit_code == 0, timed.output


def test_a_damaged_table_is_named_by_verify(sample, tmp_path):
    """The line names the place with its table."""
    data = bytearray(sample.data)
    data[sample.header.sections[-1].offset_bytes] ^= 1
    (tmp_path / "p.tolpack").write_bytes(data)
    done = run("verify", tmp_path / "p.tolpack")
    assert done.exit_code == 1
    assert done.output.startswith("chunk 0 of layer.15, block 0 (1 token: 0; slots 0 … 0): ")


@pytest.mark.parametrize("as_json", [False, True])
def test_rows_of_fields_of_different_widths_are_shown(as_json, tmp_path):
    """`rows` shows each field in its own width; of other layers by name."""
    path = write(tmp_path / "p", SHAPES["mixed-widths"]).path
    done = run("rows", path, 3, *["--json"] * as_json)
    assert done.exit_code == 0, done.output
    with tolpack.open(path) as pack:
        norms = [np.linalg.norm(pack.rows([3], [n])) for n in range(4)]
    if as_json:
        (row,) = json.loads(done.stdout)["rows"]
        assert [len(field) for field in row] == [6, 10, 3, 4]
    else:
        lines = done.stdout.splitlines()[2:6]
        assert [float(line.split()[2]) for line in lines] == pytest.approx(norms, abs=1e-4)
    timed = run("bench", path, "--rows", 2, "--seconds", 0.01)
    assert timed.exit_code == 0, timed.output


def test_other_layers_are_shown_with_the_names_of_their_fields(tmp_path):
    """`inspect` has a column of names, and the model's layers; `rows` shows the names."""
    path = write(tmp_path / "p", RECIPES["other-layers"]).path
    with tolpack.open(path) as pack:
        assert [field.layer for field in pack.fields] == [12, 3, 3, 4095]
        assert [one["layer"] for one in describe_pack(pack)["layers"]] == [12, 3, 3, 4095]
        assert (pack.kept_layers, pack.num_layers) == ((0, 2, 3), 4)
        assert np.array_equal(pack.rows([4], [2])[:, 0], pack.rows([4])[:, 2])
    lines = run("inspect", path).stdout.split("\n\n")[1].splitlines()
    assert lines[0].split()[:2] == ["field", "layer"]
    assert [line.split()[:3] for line in lines[2:]] == [
        ["layer", str(n), str(layer)] for n, layer in enumerate((12, 3, 3, 4095))
    ]
    lines = run("rows", path, 4).stdout.splitlines()[2:6]
    assert [line.split()[1:3] for line in lines] == [["layer", str(n)] for n in range(4)]


def test_a_container_views_any_table(sample):
    """`Container.of_table` shares the file and begins counting where it stands."""
    container = Container.open(sample.path)
    view = container.of_table(2)
    assert (view.number, view.table.name) == (2, "layer.15")
    view.block(0, 0)
    assert (container.counters.block_reads, view.counters.block_reads) == (0, 1)
    container.close()
