"""Files that are given as a checkpoint but are something else, recognised by their first bytes.

The suffix of a file says what it is meant to be, and its first bytes say what it is. Each kind of
file that people do give gets an error that names it and says what to give instead.
"""

from __future__ import annotations

import os
from pathlib import Path

from tolpack.container.file_kind import (
    GGUF,
    GGUF_MAGIC,
    MANIFEST,
    PACK,
    PART_FILE,
    TORCH_SUFFIXES,
    ZIP,
    FileKind,
    file_kind,
    model_id_hint,
)
from tolpack.container.parts.manifest import MANIFEST_NAME
from tolpack.container.preamble import MAGIC
from tolpack.errors import CheckpointError, ConfigError
from tolpack.storage.inputs import InputPath, input_path, open_stream
from tolpack.storage.locations import Location
from tolpack.storage.remote_path import HTTP_NAMES, RemotePath

CHECKPOINT_SUFFIXES = (*TORCH_SUFFIXES, ".safetensors")
_EXPECTED = "expected a checkpoint (.safetensors, .pt, .pth, or a folder with config.json)"


def check_input(path: InputPath) -> None:
    """Refuse what is neither a checkpoint nor a table, and say what it is and what to give instead.

    Folders of other things, unreadable files and unknown bytes pass: opening them gives an error of
    its own. So do archives named as torch names its files, whose entries may have any order.

    Raises
    ------
    CheckpointError
        The path does not exist, as where it is the id of a model; or it is of another kind.
    ConfigError
        Its name is one of another kind.
    """
    if not path.exists():
        hint = model_id_hint(path) if isinstance(path, Path) else _remote_hint(path)
        raise CheckpointError(f"checkpoint {path} does not exist{hint}")
    if isinstance(path, Path) and path.is_dir():
        if is_pack(path):
            raise CheckpointError(f"{path} is the folder of a pack, {_pack_remedy(path)}")
        return
    kind = file_kind(path)
    archive = kind is ZIP and path.suffix in TORCH_SUFFIXES
    known = kind is not None and path.suffix in kind.suffixes and kind is not GGUF
    if kind is not None and not known and not archive:
        named = kind.suffixes and kind is not GGUF
        error = ConfigError if named else CheckpointError  # it would do under another name
        raise error(f"{path} is {kind.name}, {_remedy(kind, path)}")


def _remedy(kind: FileKind, path: InputPath) -> str:
    """Say what was expected in place of a file, and what to do."""
    if kind in (PACK, MANIFEST):
        return _pack_remedy(path)
    if kind is PART_FILE:
        return f"{_EXPECTED}: give the checkpoint that the pack was made from"
    if kind is GGUF:
        return (
            f"{_EXPECTED}: only tables are read from GGUF files (tolpack build {path}); for the "
            "model, give the safetensors checkpoint that it was converted from"
        )
    if kind.suffixes:
        return f"and its name does not say so: rename it to end in {kind.suffixes[0]}"
    return f"{_EXPECTED}{kind.advice and ': '}{kind.advice}"


def _pack_remedy(path: InputPath) -> str:
    return (
        f"{_EXPECTED} or a plain table: give the checkpoint that it was made from; tolpack inspect "
        f"{path} shows what it holds, and tolpack eval CHECKPOINT {path} measures it"
    )


def is_pack(path: Location | RemotePath) -> bool:
    """Whether a file is called ``.tolpack``, or begins as packs do; or is the manifest of a pack in
    parts, or a folder that holds one.
    """
    path = input_path(path)
    if path.suffix == ".json":
        return _first_bytes(path, 64).find(b'"tolpack"') >= 0
    if path.suffix == ".tolpack" or _first_bytes(path) == MAGIC:
        return True
    if isinstance(path, Path) and not os.path.isdir(path):  # unlike its own is_dir, it never raises
        return False
    return (path / MANIFEST_NAME).is_file()


def is_gguf(path: Location | RemotePath) -> bool:
    """Whether a file begins as GGUF files do."""
    return _first_bytes(path).startswith(GGUF_MAGIC)


def _first_bytes(path: Location | RemotePath, count: int = len(MAGIC)) -> bytes:
    """Return as many bytes as a pack's magic has, or none if the file cannot be read."""
    try:
        with open_stream(path) as file:
            return file.read(count)
    except OSError:
        return b""


def _remote_hint(path: RemotePath) -> str:
    """Say what makes a folder where folders cannot be listed."""
    if not path.is_http:
        return ", and holds no files"
    return f": as a folder it would have one of {', '.join(HTTP_NAMES)}, as HTTP cannot list it"
