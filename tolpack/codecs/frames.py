"""zstd frames as blocks of records, decompressed with every size known beforehand (SPEC §8).

zstd alone is no safe container: it decodes trailing junk, several frames and bombs. Here a frame
must declare exactly the size that the header implies, need no dictionary, ask for no larger
window than its content, and be alone.
"""

from __future__ import annotations

import threading

import zstandard

from tolpack.errors import FormatError

# Records are noise to a match finder; what is gained comes from the Huffman stage, which every
# level has: levels 1 to 19 save the same on 4-bit records (docs/lab-notes.md).
LEVEL = 3

# Small codes do gain from matches, if only from cheap ones: the optimal parser, which weighs each
# against the Huffman codes that it replaces, one candidate a position, and five bytes at least, as
# shorter ones cost more than they save here. As dense as level 19, at nine times its speed.
CODE_PARAMETERS = {
    "strategy": zstandard.STRATEGY_BTOPT, "search_log": 1, "min_match": 5, "target_length": 256,
}  # fmt: skip

_local = threading.local()


def compress(data: bytes) -> bytes:
    """Return one zstd frame that declares its content size and carries no checksum of its own."""
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(
            level=LEVEL, write_content_size=True, write_checksum=False
        )
    frame: bytes = _local.compressor.compress(data)
    return frame


def compress_codes(data: bytes) -> bytes:
    """Return one frame of small codes (``step8``), as `compress`."""
    known = getattr(_local, "code_compressor", None)
    if known is None or known[0] != len(data):
        parameters = zstandard.ZstdCompressionParameters.from_level(
            15, source_size=len(data), write_content_size=True, **CODE_PARAMETERS
        )
        known = len(data), zstandard.ZstdCompressor(compression_params=parameters)
        _local.code_compressor = known
    frame: bytes = known[1].compress(data)
    return frame


def decompress(frame: bytes | memoryview, size: int, place: str) -> bytes:
    """Decompress one frame whose content must be exactly `size` bytes.

    Raises
    ------
    FormatError
        Code ``frame``: damaged, another size, several frames, a dictionary, or trailing bytes.
    """
    try:
        declared = zstandard.get_frame_parameters(frame)
        if declared.content_size != size:
            raise FormatError("frame", place, f"{declared.content_size} bytes", f"{size} bytes")
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
