"""Files of ``torch.save``: ``.pt``, ``.pth`` and ``.bin``.

They are checked first (`tolpack.sources.checkpoint.torch_archive`), and then read through
``torch.load(weights_only=True, mmap=True)`` only, so that no pickled code can run.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from tolpack.errors import CheckpointError
from tolpack.runtime.files import regular_size
from tolpack.sources.checkpoint.lfs import lfs_hint
from tolpack.sources.checkpoint.tensors import MAX_NAME, TensorInfo
from tolpack.sources.checkpoint.torch_archive import check_archive

# Where trainers put the state dict in what they save.
_STATE_KEYS = ("model", "state_dict", "model_state_dict", "module")
# How torch's loader names what it will not make, and how its own advice begins.
_REFUSED = re.compile(
    r"\b(?:GLOBAL|class|function|got) (?:<(?:class|function) )?'?([a-z_][\w.]*\.\w+)"
)
_ADVICE = "Weights only load failed"
_DAMAGE = re.compile(r"Unsupported operand \d+|String is too long|negative argument")


class TorchFile:
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

    def extent(self, name: str) -> tuple[int, int] | None:
        """See `TensorFile.extent`; only torch knows where values lie in an archive."""
        return None

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
    """Say what a file holds that is not loaded, or why it is not read.

    Torch's own message is long, and advises to run what the pickle says (``weights_only=False``).
    """
    text = str(error).strip()
    refused, damage = _REFUSED.search(text), _DAMAGE.search(text)
    if refused is not None or (_ADVICE in text and damage is None):
        return CheckpointError(
            f"{path} holds {_object(refused[1][:100] if refused else None)}, which tolpack does "
            "not load, because unpickling can run code: save the state dict alone "
            "(torch.save(model.state_dict(), NAME)), or convert it to .safetensors"
        )
    reason = damage[0] if damage else (text.splitlines() or [type(error).__name__])[0][:200]
    return CheckpointError(
        f"{path} cannot be read as a torch file ({reason}): it is cut off, or not a checkpoint: "
        "copy it again, save a state dict alone with torch.save, or convert it to .safetensors"
        f"{lfs_hint(path)}"
    )


def _object(name: str | None) -> str:
    """What is pickled, by the name that torch refused: of a class, or else of a function."""
    if name is None:
        return "pickled objects beside its tensors"
    kind = "object of class" if name.rpartition(".")[2][:1].isupper() else "call of"
    return f"a pickled {kind} {name}"
