"""Named tensors of a checkpoint on disk, read one at a time.

Formats: ``.pt``/``.pth`` through ``torch.load(weights_only=True, mmap=True)`` only, so that no
pickled code can run; ``.safetensors``, alone or as the shards of a folder. A store maps the files
and hands out tensors by name; nothing is loaded whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tolpack.errors import CheckpointError

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class TensorStore:
    """Tensors by name, loaded on demand.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Every tensor in the checkpoint.
    load : callable
        Gives the tensor of a name, as stored (any dtype).
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], load: Callable[[str], torch.Tensor]
    ) -> None:
        self.shapes = dict(shapes)
        self._load = load

    def load(self, name: str) -> torch.Tensor:
        """Return tensor `name` as stored; it may be a view of a mapped file."""
        return self._load(name)


def open_pt(path: Path) -> tuple[TensorStore, object]:
    """Open a ``.pt``/``.pth``: returns the store and its ``"config"`` (``None`` if bare).

    Raises
    ------
    CheckpointError
        Not a checkpoint, or a pickle that would run code (refused, nothing is run).
    """
    loaded = _torch_load(path)
    config: object = None
    if isinstance(loaded, dict) and isinstance(loaded.get("model"), dict):
        config = loaded.get("config")
        loaded = loaded["model"]
    if not isinstance(loaded, dict) or not loaded:
        raise CheckpointError(
            f"{path} holds {type(loaded).__name__}, expected a state dict or "
            '{"model": state_dict, "config": {...}}: save it with torch.save in that form'
        )
    tensors = {str(k): v for k, v in loaded.items() if isinstance(v, torch.Tensor)}
    shapes = {k: tuple(v.shape) for k, v in tensors.items()}
    return TensorStore(shapes, tensors.__getitem__), config


def open_safetensors(paths: list[Path]) -> TensorStore:
    """Open one or more ``.safetensors`` files as one store; a name in two files is an error."""
    owner: dict[str, Any] = {}
    source: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        handle = _safe_open(path)
        for name in handle.keys():  # noqa: SIM118 (safe_open is no mapping)
            if name in owner:
                raise CheckpointError(
                    f"tensor {name!r} is in both {source[name].name} and {path.name}: "
                    "remove one of the two files"
                )
            owner[name], source[name] = handle, path
            shapes[name] = tuple(handle.get_slice(name).get_shape())
    return TensorStore(shapes, lambda name: owner[name].get_tensor(name))


def shard_paths(folder: Path) -> list[Path]:
    """List the ``.safetensors`` files of a checkpoint folder, by its index file if it has one."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise CheckpointError(f"{folder} holds no .safetensors file")
        return paths
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise CheckpointError(f"{index.name} names shard {name!r}, which is not in {folder}")
    return [folder / name for name in names]


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(k): str(v) for k, v in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is no index with a 'weight_map': {error}") from error


def _safe_open(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable .safetensors file: {error}") from error


def _torch_load(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # noqa: BLE001 (unpicklers fail in many ways on foreign bytes)
        if not (isinstance(error, RuntimeError) and "mmap" in str(error)):
            raise _refusal(path, error) from error
    try:  # the format before torch 1.6 cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _refusal(path, error) from error


def _refusal(path: Path, error: Exception) -> CheckpointError:
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return CheckpointError(
        f"{path} cannot be loaded with weights_only=True ({first_line}): save a plain state dict, "
        "or convert it to .safetensors"
    )
