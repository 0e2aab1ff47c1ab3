"""Frames: how the records of a block are stored, and taken out with every size known (SPEC §8).

Frames of zstd are compressed and decompressed here. Those of ``ans`` need the models of their
encoding, and `tolpack.codecs.ans` codes them.

zstd alone is not a safe container: it decodes trailing junk, several frames and bombs. Here a frame
must declare the size that the header implies (with ``zstd-runs``: one that is possible), need no
dictionary, ask for no larger window than its content, and be alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import zstandard

from tolpack.codecs.block_split import block_bounds
from tolpack.codecs.byte_planes import RecordWords, join_planes, split_planes
from tolpack.codecs.zero_runs import decode_columns, encode_runs, longest_content
from tolpack.errors import FormatError
from tolpack.runtime.array_types import Bytes

# Records are noise to a match finder; the gain comes from the Huffman stage, which every level
# has: levels 1 to 19 save the same on 4-bit records (docs/lab-notes.md).
LEVEL = 3

# Where runs were cut short, and in planes, a match finder finds nothing, and had better not look.
_HUFFMAN_PARAMETERS = {"strategy": zstandard.STRATEGY_FAST, "min_match": 7, "hash_log": 6}
_END_OF_BLOCK = zstandard.COMPRESSOBJ_FLUSH_BLOCK

_local = threading.local()


def compress(data: bytes) -> bytes:
    """Return one zstd frame that declares its content size and carries no checksum of its own."""
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(
            level=LEVEL, write_content_size=True, write_checksum=False
        )
    frame: bytes = _local.compressor.compress(data)
    return frame


def compress_runs(record_bytes: int, data: bytes) -> bytes:
    """Return one ``zstd-runs`` frame of records, for small codes of which many are zero.

    Its blocks end where other symbols begin to be frequent: each has its own Huffman table.
    """
    columns = np.frombuffer(data, np.uint8).reshape(-1, record_bytes).T.ravel()
    content = encode_runs(columns)
    bounds = block_bounds(np.frombuffer(content, np.uint8))
    pieces = [content[start:stop] for start, stop in zip(bounds, bounds[1:])]
    return _compress_apart([*pieces, b""])  # an empty last block, as these frames always had


def compress_planes(record: RecordWords, data: bytes, blocks: int) -> list[bytes]:
    """Return a ``zstd-planes`` frame of each of `blocks` equal blocks of records, for numbers as
    models store them.

    Each plane has a Huffman table of its own, or stays as it is if it is noise. Blocks are cut into
    planes together, as numpy takes longer to begin than to cut one.
    """
    planes = split_planes(data, record)
    sizes = [len(plane) // blocks for plane in planes]
    return [
        _compress_apart([p[n * size : (n + 1) * size] for p, size in zip(planes, sizes)])
        for n in range(blocks)
    ]


def _compress_apart(pieces: list[bytes]) -> bytes:
    """Return one frame of `pieces` in turn, each of which begins a zstd block."""
    if not hasattr(_local, "huffman_compressor"):
        parameters = zstandard.ZstdCompressionParameters.from_level(
            1, write_content_size=True, **_HUFFMAN_PARAMETERS
        )
        _local.huffman_compressor = zstandard.ZstdCompressor(compression_params=parameters)
    stream = _local.huffman_compressor.compressobj(size=sum(map(len, pieces)))
    found: list[bytes] = []
    for piece in pieces[:-1]:
        found += stream.compress(piece), stream.flush(_END_OF_BLOCK)
    return b"".join([*found, stream.compress(pieces[-1]), stream.flush()])


def decompress(frame: bytes | memoryview, size: int, place: str) -> bytes:
    """Decompress one frame whose content must be exactly `size` bytes.

    Raises
    ------
    FormatError
        Code ``frame``: damaged, another size, several frames, a dictionary, or trailing bytes.
    """
    return _decompress(frame, size, size, place)


def decompress_runs(frame: bytes | memoryview, rows: int, record_bytes: int, place: str) -> Bytes:
    """Decompress one ``zstd-runs`` frame: uint8 (rows, record_bytes); else as `decompress`."""
    content = _decompress(frame, 0, longest_content(rows * record_bytes), place)
    return decode_columns(content, rows, record_bytes, place)


def decompress_planes(
    frame: bytes | memoryview, rows: int, record: RecordWords, place: str
) -> Bytes:
    """Decompress one ``zstd-planes`` frame: uint8 (rows, record_bytes); else as `decompress`."""
    return join_planes(decompress(frame, rows * record.record_bytes, place), rows, record)


def raw_records(payload: memoryview, rows: int, record_bytes: int) -> Bytes:
    """View the records of a raw block, uint8 (rows, record_bytes); zeros may follow them."""
    return np.frombuffer(payload, np.uint8, rows * record_bytes).reshape(rows, record_bytes)


def _decompress_records(payload: memoryview, rows: int, record: RecordWords, place: str) -> Bytes:
    data = decompress(payload, rows * record.record_bytes, place)
    return np.frombuffer(data, np.uint8).reshape(rows, record.record_bytes)


def _runs_records(payload: memoryview, rows: int, record: RecordWords, place: str) -> Bytes:
    return decompress_runs(payload, rows, record.record_bytes, place)


def _decompress(frame: bytes | memoryview, least: int, most: int, place: str) -> bytes:
    try:
        declared = zstandard.get_frame_parameters(frame)
        size = declared.content_size
        if not least <= size <= most:
            expected = f"{most} bytes" if least == most else f"at most {most} bytes"
            raise FormatError("frame", place, f"{size} bytes", expected)
        if declared.dict_id or declared.window_size > max(size, 1024):
            raise FormatError("frame", place, "a dictionary or a large window", "a plain frame")
        if not hasattr(_local, "decompressor"):
            _local.decompressor = zstandard.ZstdDecompressor()
        content: bytes = _local.decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError("frame", place, str(error), "one zstd frame") from error
    if len(content) != size:
        raise FormatError("frame", place, f"{len(content)} bytes", f"{size} bytes")
    return content


def _as_long(size: int) -> int:
    return size


@dataclass(frozen=True, slots=True)
class Frame:
    """One kind of frame.

    Parameters
    ----------
    feature_bit : int or None
        Bit of the required features that a pack with such frames sets (SPEC §9). ``None``: records
        are stored as they are, and not as a payload of a length of its own.
    checksum_bytes : int
        Bytes of the checksum that a block ends with.
    """

    feature_bit: int | None
    checksum_bytes: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ZstdFrame(Frame):
    """A frame of zstd.

    Parameters
    ----------
    longest_content : callable
        Takes the bytes of a block's records; gives those of the longest content that a frame of
        them may have.
    records : callable
        Takes a block's payload, its rows, the words of a record, and the place to name in errors;
        gives the records, uint8 (rows, record_bytes). Raises `FormatError`, code ``frame``.
    compress : callable
        Takes the words of a record, the bytes of the records of some blocks of equal length, and
        their number; gives their payloads, each of a length of its own.
    """

    longest_content: Callable[[int], int]
    records: Callable[[memoryview, int, RecordWords, str], Bytes]
    compress: Callable[[RecordWords, bytes, int], list[bytes]]


def _one_by_one(
    compress: Callable[[RecordWords, bytes], bytes],
) -> Callable[[RecordWords, bytes, int], list[bytes]]:
    """Return `ZstdFrame.compress` for a function that takes one block."""

    def compress_all(record: RecordWords, data: bytes, blocks: int) -> list[bytes]:
        size = len(data) // blocks
        return [compress(record, data[n * size : (n + 1) * size]) for n in range(blocks)]

    return compress_all


# The frames of zstd, and every kind of frame, by its id in a header.
ZSTD_FRAMES: dict[str, ZstdFrame] = {
    "zstd": ZstdFrame(
        8,
        longest_content=_as_long,
        records=_decompress_records,
        compress=_one_by_one(lambda _, data: compress(data)),
    ),
    "zstd-runs": ZstdFrame(
        9,
        longest_content=longest_content,
        records=_runs_records,
        compress=_one_by_one(lambda record, data: compress_runs(record.record_bytes, data)),
    ),
    "zstd-planes": ZstdFrame(
        10, longest_content=_as_long, records=decompress_planes, compress=compress_planes
    ),
}
FRAMES: dict[str, Frame] = {"raw": Frame(None), **ZSTD_FRAMES, "ans": Frame(11, checksum_bytes=2)}
