"""Preamble, header JSON and frame index: what is written is read, what is malformed is refused."""

import json
import struct
import zlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import RECIPES, TARGET, write

from tolpack.codecs.encodings import Encoding, Part
from tolpack.container.block_sizes import BlockSizes, raw_block_bytes
from tolpack.container.crc import INDEX_PLACE, place_checksum
from tolpack.container.header import Header, parse_header
from tolpack.container.header_features import required_features
from tolpack.container.index import (
    decode_index_block,
    encode_index,
    fewest_length_bytes,
    index_block_extent,
    index_bytes,
    length_bytes_of,
)
from tolpack.container.preamble import (
    FEATURES,
    MAX_HEADER_BYTES,
    SUPPORTED_FEATURES,
    Preamble,
    align,
    parse_preamble,
)
from tolpack.container.strict_json import parse
from tolpack.errors import ChecksumError, FormatError, UnsupportedVersionError

GOOD = Preamble(100, 4160, 1, 7, 9)


def code_of(call, *arguments):
    with pytest.raises(FormatError) as caught:
        call(*arguments)
    return caught.value.code


def resealed(preamble, **changes):
    """Return preamble bytes with fields overwritten at their offsets and a right checksum."""
    data = bytearray(preamble.to_bytes())
    offsets = {"magic": 0, "major": 8, "minor": 10, "header_length": 12, "file_length": 16,
               "required": 24, "optional": 32, "reserved": 48}  # fmt: skip
    for name, value in changes.items():
        data[offsets[name] : offsets[name] + len(value)] = value
    return bytes(data[:60]) + struct.pack("<I", zlib.crc32(data[:60]))


def test_the_preamble_by_hand():
    """The 64 bytes stand where the format says, little-endian."""
    data = Preamble(0x0203, 0x0405, 0x06, 0x0708, 0x090A, 0x0B).to_bytes()
    assert data[:8] == b"\x89TOLPACK"
    assert data[8:12] == b"\x01\x00\x02\x00"
    assert data[12:60] == struct.pack("<IQQQQQI", 0x0203, 0x0405, 6, 11, 0x0708, 0, 0x090A)
    assert data[60:] == struct.pack("<I", zlib.crc32(data[:60]))


@settings(max_examples=60)
@given(
    header=st.integers(2, MAX_HEADER_BYTES),
    size=st.integers(64, 2**63),
    mask=st.integers(0, 2**64 - 1).map(lambda m: m & SUPPORTED_FEATURES),
    ids=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)),
)
def test_preambles_come_back(header, size, mask, ids):
    """Every preamble that can be written reads as itself."""
    preamble = Preamble(header, size, mask, *ids)
    assert parse_preamble(preamble.to_bytes(), size) == preamble


@pytest.mark.parametrize("length", range(64))
def test_a_short_preamble_is_truncated(length):
    """Fewer than 64 bytes give `truncated`, none at all too."""
    assert code_of(parse_preamble, GOOD.to_bytes()[:length], length) == "truncated"


@pytest.mark.parametrize("magic", [
    b"\0" * 8, b"TOLPACK\x89", b"KCAPLOT\x89", b"\x89tolpack", b"\x09TOLPACK",
    b"PK\x03\x04\0\0\0\0",
])  # fmt: skip
def test_a_wrong_magic_is_refused(magic):
    """Another magic, reversed or with a cleared top bit, gives `bad-magic`."""
    assert code_of(parse_preamble, resealed(GOOD, magic=magic), 4160) == "bad-magic"


@pytest.mark.parametrize("major", [0, 2, 256, 65535])
def test_other_major_versions_are_refused_as_such(major):
    """A major version other than 1 is called unsupported, even if its checksum is another one."""
    for data in (
        resealed(GOOD, major=struct.pack("<H", major)),
        resealed(GOOD, major=struct.pack("<H", major))[:60] + b"\0\0\0\0",
    ):
        with pytest.raises(UnsupportedVersionError) as caught:
            parse_preamble(data, 4160)
        assert caught.value.code == "unsupported-version"


def test_a_future_minor_version_is_read():
    """A minor version says that nothing required has changed."""
    assert parse_preamble(resealed(GOOD, minor=b"\xff\xff"), 4160).version == (1, 65535)


@pytest.mark.parametrize("bit", [12, 15, 20, 24, 28, 31, 36, 47, 51, 55, 57, 63])
def test_unknown_required_features_are_refused(bit):
    """Each feature bit that this reader does not know gives `unsupported-feature`."""
    data = resealed(GOOD, required=struct.pack("<Q", 1 | 1 << bit))
    with pytest.raises(UnsupportedVersionError) as caught:
        parse_preamble(data, 4160)
    assert caught.value.code == "unsupported-feature"


def test_optional_features_are_ignored():
    """Bits that a reader may ignore do not stop it."""
    assert parse_preamble(resealed(GOOD, optional=b"\xff" * 8), 4160).optional_features == 2**64 - 1


@pytest.mark.parametrize("length", [0, 1, MAX_HEADER_BYTES + 1, 2**31, 2**32 - 1])
def test_header_lengths_out_of_range_are_refused(length):
    """A header length below 2 or above the limit gives `header-length`."""
    data = resealed(GOOD, header_length=struct.pack("<I", length))
    assert code_of(parse_preamble, data, 4160) == "header-length"


@pytest.mark.parametrize(("declared", "code"), [
    (4161, "truncated"), (2**63, "truncated"), (2**64 - 1, "truncated"), (4159, "trailing-bytes"),
    (0, "trailing-bytes"),
])  # fmt: skip
def test_the_declared_length_must_be_the_files(declared, code):
    """A file shorter or longer than declared is refused as such."""
    data = resealed(GOOD, file_length=struct.pack("<Q", declared))
    assert code_of(parse_preamble, data, 4160) == code


def test_reserved_bytes_are_zero():
    """A reserved field that is not zero is refused."""
    data = resealed(GOOD, reserved=b"\0\0\0\0\0\0\0\1")
    assert code_of(parse_preamble, data, 4160) == "reserved-not-zero"


def test_every_flip_in_the_preamble_is_found():
    """Each of the 512 single-bit flips raises."""
    data = GOOD.to_bytes()
    for bit in range(512):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            parse_preamble(bytes(flipped), 4160)


@pytest.mark.parametrize("name", RECIPES)
def test_headers_come_back(name, tmp_path):
    """A header's JSON parses to the same header and is written as the same bytes again."""
    header = write(tmp_path / "pack", RECIPES[name]).header
    data = header.to_json()
    assert parse_header(data) == header
    assert parse_header(data + b"  ").to_json() == data


def test_the_headers_json_schema_by_hand(tmp_path):
    """The JSON has exactly the documented keys; absent values are left out."""
    value = json.loads(write(tmp_path / "pack", TARGET).header.to_json())
    assert list(value) == ["producer", "tables", "encodings", "sections"]
    table = value["tables"][0]
    assert list(table) == ["name", "rows", "token_map", "fields", "chunks"]
    assert table["fields"][1] == {
        "name": "layer 1", "layer": 1, "width": 8, "dtype": "float32", "dropped": True,
    }  # fmt: skip
    assert list(table["fields"][2]) == ["name", "layer", "width", "dtype", "rank", "basis", "mean"]
    assert table["chunks"][0] == {"rows": 3, "encoding": 0, "blocks": 3}
    assert value["sections"][4].keys() == {"kind", "offset_bytes", "length_bytes"}


def test_required_features_name_what_is_used(tmp_path):
    """The mask has a bit for each codec, frame, basis, mean, map and multiplier in use."""

    def names(recipe):
        mask = required_features(write(tmp_path / "pack", recipe).header)
        return {name for name, bit in FEATURES.items() if mask >> bit & 1}

    expected = {"codec:int4", "codec:int8", "frame:zstd", "basis", "mean", "token_map"}
    assert names(TARGET) == expected
    assert names(RECIPES["smallest"]) == {"codec:f32"}
    assert names(RECIPES["multiplier"]) == {"codec:f16", "multiplier"}


@pytest.mark.parametrize("data", [
    b"", b" ", b"[]", b"null", b"1", b'""', b' {"a":1}', b'\xef\xbb\xbf{"a":1}', b"{", b'{"a":}',
    b'{"a":1,}', b'{"a":1}x', b'{"a":1}\0', b'{"a":1}{"a":1}', b'{"a":"\xff"}', b'{"a":"\xc0\x80"}',
    b'{"a":"\xed\xa0\x80"}', b'{"a":1,"a":1}', b'{"a":1,"a":2}', b'{"b":{"a":1,"c":0,"a":2}}',
    b'{"a":1,"\\u0061":1}', b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-Infinity}', b'{"a":-0}',
    b'{"a":01}', b'{"a":+1}', b'{"a":1.}', b'{"a":.5}', b'{"a":"\t"}', b"{'a':1}",
    b'{"a":' + b"[" * 20_000 + b"]" * 20_000 + b"}", b'{"a":' * 20_000, b"[" * 1_000_000,
    b'{"a":' + b"9" * 30 + b"}", b'{"a":' + b"9" * 100_000 + b"}", b'{"a":-' + b"9" * 30 + b"}",
    b'{"a":9223372036854775808}', b'{"a":18446744073709551616}', b'{"a":-9223372036854775809}',
], ids=lambda data: repr(data[:24]))  # fmt: skip
def test_json_that_is_not_strict_is_refused(data):
    """Each way in which two parsers may read different things gives `header-json`."""
    assert code_of(parse, data) == "header-json"


def test_strict_json_reads_what_is_strict():
    """Integers to 2^63-1, escapes, trailing spaces and nesting of a few levels are read."""
    value = parse(b'{"a":[9223372036854775807,-1,0,true,null,{"b":"\\u00e9\xc3\xa9"}],"c":1.5}   ')
    assert value == {"a": [2**63 - 1, -1, 0, True, None, {"b": "éé"}], "c": 1.5}


@settings(max_examples=300)
@given(data=st.binary(max_size=200))
def test_random_headers_are_refused(data):
    """Random bytes behind a brace give one of the header's codes and no other exception."""
    assert code_of(parse_header, b"{" + data) in ("header-json", "header-field")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
PATHS = st.lists(st.integers(0, 20), min_size=1, max_size=6)


def _replace(value, path, new):
    """Replace what a path of numbers, taken modulo the size, leads to."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[path[0] % len(keys)]
    inner = value[key]
    if len(path) > 1 and isinstance(inner, (dict, list)) and inner:
        _replace(inner, path[1:], new)
    else:
        value[key] = new


@pytest.fixture(scope="module")
def target_json(tmp_path_factory):
    sample = write(tmp_path_factory.mktemp("header") / "pack", TARGET)
    return sample.header.to_json()


@settings(max_examples=300)
@given(path=PATHS, new=JSON)
def test_any_value_anywhere_gives_a_header_or_an_error(target_json, path, new):
    """Whatever JSON value replaces a part of a header, it parses or raises one of two codes."""
    value = json.loads(target_json)
    _replace(value, path, new)
    try:
        assert isinstance(parse_header(json.dumps(value).encode()), Header)
    except FormatError as error:
        assert error.code in ("header-json", "header-field")


def test_sizes_of_parts_by_hand():
    """Scales count started groups, odd 4-bit codes a whole byte, raw blocks fill 64 bytes."""
    assert (Part("int4", 9, 4).scale_bytes, Part("int4", 9, 4).code_bytes) == (6, 5)
    assert (Part("int8", 9, 4).scale_bytes, Part("int8", 9, 4).code_bytes) == (6, 9)
    assert (Part("f8e4m3", 9, 4).scale_bytes, Part("f8e4m3", 9, 4).code_bytes) == (12, 9)
    assert (Part("bf16", 9).scale_bytes, Part("bf16", 9).code_bytes) == (0, 18)
    assert [raw_block_bytes(n, 1) for n in (1, 60, 61, 124)] == [64, 64, 128, 128]
    assert raw_block_bytes(10, 6) == 64
    assert Encoding("raw", 1, ()).rows_per_block == 1
    assert [align(n, 4096) for n in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]


LONG = BlockSizes(4, 5, 2**33, 4)


@pytest.mark.parametrize("frames", [1, 2, 511, 512, 513, 1024, 1100])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_frame_index_comes_back(frames, size):
    """Index blocks lie where `index_block_extent` says and give the frames' bounds."""
    lengths = [5 + (n * 7) % 90 for n in range(frames)]
    data, sizes = encode_index(lengths, 3, 1000, 2, size), BlockSizes(2, 5, 94, size)
    assert len(data) == index_bytes(frames, size)
    bounds = [0]
    for block in range(-(-frames // 512)):
        offset, length = index_block_extent(block, frames, size)
        data_block = data[offset : offset + length]
        found = decode_index_block(data_block, 3, 1000 + 1024 * block, sum(lengths), sizes)
        assert found[0] == bounds[-1]
        bounds += found[1:].tolist()
    assert bounds == [sum(lengths[:n]) for n in range(frames + 1)]


@pytest.mark.parametrize(("lengths", "size"), [
    ([9], 1), ([6, 261], 1), ([6, 262], 2), ([60_000, 60_255], 1), ([65_535], 1), ([65_536], 4),
    ([65_535, 6], 2), ([65_536, 65_535], 1), ([65_536, 6], 4),
    ([6] * 512 + [900] * 512, 1), ([6] * 511 + [900], 2),
    ([2**20] * 600, 4),
])  # fmt: skip
def test_lengths_of_entropy_coded_blocks_take_the_fewest_bytes(lengths, size):
    """One, where no run of 512 spreads by more than 255; two, where none is above 65,535."""
    assert fewest_length_bytes(lengths) == size
    data, sizes = encode_index(lengths, 3, 0, 1, size), BlockSizes(2, 6, 2**20, size)
    assert length_bytes_of(len(data), len(lengths)) == size
    offset, length = index_block_extent(0, len(lengths), size)
    found = decode_index_block(data[offset : offset + length], 3, 0, sum(lengths), sizes)
    assert [stop - start for start, stop in pairwise(found.tolist())] == lengths[:512]


def test_the_index_of_large_chunks_does_not_wrap():
    """Frame offsets beyond 4 GiB are 64-bit."""
    lengths = [2**32 - 1] * 513
    data = encode_index(lengths, 0, 0, 1)
    offset, length = index_block_extent(1, 513)
    found = decode_index_block(data[offset : offset + length], 0, 512, sum(lengths), LONG)
    assert found.tolist() == [512 * (2**32 - 1), 513 * (2**32 - 1)]


@pytest.mark.parametrize(("start", "lengths"), [
    (0, [5, 200]), (96, [5]), (2**63, [5]), (2**64 - 1, [5]), (0, [4]), (0, [0]), (0, [2**32 - 1]),
])  # fmt: skip
def test_frames_outside_their_chunk_are_refused(start, lengths):
    """An index block with a right checksum but frames past the end or empty is `frame-extent`."""
    body = struct.pack(f"<Q{len(lengths)}I", start, *lengths)
    data = body + struct.pack("<I", place_checksum(body, 3, INDEX_PLACE + 10))
    sizes = BlockSizes(4, 5, 90, 4)
    assert code_of(decode_index_block, data, 3, 10, 100, sizes) == "frame-extent"


@pytest.mark.parametrize(("pack_id", "first_slot"), [
    (4, 10), (3, 11), (4, 9), (2, 11), (3 + 2**32, 10), (3, 10 + 2**32), (10, 3),
])  # fmt: skip
def test_an_index_block_of_another_place_is_refused(pack_id, first_slot):
    """A block is bound to its pack and its place by its checksum: no sum of the two will do."""
    data = encode_index([9, 9], 3, 10, 1)
    with pytest.raises(ChecksumError) as caught:
        decode_index_block(data, pack_id, first_slot, 100, LONG)
    assert caught.value.code == "index-checksum"
