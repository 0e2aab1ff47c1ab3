"""The library's reader of sets of part files agrees with SPEC.md, section 15."""

import hashlib
import json
import random
import shutil
import sys

import numpy as np
import pytest
from edits import set_value
from make_malformed import TWO_CHUNKS
from make_parts import CODES, CUTS, FORMAT, GOLDEN, MALFORMED
from packs import memory_limit, split, write
from part_sets import MANIFEST, cut, save, sealed, written
from test_part_sets import BAD, CUT, flipped, manifest_of

import tolpack
from tolpack.errors import FormatError

pytest.importorskip("tolpack.container.parts.manifest")
sys.path.insert(0, str(FORMAT))

from validate import BadPack, validate_file

WHEN = json.loads(CODES.read_text("utf-8"))
PACKS = sorted((FORMAT / "golden").glob("*.tolpack"))


def names(path):
    """Return the names of a golden pack's tables."""
    return [table["name"] for table in split(path.read_bytes())[1]["tables"]]


def all_rows(pack):
    """Return the bytes of all rows, field by field."""
    ids = range(pack.vocab_size)
    return [pack.rows(ids, [field]).tobytes() for field in range(pack.num_layers)]


def refusal(call, *arguments):
    """Return the code with which a call refuses a file, or ``None``."""
    try:
        call(*arguments)
    except (FormatError, BadPack) as error:
        return error.code
    return None


def first_table(location):
    """Open a set's first table."""
    name = json.loads(manifest_of(location)["header"])["tables"][0]["name"]
    return tolpack.open(location / MANIFEST, table=name)


# ---- golden sets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("by", ["folder", "manifest"])
def test_golden_sets_have_the_rows_of_their_packs(name, by):
    """Opened by folder or manifest, every table of a set has the pack's rows and no damage."""
    path = FORMAT / "golden" / f"{name}.tolpack"
    location = GOLDEN / name if by == "folder" else GOLDEN / name / MANIFEST
    for table in names(path):
        with tolpack.open(path, table=table) as pack, tolpack.open(location, table=table) as parts:
            assert all_rows(parts) == all_rows(pack)
            assert parts.verify() == []


def test_a_manifest_may_have_another_name(tmp_path):
    """A set is found by the path of its manifest, whatever its name that ends in ``.json``."""
    shutil.copytree(GOLDEN / "int8", tmp_path / "set")
    path = (tmp_path / "set" / MANIFEST).rename(tmp_path / "set" / "other.json")
    with tolpack.open(path) as parts:
        assert np.array_equal(parts.rows([3, 0]), np.load(FORMAT / "golden" / "int8.npy")[[3, 0]])


def test_part_files_are_not_taken_for_packs():
    """A part file is refused by its bit, with a word on what to open instead."""
    for path in (GOLDEN / "int8").glob("*.part"):
        with pytest.raises(FormatError, match="manifest") as caught:
            tolpack.open(path)
        assert caught.value.code == "unsupported-feature"


@pytest.mark.parametrize("name", CUTS)
def test_join_gives_the_golden_pack(name, tmp_path):
    """``tolpack.join`` of a golden set is the golden pack, bit for bit."""
    tolpack.join(GOLDEN / name, tmp_path / "pack")
    assert (tmp_path / "pack").read_bytes() == (FORMAT / "golden" / f"{name}.tolpack").read_bytes()


@pytest.mark.parametrize("path", PACKS, ids=lambda path: path.stem)
def test_split_gives_valid_sets(path, tmp_path):
    """``tolpack.split`` of a golden pack passes ``validate.py``, and joins to the same bytes."""
    tolpack.split(path, tmp_path / "set", part_size=4096)
    validate_file(tmp_path / "set" / MANIFEST)
    for part in (tmp_path / "set").glob("*.part"):
        validate_file(part)
    tolpack.join(tmp_path / "set", tmp_path / "pack")
    assert (tmp_path / "pack").read_bytes() == path.read_bytes()


# ---- malformed and damaged sets ------------------------------------------------------------------


@pytest.mark.parametrize("name", WHEN)
def test_malformed_sets_end_in_their_code(name):
    """Each is refused with its code when it is opened, looked up or verified, and cheaply."""
    folder, code = MALFORMED / name, name.partition("+")[0]
    with memory_limit():
        if WHEN[name] == "open":
            assert refusal(tolpack.open, folder / MANIFEST) == code
            return
        with first_table(folder) as pack:
            codes = {damage.code for damage in pack.verify()}
            assert code in codes
            found = refusal(pack.rows, range(pack.vocab_size))
            assert found == (code if WHEN[name] == "rows" else None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The bytes of a pack with two raw chunks."""
    return write(tmp_path_factory.mktemp("pack") / "pack", TWO_CHUNKS).data


@pytest.mark.parametrize(("path", "value"), BAD, ids=lambda value: repr(value)[:40])
def test_values_out_of_range_are_no_manifest(path, value, data, tmp_path):
    """Values that ``validate.py`` calls no manifest, the library does."""
    manifest = save(tmp_path / "set", written(data, cut(data, CUT), set_value(path, value)))
    assert refusal(tolpack.open, manifest) == "manifest"


def test_flips_of_a_manifest_get_the_same_verdict(data, tmp_path):
    """With one bit changed, the library refuses what ``validate.py`` refuses, and nothing else."""
    manifest = save(tmp_path / "set", written(data, cut(data, CUT)))
    for bad in flipped(manifest.read_bytes(), 600):
        manifest.write_bytes(bad)
        assert (_library_verdict(manifest) is None) == (refusal(validate_file, manifest) is None)


def test_flips_of_part_files_are_found_or_harmless(data, tmp_path):
    """With one bit changed, ``verify`` says so, and a lookup fails or gives the same rows."""
    manifest = save(tmp_path / "set", written(data, cut(data, CUT)))
    with tolpack.open(manifest) as pack:
        good = pack.rows(range(pack.vocab_size))
    for path in manifest.parent.glob("*.part"):
        content = path.read_bytes()
        for bad in flipped(content, 150):
            path.write_bytes(bad)
            with tolpack.open(manifest) as pack:
                assert "part-digest" in {damage.code for damage in pack.verify()}
                try:
                    assert np.array_equal(pack.rows(range(pack.vocab_size)), good)
                except FormatError as error:
                    assert error.code == "block-checksum"
        path.write_bytes(content)


def mutated(manifest, source):
    """Change numbers, keys and the order of pieces and files of a decoded manifest."""
    file = source.choice(manifest["files"])
    pieces = file["pieces"]
    piece, other = source.choice(pieces), source.choice(pieces)
    key = source.choice(list(piece))
    step = source.choice((1, -1, 2, 64, -64, 4096, -4096))
    source.choice((
        lambda: piece.update({key: step + (piece[key] if isinstance(piece[key], int) else 0)}),
        lambda: piece.update({key: source.choice((0, 1, 2, None, 2**40, 2**62, 2**63 - 1))}),
        lambda: piece.pop(key),
        lambda: source.shuffle(pieces),
        lambda: source.shuffle(manifest["files"]),
        lambda: pieces.append(dict(piece)),
        lambda: pieces.remove(piece),
        lambda: file.update(length_bytes=file["length_bytes"] + step),
        lambda: piece.update(other | {"length_bytes": piece["length_bytes"]}),
    ))()  # fmt: skip


@pytest.mark.parametrize("name", ["int8", "everything"])
def test_mutated_manifests_get_the_same_verdict(name, tmp_path):
    """The library refuses a manifest for the same reason as ``validate.py``, or accepts it too."""
    shutil.copytree(GOLDEN / name, tmp_path / "set")
    path, source, refused = tmp_path / "set" / MANIFEST, random.Random(0), 0
    good = path.read_text("utf-8")
    for _ in range(200):
        manifest = json.loads(good)
        mutated(manifest, source)
        path.write_text(json.dumps(manifest))
        code = refusal(validate_file, path)
        assert _library_verdict(path) == code
        refused += code is not None
    assert 100 < refused < 200


@pytest.mark.parametrize("name", ["int8", "everything"])
def test_mutated_part_files_get_the_same_verdict(name, tmp_path):
    """The library refuses what ``validate.py`` refuses behind the right digests, and no more."""
    source = random.Random(0)
    for number in range(40):
        folder = tmp_path / str(number)
        shutil.copytree(GOLDEN / name, folder)
        manifest = manifest_of(folder)
        file = source.choice(manifest["files"])
        data = bytearray((folder / f"{file['sha256']}.part").read_bytes())
        places = (8, 24, 40, 64, 4000, *(piece["offset_bytes"] for piece in file["pieces"]))
        data[source.choice(places) + source.randrange(16)] ^= 1 << source.randrange(8)
        data = sealed(bytes(data))
        file["sha256"] = hashlib.sha256(data).hexdigest()
        (folder / f"{file['sha256']}.part").write_bytes(data)
        (folder / MANIFEST).write_text(json.dumps(manifest))
        code = refusal(validate_file, folder / MANIFEST)
        assert (_library_verdict(folder / MANIFEST) is None) == (code is None)


def _library_verdict(manifest):
    try:
        with tolpack.open(manifest) as pack:
            return next((damage.code for damage in pack.verify()), None)
    except FormatError as error:
        return error.code
