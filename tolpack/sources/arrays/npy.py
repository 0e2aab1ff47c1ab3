"""Reading untrusted ``.npy`` files, without evaluating their header.

The header is a Python expression, and numpy's reader evaluates it. Here one regular expression
matches it instead, which knows plain numbers in little-endian order only. The declared shape is
compared with the file's size before an array is made.
"""

from __future__ import annotations

import math
import mmap
import re
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tolpack.container.file_kind import NPY, file_kind
from tolpack.errors import ConfigError, printable
from tolpack.storage.inputs import InputPath, input_path, open_stream, stream_size
from tolpack.storage.locations import Location
from tolpack.storage.remote_path import RemotePath

_MAGIC = b"\x93NUMPY"
# numpy writes 118 bytes and refuses more than 10,000 itself.
_MAX_HEADER = 10_000
_MAX_DIMENSIONS = 32
_DTYPES = ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")
_VALUE = rb"(?:'[^'\\]*'|\"[^\"\\]*\"|True|False|\([0-9L, ]*\))"
_HEADER = re.compile(
    rb"\{ *(?P<a>'\w+'|\"\w+\") *: *(?P<x>V) *, *(?P<b>'\w+'|\"\w+\") *: *(?P<y>V) *, *"
    rb"(?P<c>'\w+'|\"\w+\") *: *(?P<z>V) *,? *\}[ \n]*".replace(b"V", _VALUE)
)
_SHAPE = re.compile(
    rb"\( *(?:|I *,|I(?: *, *I)+ *,?) *\)".replace(b"I", rb"(?:0|[1-9][0-9]{0,19})L?")
)


@dataclass(frozen=True, slots=True)
class NpyLayout:
    """Dtype, order and shape that a header declares, and the offset of the values in bytes."""

    dtype: np.dtype[Any]
    fortran: bool
    shape: tuple[int, ...]
    offset: int


def read_npy(path: Location | RemotePath, purpose: str, *, mapped: bool = False) -> NDArray[Any]:
    """Read or map an array without ever unpickling.

    Parameters
    ----------
    path : str or Path
        A ``.npy`` file.
    purpose : str
        Name of the array in error messages, such as ``"table"``.
    mapped : bool
        Map it read-only instead of reading it: on this machine only.

    Raises
    ------
    ConfigError
        It is missing, damaged, or no plain array of numbers in little-endian order.
    """
    try:
        with open_stream(path) as file:
            layout = read_layout(file)
            values = _map(file, layout) if mapped else _read(file, layout)
    except (OSError, ValueError, MemoryError) as error:
        raise _refusal(path, purpose, error) from error
    return values.reshape(layout.shape, order="F" if layout.fortran else "C")


def check_counts(path: Location | RemotePath, vocab_size: int, table: str = "") -> None:
    """Read the header of token counts alone; parameters and errors as of `read_counts`."""
    path = _counts_path(path, table)
    try:
        with open_stream(path) as file:
            layout = read_layout(file)
    except (OSError, ValueError) as error:
        raise _refusal(path, "--frequencies", error) from error
    _check_counts(path, layout.dtype, layout.shape, vocab_size, table)


def _counts_path(path: Location | RemotePath, table: str) -> InputPath:
    found = input_path(path)
    return found / f"{table}.npy" if found.is_dir() else found


def _check_counts(
    path: InputPath, dtype: np.dtype[Any], shape: tuple[int, ...], vocab_size: int, table: str
) -> None:
    if dtype.kind not in "iu":
        raise ConfigError(f"--frequencies {path} must hold integer counts")
    if shape != (vocab_size,):
        raise ConfigError(
            f"--frequencies {path} has shape {list(shape)}, expected [{vocab_size}]: one count for "
            f"each row of {table or 'the table'}; tables of several lengths take a folder of "
            "TABLE.npy"
        )


def _refusal(path: Location | RemotePath, purpose: str, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or str(error) or "it needs too much memory"
    kind = None if isinstance(error, OSError) else file_kind(path)
    if kind is not None and kind is not NPY:
        reason = f"it is {kind.name}, expected a .npy array"
    return ConfigError(f"cannot read {purpose} {path}: {reason}")


def read_counts(path: Location | RemotePath, vocab_size: int, table: str = "") -> NDArray[np.int64]:
    """Read token counts, ``--frequencies``: int64 (vocab_size,) from a ``.npy`` of integers.

    A folder has one for each `table`, ``TABLE.npy``.

    Raises
    ------
    ConfigError
        It cannot be read, or has another shape, or holds negative counts or fractions.
    """
    path = _counts_path(path, table)
    counts = read_npy(path, "--frequencies")
    _check_counts(path, counts.dtype, counts.shape, vocab_size, table)
    if counts.size and (int(counts.min()) < 0 or int(counts.max()) >= 2**62):
        raise ConfigError(f"--frequencies {path} holds counts outside 0 … 2^62")
    return counts.astype(np.int64)


def _read(file: BinaryIO, layout: NpyLayout) -> NDArray[Any]:
    values = np.empty(math.prod(layout.shape), layout.dtype)
    if values.size and file.readinto(values.data.cast("B")) != values.nbytes:  # type: ignore[attr-defined]
        raise ValueError("the file was cut off while it was read")
    return values


def _map(file: BinaryIO, layout: NpyLayout) -> NDArray[Any]:
    count = math.prod(layout.shape)
    if count == 0:
        return np.empty(0, layout.dtype)
    view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(view, layout.dtype, count, layout.offset)


def read_layout(file: BinaryIO) -> NpyLayout:
    """Read the header and leave the file at the values, or raise `ValueError`."""
    size = stream_size(file)
    start = file.read(12)
    two = start[6:7] == b"\1"
    if start[:6] != _MAGIC or start[6:8] not in (b"\1\0", b"\2\0", b"\3\0") or len(start) < 12:
        raise ValueError("it is not a .npy file: the magic string or the version is another")
    begin = 10 if two else 12
    length = int.from_bytes(start[8:begin], "little")
    if length > min(_MAX_HEADER, size - begin):
        raise ValueError(
            f"its header has {length:,} bytes, expected at most {_MAX_HEADER:,} in a file of "
            f"{size:,}"
        )
    file.seek(begin)
    dtype, fortran, shape = _parse_header(file.read(length))
    declared, there = math.prod(shape) * dtype.itemsize, size - begin - length
    if declared != there:
        raise ValueError(
            f"shape {list(shape)} of {dtype} takes {declared:,} bytes, but the file holds "
            f"{there:,}: it is cut off or damaged"
        )
    return NpyLayout(dtype, fortran, shape, begin + length)


def _parse_header(header: bytes) -> tuple[np.dtype[Any], bool, tuple[int, ...]]:
    found = _HEADER.fullmatch(header)
    fields = {} if found is None else {found[k][1:-1]: found[v] for k, v in ("ax", "by", "cz")}
    if set(fields) != {b"descr", b"fortran_order", b"shape"}:
        raise ValueError(
            f"its header is {printable(header[:200].strip().decode('latin-1'))}, expected one with "
            "descr (a plain number), fortran_order and shape: save a plain array with numpy.save"
        )
    descr = fields[b"descr"][1:-1].decode("latin-1")
    if descr not in _DTYPES:
        raise ValueError(
            f"its dtype is {printable(descr)}, expected one of {', '.join(_DTYPES)}: convert it "
            "with array.astype"
        )
    order, shape = fields[b"fortran_order"], fields[b"shape"]
    if order not in (b"True", b"False") or not _SHAPE.fullmatch(shape):
        raise ValueError(f"fortran_order or shape of its header is damaged: {header[:200]!r}")
    sizes = tuple(int(size) for size in re.findall(rb"[0-9]+", shape))
    if len(sizes) > _MAX_DIMENSIONS or math.prod(size or 1 for size in sizes) >= 2**62:
        raise ValueError(f"its shape {list(sizes)[:8]} is too large for any array")
    return np.dtype(descr), order == b"True", sizes
