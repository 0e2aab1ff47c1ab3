"""Damaged and hostile GGUF files: each ends in an error of tolpack that names the file."""

import struct
import time
import tracemalloc

import gguf_files
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf_files import by_hand, pair, string, tensor

from tolpack.errors import CheckpointError, TolpackError
from tolpack.sources.gguf.open_gguf import open_gguf

F32, Q8_0 = 0, 8
ROW = tensor("x", (64, 3), Q8_0, 0)
DATA = bytes(3 * 68)


def u32(number):
    return struct.pack("<I", number)


def array(kind, count, data=b""):
    return struct.pack("<IQ", kind, count) + data


def nested(depth):
    return array(9, 1, nested(depth - 1)) if depth else array(4, 1, u32(1))


# What is wrong with a file, its bytes, and the error.
HOSTILE = {
    "empty": (b"", "begin with GGUF|cut off"),
    "another magic": (b"GGML" + by_hand()[4:], "begin with GGUF"),
    "version 1": (by_hand(version=1), "version is 1, expected 2 or 3"),
    "version 0": (by_hand(version=0), "version is 0"),
    "a future version": (by_hand(version=4), "version is 4"),
    "big-endian": (by_hand(version=3 << 24), "big-endian, expected little-endian.*convert"),
    "2^64 - 1 tensors": (by_hand(counts=(2**64 - 1, 0)), "18,446,744,073,709,551,615 tensors"),
    "2^64 - 1 keys": (by_hand(counts=(0, 2**64 - 1)), "615 keys, expected at most"),
    "tensors that are not there": (by_hand(counts=(1000, 0)), "cut off or damaged"),
    "a key of 2^63 bytes": (by_hand([struct.pack("<Q", 2**63)]), "a key of the metadata has"),
    "a string of 2^63 bytes": (
        by_hand([pair("a", 8, struct.pack("<Q", 2**63))]), "the value of 'a' would take",
    ),
    "an array of 2^61 numbers": (by_hand([pair("a", 9, array(10, 2**61))]), "the array 'a' would"),
    "an array of 2^40 strings": (by_hand([pair("a", 9, array(8, 2**40))]), "the array 'a' would"),
    "a string in an array": (
        by_hand([pair("a", 9, array(8, 2, string("b") + struct.pack("<Q", 2**62)))]),
        "the array 'a' would take",
    ),
    "arrays in arrays": (by_hand([pair("a", 9, nested(20))]), "holds values of the type 9"),
    "an unknown type of value": (by_hand([pair("a", 99, b"")]), "'a' has the unknown type 99"),
    "a key twice": (by_hand([pair("a", 4, u32(1))] * 2), "the key 'a' twice"),
    "alignment 0": (by_hand([pair("general.alignment", 4, u32(0))]), "alignment is 0, expec"),
    "alignment 24": (by_hand([pair("general.alignment", 4, u32(24))]), "alignment is 24, expec"),
    "alignment 2^31": (by_hand([pair("general.alignment", 4, u32(2**31))]), "is 2147483648, e"),
    "alignment in words": (by_hand([pair("general.alignment", 8, string("32"))]), "is '32', expec"),
    "no dimensions": (by_hand(tensors=[tensor("x", (), F32, 0)]), "'x' has 0 dimensions"),
    "2^31 dimensions": (
        by_hand(tensors=[string("x") + u32(2**31) + bytes(64)]), "2147483648 dimensions",
    ),
    "a name of 2^62 bytes": (by_hand(tensors=[struct.pack("<Q", 2**62)]), "a tensor's name has"),
    "huge dimensions": (by_hand(tensors=[tensor("x", (32, 2**59), Q8_0, 0)]), "cut off; copy"),
    "a product that wraps": (
        by_hand(tensors=[tensor("x", (2**32, 2**32), F32, 0)]), "of shape .* ends at byte 73,786",
    ),
    "an offset that wraps": (
        by_hand(tensors=[tensor("x", (64, 3), Q8_0, 2**64 - 32)], data=DATA), "ends at byte",
    ),
    "an offset past the end": (by_hand(tensors=[tensor("x", (64, 3), Q8_0, 4096)]), "ends"),
    "an offset that is not aligned": (
        by_hand(tensors=[tensor("x", (64, 3), Q8_0, 4)], data=DATA + bytes(64)), "a multiple of 32",
    ),
    "cut off by a byte": (by_hand(tensors=[ROW], data=DATA[:-1]), "it is cut off; copy it again"),
    "tensors that overlap": (
        by_hand(tensors=[ROW, tensor("y", (64, 3), Q8_0, 32)], data=DATA + bytes(64)),
        "'y' begins at byte .* from",
    ),
    "a name twice": (
        by_hand(tensors=[ROW, tensor("x", (64, 3), Q8_0, 224)], data=DATA * 3), "'x' twice",
    ),
    "half a block": (by_hand(tensors=[tensor("x", (40, 3), Q8_0, 0)], data=DATA), "do not fill"),
    "no rows": (by_hand(tensors=[tensor("x", (64, 0), Q8_0, 0)]), r"shape \[0, 64\], exp"),
    "no columns": (by_hand(tensors=[tensor("x", (0, 9), F32, 0)]), r"shape \[9, 0\], exp"),
    "an unknown type": (by_hand(tensors=[tensor("x", (64, 3), 9999, 0)], data=DATA), "type 9999"),
    "integers": (by_hand(tensors=[tensor("x", (64, 3), 24, 0)], data=DATA), "of type I8, expected"),
    "controls in a name": (by_hand(tensors=[tensor("\x1b[2J\u202e", (40, 3), Q8_0, 0)]),
                           r"'\\x1b\[2J\\u202e'"),
    "a name that is not UTF-8": (by_hand(tensors=[tensor(b"\xff", (64, 3), Q8_0, 0)], data=DATA),
                                "no tensor 'x'"),
    "too many layers": (by_hand(tensors=[tensor("x", (1, 9999, 2), F32, 0)], data=bytes(80000)),
                        "9,999 layers, expected at most"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_quickly_and_without_memory(tmp_path, case):
    """Each case ends in CheckpointError that names the file or the tensor, without allocating by
    what the file says.
    """
    data, message = HOSTILE[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    start = time.monotonic()
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=message) as caught:
        open_gguf(path, "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    assert time.monotonic() - start < 5
    assert str(caught.value).isprintable()


def test_truncation_at_every_byte_is_refused(tmp_path):
    """A file that ends anywhere before its last tensor does gives an error, never rows."""
    path = gguf_files.write(tmp_path / "m.gguf", {"x": (np.ones((3, 32), np.float32), "F32")})
    whole = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 400), *range(400, len(whole), 97), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut\.gguf"):
            open_gguf(cut, "x")


def test_any_changed_byte_gives_rows_or_an_error(tmp_path):
    """A header with any byte changed gives rows of some shape, or one of tolpack's errors."""
    pairs = [pair("general.architecture", 8, string("gemma3n")), pair("a", 9, array(4, 1, u32(7)))]
    whole = bytearray(by_hand(pairs, [ROW, tensor("y", (32, 2), F32, 224)], DATA + bytes(300)))
    path = tmp_path / "m.gguf"
    for place in range(224):
        for bits in (0x01, 0x80, 0xFF):
            changed = bytearray(whole)
            changed[place] ^= bits
            path.write_bytes(changed)
            try:
                (table,) = open_gguf(path, "x")
                assert table.field_rows(0)(np.arange(min(table.rows, 3))).ndim == 2
            except TolpackError:
                pass


def test_paths_that_are_no_files_are_refused(tmp_path):
    """A folder, a missing file and a FIFO give errors and do not wait."""
    import os

    os.mkfifo(tmp_path / "fifo.gguf")
    for name in ("fifo.gguf", "absent.gguf", ""):
        with pytest.raises(CheckpointError, match="is not a readable GGUF file"):
            open_gguf(tmp_path / name, "x")


@pytest.mark.parametrize("number", sorted(int(kind) for kind in GGML_QUANT_SIZES))
def test_every_type_is_read_or_refused(tmp_path, number):
    """Random bytes as any type of GGML give finite rows, or an error."""
    values, size = GGML_QUANT_SIZES[GGMLQuantizationType(number)]
    data = np.random.default_rng(number).integers(0, 256, 4 * size, np.uint8).tobytes()
    path = tmp_path / "m.gguf"
    path.write_bytes(by_hand(tensors=[tensor("x", (values, 4), number, 0)], data=data))
    try:
        (table,) = open_gguf(path, "x")
        assert np.isfinite(table.field_rows(0)(np.arange(4))).all()
    except CheckpointError as error:
        assert "NaN or Inf" in str(error) or "is of type" in str(error)
