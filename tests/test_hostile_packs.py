"""Packs that are damaged, malformed or malicious end in tolpack's own errors, cheaply.

A right checksum is no proof of sense: where a case is about what stands behind a checksum, the
checksum is made again, so that the check itself is met.

Every kind of hostile input, and where it is met (here, if no other file is named):

 1. no pack, or a newer one: tiny files, preambles, newer packs
 2. header lengths and JSON: malformed JSON, numbers of another kind, nesting, duplicate keys
 3. cut, lengthened, prefixed files: every truncation, trailing bytes, junk in front
 4. sizes out of range, products that wrap, unknown words: `edits.RANGES`
 5. extents that wrap, overlap, leave holes or the file; too many chunks: `edits.MEANINGS`
 6. token maps, dropped layers with data, kept ones without, hostile names: `edits`, and below
 7. scales and bases that are not finite, zero or subnormal
 8. zstd bombs, wrong sizes, several frames, dictionaries, windows, cut frames
 9. right checksums over malformed content; every single-bit flip
10. what is not a regular file, changes while open, or cannot be read; short reads, system errors
    are in ``test_pack.py``
11. hostile token ids, layers and buffers; closing, forking, threads: ``test_pack.py``
12. checkpoints: ``test_checkpoints.py``, ``test_shards.py``, ``test_key_maps.py``
13. writing: ``test_writer.py``, ``test_build.py``
14. several tables, hashes of n-grams: ``test_hostile_shapes.py``, ``test_several_tables.py``
"""

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard
from edits import (
    FIELD0,
    MEANINGS,
    RANGES,
    change_array,
    change_index,
    change_raw_block,
    frame_lengths,
    set_value,
    swap,
)
from packs import (
    KEY,
    TARGET,
    Layer,
    Recipe,
    Run,
    forge,
    from_scratch,
    memory_limit,
    plain_header,
    split,
    write,
)

import tolpack
from tolpack.codecs.encodings import Part
from tolpack.errors import ChecksumError, FileAccessError, FormatError, UnsupportedVersionError

MODES = ("auto", "pread", "mmap", "direct", "memory")
GOLDEN = Path(__file__).parents[1] / "formats" / "v1" / "golden"


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return write(tmp_path_factory.mktemp("target") / "pack", TARGET)


@pytest.fixture(scope="module")
def expected(target):
    with tolpack.open(target.path) as pack:
        return pack.rows(range(6))


def refused(path, data, kind=FormatError):
    """Open `data` in every mode; return the one code with which it is refused."""
    path.write_bytes(data)
    codes = set()
    for mode in MODES:
        with memory_limit(), pytest.raises(kind) as caught:
            tolpack.open(path, io=mode).close()
        assert caught.value.place
        codes.add(caught.value.code)
    assert len(codes) == 1
    return codes.pop()


def refused_by_rows(path, data, ids=range(6), kind=FormatError):
    """Open `data`, which works, and look rows up; return the code with which that is refused."""
    path.write_bytes(data)
    codes = set()
    for mode in MODES:
        with memory_limit(), tolpack.open(path, io=mode) as pack:
            assert pack.verify() != []
            with pytest.raises(kind) as caught:
                pack.rows(ids)
            codes.add(caught.value.code)
    assert len(codes) == 1
    return codes.pop()


def child(code, *arguments, timeout=30):
    """Run a program in a process of its own, so that a hang or a crash ends only that."""
    environment = os.environ | {"PYTHONPATH": str(Path(tolpack.__file__).parents[1])}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True, text=True, timeout=timeout, env=environment, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.fail(f"no end within {timeout} seconds")
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


# ---- damage: every bit, every length ------------------------------------------------------------


def _padding(sample):
    """Tell which bytes of the file belong to nothing: gaps in front of sections."""
    gap = np.ones(len(sample.data), bool)
    gap[: 64 + split(sample.data)[0]["header_length"]] = False
    for section in sample.header.sections:
        gap[section.offset_bytes : section.end_bytes] = False
    return gap


def _undetected(path, flips):
    """Flip each (byte, bit) in turn; return those that neither raise nor show in `verify`."""
    with tolpack.open(path) as pack:
        good = pack.rows(range(pack.vocab_size))
    data, missed = path.read_bytes(), []
    with open(path, "r+b", buffering=0) as file:
        for offset, bit in flips:
            os.pwrite(file.fileno(), bytes([data[offset] ^ 1 << bit]), offset)
            try:
                with tolpack.open(path) as pack:
                    rows = pack.rows(range(pack.vocab_size))
                    if rows.tobytes() != good.tobytes() or not pack.verify():
                        missed.append((offset, bit))
            except FormatError:
                pass
            os.pwrite(file.fileno(), data[offset : offset + 1], offset)
    assert path.read_bytes() == data
    return missed


def test_every_flip_of_the_smallest_golden_pack_is_found(tmp_path):
    """Every single bit of the file is guarded: preamble, header, rows, and what lies between."""
    path = tmp_path / "pack"
    path.write_bytes((GOLDEN / "smallest.tolpack").read_bytes())
    size = path.stat().st_size
    flips = [(offset, bit) for offset in range(size) for bit in range(8)]
    assert len(flips) == 8 * size > 30_000
    assert _undetected(path, flips) == []


def test_every_flip_in_every_kind_of_section_is_found(target):
    """Map, basis, mean, raw and zstd blocks, their index, and the edges of each gap are guarded."""
    gap = _padding(target)
    sections = np.flatnonzero(~gap)
    flips = [(n, bit) for n in sections[sections >= 4096].tolist() for bit in range(8)]
    edges = np.flatnonzero(np.diff(gap)).tolist()
    flips += [(n, bit) for e in edges for n in (e, e + 1) for bit in range(8) if gap[n]]
    assert len({n for n, _ in flips}) > 300
    assert _undetected(target.path, flips) == []


@pytest.mark.parametrize("name", ["smallest", "everything"])
def test_every_truncation_is_refused(name, tmp_path):
    """Cut at any length, the file is called truncated at opening."""
    path, data = tmp_path / "pack", (GOLDEN / f"{name}.tolpack").read_bytes()
    path.write_bytes(data)
    for length in range(len(data) - 1, -1, -1):
        os.truncate(path, length)
        with pytest.raises(FormatError) as caught:
            tolpack.open(path, io=MODES[length % 64 % 5])
        assert caught.value.code == "truncated"


def test_truncations_with_a_matching_preamble_are_refused(target, tmp_path):
    """A preamble that declares the cut file's own length does not help it."""
    path, data = tmp_path / "pack", target.data
    codes = set()
    for length in [*range(64, 200), *range(4000, len(data), 97), len(data) - 1]:
        path.write_bytes(forge(data, file_length=length)[:length])
        with pytest.raises(FormatError) as caught:
            tolpack.open(path)
        codes.add(caught.value.code)
    assert codes == {"truncated", "extent-past-end"}


def _zip():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("evil.txt", "x" * 100)
    return buffer.getvalue()


@pytest.mark.parametrize("tail", [b"\0", b"x", bytes(64), bytes(4096), _zip()])
def test_trailing_bytes_are_refused(tail, target, tmp_path):
    """Bytes behind the end are refused, also where the preamble counts them."""
    data = target.data
    assert refused(tmp_path / "a", data + tail) == "trailing-bytes"
    counted = forge(data, file_length=len(data + tail)) + tail
    assert refused(tmp_path / "b", counted) == "trailing-bytes"


@pytest.mark.parametrize("junk", [b"\0", b"#!/bin/sh\n", b"\xef\xbb\xbf", bytes(4096), _zip()])
def test_junk_in_front_is_refused(junk, target, tmp_path):
    """A pack starts at the first byte."""
    assert refused(tmp_path / "pack", junk + target.data) == "bad-magic"


@pytest.mark.parametrize("data", [b"", b"\x89", b"\x89TOLPAC", b"\x89TOLPACK", bytes(63)])
def test_tiny_files_are_truncated(data, tmp_path):
    """An empty file and a few bytes are refused in every mode."""
    assert refused(tmp_path / "pack", data) == "truncated"


# ---- preamble -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "code"), [
    ({"magic": b"TOLPACK\x89"}, "bad-magic"),
    ({"magic": b"KCAPLOT\x89"}, "bad-magic"),
    ({"crc32": 0}, "preamble-checksum"),
    ({"header_crc32": 0}, "header-checksum"),
    ({"reserved": 1}, "reserved-not-zero"),
    ({"header_length": 0}, "header-length"),
    ({"header_length": 1}, "header-length"),
    ({"header_length": 2**20 + 1}, "header-length"),
    ({"header_length": 2**32 - 1}, "header-length"),
    ({"header_length": 2**20}, "truncated"),
    ({"file_length": 0}, "trailing-bytes"),
    ({"file_length": 2**63}, "truncated"),
    ({"file_length": 2**64 - 1}, "truncated"),
    ({"required_features": 0}, "feature-mismatch"),
    ({"required_features": 0x3F | 1 << 8 | 15 << 16}, "feature-mismatch"),
])  # fmt: skip
def test_malformed_preambles_are_refused(change, code, target, tmp_path):
    """Each field of the preamble is held against the format and the file."""
    assert refused(tmp_path / "pack", forge(target.data, **change)) == code


@pytest.mark.parametrize(("change", "code"), [
    ({"major": 0}, "unsupported-version"), ({"major": 2}, "unsupported-version"),
    ({"major": 65535}, "unsupported-version"), ({"major": 2, "crc32": 0}, "unsupported-version"),
    ({"required_features": 1 << 63}, "unsupported-feature"),
    ({"required_features": 1 << 15}, "unsupported-feature"),
    ({"required_features": 1 << 24}, "unsupported-feature"),
])  # fmt: skip
def test_newer_packs_are_called_newer(change, code, target, tmp_path):
    """Another major version and an unknown feature give UnsupportedVersionError."""
    data = forge(target.data, **change)
    assert refused(tmp_path / "pack", data, UnsupportedVersionError) == code


def test_a_newer_minor_version_is_read(target, expected, tmp_path):
    """A future minor version and optional features change nothing that a reader needs."""
    path = tmp_path / "pack"
    path.write_bytes(forge(target.data, minor=7, optional_features=2**64 - 1))
    with tolpack.open(path) as pack:
        assert (pack.rows(range(6)) == expected).all()
        assert pack.verify() == []


# ---- header JSON --------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "code"), [
    (b" " * 100, "header-json"), (b"[]", "header-json"), (b"null", "header-json"),
    (b'\xef\xbb\xbf{"a":1}', "header-json"), (b' {"a":1}', "header-json"),
    (b'{"a":"\xff\xfe"}', "header-json"), (b'{"a":1,"a":1}', "header-json"),
    (b'{"a":1,"a":2}', "header-json"), (b'{"a":' + b"[" * 20_000, "header-json"),
    (b'{"a":' * 20_000, "header-json"), (b'{"a":NaN}', "header-json"),
    (b'{"a":Infinity}', "header-json"), (b'{"a":-0}', "header-json"),
    (b'{"a":1}\0', "header-json"), (b"{" + b"\0" * 50, "header-json"),
    (b'{"a":' + b"1" * 1_000_000 + b"}", "header-json"), (b"{}", "header-field"),
    (b'{"file":[]}', "header-field"), (b'{"file":{"index":0,"count":1},"sections":[]}',
                                       "header-field"),
    (b'{"file":{"index":0,"count":1},"sections":[' + b"{}," * 200_000 + b"{}]}", "header-field"),
    (b'{"file":{"index":0,"count":1},"sections":[' + b"[]," * 300_000 + b"{}]}", "header-field"),
], ids=lambda value: repr(value[:24]))  # fmt: skip
def test_malformed_json_is_refused(text, code, target, tmp_path):
    """A header with a right checksum that is not the expected JSON is refused."""
    assert refused(tmp_path / "pack", forge(target.data, text=text)) == code


def _nested(levels):
    return [] if levels == 1 else [_nested(levels - 1)]


def test_the_header_may_be_nested_sixteen_levels(target, expected, tmp_path):
    """Sixteen levels of objects and lists are read, also where nobody knows the key; no more."""
    path = tmp_path / "pack"
    path.write_bytes(forge(target.data, set_value("x-deep", _nested(15))))
    with tolpack.open(path) as pack:
        assert (pack.rows(range(6)) == expected).all()
    data = forge(target.data, set_value("x-deep", _nested(16)))
    assert refused(tmp_path / "deeper", data) == "header-json"


@pytest.mark.parametrize(("old", "new"), [
    ('"rows":6', '"rows":6.0'), ('"rows":6', '"rows":6e0'), ('"rows":6', '"rows":true'),
    ('"rows":6', '"rows":"6"'), ('"rows":6', '"rows":[6]'), ('"rows":6', '"rows":null'),
    ('"rows":6', '"rows":-6'), ('"rows":6', '"rows":0'), ('"rows":6', '"rows":9007199254740993'),
    ('"rows":6', '"rows":9223372036854775808'), ('"rows":6', '"rows":18446744073709551622'),
    ('"rows":6', f'"rows":{2**48 + 1}'), ('"rows":6', '"rows":1' + "0" * 40),
    ('"rows":6', '"rows":-0'), ('"rows":6', '"rows":NaN'), ('"rows":6', '"rows":6,"rows":6'),
    ('"rows":6', '"rows":6,"rows":7'), ('"rows":6', '"Rows":6'), ('"rows":6,', ""),
    ('"width":8', '"width":65537'), ('"width":8', '"width":8.5'),
    ('"producer":"tests"', '"producer":7'), ('"producer":"tests"', '"producer":""'),
    ('"producer":"tests"', '"producer":"a\\u0000b"'),
])  # fmt: skip
def test_numbers_and_texts_of_another_kind_are_refused(old, new, target, tmp_path):
    """Where an integer or a text belongs, nothing that merely looks like one is taken."""
    text = target.header.to_json().decode()
    assert old in text
    data = forge(target.data, text=text.replace(old, new, 1).encode())
    assert refused(tmp_path / "pack", data) in ("header-field", "header-json")


@pytest.mark.parametrize(
    ("edit", "code"), RANGES + MEANINGS, ids=lambda v: v if isinstance(v, str) else v.__name__
)
def test_malformed_headers_are_refused(edit, code, target, tmp_path):
    """Each value out of range and each part that contradicts another has its code, at opening."""
    assert refused(tmp_path / "pack", forge(target.data, edit)) == code


def test_an_edit_of_nothing_is_no_error(target, expected, tmp_path):
    """Forging itself breaks nothing: the checks above are met by what was changed."""
    path = tmp_path / "pack"
    path.write_bytes(forge(target.data, lambda header: None))
    with tolpack.open(path) as pack:
        assert (pack.rows(range(6)) == expected).all()
        assert pack.verify() == []


@pytest.mark.parametrize("path", [
    f"{FIELD0}.dropped", f"{FIELD0}.rank", f"{FIELD0}.basis", f"{FIELD0}.mean",
    "tables.0.multiplier", "tables.0.chunks.0.index", f"{FIELD0}.unknown", "unknown",
])  # fmt: skip
def test_null_means_absent(path, target, expected, tmp_path):
    """An optional key that is null is as good as absent (SPEC section 4); so is an unknown one."""
    copy = tmp_path / "pack"
    copy.write_bytes(forge(target.data, set_value(path, None)))
    with tolpack.open(copy) as pack:
        assert (pack.rows(range(6)) == expected).all()


@pytest.mark.parametrize("multiplier", ["1e999", "-1e999", "1e400", "NaN"])
def test_multipliers_beyond_numbers_are_refused(multiplier, target, tmp_path):
    """A multiplier that reads as infinity or as no number is refused."""
    text = target.header.to_json().replace(b'"rows":6', b'"rows":6,"multiplier":%b' %
                                           multiplier.encode(), 1)  # fmt: skip
    code = refused(tmp_path / "pack", forge(target.data, text=text))
    assert code in ("header-field", "header-json")


@pytest.mark.parametrize(
    "multiplier", [1e300, 1e39, -1e300, 1e-300, 5e-324, 1e-50, 3.40282357e38, 1e-38]
)
def test_multipliers_beyond_float32_are_refused(multiplier, target, tmp_path):
    """A multiplier that is infinite or zero as a float32 would make every row worthless."""
    features = split(target.data)[0]["required_features"] | 1 << 19
    edit = set_value("tables.0.multiplier", multiplier)
    data = forge(target.data, edit, required_features=features)
    assert refused(tmp_path / "pack", data) == "header-field"


def test_names_are_never_paths(target, tmp_path):
    """A name such as ../x is text like any other: nothing is opened or written by it."""
    path = tmp_path / "pack"
    path.write_bytes(forge(target.data, set_value("tables.0.name", "../../etc/passwd")))
    with tolpack.open(path) as pack:
        assert pack.verify() == []
    assert os.listdir(tmp_path) == ["pack"]


def test_blocks_beyond_the_limit_are_refused(tmp_path):
    """A block that would decode to more than the limit is refused by its declaration."""
    header = plain_header(rows=4096, width=65536, per_block=4096, length=64)
    assert refused(tmp_path / "pack", from_scratch(header, 4160, 1)) == "block-size"


def test_arrays_beyond_the_limit_are_refused(tmp_path):
    """An array section of more than 4 GiB is refused, though the (sparse) file holds it."""
    rows, path = 2**31, tmp_path / "pack"
    header = plain_header(rows, 1, 4096, (rows // 4096) * 16448)
    header["sections"].insert(0, {
        "kind": "token_map", "offset_bytes": 4096, "length_bytes": 4 * rows, "crc32": 0,
        "dtype": "uint32", "shape": [rows],
    })  # fmt: skip
    header["sections"][1]["offset_bytes"] = 4096 + 4 * rows
    header["tables"][0] |= {"token_map": 0}
    header["tables"][0]["chunks"][0]["blocks"] = 1
    size = 4096 + 4 * rows + (rows // 4096) * 16448
    path.write_bytes(from_scratch(header, size, 1 | 1 << 18))
    os.truncate(path, size)
    for mode in ("pread", "mmap"):
        with memory_limit(), pytest.raises(FormatError) as caught:
            tolpack.open(path, io=mode)
        assert caught.value.code == "array-length"


# ---- headers that cost time ---------------------------------------------------------------------

OPEN = """
import sys, tolpack
try:
    tolpack.open(sys.argv[1]).close()
except tolpack.FormatError as error:
    print(error.code)
"""


def test_a_late_duplicate_key_ends_soon(target, tmp_path):
    """A header of a hundred thousand keys, the last one twice, is refused without a long search."""
    keys = [f'"{n:x}":0' for n in range(100_000)]
    text = "{" + ",".join([*keys, keys[-1]]) + "}"
    assert len(text) < 2**20
    path = tmp_path / "pack"
    path.write_bytes(forge(target.data, text=text.encode()))
    assert child(OPEN, path, timeout=10) == "header-json"


def test_many_chunks_of_many_fields_end_soon(tmp_path):
    """A header of 4,096 fields and 15,000 chunks is refused or opened without a long search."""
    header = plain_header(rows=1, width=1, per_block=1, length=16448)
    field = header["tables"][0]["fields"][0]
    header["tables"][0]["fields"] = [{**field, "layer": n, "name": str(n)} for n in range(4096)]
    header["encodings"][0]["fields"] *= 4096
    header["tables"][0]["chunks"] *= 15_000
    header["tables"][0]["rows"] = 15_000
    path, length = tmp_path / "pack", len(json.dumps(header, separators=(",", ":")))
    assert length < 2**20
    start = -(-(64 + length + 8) // 4096) * 4096
    header["sections"][0]["offset_bytes"] = start
    path.write_bytes(from_scratch(header, start + 16448, 1))
    assert path.stat().st_size == start + 16448
    assert child(OPEN, path, timeout=10) in ("shared-section", "chunk-count")


# ---- a right checksum over malformed content ----------------------------------------------------


@pytest.mark.parametrize("slots", [
    [0, 1, 2, 3, 4, 6], [0, 1, 2, 3, 4, 2**32 - 1], [0, 1, 2, 3, 4, 4], [5, 5, 5, 5, 5, 5],
    [0, 0, 1, 2, 3, 4],
])  # fmt: skip
def test_a_token_map_is_a_permutation(slots, target, tmp_path):
    """A map with a slot out of range, twice or missing is refused by the first lookup."""
    data = change_array(target.data, 0, lambda _: struct.pack("<6I", *slots))
    for ids in ([0], range(6)):
        assert refused_by_rows(tmp_path / "pack", data, ids) == "token-map"


@pytest.mark.parametrize(("number", "value"), [
    (1, b"\x00\x7c"), (1, b"\x00\xfc"), (1, b"\x01\x7c"), (2, struct.pack("<f", np.inf)),
    (2, struct.pack("<f", np.nan)),
])  # fmt: skip
def test_bases_and_means_are_finite(number, value, target, tmp_path):
    """A basis or mean with NaN or infinity is refused by the lookup that needs it."""
    data = change_array(target.data, number, lambda old: old[: -len(value)] + value)
    assert refused_by_rows(tmp_path / "pack", data) == "array-not-finite"


@pytest.mark.parametrize("scale", [b"\x80\x7f", b"\x80\xff", b"\xc0\x7f", b"\xff\xff"])
@pytest.mark.parametrize("at", [0, 2, 6, 15])
def test_scales_are_finite(scale, at, target, tmp_path):
    """A NaN or infinite scale of any layer and record is refused by the lookup that meets it."""
    data = change_raw_block(target, 0, lambda old: old[:at] + scale + old[at + 2 :])
    assert refused_by_rows(tmp_path / "pack", data) == "scale-not-finite"


@pytest.mark.parametrize("scale", [b"\x00\x00", b"\x01\x00", b"\x80\x00", b"\x00\x80"])
def test_zero_and_subnormal_scales_are_numbers(scale, target, tmp_path):
    """Such scales are allowed: rows are finite and verify finds nothing."""
    path = tmp_path / "pack"
    path.write_bytes(change_raw_block(target, 0, lambda old: scale * 4 + old[8:]))
    with tolpack.open(path) as pack:
        assert np.isfinite(pack.rows(range(6))).all()
        assert pack.verify() == []


def test_data_in_a_blocks_padding_shows_in_verify(target, expected, tmp_path):
    """Bytes that no record owns must be zero, though a lookup does not look at them."""
    path = tmp_path / "pack"
    path.write_bytes(change_raw_block(target, 1, lambda old: old[:-1] + b"\1"))
    with tolpack.open(path) as pack:
        assert (pack.rows(range(6)) == expected).all()
        (damage,) = pack.verify()
    assert (damage.place, damage.first_slot, damage.rows) == ("chunk 0, block 1", 2, 1)
    assert damage.message.startswith("padding")


def test_data_between_sections_shows_in_verify(target, tmp_path):
    """Nothing can be hidden between two sections."""
    data = bytearray(target.data)
    data[8191] = 1
    path = tmp_path / "pack"
    path.write_bytes(data)
    with tolpack.open(path) as pack:
        assert [damage.place for damage in pack.verify()] == ["padding"]


def test_displaced_blocks_are_refused(target, tmp_path):
    """Blocks that changed places within a pack have checksums of other places."""
    offset = target.header.sections[3].offset_bytes
    data = target.data
    swapped = data[offset + 64 : offset + 128] + data[offset : offset + 64]
    data = data[:offset] + swapped + data[offset + 128 :]
    assert refused_by_rows(tmp_path / "pack", data, kind=ChecksumError) == "block-checksum"


def test_blocks_of_another_pack_are_refused(target, tmp_path):
    """A pack with the sections of another one, of the same shape and content, is refused: by the
    checksums of its blocks, or of the index by which blocks are found.
    """
    other = write(tmp_path / "other", TARGET, key=bytes(32)).data
    assert other[4096:] != target.data[4096:]
    mixed = target.data[:4096] + other[4096:]
    assert refused_by_rows(tmp_path / "pack", mixed, kind=ChecksumError) == "index-checksum"
    with tolpack.open(tmp_path / "pack") as pack, pytest.raises(ChecksumError) as caught:
        pack.rows([int(pack.most_frequent(1)[0])])  # a raw block, which has no index
    assert caught.value.code == "block-checksum"


def test_chunks_out_of_order_are_refused_by_their_checksums(tmp_path):
    """Two chunks of equal shape that are named in the wrong order do not give wrong rows."""
    recipe = replace(TARGET, runs=(Run(3, "raw", 2), Run(3, "raw", 2)))
    data = write(tmp_path / "good", recipe).data
    data = forge(data, swap("tables.0.chunks", 0, 1))
    assert refused_by_rows(tmp_path / "pack", data, kind=ChecksumError) == "block-checksum"


# ---- frames and their index ---------------------------------------------------------------------

FRAMED = Recipe(8, (Layer((Part("int8", 8, 8),)),), (Run(5, "zstd", 2),))
_zstd = zstandard.ZstdCompressor().compress


def _dictionary(data):
    samples = [bytes([n, n + 1, n + 2]) * 50 for n in range(200)]
    trained = zstandard.train_dictionary(2000, samples)
    return zstandard.ZstdCompressor(dict_data=trained).compress(data)


def _window(data):
    """One raw block behind a frame header that asks for a window of 2 GiB."""
    size = struct.pack("<I", len(data))
    return b"\x28\xb5\x2f\xfd\x80\xa8" + size + struct.pack("<I", len(data) << 3 | 1)[:3] + data


def _declared(data, size):
    """One raw block behind a frame header that declares `size`."""
    head = b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", size)
    return head + struct.pack("<I", len(data) << 3 | 1)[:3] + data


FRAMES = {
    "bomb": lambda data: _zstd(bytes(200_000_000)),
    "bomb-declared-small": lambda data: b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", len(data))
    + _zstd(bytes(100_000))[9:],
    "too-small": lambda data: _zstd(data[:-1]),
    "too-large": lambda data: _zstd(data + b"\0"),
    "declared-smaller": lambda data: _declared(data, len(data) - 1),
    "declared-larger": lambda data: _declared(data, len(data) + 1),
    "holds-less": lambda data: _declared(data[:-1], len(data)),
    "holds-more": lambda data: _declared(data + b"\0", len(data)),
    "no-size": zstandard.ZstdCompressor(write_content_size=False).compress,
    "two-frames": lambda data: _zstd(data[:4]) + _zstd(data[4:]),
    "same-frame-twice": lambda data: _zstd(data) * 2,
    "dictionary": _dictionary,
    "window": _window,
    "truncated": lambda data: _zstd(data)[:-1],
    "trailing": lambda data: _zstd(data) + b"\0",
    "skippable": lambda data: b"\x50\x2a\x4d\x18" + struct.pack("<I", len(data)) + data,
    "raw": lambda data: data,
    "one-byte": lambda data: b"\x28",
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMES)
def test_malformed_frames_are_refused(name, tmp_path):
    """A frame with a right checksum that is not one plain frame of the right size is refused."""
    data = write(tmp_path / "pack", FRAMED, compress=FRAMES[name]).data
    expected = "frame-extent" if name == "bomb" else "frame"  # the bomb is too long for its content
    assert refused_by_rows(tmp_path / "pack", data, range(5)) == expected


def test_plain_frames_of_that_kind_are_read(tmp_path):
    """A hand-made frame with the right size is read: the cases above fail for their own reason."""
    sample = write(tmp_path / "a", FRAMED, compress=lambda data: _declared(data, len(data)))
    other = write(tmp_path / "b", FRAMED)
    with tolpack.open(sample.path) as a, tolpack.open(other.path) as b:
        assert (a.rows(range(5)) == b.rows(range(5))).all()
        assert a.verify() == b.verify() == []


@pytest.mark.parametrize(("start", "change"), [
    (2**64 - 1, (0, 0, 0)), (2**63, (0, 0, 0)), (1, (0, 0, 0)), (0, (0, 0, 1)),
    (0, (2**31, 0, 0)), (0, (0, None, 0)),
])  # fmt: skip
def test_frames_outside_their_chunk_are_refused(start, change, tmp_path):
    """An index that leads past the end of the chunk, by any arithmetic, is refused."""
    sample = write(tmp_path / "good", FRAMED)
    pairs = zip(frame_lengths(sample), change)
    lengths = [0 if extra is None else length + extra for length, extra in pairs]
    data = change_index(sample.data, start, lengths)
    assert refused_by_rows(tmp_path / "pack", data, [0]) == "frame-extent"


def test_frames_that_leave_a_hole_show_in_verify(tmp_path):
    """Frames must fill their chunk: bytes that no frame owns are damage."""
    sample = write(tmp_path / "good", FRAMED)
    lengths = frame_lengths(sample)
    path = tmp_path / "pack"
    path.write_bytes(change_index(sample.data, 0, [lengths[0], lengths[1], lengths[2] - 1]))
    with tolpack.open(path) as pack:
        damages = pack.verify()
    assert [d.place for d in damages] == ["chunk 0, block 2", "end of chunk 0"]
    assert damages[1].code == "frame-extent"


def test_frames_in_another_order_are_refused(tmp_path):
    """Frames that changed places, with an index that follows, have checksums of other places."""
    sample = write(tmp_path / "good", FRAMED)
    a, b, c = frame_lengths(sample)
    offset = sample.header.sections[0].offset_bytes
    data = sample.data
    frames = data[offset : offset + a + b]
    data = data[:offset] + frames[a:] + frames[:a] + data[offset + a + b :]
    data = change_index(data, 0, [b, a, c])
    path = tmp_path / "pack"
    assert refused_by_rows(path, data, [0], ChecksumError) == "block-checksum"


def test_a_frame_is_no_longer_than_its_content_allows(tmp_path):
    """An index that declares a frame of 128 MiB for a record of 4 bytes makes nobody read it."""
    header, path, size = plain_header(1, 1, 1, 2**27), tmp_path / "pack", 4096 + 2**27
    header["encodings"][0]["frame"] = "zstd"
    header["sections"].append({"kind": "index", "offset_bytes": size, "length_bytes": 16})
    header["tables"][0]["chunks"][0]["index"] = 1
    path.write_bytes(from_scratch(header, size + 16, 1 | 1 << 8))
    body, place = struct.pack("<QI", 0, 2**27), struct.pack("<QQ", 0, 2**63)
    with open(path, "r+b") as file:
        file.seek(size)
        file.write(body + struct.pack("<I", zlib.crc32(place + body)))
    with memory_limit(), tolpack.open(path) as pack, pytest.raises(FormatError):
        pack.rows([0])


# ---- files that are none, or change -------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_what_is_no_regular_file_is_an_access_error(mode, tmp_path):
    """Folders, pipes, devices, loops and names that cannot be give FileAccessError, at once."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "missing")
    paths = [tmp_path, tmp_path / "fifo", tmp_path / "loop", tmp_path / "dangling", "/dev/zero",
             "/dev/null", tmp_path / "missing", tmp_path / "fifo" / "x", tmp_path / ("x" * 300),
             "a\0b", "\ud800", ""]  # fmt: skip
    before = len(os.listdir("/proc/self/fd"))
    for path in paths:
        with memory_limit(), pytest.raises(FileAccessError) as caught:
            tolpack.open(path, io=mode)
        assert isinstance(caught.value, OSError)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_symlink_to_a_pack_is_followed(target, expected, tmp_path):
    """A link that leads to a pack is as good as the pack."""
    (tmp_path / "link").symlink_to(target.path)
    with tolpack.open(tmp_path / "link") as pack:
        assert (pack.rows(range(6)) == expected).all()


def _sparse(path, size, data=b""):
    path.write_bytes(data)
    try:
        os.truncate(path, size)
    except OSError:
        pytest.skip("this file system has no sparse files of a terabyte")


@pytest.mark.parametrize("mode", ["pread", "mmap"])
def test_a_sparse_terabyte_is_refused_at_once(mode, target, tmp_path):
    """A huge file that is not a pack, or one with a huge tail, costs no more than a small one."""
    path = tmp_path / "pack"
    for data, code in ((b"", "bad-magic"), (target.data, "trailing-bytes")):
        _sparse(path, 2**40, data)
        with memory_limit(), pytest.raises(FormatError) as caught:
            tolpack.open(path, io=mode)
        assert caught.value.code == code


@pytest.mark.parametrize("mode", ["pread", "mmap"])
def test_a_terabyte_pack_opens_by_its_header(mode, tmp_path):
    """A pack of 2^28 rows opens by one small read; its blocks of zeros are damage, row by row."""
    rows, path = 2**28, tmp_path / "pack"
    header = plain_header(rows, 1024, 1, rows * 4160)
    _sparse(path, 4096 + rows * 4160, from_scratch(header, 4096 + rows * 4160, 1, pack_id=5))
    with memory_limit(), tolpack.open(path, io=mode) as pack:
        assert pack.vocab_size == rows
        assert pack.stats()["open_bytes"] <= 4096
        for token in (0, 123, rows - 1):
            with pytest.raises(ChecksumError):
                pack.rows([token])
        assert pack.extents([rows - 1]).tolist() == [[4096 + (rows - 1) * 4160, 4160]]


def test_a_sparse_terabyte_is_refused_in_memory_mode(tmp_path):
    """A file that is not a pack, or does not fit into memory, is refused before it is read."""
    path = tmp_path / "pack"
    _sparse(path, 2**40)
    code = (
        "import resource, sys, tolpack\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))\n"
        "try:\n    tolpack.open(sys.argv[1], io='memory')\n"
        "except tolpack.TolpackError as error:\n    print('refused')\n"
    )
    assert child(code, path) == "refused"


def _copy(target, folder):
    path = folder / "pack"
    path.write_bytes(target.data)
    return path


@pytest.mark.parametrize("mode", ["pread", "mmap"])
@pytest.mark.parametrize("looked_up", [False, True])
def test_truncation_while_open_is_an_error(mode, looked_up, target, tmp_path):
    """A file that becomes shorter gives FormatError truncated, before and after a first lookup."""
    path = _copy(target, tmp_path)
    with tolpack.open(path, io=mode) as pack:
        if looked_up:
            pack.rows(range(6))
        os.truncate(path, 4096 if mode == "pread" else len(target.data) - 1)
        with pytest.raises(FormatError) as caught:
            pack.rows(range(6))
        assert caught.value.code == "truncated"
        assert pack.verify() != []


@pytest.mark.parametrize("mode", ["pread", "mmap"])
@pytest.mark.parametrize("looked_up", [False, True])
@pytest.mark.parametrize("content", ["zeros", "ones", "other-key", "other-values"])
def test_overwriting_while_open_is_an_error(mode, looked_up, content, target, tmp_path):
    """Other bytes in the same file, even another pack of the same shape, give ChecksumError."""
    path = _copy(target, tmp_path)
    data = {
        "zeros": lambda: bytes(len(target.data)),
        "ones": lambda: b"\xff" * len(target.data),
        "other-key": lambda: write(tmp_path / "other", TARGET, key=bytes(32)).data,
        "other-values": lambda: write(tmp_path / "other", TARGET, seed=5, key=KEY[::-1]).data,
    }[content]()
    with tolpack.open(path, io=mode) as pack:
        if looked_up:
            pack.rows(range(6))
        with open(path, "r+b") as file:
            file.write(data)
        with pytest.raises(ChecksumError):
            pack.rows(range(6))
        assert pack.verify() != []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_arrays_that_are_overwritten_later_give_no_wrong_rows(
    mode, number, target, expected, tmp_path
):
    """What was read and checked stays, or is checked again: never rows of other tokens."""
    path = _copy(target, tmp_path)
    section = target.header.sections[number]
    with tolpack.open(path, io=mode) as pack:
        assert (pack.rows(range(6)) == expected).all()
        for filling in (b"\0", b"\1", b"\xff"):
            with open(path, "r+b") as file:
                file.seek(section.offset_bytes)
                file.write(filling * section.length_bytes)
            try:
                rows = pack.rows(range(6))
            except tolpack.TolpackError:
                continue
            assert (rows == expected).all()


@pytest.mark.parametrize("mode", MODES)
def test_replacing_by_rename_keeps_the_old_rows(mode, target, expected, tmp_path):
    """Who has a pack open keeps reading it when another takes its name, or its name goes."""
    path = _copy(target, tmp_path)
    other = write(tmp_path / "other", TARGET, seed=5, key=bytes(32))
    with tolpack.open(path, io=mode) as pack:
        os.replace(other.path, path)
        assert (pack.rows(range(6)) == expected).all()
        path.unlink()
        assert (pack.rows(range(6)) == expected).all()
        assert pack.verify() == []


def test_messages_are_short_and_name_the_place(target, tmp_path):
    """A message names code, place, what was found and what was expected, and quotes no megabyte."""
    path = tmp_path / "pack"
    path.write_bytes(forge(target.data, set_value("tables.0.name", "x" * 900_000)))
    with pytest.raises(FormatError) as caught:
        tolpack.open(path)
    error = caught.value
    assert len(str(error)) < 500
    assert str(error).startswith("header-field: header.tables[0].name: found ")
    assert (error.code, error.place) == ("header-field", "header.tables[0].name")
    assert error.expected == "1 … 128 printable ASCII"


def test_messages_hold_no_control_characters(target, tmp_path):
    """What a hostile name would do to a terminal is shown as its escape."""
    path = tmp_path / "pack"
    path.write_bytes(forge(target.data, set_value("tables.0.name", "\x1b]0;x\x07\ud800")))
    with pytest.raises(FormatError) as caught:
        tolpack.open(path)
    assert str(caught.value).isprintable()
    assert r"\x1b]0;x\x07\ud800" in str(caught.value)
