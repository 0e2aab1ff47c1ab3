"""Files that are given as a checkpoint but are something else, recognised by their first bytes.

The suffix of a file says what it is meant to be, and its first bytes say what it is. Each kind of
file that people do give gets an error that names it and says what to give instead.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from tolpack.container.parts.manifest import MANIFEST_NAME
from tolpack.container.preamble import MAGIC
from tolpack.errors import CheckpointError
from tolpack.storage.inputs import InputPath, input_path, open_stream
from tolpack.storage.locations import Location
from tolpack.storage.remote_path import HTTP_NAMES, RemotePath

TORCH_SUFFIXES = (".pt", ".pth", ".bin")
CHECKPOINT_SUFFIXES = (*TORCH_SUFFIXES, ".safetensors")
_FILE_SUFFIXES = (*CHECKPOINT_SUFFIXES, ".npy", ".h5", ".hdf5", ".gguf", ".tolpack", ".pkl")
_EXPECTED = "expected a checkpoint (.safetensors, .pt, .pth, or a folder with config.json)"
_GGUF = b"GGUF"
# Any protocol since 2 (Python 2.3) begins so.
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def check_input(path: InputPath) -> None:
    """Refuse a file that is neither a checkpoint nor a table, and say what to give instead.

    Folders and unreadable files pass: opening them gives an error of its own.

    Raises
    ------
    CheckpointError
        The path does not exist, as where it is the id of a model; or it is a pack, a GGUF file, or
        a pickle under another suffix than those of ``torch.save``.
    """
    if not path.exists():
        hint = _model_id_hint(path) if isinstance(path, Path) else _remote_hint(path)
        raise CheckpointError(f"checkpoint {path} does not exist{hint}")
    start = _first_bytes(path)
    if start == MAGIC:
        raise CheckpointError(
            f"{path} is a pack, {_EXPECTED} or a plain table: tolpack inspect {path} shows what it "
            f"holds, and tolpack eval CHECKPOINT {path} measures it"
        )
    if start.startswith(_GGUF):
        raise CheckpointError(
            f"{path} is a GGUF file, {_EXPECTED}: only tables are read from GGUF files (tolpack "
            f"build {path}); for the model, give the safetensors checkpoint that it was converted "
            "from"
        )
    if _PICKLE.match(start) and path.suffix not in CHECKPOINT_SUFFIXES:
        raise CheckpointError(
            f"{path} is a pickle, {_EXPECTED}: pickles can run code and are not read; save the "
            "state dict as .safetensors, or with torch.save as .pt"
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
    return _first_bytes(path).startswith(_GGUF)


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


def _model_id_hint(path: Path) -> str:
    """Say how to download a model, if `path` looks like its id, such as ``org/name``."""
    shaped = _MODEL_ID.fullmatch(path.as_posix()) and path.suffix not in _FILE_SUFFIXES
    if not shaped or path.parent.exists():
        return ""
    return (
        f": if it is a model id, download it first (hf download {path.as_posix()} --local-dir "
        f"{path.name}) and give the folder {path.name}"
    )
