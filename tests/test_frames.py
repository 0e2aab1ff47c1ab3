"""zstd frames that are not what they should be are refused before anything large is allocated."""

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import Layer, Recipe, Run, _from_planes, encode_records, memory_limit, write
from test_record import FIELDS, specs

from tolpack.codecs.byte_planes import split_planes
from tolpack.codecs.encodings import Encoding, Part, record_words
from tolpack.codecs.frames import FRAMES, compress, decompress
from tolpack.container.block_sizes import longest_frame
from tolpack.container.blocks import stored_bytes
from tolpack.errors import FormatError

CONTENT = bytes(range(200)) * 5
SIZE = len(CONTENT)


def refused(frame, size=SIZE):
    with memory_limit(8), pytest.raises(FormatError) as caught:
        decompress(frame, size, "here")
    assert caught.value.code == "frame"
    assert caught.value.place == "here"


@settings(max_examples=60)
@given(data=st.binary(min_size=1, max_size=5000))
def test_frames_come_back(data):
    """Decompressing what was compressed gives the same bytes, from bytes and from views."""
    frame = compress(data)
    assert decompress(frame, len(data), "here") == data
    assert decompress(memoryview(frame), len(data), "here") == data


def test_large_content_comes_back():
    """A frame whose window is smaller than its content is accepted."""
    data = bytes(1000) * 9000
    assert decompress(compress(data), len(data), "here") == data


def test_the_same_content_gives_the_same_frame():
    """Compression keeps no state between frames."""
    first = compress(CONTENT)
    compress(b"something else" * 100)
    assert compress(CONTENT) == first


def test_a_bomb_is_refused():
    """A frame that declares 200 MB is refused by its declaration."""
    refused(zstandard.ZstdCompressor().compress(bytes(200_000_000)))


@pytest.mark.parametrize("difference", [-1, 1, -len(CONTENT) + 1, 10**9])
def test_a_declared_size_other_than_the_expected_one_is_refused(difference):
    """The declared size must be exactly what the header implies."""
    refused(compress(CONTENT), len(CONTENT) + difference)


def test_an_absent_size_is_refused():
    """A frame must declare its content size."""
    refused(zstandard.ZstdCompressor(write_content_size=False).compress(CONTENT))
    stream = zstandard.ZstdCompressor().compressobj()
    refused(stream.compress(bytes(10**8)) + stream.flush())


@pytest.mark.parametrize("declared", [len(CONTENT) - 1, len(CONTENT) + 1, 1, 60_000])
def test_a_false_declaration_is_refused(declared):
    """A frame that declares the expected size but holds another one is refused."""
    frame = bytearray(compress(CONTENT))
    assert int.from_bytes(frame[5:7], "little") + 256 == len(CONTENT)
    if declared >= 256:
        frame[5:7] = (declared - 256).to_bytes(2, "little")
        refused(bytes(frame), declared)
    refused(compress(CONTENT), declared)


def test_two_frames_are_refused():
    """Several frames where one belongs are refused, together and by the first's size."""
    half = len(CONTENT) // 2
    both = compress(CONTENT[:half]) + compress(CONTENT[half:])
    refused(both)
    refused(both, half)
    refused(compress(CONTENT) + compress(CONTENT))


def test_skippable_frames_are_refused():
    """A skippable frame is not content, in front of a frame, behind it or alone."""
    skip = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"abcd"
    refused(skip + compress(CONTENT))
    refused(compress(CONTENT) + skip)
    refused(skip, 4)


def test_every_truncation_is_refused():
    """A frame cut anywhere, by one byte or to nothing, is refused."""
    frame = compress(CONTENT)
    for length in range(len(frame)):
        with pytest.raises(FormatError):
            decompress(frame[:length], len(CONTENT), "here")


@pytest.mark.parametrize("junk", [b"\0", b"junk", bytes(1000)])
def test_trailing_junk_is_refused(junk):
    """Nothing may stand behind the frame."""
    refused(compress(CONTENT) + junk)


def test_a_dictionary_is_refused():
    """A frame that needs a dictionary is refused."""
    samples = [bytes([n, n + 1, n + 2]) * 50 for n in range(200)]
    trained = zstandard.train_dictionary(2000, samples)
    refused(zstandard.ZstdCompressor(dict_data=trained).compress(CONTENT))


@pytest.mark.parametrize("window_log", [20, 27, 31])
def test_a_large_window_is_refused(window_log):
    """A window of more than the content is refused, up to 2 GiB."""
    descriptor = 0b0100_0000  # two bytes of content size, no single segment
    window = (window_log - 10) << 3
    size = (len(CONTENT) - 256).to_bytes(2, "little")
    block = ((len(CONTENT) << 3) | 1).to_bytes(3, "little") + CONTENT  # one raw, last block
    frame = b"\x28\xb5\x2f\xfd" + bytes([descriptor, window]) + size + block
    refused(frame)


@pytest.mark.parametrize(
    "frame", [b"", b"\0", b"not a frame at all", bytes(100), b"\x28\xb5\x2f\xfd"]
)
def test_what_is_no_frame_is_refused(frame):
    """Bytes without a frame's magic number are refused."""
    refused(frame)


@settings(max_examples=200)
@given(data=st.binary(max_size=60))
def test_random_bytes_after_the_magic_number_are_refused(data):
    """Whatever follows the magic number, the result has the expected size or is an error."""
    frame = b"\x28\xb5\x2f\xfd" + data
    try:
        assert len(decompress(frame, 100, "here")) == 100
    except FormatError as error:
        assert error.code == "frame"


# ---- zstd-planes ---------------------------------------------------------------------------------

PLANES = FRAMES["zstd-planes"]
BF16 = record_words(((Part("bf16", 100),),))


def gaussian(rows, width):
    """Records of bfloat16 numbers as a model has them: uint8 (rows, 2 · width)."""
    values = np.random.default_rng(0).normal(0, 0.02, (rows, width)).astype("<f4")
    return np.ascontiguousarray(values.view("<u2")[:, 1::2]).view(np.uint8)


@settings(max_examples=150)
@given(fields=FIELDS, rows=st.integers(1, 5), noise=st.booleans(), seed=st.integers(0, 99))
def test_planes_come_back(fields, rows, noise, seed):
    """Any bytes of any mix of codecs come back, as a slow reader of the specification has them."""
    record, source = record_words(tuple(fields)), np.random.default_rng(seed)
    data = source.integers(0, 256 if noise else 2, rows * record.record_bytes, np.uint8).tobytes()
    frame = PLANES.compress(record, data, 1)[0]
    assert PLANES.records(memoryview(frame), rows, record, "here").tobytes() == data
    content = zstandard.ZstdDecompressor().decompress(frame)
    assert _from_planes(content, specs(fields), rows) == data
    assert len(frame) + 4 <= longest_frame("zstd-planes", len(data))


def test_planes_by_hand():
    """float32 scales, then bytes; codes of 2 bytes before those of 1, whatever their part."""
    fields = ((Part("f8e4m3", 2, 2),), (Part("bf16", 2),), (Part("f16", 1),))
    one = bytes.fromhex("000080bf0102803f80c00102")  # -1; codes; 1, -4 in bfloat16; f16
    two = bytes.fromhex("0100004003040000fffffe7f")
    planes = split_planes(one + two, record_words(fields))
    # Rotated by one bit: -1 is 7f000001, 2.0 and a bit is 80000002; 7f00, 8101, 0402, 0000, …
    expected = "0102000000007f8000010200fffc7f810400ffff01020304"
    assert b"".join(planes).hex() == expected
    assert [len(plane) for plane in planes] == [2, 2, 2, 2, 6, 6, 4]


def test_planes_save_what_exponents_leave():
    """Gaussian bfloat16 in blocks of 8 KB lose a quarter of their bytes at least, in any width."""
    for rows, width in ((26, 160), (2, 2048), (1, 4096)):
        record = record_words(((Part("bf16", width),),))
        data = gaussian(rows, width).tobytes()
        assert len(PLANES.compress(record, data, 1)[0]) < 0.68 * len(data)


def test_planes_of_several_blocks_are_those_of_each():
    """Blocks that are cut together give the frames of each alone."""
    source = np.random.default_rng(0)
    fields = ((Part("bf16", 6), Part("int4", 5, 4)), (Part("f32", 3),))
    record = record_words(fields)
    blocks = [source.bytes(7 * record.record_bytes) for _ in range(5)]
    alone = [PLANES.compress(record, block, 1)[0] for block in blocks]
    assert PLANES.compress(record, b"".join(blocks), 5) == alone


def test_noise_in_large_planes_stays_short():
    """Planes that nothing can compress fit in the longest frame, also over 128 KiB."""
    for codec, size in (("f32", 4), ("bf16", 2), ("f8e4m3-step", 1)):
        part = Part(codec, 50_000, step=1.0 if size == 1 else None)
        data = np.random.default_rng(0).bytes(9 * 50_000 * size)
        frame = PLANES.compress(record_words(((part,),)), data, 1)[0]
        assert len(frame) + 4 <= longest_frame("zstd-planes", len(data))


@pytest.mark.parametrize("change", [
    lambda data: compress(data[:-1]), lambda data: compress(data + b"a"), lambda data: b"",
    lambda data: compress(data) + b"a", lambda data: compress(data) * 2, lambda data: data,
    lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data),
    lambda data: compress(data)[:-1], lambda data: compress(bytes(200_000_000)),
])  # fmt: skip
def test_planes_of_another_size_are_refused(change):
    """Content that is not the records' bytes, or no plain frame, is a ``frame``."""
    frame = change(gaussian(5, 100).tobytes())
    with memory_limit(8), pytest.raises(FormatError) as caught:
        PLANES.records(memoryview(frame), 5, BF16, "here")
    assert (caught.value.code, caught.value.place) == ("frame", "here")


def test_any_content_of_the_right_size_stands_for_records():
    """A frame that was cut otherwise, or holds noise, decodes: every content has its records."""
    content = np.random.default_rng(1).bytes(1000)
    found = PLANES.records(memoryview(compress(content)), 5, BF16, "here")
    assert b"".join(split_planes(found.tobytes(), BF16)) == content


@pytest.mark.parametrize("frame", ["raw", "zstd", "zstd-planes"])
def test_stored_bytes_are_those_of_the_sections(frame, tmp_path):
    """What a sample of rows is said to take is what a chunk of them takes in a pack."""
    parts = (Part("bf16", 50),)
    sample = write(tmp_path / "pack", Recipe(50, (Layer(parts),), (Run(700, frame, 1),)))
    records = encode_records(Encoding(frame, 1, (parts,)), sample.values)
    sections = sum(section.length_bytes for section in sample.header.sections)
    assert stored_bytes(records, Encoding(frame, 1, (parts,))) == sections
