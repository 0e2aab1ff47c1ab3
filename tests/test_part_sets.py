"""Sets of part files by SPEC.md, section 15: golden, malformed and damaged ones, and the schema."""

import itertools
import json
import random
import subprocess
import sys

import jsonschema
import pytest
from edits import many, remove, set_value
from make_malformed import FRAMED, TWO_CHUNKS
from make_parts import CODES, CUTS, FORMAT, GOLDEN, INSEPARABLE, MALFORMED, cases
from packs import split, write
from part_sets import MANIFEST, cut, save, written

sys.path.insert(0, str(FORMAT))

from decode import joined_parts, pack_bytes
from validate import (
    BadPack,
    PartCheck,
    SetCheck,
    validate,
    validate_file,
    validate_part,
    validate_set,
)

SCHEMA = json.loads((FORMAT / "manifest.schema.json").read_text("utf-8"))
WHEN = json.loads(CODES.read_text("utf-8"))
CUT = [[(0, 2)], [(0, None), (1, None)]]


def refusal(call, *arguments):
    """Return the code with which a call refuses a set, or ``None``."""
    try:
        call(*arguments)
    except BadPack as error:
        return error.code
    return None


def manifest_of(folder):
    """Decode the manifest of a set."""
    return json.loads((folder / MANIFEST).read_bytes())


@pytest.fixture(scope="module")
def validator():
    """The schema of a manifest, itself checked."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    return jsonschema.Draft202012Validator(SCHEMA)


@pytest.fixture(scope="module")
def header_validator():
    """The schema of a part file's header."""
    schema = {"$defs": SCHEMA["$defs"], "$ref": "#/$defs/partHeader"}
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """The bytes of packs with two raw chunks and with frames."""
    folder = tmp_path_factory.mktemp("packs")
    return {
        name: write(folder / name, recipe).data
        for name, recipe in (("two", TWO_CHUNKS), ("framed", FRAMED))
    }


# ---- golden sets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CUTS)
def test_golden_sets_are_valid(name, validator, header_validator):
    """Manifest and part files pass all rules and the schema, together and each part alone."""
    folder = GOLDEN / name
    validate_file(folder / MANIFEST)
    validator.validate(manifest_of(folder))
    paths = sorted(folder.glob("*.part"))
    assert {path.stem for path in paths} == {one["sha256"] for one in manifest_of(folder)["files"]}
    for path in paths:
        validate_file(path)
        header_validator.validate(split(path.read_bytes())[1])


@pytest.mark.parametrize("name", CUTS)
def test_golden_sets_are_their_packs(name):
    """Joined by ``decode.py``, a set is the golden pack of its name, bit for bit."""
    data = (FORMAT / "golden" / f"{name}.tolpack").read_bytes()
    assert pack_bytes(GOLDEN / name / MANIFEST) == data


def test_the_tools_take_a_manifest():
    """``decode.py`` gives rows of a set, ``validate.py`` judges sets and part files by path."""
    manifest, pack = GOLDEN / "int8" / MANIFEST, FORMAT / "golden" / "int8.tolpack"
    rows = [_output("decode.py", path, 0, 9) for path in (manifest, pack)]
    assert rows[0] == rows[1] and rows[0].startswith("0 [[")
    parts = sorted(manifest.parent.glob("*.part"))
    assert _output("validate.py", manifest, *parts).count(": valid\n") == 1 + len(parts)


def _output(script, *arguments):
    command = [sys.executable, str(FORMAT / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_part_files_are_no_packs():
    """A part file is refused as a pack, and a pack as a part file, for its mask."""
    part = next((GOLDEN / "int8").glob("*.part")).read_bytes()
    assert refusal(validate, part) == "unsupported-feature"
    pack = (FORMAT / "golden" / "int8.tolpack").read_bytes()
    assert refusal(PartCheck(pack).opening) == "unsupported-feature"


# ---- malformed sets ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WHEN)
def test_malformed_sets_end_in_their_code(name):
    """``validate.py`` refuses each with its code, when it opens the set exactly those of then."""
    folder, code = MALFORMED / name, name.partition("+")[0]
    data = (folder / MANIFEST).read_bytes()
    assert refusal(validate_set, data, folder) == code
    assert refusal(SetCheck(data, folder).opening) == (code if WHEN[name] == "open" else None)


@pytest.mark.parametrize("name", [name for name in WHEN if INSEPARABLE.get(name, "") is not None])
def test_one_thing_is_wrong_in_each(name):
    """Without the rules of its code a set is valid, but for those that cannot be."""
    folder, code = MALFORMED / name, name.partition("+")[0]
    data = (folder / MANIFEST).read_bytes()
    assert refusal(validate_set, data, folder, {code}) == INSEPARABLE.get(name)


def test_the_script_knows_the_sets(tmp_path):
    """``make_parts.py`` makes these files, to be refused at these times."""
    found = cases(tmp_path)
    assert {name: when for name, (when, _) in found.items()} == WHEN
    for name, (_, files) in found.items():
        stored = {path.name: path.read_bytes() for path in (MALFORMED / name).iterdir()}
        assert stored.keys() == files.keys(), name


# ---- manifests -----------------------------------------------------------------------------------

FILE, PIECE = "files.1", "files.1.pieces.0"
BAD_VALUES = {
    "tolpack": (None, "pack", 1, ["parts"]),
    "preamble": (None, "", "0" * 127, "0" * 129, "A" * 128, "g" * 128, " " * 128, 0),
    "header": (None, "", "{", 1, {}, "é"),
    "files": (None, [], {}, "x", [[]]),
    f"{FILE}.sha256": (None, "", "0" * 63, "0" * 65, "../" + "0" * 61, "0" * 63 + "\n", "É" * 64),
    f"{FILE}.length_bytes": (None, 0, -1, 2**63, True, "1", 1.5, 8320.0),
    f"{FILE}.pieces": (None, [], {}, [None], [[]]),
    f"{PIECE}.section": (None, -1, 2**18, 0.0, "0", False),
    f"{PIECE}.offset_bytes": (None, -1, 2**63, 4096.0, True),
    f"{PIECE}.length_bytes": (None, 0, -1, 2**64, 64.0),
    f"{PIECE}.table": (-1, 4096, "0", 0.0, False),
    f"{PIECE}.first_row": (-1, 2**48, 2.0, True),
    f"{PIECE}.rows": (0, -1, 2**48 + 1, 1.0, True),
    f"{PIECE}.lengths_offset_bytes": (-1, 2**63, 8192.0, "8192"),
}
BAD = [(path, value) for path, values in BAD_VALUES.items() for value in values]
# What a JSON Schema cannot see: 1.0 for 1, and the length that the preamble gives the header.
BEYOND = (0.0, 1.0, 2.0, 64.0, 4096.0, 8192.0, 8320.0)


@pytest.mark.parametrize(("path", "value"), BAD, ids=lambda value: repr(value)[:40])
def test_values_out_of_range_are_no_manifest(path, value, samples, validator, tmp_path):
    """Wrong types and ranges are refused as a manifest, by the validator and by the schema."""
    manifest = save(tmp_path / "set", written(samples["two"], cut(samples["two"], CUT)))
    content = manifest_of(manifest.parent)
    validator.validate(content)
    set_value(path, value)(content)
    manifest.write_text(json.dumps(content))
    assert refusal(validate_file, manifest) == "manifest"
    beyond = type(value) is float and value in BEYOND
    assert validator.is_valid(content) == beyond


@pytest.mark.parametrize("path", ["tolpack", "preamble", "header", "files", f"{FILE}.sha256",
                                  f"{FILE}.length_bytes", f"{FILE}.pieces", f"{PIECE}.section",
                                  f"{PIECE}.offset_bytes", f"{PIECE}.length_bytes"])  # fmt: skip
def test_keys_of_a_manifest_are_needed(path, samples, validator, tmp_path):
    """Without a key that is not optional there is no manifest, by validator and schema."""
    files = written(samples["two"], cut(samples["two"], CUT), remove(path))
    assert refusal(validate_file, save(tmp_path / "set", files)) == "manifest"
    assert not validator.is_valid(json.loads(files[MANIFEST]))


@pytest.mark.parametrize("text", [
    b"", b"{", b"{}", b"[]", b" {}", b"\xef\xbb\xbf{}", b'{"tolpack": "parts"} x', b"\xff",
    b'{"x":' + b"[" * 100_000, b'{"x": NaN}', b'{"x": -0}', b'{"x": 9223372036854775808}',
    b'{"x":' * 16 + b"1" + b"}" * 16, b"{" + b" " * 2**24 + b"}",
])  # fmt: skip
def test_texts_that_are_no_manifest(text, tmp_path):
    """What section 4 forbids, or is longer than 2^24 bytes, is not a manifest."""
    assert refusal(validate_set, text, tmp_path) == "manifest"


def test_digests_are_different(samples, tmp_path):
    """One part file does not stand for two."""

    def same(manifest):
        manifest["files"][1]["sha256"] = manifest["files"][0]["sha256"]

    files = written(samples["two"], cut(samples["two"], CUT), same)
    assert refusal(validate_file, save(tmp_path / "set", files)) == "manifest"


def test_pieces_are_limited_together(samples, tmp_path):
    """More than 262,144 pieces of all part files are refused before anything is read."""

    def more(manifest):
        small = {"section": 0, "offset_bytes": 0, "length_bytes": 1}
        manifest["files"][0]["pieces"] = [small] * 2**17
        manifest["files"][1]["pieces"] = [small] * (2**17 + 1)

    data = written(samples["two"], cut(samples["two"], CUT), more)[MANIFEST]
    assert len(data) < 2**24
    assert refusal(SetCheck(data, tmp_path).opening) == "manifest"


def test_what_a_manifest_adds_means_nothing(samples, tmp_path):
    """Unknown keys are ignored at every level, and ``null`` is not a key."""
    notes = [set_value(f"{at}x-a", [{"sha256": "\ud800"}]) for at in ("", f"{FILE}.", f"{PIECE}.")]
    free = many(*notes, set_value(f"{PIECE}.lengths_offset_bytes", None))
    files = written(samples["two"], cut(samples["two"], CUT), free)
    validate_file(save(tmp_path / "set", files))


# ---- damage --------------------------------------------------------------------------------------


def flipped(data, count):
    """Yield `data` with one bit changed: each of its bits, or a sample of `count`."""
    every = list(itertools.product(range(len(data)), range(8)))
    for position, bit in random.Random(0).sample(every, min(count, len(every))):
        bad = bytearray(data)
        bad[position] ^= 1 << bit
        yield bytes(bad)


def test_every_flip_of_a_manifest_is_found_or_harmless(samples, tmp_path):
    """With one bit of the manifest changed, the set is refused, or is the same pack."""
    data = samples["framed"]
    manifest, accepted = save(tmp_path / "set", written(data, cut(data, CUT))), 0
    for bad in flipped(manifest.read_bytes(), 3000):
        if refusal(validate_set, bad, manifest.parent) is None:
            accepted += 1
            assert joined_parts(json.loads(bad), manifest.parent) == data
    assert accepted < 10


@pytest.mark.parametrize("name", ["two", "framed"])
def test_every_flip_of_a_part_file_is_found(name, samples, tmp_path):
    """With one bit of a part file changed its digest tells, and without digests another rule."""
    manifest = save(tmp_path / "set", written(samples[name], cut(samples[name], CUT)))
    text = manifest.read_bytes()
    for path in manifest.parent.glob("*.part"):
        good = path.read_bytes()
        for bad in flipped(good, 300):
            path.write_bytes(bad)
            assert refusal(validate_part, bad, path.stem) == "part-digest"
            assert refusal(validate_set, text, manifest.parent) == "part-digest"
            assert refusal(validate_set, text, manifest.parent, {"part-digest"}) is not None
        path.write_bytes(good)


@pytest.mark.parametrize("length", [0, 63, 64, 100, 4095, 4096, -1])
def test_short_part_files_are_refused(length, samples, tmp_path):
    """A part file that ends early is refused, in its set and alone."""
    data = samples["framed"]
    manifest = save(tmp_path / "set", written(data, cut(data, CUT)))
    path = sorted(manifest.parent.glob("*.part"))[0]
    path.write_bytes(path.read_bytes()[:length])
    assert refusal(validate_file, manifest) == "truncated"
    assert refusal(validate_file, path) == "part-digest"
