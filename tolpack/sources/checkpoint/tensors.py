"""Named tensors of a checkpoint on disk, read in place and one at a time.

Formats: ``.pt``, ``.pth`` and ``.bin`` through ``torch.load(weights_only=True, mmap=True)`` only,
so that no pickled code can run; ``.safetensors``. A store maps its files and hands out tensors as
views of the maps. Pages that were touched count as resident memory for as long as a map lives, so
`TensorStore.release` drops the maps; the next tensor maps its file anew.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from tolpack.errors import CheckpointError
from tolpack.runtime.files import regular_size
from tolpack.sources.checkpoint.lfs import lfs_hint
from tolpack.sources.checkpoint.safetensors_header import MAX_NAME, check_header
from tolpack.sources.checkpoint.torch_archive import check_archive
from tolpack.sources.identity import FileStates
from tolpack.sources.residency import Residency

# Stored dtypes that are computed with, by the bytes of a value.
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Where trainers put the state dict in what they save.
_STATE_KEYS = ("model", "state_dict", "model_state_dict", "module")
# How torch's loader names what it will not make.
_REFUSED = re.compile(r"\bGLOBAL ([\w.]+)")
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Shape, dtype (torch's name) and file of a stored tensor."""

    shape: tuple[int, ...]
    dtype: str
    path: Path


class TensorFile(Protocol):
    """One file of named tensors."""

    path: Path

    def infos(self) -> dict[str, TensorInfo]:
        """Return every tensor's shape and dtype."""
        ...

    def load(self, name: str) -> torch.Tensor:
        """Return a tensor as stored, usually a view of the mapped file."""
        ...

    def release(self) -> None:
        """Drop the map; tensors that are still referenced keep theirs."""
        ...


class PtFile:
    """A ``.pt``, ``.pth`` or ``.bin``: a state dict, or one under ``"model"`` and the like.

    ``config`` is what stands beside the state dict under ``"config"``, ``None`` if nothing does.

    Raises
    ------
    CheckpointError
        Not a checkpoint, or a pickle that would run code (refused, nothing is run).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mapped = True
        self._checked = False
        self.config: object = None
        self._tensors: dict[str, torch.Tensor] | None = self._read()

    def infos(self) -> dict[str, TensorInfo]:
        """See `TensorFile.infos`."""
        return {name: _info(tensor, self.path) for name, tensor in self._open().items()}

    def load(self, name: str) -> torch.Tensor:
        """See `TensorFile.load`."""
        return self._open()[name]

    def release(self) -> None:
        """See `TensorFile.release`; a file that cannot be mapped stays loaded."""
        if self._mapped:
            self._tensors = None

    def _open(self) -> dict[str, torch.Tensor]:
        tensors = self._tensors
        if tensors is None:
            tensors = self._tensors = self._read()
        return tensors

    def _read(self) -> dict[str, torch.Tensor]:
        loaded = self._load()
        try:
            return self._tensors_in(loaded)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise _refusal(self.path, error) from error  # a tensor that torch cannot describe

    def _tensors_in(self, loaded: object) -> dict[str, torch.Tensor]:
        if isinstance(loaded, dict):
            for key in _STATE_KEYS:
                if isinstance(loaded.get(key), dict):
                    self.config = loaded.get("config")
                    loaded = loaded[key]
                    break
        tensors = _tensors_of(loaded)
        if not tensors:
            raise CheckpointError(
                f"{self.path} holds {type(loaded).__name__}, expected a state dict or "
                '{"model": state_dict, "config": {...}}: save it with torch.save in that form'
            )
        return tensors

    def _load(self) -> object:
        try:
            if not self._checked:
                check_archive(self.path)
                self._checked = True
            regular_size(self.path)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror or error}") from error
        except ValueError as error:
            raise _refusal(self.path, error) from error
        try:
            return torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # unpicklers fail in many ways on foreign bytes
            if not (isinstance(error, RuntimeError) and "mmap" in str(error)):
                raise _refusal(self.path, error) from error
        self._mapped = False  # the format before torch 1.6 cannot be mapped
        try:
            return torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise _refusal(self.path, error) from error


class SafetensorsFile:
    """A ``.safetensors``, or `CheckpointError` if it is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: Any = None
        self._checked = False
        self._open()

    def infos(self) -> dict[str, TensorInfo]:
        """See `TensorFile.infos`."""
        handle, found = self._open(), {}
        for name in handle.keys():  # noqa: SIM118 (safe_open is no mapping)
            part = handle.get_slice(name)
            dtype = str(part.get_dtype())
            found[name] = TensorInfo(tuple(part.get_shape()), _DTYPES.get(dtype, dtype), self.path)
        return found

    def load(self, name: str) -> torch.Tensor:
        """See `TensorFile.load`."""
        try:
            tensor: torch.Tensor = self._open().get_tensor(name)
        except (SafetensorError, RuntimeError, ValueError, TypeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{self.path}: tensor {name!r} cannot be read: {error}"
            ) from error
        return tensor

    def release(self) -> None:
        """See `TensorFile.release`."""
        self._handle = None

    def _open(self) -> Any:
        handle = self._handle
        if handle is None:
            try:
                if not self._checked:
                    check_header(self.path)
                    self._checked = True
                regular_size(self.path)
                handle = self._handle = safe_open(str(self.path), framework="pt")
            except (SafetensorError, OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise CheckpointError(
                    f"{self.path} is not a readable .safetensors file: {reason}"
                    f"{lfs_hint(self.path)}"
                ) from error
        return handle


class TensorStore:
    """All tensors of a checkpoint, by name.

    Parameters
    ----------
    files : sequence of TensorFile
        The checkpoint's files.
    pieces : bool
        Whether a name may be in several files, each holding a piece of the tensor, as tensor
        parallel trainers save it; otherwise that is an error.

    ``infos``: shapes and dtypes of each tensor's pieces. ``resident``: counts what is read of the
    maps, and drops them before they fill memory.
    """

    def __init__(self, files: Sequence[TensorFile], *, pieces: bool = False) -> None:
        self._files: dict[str, list[TensorFile]] = {}
        self.infos: dict[str, tuple[TensorInfo, ...]] = {}
        for file in files:
            for name, info in file.infos().items():
                others = self._files.setdefault(name, [])
                if others and not pieces:
                    raise CheckpointError(
                        f"tensor {name!r} is in both {others[0].path.name} and {file.path.name}: "
                        "remove one of the two files"
                    )
                others.append(file)
                self.infos[name] = (*self.infos.get(name, ()), info)
        self._all = list(files)
        self._states = FileStates(file.path for file in files)
        self.resident = Residency(self.release)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that hold tensors."""
        return tuple(sorted({info.path.name for one in self.infos.values() for info in one}))

    def check_unchanged(self) -> None:
        """Raise `CheckpointError` if a file is another one than when it was opened."""
        self._states.check()

    def load(self, name: str) -> list[torch.Tensor]:
        """Return the tensor's pieces, one unless it is split over files, as stored."""
        return [file.load(name) for file in self._files[name]]

    def release(self) -> None:
        """Drop the maps of all files, and with them the resident pages."""
        for file in self._all:
            file.release()


def open_file(path: Path) -> PtFile | SafetensorsFile:
    """Open one file by its suffix."""
    return SafetensorsFile(path) if path.suffix == ".safetensors" else PtFile(path)


def _tensors_of(loaded: object) -> dict[str, torch.Tensor]:
    if not isinstance(loaded, dict):
        return {}
    found = {}
    for key, value in loaded.items():
        # Other keys may hold one another so often that to write them out takes for ever.
        if isinstance(value, torch.Tensor) and isinstance(key, (str, int)):
            name = str(key)
            if len(name) > MAX_NAME:
                raise ValueError(f"a tensor's name has {len(name)} characters, over {MAX_NAME}")
            found[name] = value.detach()
    return found


def _info(tensor: torch.Tensor, path: Path) -> TensorInfo:
    """Describe a tensor; one whose values are not plainly there has no dtype to compute in."""
    if tensor.is_nested:
        return TensorInfo((), "nested", path)
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout is not torch.strided:
        dtype = str(tensor.layout).removeprefix("torch.")
    elif tensor.device.type != "cpu":
        dtype = f"{dtype} without values"
    elif tensor.nbytes > tensor.untyped_storage().nbytes():
        dtype = f"{dtype} that repeats its values"
    return TensorInfo(tuple(tensor.shape), dtype, path)


def _refusal(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be loaded with weights_only=True ({_reason(error)}): it is cut off, or "
        "no checkpoint, or holds more than tensors: copy it anew, save a plain state dict, or "
        f"convert it to .safetensors{lfs_hint(path)}"
    )


def _reason(error: Exception) -> str:
    """The class or function that torch's loader refused, or the first line of what it says."""
    text = str(error).strip()
    refused = _REFUSED.search(text)
    if refused is not None:
        return f"it holds {refused[1][:100]}, which is no tensor"
    return (text.splitlines() or [type(error).__name__])[0][:200]
