"""The files of a checkpoint: one file, or a folder of shards, complete and each tensor once.

A folder holds, in this order of preference: ``.safetensors`` shards, ``pytorch_model*.bin``
shards, ``consolidated.NN.pth`` pieces of a tensor-parallel trainer, or one ``.pt``/``.pth``. The
usual index files are followed and held against what the shards contain.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath

from tolpack.errors import CheckpointError, ConfigError
from tolpack.sources.checkpoint.lfs import lfs_hint
from tolpack.sources.checkpoint.safetensors_file import open_safetensors
from tolpack.sources.checkpoint.tensors import TensorFile, TensorStore
from tolpack.sources.checkpoint.torch_file import TorchFile
from tolpack.sources.json_file import read_json
from tolpack.storage.inputs import InputPath, local_input
from tolpack.storage.remote_path import HTTP_NAMES, RemotePath

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_PATTERNS = ("*.safetensors", "pytorch_model*.bin", "consolidated.*.pth", "*.pth", "*.pt")
# Other files that a folder may hold in place of a checkpoint, and what to do then.
_OTHERS = {
    ".gguf": "name the file itself to read its tables, or give the safetensors checkpoint that it "
    "was converted from",
    ".bin": "shards of PyTorch are called pytorch_model*.bin, so if that is the checkpoint, name "
    "the file itself",
    ".tolpack": "that is a pack; give the folder of the checkpoint",
}
_PIECE = re.compile(r"consolidated\.(\d+)\.pth")
# Indexes of the largest models have some ten megabytes.
_MAX_INDEX_BYTES = 64 << 20
_MAX_NAME = 255
_NUMBERED = re.compile(r"-(\d+)-of-(\d+)\.")


def open_store(path: InputPath) -> TensorStore:
    """Open a checkpoint's files.

    Raises
    ------
    CheckpointError
        A file is missing, unreadable or no checkpoint, or a tensor is in two files.
    ConfigError
        The path is of no known kind.
    """
    if path.is_dir():
        return _open_folder(path)
    if path.suffix not in (".pt", ".pth", ".bin", ".safetensors"):
        raise ConfigError(
            f"cannot tell what {path} is: expected .pt, .pth, .safetensors, or a folder with "
            "config.json and .safetensors (tables: .npy, .safetensors, .h5)"
        )
    check_whole(path)
    file = _open_file(path)
    return TensorStore([file])


def check_whole(path: InputPath) -> None:
    """Raise `CheckpointError` if a file is one of several of a checkpoint, by its name."""
    numbered, piece = _NUMBERED.search(path.name), _PIECE.fullmatch(path.name)
    others = len(list(path.parent.glob("consolidated.*.pth"))) if piece else 1
    if others > 1 or (numbered and int(numbered[2]) > 1):
        raise CheckpointError(f"{path} is one of several files of a checkpoint: give their folder")


def _open_folder(folder: InputPath) -> TensorStore:
    index = next((folder / name for name in _INDEXES if (folder / name).exists()), None)
    weight_map = {} if index is None else _weight_map(index)
    paths = _folder_files(folder) if index is None else _indexed_files(index, weight_map)
    files = [_open_file(path) for path in paths]
    store = TensorStore(files, pieces=_PIECE.fullmatch(paths[0].name) is not None)
    if index is not None:
        _check_index(index, weight_map, store)
    return store


def _open_file(path: InputPath) -> TensorFile:
    """Open one file by its suffix."""
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    return TorchFile(local_input(path, f"a {path.suffix}", "convert it to .safetensors"))


def _folder_files(folder: InputPath) -> list[InputPath]:
    for pattern in _PATTERNS:
        paths: list[InputPath] = sorted(folder.glob(pattern), key=lambda path: path.name)
        if not paths:
            continue
        if pattern in ("*.pth", "*.pt") and len(paths) > 1:
            raise CheckpointError(
                f"{folder} holds {len(paths)} {pattern[1:]} files ({paths[0].name}, "
                f"{paths[1].name} …): name the one that is the checkpoint"
            )
        _check_numbers(folder, paths)
        return paths
    raise CheckpointError(_describe_other_files(folder))


def _describe_other_files(folder: InputPath) -> str:
    """Say which other files a folder without a checkpoint holds."""
    if isinstance(folder, RemotePath) and folder.is_http:
        return (
            f"{folder} has neither {HTTP_NAMES[0]} nor {HTTP_NAMES[1]}, and HTTP cannot list other "
            "files: give the URL of the .safetensors file itself"
        )
    for suffix, remedy in _OTHERS.items():
        names = sorted(path.name for path in folder.glob(f"*{suffix}"))
        if names:
            return f"{folder} holds no .safetensors file, but {names[0]}: {remedy}"
    return f"{folder} holds no .safetensors file, nor .bin, .pth or .pt: is it the right folder?"


def _check_numbers(folder: InputPath, paths: Sequence[InputPath]) -> None:
    """Refuse a set of numbered shards that is not complete."""
    names = {path.name for path in paths}
    for path in paths:
        for name in _expected_beside(path.name):
            if name not in names:
                raise CheckpointError(f"shard {name!r} is missing from {folder}: copy it there")


def _expected_beside(name: str) -> Iterator[str]:
    """Names of the other shards that follow from the number in a shard's name."""
    numbered, piece = _NUMBERED.search(name), _PIECE.fullmatch(name)
    if numbered:
        before, after = name[: numbered.start()], name[numbered.end() :]
        for number in range(1, int(numbered[2]) + 1):
            yield f"{before}-{number:0{len(numbered[1])}}-of-{numbered[2]}.{after}"
    if piece:
        for number in range(int(piece[1])):
            yield f"consolidated.{number:0{len(piece[1])}}.pth"


def _indexed_files(index: InputPath, weight_map: Mapping[str, str]) -> list[InputPath]:
    names = sorted(set(weight_map.values()))
    for name in names:
        plain = len(name) <= _MAX_NAME and PurePath(name).name == name
        if not plain or not (index.parent / name).is_file():
            lost = sorted(tensor for tensor, shard in weight_map.items() if shard == name)
            raise CheckpointError(
                f"{index.name} names shard {name[:_MAX_NAME]!r}, which is not in {index.parent}: "
                f"copy it there; it holds {len(lost)} tensors, {lost[0]!r} among them"
            )
    return [index.parent / name for name in names]


def _check_index(index: InputPath, weight_map: Mapping[str, str], store: TensorStore) -> None:
    for tensor, shard in weight_map.items():
        held = [info.path.name for info in store.infos.get(tensor, ())]
        if shard not in held:
            where = f"but it is in {held[0]}" if held else "but no file that it names holds it"
            raise CheckpointError(
                f"{index.name} says that tensor {tensor!r} is in {shard}, {where}: the shards are "
                "of different checkpoints, or the index is; copy all of one"
            )


def _weight_map(index: InputPath) -> dict[str, str]:
    try:
        raw = read_json(index, _MAX_INDEX_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{index} is not an index with a 'weight_map': {reason}{lfs_hint(index)}"
        ) from error
    found = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise CheckpointError(
            f"{index} is not an index with a 'weight_map': expected tensor names = shard names"
        )
    if not found:
        raise CheckpointError(f"{index} is not an index with a 'weight_map': it names no tensor")
    return found
