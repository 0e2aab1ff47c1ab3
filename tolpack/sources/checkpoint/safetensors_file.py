"""Files of safetensors, mapped on this machine, or read by ranges elsewhere.

Their header is checked first (`tolpack.sources.checkpoint.safetensors_header`). The library, which
maps a file, checks shapes and offsets too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tolpack.errors import CheckpointError
from tolpack.runtime.files import regular_size
from tolpack.sources.checkpoint.lfs import lfs_hint
from tolpack.sources.checkpoint.safetensors_header import metadata, read_header, tensor_fields
from tolpack.sources.checkpoint.tensors import TensorInfo
from tolpack.storage.inputs import InputPath
from tolpack.storage.remote_input import RemoteInput
from tolpack.storage.remote_path import RemotePath

# Torch's names of dtypes by the format's; other dtypes keep the format's name.
_DTYPES = {
    "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64",
    "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu", "I64": "int64", "I32": "int32",
    "U8": "uint8", "I8": "int8",
}  # fmt: skip


class SafetensorsFile:
    """A ``.safetensors`` on this machine, or `CheckpointError` if it is none."""

    config: object = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: Any = None
        self._extents: dict[str, tuple[int, int]] | None = None
        self._open("np")

    def infos(self) -> dict[str, TensorInfo]:
        """See `TensorFile.infos`."""
        handle, found = self._open("np"), {}
        for name in handle.keys():  # noqa: SIM118 (safe_open is not a mapping)
            part = handle.get_slice(name)
            dtype = str(part.get_dtype())
            found[name] = TensorInfo(tuple(part.get_shape()), _DTYPES.get(dtype, dtype), self.path)
        return found

    def metadata(self) -> dict[str, str]:
        """Return the texts that stand in the header beside the tensors."""
        return dict(self._open("np").metadata() or {})

    def load(self, name: str) -> torch.Tensor:
        """See `TensorFile.load`."""
        try:
            handle = self._handle
            if handle is None:
                handle = self._handle = self._open("pt")
            tensor: torch.Tensor = handle.get_tensor(name)
        except (SafetensorError, RuntimeError, ValueError, TypeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{self.path}: tensor {name!r} cannot be read: {error}"
            ) from error
        return tensor

    def extent(self, name: str) -> tuple[int, int] | None:
        """See `TensorFile.extent`."""
        return (self._extents or {}).get(name)

    def release(self) -> None:
        """See `TensorFile.release`."""
        self._handle = None

    def _open(self, framework: str) -> Any:
        """Open the file: torch maps all of it, as if it would write to it.

        Linux refuses that for files larger than the machine's memory, so only `load` asks for it.
        """
        try:
            if self._extents is None:
                self._extents = read_header(self.path)[1]
            regular_size(self.path)
            return safe_open(str(self.path), framework=framework)
        except (SafetensorError, OSError, ValueError) as error:
            raise _refusal(self.path, error) from error


class RemoteSafetensors:
    """A ``.safetensors`` that is read by ranges, or `CheckpointError` if it is none."""

    config: object = None

    def __init__(self, path: RemotePath) -> None:
        self.path = path
        try:
            header, self._extents = read_header(path)
            self._file = RemoteInput(path)
            self._infos = {
                name: TensorInfo(shape, _DTYPES.get(dtype, dtype), path)
                for name, dtype, shape in tensor_fields(header, self._extents)
            }
        except (OSError, ValueError) as error:
            raise _refusal(path, error) from error
        self._metadata = metadata(header)

    def infos(self) -> dict[str, TensorInfo]:
        """See `TensorFile.infos`."""
        return self._infos

    def metadata(self) -> dict[str, str]:
        """See `SafetensorsFile.metadata`."""
        return self._metadata

    def load(self, name: str) -> torch.Tensor:
        """See `TensorFile.load`; reads all of the tensor."""
        info, (offset, length) = self._infos[name], self._extents[name]
        dtype = getattr(torch, info.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise CheckpointError(f"{self.path}: tensor {name!r} of {info.dtype} cannot be read")
        values = torch.empty(info.shape, dtype=dtype)
        if length:
            self._file.read_into(offset, values.view(-1).view(torch.uint8).numpy())
        return values

    def extent(self, name: str) -> tuple[int, int] | None:
        """See `TensorFile.extent`."""
        return self._extents.get(name)

    def release(self) -> None:
        """See `TensorFile.release`; nothing is mapped."""


def open_safetensors(path: InputPath) -> SafetensorsFile | RemoteSafetensors:
    """Open a ``.safetensors``; `CheckpointError` if it is none."""
    return RemoteSafetensors(path) if isinstance(path, RemotePath) else SafetensorsFile(path)


def _refusal(path: InputPath, error: Exception) -> CheckpointError:
    if isinstance(error, CheckpointError):
        return error
    reason = getattr(error, "strerror", None) or error
    return CheckpointError(f"{path} is not a readable .safetensors file: {reason}{lfs_hint(path)}")
