"""Files of tensors, written row by row: ``.npy``, ``.safetensors`` and HDF5.

Rows come in any order of their ids and are written at their offsets, so that none stays in memory.
The safetensors library writes only tensors that are in memory whole. Its format is a length, JSON
and the values (https://github.com/huggingface/safetensors), and is written here.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import ConfigError

Metadata = Mapping[str, Any]

# The numpy dtype of values, by `Tensor.dtype`; the bits of bfloat16, which numpy does not have.
NUMPY_DTYPES = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
# The format's names, with the widest first: all data are then aligned to their values.
_SAFETENSORS_DTYPES = {
    "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
# The header of a safetensors file ends at a multiple of these bytes. Numbers of the metadata may
# become so many bytes longer for each tensor, which has three of them.
_HEAD_ALIGNMENT = 4096
_LONGER_NUMBERS = 128


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a file.

    Parameters
    ----------
    name : str
        Its name.
    dtype : str
        As torch calls it; or ``q8_0`` or ``q4_0``, types of GGML.
    shape : tuple of int
        Rows first; of a single number ``()``, which is written as a row.
    row_bytes : int
        Bytes of a row.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    row_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.row_bytes * (self.shape[0] if self.shape else 1)


class TensorFile(Protocol):
    """Tensors that are being written into an empty file.

    ``choices``: the ``--dtype`` that the format can be written in; ``dtypes``: those of the tensors
    that it can hold; ``holds_several``: whether it can hold more than one.
    """

    choices: ClassVar[tuple[str, ...]]
    dtypes: ClassVar[tuple[str, ...]]
    holds_several: ClassVar[bool]

    def __init__(self, file: BinaryIO, tensors: Sequence[Tensor], metadata: Metadata) -> None: ...

    def write_rows(self, name: str, ids: NDArray[np.int64], rows: NDArray[Any]) -> None:
        """Write rows of the tensor `name`: those of ascending `ids`, (n, …), contiguous."""
        ...

    def finish(self, metadata: Metadata) -> None:
        """End the file, after all rows; of `metadata` only numbers have changed."""
        ...

    def close(self) -> None:
        """End the writing, finished or not; the file stays open."""
        ...


class FlatFile:
    """Tensors one after the other from the byte `start` on, each at a multiple of `alignment`."""

    def __init__(
        self, file: BinaryIO, tensors: Sequence[Tensor], start: int, alignment: int = 1
    ) -> None:
        self._file = file
        self.starts: dict[str, int] = {}
        for tensor in tensors:
            self.starts[tensor.name] = start
            start += -(-tensor.nbytes // alignment) * alignment
        self.end = start

    def write_rows(self, name: str, ids: NDArray[np.int64], rows: NDArray[Any]) -> None:
        """See `TensorFile.write_rows`; neighbours are written together."""
        cuts = [0, *(np.flatnonzero(np.diff(ids) != 1) + 1).tolist(), len(ids)]
        for begin, end in zip(cuts, cuts[1:]):
            self._file.seek(self.starts[name] + int(ids[begin]) * rows[0].nbytes)
            self._file.write(rows[begin:end].data)

    def close(self) -> None:
        """See `TensorFile.close`."""


class NpyFile(FlatFile):
    """A ``.npy``, which cannot hold metadata."""

    choices: ClassVar[tuple[str, ...]] = ("float32", "float16", "stored")
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float16")
    holds_several: ClassVar[bool] = False

    def __init__(self, file: BinaryIO, tensors: Sequence[Tensor], metadata: Metadata) -> None:
        (tensor,) = tensors
        descr = NUMPY_DTYPES[tensor.dtype]
        head = {"descr": descr, "fortran_order": False, "shape": tensor.shape}
        np.lib.format.write_array_header_1_0(file, head)
        super().__init__(file, tensors, file.tell())

    def finish(self, metadata: Metadata) -> None:
        """See `TensorFile.finish`."""


class SafetensorsFile(FlatFile):
    """A ``.safetensors``; its metadata are strings, see `texts`."""

    choices: ClassVar[tuple[str, ...]] = (*NUMPY_DTYPES, "stored")
    dtypes: ClassVar[tuple[str, ...]] = tuple(_SAFETENSORS_DTYPES)
    holds_several: ClassVar[bool] = True

    def __init__(self, file: BinaryIO, tensors: Sequence[Tensor], metadata: Metadata) -> None:
        self._tensors = sorted(tensors, key=lambda one: self.dtypes.index(one.dtype))
        super().__init__(file, self._tensors, 0)
        least = 8 + len(self._head(metadata)) + _LONGER_NUMBERS * len(tensors)
        size = -(-least // _HEAD_ALIGNMENT) * _HEAD_ALIGNMENT
        super().__init__(file, self._tensors, size)

    def finish(self, metadata: Metadata) -> None:
        """See `TensorFile.finish`."""
        size = self.starts[self._tensors[0].name] - 8
        self._file.seek(0)
        self._file.write(size.to_bytes(8, "little"))
        self._file.write(self._head(metadata).ljust(size))

    def _head(self, metadata: Metadata) -> bytes:
        first = self.starts[self._tensors[0].name]
        entries = {}
        for tensor in self._tensors:
            start = self.starts[tensor.name] - first
            entries[tensor.name] = {
                "dtype": _SAFETENSORS_DTYPES[tensor.dtype],
                "shape": tensor.shape,
                "data_offsets": [start, start + tensor.nbytes],
            }
        return json.dumps({"__metadata__": texts(metadata), **entries}).encode()


class Hdf5File:
    """An HDF5 file with one row per chunk; its metadata are attributes of the file."""

    choices: ClassVar[tuple[str, ...]] = ("float32", "float16")
    dtypes: ClassVar[tuple[str, ...]] = choices
    holds_several: ClassVar[bool] = False

    def __init__(self, file: BinaryIO, tensors: Sequence[Tensor], metadata: Metadata) -> None:
        try:
            import h5py
        except ImportError as error:
            raise ConfigError("writing .h5 needs h5py: pip install 'tolpack[build]'") from error
        # Opened by name: an error of a file object stays pending while h5py goes on calling it, and
        # a file object that is closed too early crashes the process. The file is locked already.
        with _disk_errors():
            self._file = h5py.File(file.name, "w", locking=False)
        (tensor,) = tensors
        try:
            with _disk_errors():
                self._table = self._file.create_dataset(
                    tensor.name, tensor.shape, NUMPY_DTYPES[tensor.dtype],
                    chunks=(1, *tensor.shape[1:]),
                )  # fmt: skip
        except BaseException:
            self.close()
            raise

    def write_rows(self, name: str, ids: NDArray[np.int64], rows: NDArray[Any]) -> None:
        """See `TensorFile.write_rows`."""
        with _disk_errors():
            for token_id, row in zip(ids.tolist(), rows):
                self._table.id.write_direct_chunk((token_id, 0, 0), row)

    def finish(self, metadata: Metadata) -> None:
        """See `TensorFile.finish`."""
        with _disk_errors():
            for name, value in metadata.items():
                self._file.attrs[name] = np.array(value, int) if isinstance(value, list) else value
            self._file.close()

    def close(self) -> None:
        """See `TensorFile.close`."""
        with contextlib.suppress(OSError), _disk_errors():
            self._file.close()  # does nothing the second time


def texts(metadata: Metadata) -> dict[str, str]:
    """Return metadata as strings: numbers, lists and objects as JSON."""
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Raise `OSError` for failed writes, some of which HDF5 raises as `RuntimeError`."""
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"errno = (\d+)", str(error))
        raise OSError(int(found[1]) if found else errno.EIO, str(error)) from error
