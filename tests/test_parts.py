"""Packs in parts: the same rows and the same bytes as one file, and damage that is named."""

import json
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import models
import numpy as np
import pytest
from click.testing import CliRunner

import tolpack
from tolpack.cli import main
from tolpack.container.header import parse_header
from tolpack.container.parts.layout import cut
from tolpack.container.parts.manifest import MANIFEST_NAME, PartFile, parse_manifest
from tolpack.container.parts.parts_sink import PartsSink
from tolpack.pack import open_first_table
from tolpack.storage.local_folder import LocalFolder
from tolpack.storage.locations import open_folder

GOLDEN = sorted((Path(__file__).parents[1] / "formats" / "v1" / "golden").glob("*.tolpack"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A pack of a table with bases, frames and a token map, and the same in several parts."""
    folder = tmp_path_factory.mktemp("parts")
    rng = np.random.default_rng(5)
    table = rng.standard_normal((6000, 3, 32)).astype(np.float32)
    np.save(folder / "table.npy", table)
    np.save(folder / "counts.npy", rng.integers(0, 1000, 6000))
    tolpack.build(
        folder / "table.npy", folder / "one.tolpack", rank=20, bits=8,
        frequencies=folder / "counts.npy",
    )  # fmt: skip
    tolpack.split(folder / "one.tolpack", folder / "parts", part_size=100_000)
    return folder


@pytest.fixture
def copied(parts, tmp_path):
    """A copy of the parts, to be damaged."""
    shutil.copytree(parts / "parts", tmp_path / "parts")
    return tmp_path / "parts"


def part_names(folder):
    return [file.name for file in manifest_of(folder).files]


def manifest_of(folder):
    return parse_manifest((folder / MANIFEST_NAME).read_bytes())


def test_split_uses_several_files(parts):
    """The pack of these tests has blocks in more than one part file, and arrays in the last one."""
    files = manifest_of(parts / "parts").files
    assert len([one for one in files if one.rows]) > 1
    assert files[-1].rows == 0
    assert sum(one.rows for one in files) == 6000


@pytest.mark.parametrize("io", ["auto", "pread", "mmap", "direct", "memory"])
def test_rows_of_parts_are_those_of_one_file(parts, io):
    """Every way of reading gives the rows of the one file, by folder and by manifest."""
    ids = np.random.default_rng(1).integers(0, 6000, 700)
    with tolpack.open(parts / "one.tolpack") as one:
        expected = one.rows(ids)
    for location in (parts / "parts", parts / "parts" / MANIFEST_NAME):
        with tolpack.open(location, io=io) as pack:
            assert np.array_equal(pack.rows(ids), expected)
            assert pack.nbytes == os.path.getsize(parts / "one.tolpack")


@pytest.mark.parametrize("part_size", [1, 5000, "1MB"])
@pytest.mark.parametrize("golden", GOLDEN, ids=[one.stem for one in GOLDEN])
def test_join_gives_what_was_split(tmp_path, golden, part_size):
    """A golden pack of every kind comes back bit for bit, and its parts are found right."""
    tolpack.split(golden, tmp_path / "parts", part_size=part_size)
    size = tolpack.join(tmp_path / "parts", tmp_path / "joined.tolpack")
    assert (tmp_path / "joined.tolpack").read_bytes() == golden.read_bytes()
    assert size == golden.stat().st_size
    with open_first_table(tmp_path / "parts") as pack:
        assert pack.verify() == []


def test_parts_that_are_split_again_are_those_of_the_file(parts, tmp_path):
    """Part files depend on the pack and the part size, and not on the files that it lay in."""
    tolpack.split(parts / "parts", tmp_path / "a", part_size=300_000)
    tolpack.split(parts / "one.tolpack", tmp_path / "b", part_size=300_000)
    assert sorted(os.listdir(tmp_path / "a")) == sorted(os.listdir(tmp_path / "b"))
    manifests = [(tmp_path / one / MANIFEST_NAME).read_bytes() for one in "ab"]
    assert manifests[0] == manifests[1]


def test_opening_reads_the_manifest_alone(parts, copied):
    """A lookup opens the part files that hold its rows and no other."""
    with tolpack.open(parts / "one.tolpack") as one:
        order = one.slots(range(6000))
    first = [int(token) for token in np.flatnonzero(order < 10)]
    for name in part_names(copied)[1:-1]:
        (copied / name).unlink()
    with tolpack.open(copied) as pack, tolpack.open(parts / "one.tolpack") as one:
        assert np.array_equal(pack.rows(first), one.rows(first))
        with pytest.raises(tolpack.FormatError, match="^part-missing: "):
            pack.rows(np.flatnonzero(order > 5990))


@pytest.mark.parametrize("io", ["auto", "mmap"])
def test_few_part_files_are_open_at_once(parts, monkeypatch, io):
    """A pack of more part files than a process may open gives the same rows, also in threads."""
    monkeypatch.setattr("tolpack.container.parts.parts_source._OPEN_FILES", 1)
    ids = np.random.default_rng(2).integers(0, 6000, (20, 50))
    with tolpack.open(parts / "one.tolpack") as one:
        expected = [one.rows(some) for some in ids]
    before = len(os.listdir("/proc/self/fd"))
    with tolpack.open(parts / "parts", io=io) as pack, ThreadPoolExecutor(4) as pool:
        for found, rows in zip(pool.map(pack.rows, ids), expected):
            assert np.array_equal(found, rows)
        assert len(os.listdir("/proc/self/fd")) <= before + 2  # a map has one of its own
        assert pack.stats()["block_reads"] > 0
        if io == "auto":
            assert pack.stats()["file_bytes"] >= pack.stats()["block_bytes"]


def test_pickled_parts_are_opened_again(parts):
    """A pickled pack gives its rows in another process, by its location."""
    with tolpack.open(parts / "parts") as pack, pickle.loads(pickle.dumps(pack)) as again:
        assert np.array_equal(pack.rows([5, 9]), again.rows([5, 9]))


@pytest.mark.parametrize("kind", ["flip", "short", "long", "gone", "other"])
def test_damaged_part_files_are_named(copied, kind):
    """`verify` names a part file that is damaged, cut, longer, missing, or another one."""
    name, other = part_names(copied)[:2]
    path = copied / name
    data = bytearray(path.read_bytes())
    if kind == "flip":
        data[5000] ^= 4
    elif kind == "short":
        del data[-5:]
    elif kind == "long":
        data += b"\0"
    elif kind == "other":
        data = bytearray((copied / other).read_bytes())
    path.write_bytes(data)
    if kind == "gone":
        path.unlink()
    with open_first_table(copied) as pack:
        damages = pack.verify()
    (found,) = [one for one in damages if one.place == f"part file {name}"]
    codes = {"flip": "part-digest", "short": "truncated", "long": "trailing-bytes",
             "gone": "part-missing"}  # fmt: skip
    assert found.code == codes.get(kind, found.code)
    assert any(one.place.startswith("chunk 0") for one in damages) or kind == "long"
    result = CliRunner().invoke(main, ["verify", str(copied)])
    assert result.exit_code == 1 and name in result.output


def test_parts_in_object_storage_are_those_of_the_file(parts):
    """A pack that is split to a URL has the same rows there, joins to the same bytes, and names a
    part file that is missing.
    """
    url = "memory://tests/parts"
    tolpack.split(parts / "one.tolpack", url, part_size=100_000)
    ids = np.random.default_rng(4).integers(0, 6000, 300)
    with tolpack.open(parts / "one.tolpack") as one, tolpack.open(url) as pack:
        assert np.array_equal(pack.rows(ids), one.rows(ids))
        assert pack.verify() == []
    tolpack.join(f"{url}/{MANIFEST_NAME}", parts / "joined.tolpack")
    assert (parts / "joined.tolpack").read_bytes() == (parts / "one.tolpack").read_bytes()
    folder = open_folder(url)
    gone = next(name for name in folder.names() if name.endswith(".part"))
    folder.delete(gone)
    with open_first_table(url) as pack:
        assert "part-missing" in {damage.code for damage in pack.verify()}
        with pytest.raises(tolpack.FormatError, match=f"part-missing: {gone}"):
            pack.rows(range(6000))


def test_damage_between_blocks_of_a_part_file_is_found(copied):
    """The digest covers bytes that no lookup reads, such as a part file's own header."""
    name = part_names(copied)[0]
    data = bytearray((copied / name).read_bytes())
    data[100] ^= 1
    (copied / name).write_bytes(data)
    with open_first_table(copied) as pack:
        pack.rows([0, 1])
        (found,) = pack.verify()
    assert found.code == "part-digest"


def test_part_files_in_another_order_are_found(copied):
    """Part files of several chunks that a manifest names in another order give the same rows, but
    they say of themselves that they are others.
    """
    value = json.loads((copied / MANIFEST_NAME).read_text())
    value["files"][0], value["files"][-1] = value["files"][-1], value["files"][0]
    (copied / MANIFEST_NAME).write_text(json.dumps(value))
    with open_first_table(copied) as pack:
        codes = [one.code for one in pack.verify()]
    assert codes == ["part-mismatch", "part-mismatch"]


def test_every_flipped_bit_of_a_manifest_is_refused_or_harmless(copied, parts):
    """No single-bit flip of a manifest gives other rows without an error."""
    path = copied / MANIFEST_NAME
    data = path.read_bytes()
    with tolpack.open(parts / "one.tolpack") as one:
        expected = one.rows(range(0, 6000, 50))
    rng = np.random.default_rng(3)
    places = {*rng.integers(0, 8 * len(data), 150).tolist(), *range(8 * 12, 8 * 40)}
    for place in sorted(places):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            with tolpack.open(copied) as pack:
                rows = pack.rows(range(0, 6000, 50))
        except (tolpack.FormatError, tolpack.FileAccessError):
            continue
        assert np.array_equal(rows, expected), (place, bytes(flipped[place // 8 - 20 :][:40]))


def test_two_writers_of_one_folder_cannot_both_win(parts, tmp_path):
    """A manifest is created, never replaced: the second pack is refused, the same one is not."""
    folder = tmp_path / "parts"
    tolpack.split(parts / "one.tolpack", folder, part_size=100_000)
    before = (folder / MANIFEST_NAME).read_bytes()
    with pytest.raises(tolpack.ConfigError, match=r"manifest.json exists: use --force"):
        tolpack.split(parts / "one.tolpack", folder, part_size=200_000)
    assert (folder / MANIFEST_NAME).read_bytes() == before
    tolpack.split(parts / "one.tolpack", folder, part_size=200_000, force=True)
    with tolpack.open(folder) as pack:
        assert pack.verify() == []


def test_discarded_parts_that_a_pack_has_are_kept(parts, tmp_path):
    """A build that is given up removes its part files, but for those that a manifest names."""
    folder = LocalFolder(tmp_path / "parts")
    tolpack.split(parts / "one.tolpack", folder.path, part_size=100_000)
    files = manifest_of(folder.path).files
    other = PartFile("0" * 64, 5, ())
    (folder.path / other.name).write_bytes(b"other")
    PartsSink(folder, [*files, other], None).discard()
    assert set(folder.names()) == {MANIFEST_NAME, *(file.name for file in files)}


def test_no_manifest_is_there_before_all_parts_are(parts, tmp_path, monkeypatch):
    """A reader sees all of a pack or nothing: a split that fails leaves no manifest."""
    folder = tmp_path / "parts"
    seen = []
    from tolpack.container.parts import part_file

    original = part_file.PartWriter.commit

    def commit(self):
        assert not (folder / MANIFEST_NAME).exists()
        seen.append(1)
        if len(seen) == 2:
            raise OSError(28, "no space left on device")
        return original(self)

    monkeypatch.setattr(part_file.PartWriter, "commit", commit)
    with pytest.raises(OSError, match="no space left"):
        tolpack.split(parts / "one.tolpack", folder, part_size=100_000)
    assert not (folder / MANIFEST_NAME).exists()
    assert [name for name in os.listdir(folder) if name.startswith(".")] == []
    with pytest.raises(tolpack.FileAccessError, match=r"holds no manifest.json"):
        tolpack.open(folder)


def test_damaged_packs_are_not_split_or_joined(parts, copied, tmp_path):
    """What is damaged is not copied: the error names it, and nothing is left."""
    data = bytearray((parts / "one.tolpack").read_bytes())
    header = manifest_of(copied).header
    blocks = parse_header(header).tables[0].chunks[0].blocks
    data[parse_header(header).sections[blocks].offset_bytes + 9] ^= 1
    (tmp_path / "bad.tolpack").write_bytes(data)
    with pytest.raises(tolpack.ChecksumError, match="block-checksum"):
        tolpack.split(tmp_path / "bad.tolpack", tmp_path / "out")
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()
    name = part_names(copied)[0]
    data = bytearray((copied / name).read_bytes())
    data[4100] ^= 1
    (copied / name).write_bytes(data)
    with pytest.raises(tolpack.ChecksumError, match="block-checksum"):
        tolpack.join(copied, tmp_path / "joined.tolpack")
    assert os.listdir(tmp_path) and not (tmp_path / "joined.tolpack").exists()


def test_a_part_file_alone_is_no_pack(parts):
    """Opening a part file says what to open instead."""
    name = part_names(parts / "parts")[0]
    with pytest.raises(tolpack.UnsupportedVersionError, match="a part file of a pack.*manifest"):
        tolpack.open(parts / "parts" / name)


def test_commands_take_parts(parts, tmp_path):
    """`inspect`, `rows`, `diff`, `convert`, `bench` and `join` take a folder of parts as a pack."""
    folder, one = str(parts / "parts"), str(parts / "one.tolpack")
    run = CliRunner().invoke
    described = json.loads(run(main, ["inspect", "--json", folder]).stdout)
    assert described["vocab_size"] == 6000
    assert [part["name"] for part in described["part_files"]] == part_names(parts / "parts")
    assert run(main, ["rows", folder, "5"]).output == run(main, ["rows", one, "5"]).output
    assert run(main, ["diff", one, folder]).exit_code == 0
    timed = run(main, ["bench", folder, "--seconds", "0.01", "--json"])
    assert timed.exit_code == 0, timed.output
    assert {one["io"] for one in json.loads(timed.stdout)["timings"]} >= {"auto", "mmap"}
    assert run(main, ["convert", folder, str(tmp_path / "t.npy")]).exit_code == 0
    assert run(main, ["convert", one, str(tmp_path / "u.npy")]).exit_code == 0
    assert (tmp_path / "t.npy").read_bytes() == (tmp_path / "u.npy").read_bytes()
    joined = run(main, ["join", folder, str(tmp_path / "joined.tolpack")])
    assert joined.exit_code == 0, joined.output
    assert (tmp_path / "joined.tolpack").read_bytes() == Path(one).read_bytes()
    again = run(main, ["join", folder, str(tmp_path / "joined.tolpack")])
    assert again.exit_code == 1 and "--force" in again.output


def test_join_does_not_write_over_what_it_reads(copied):
    """Neither a part file nor the manifest is taken for an output, whatever is forced."""
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    for name in (part_names(copied)[0], MANIFEST_NAME):
        with pytest.raises(tolpack.ConfigError, match="is one of the inputs"):
            tolpack.join(copied, copied / name, force=True)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


def test_too_many_parts_are_refused_before_any_is_written(parts, monkeypatch):
    """A part size that a manifest has no room for is a setting that cannot be used."""
    monkeypatch.setattr("tolpack.container.parts.layout.MAX_MANIFEST_BYTES", 2 * 2**20 + 300)
    header = parse_header(manifest_of(parts / "parts").header)
    with pytest.raises(tolpack.ConfigError, match="larger --part-size"):
        cut(header, 1)


def test_workers_do_not_remove_a_pack_in_their_folder(parts, tmp_path):
    """A pack in parts that lies where workers would put theirs is refused, and stays."""
    table = np.zeros((50, 2, 8), np.float32)
    np.save(tmp_path / "t.npy", table)
    tolpack.split(parts / "one.tolpack", tmp_path / "t.tolpack.parts")
    with (
        ThreadPoolExecutor(1) as executor,
        pytest.raises(tolpack.ConfigError, match="holds a pack in parts"),
    ):
        tolpack.build(tmp_path / "t.npy", tmp_path / "t.tolpack", executor=executor)
    with tolpack.open(tmp_path / "t.tolpack.parts") as pack:
        assert pack.verify() == []


def test_cut_covers_every_row_once(parts):
    """Part files hold all rows of all chunks, in order, cut at whole blocks."""
    header = parse_header(manifest_of(parts / "parts").header)
    for part_bytes in (1, 50_000, 10**9):
        runs = [run for some in cut(header, part_bytes) for run in some]
        slot = 0
        for run in runs:
            assert run.first_slot == slot
            last = run.first + run.rows == run.chunk.chunk.rows
            assert last or run.rows % run.chunk.rows_per_block == 0
            slot += run.rows
        assert slot == 6000
    with pytest.raises(tolpack.ConfigError, match="--part-size"):
        cut(header, 0)


def test_a_checkpoint_in_parts_evaluates_like_one_file(tmp_path):
    """`eval` gives the same numbers for a pack and for its parts."""
    models.save_model(tmp_path)
    tolpack.build(tmp_path / "model.pt", tmp_path / "m.tolpack")
    tolpack.split(tmp_path / "m.tolpack", tmp_path / "parts")
    np.save(tmp_path / "ids.npy", models.zipf_ids(300, 97))
    paths = [str(tmp_path / name) for name in ("model.pt", "m.tolpack", "parts", "ids.npy")]
    result = CliRunner().invoke(main, ["eval", *paths[:3], "--text", paths[3], "--json"])
    assert result.exit_code == 0, result.output
    one, other = json.loads(result.stdout)["packs"]
    assert one["kl_mean_nats"] == other["kl_mean_nats"] and one["bytes"] == other["bytes"]
