"""zstd frames that are not what they should be are refused before anything large is allocated."""

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import memory_limit

from tolpack.codecs.frames import compress, decompress
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
    """A skippable frame is no content, in front of a frame, behind it or alone."""
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
