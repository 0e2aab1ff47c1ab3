"""What a file is, by its first bytes: files are given in each other's places.

One table of signatures serves every place where a file is opened, so that a GGUF file is called a
GGUF file whether a pack, a checkpoint or a text was expected. What no signature names is a text if
it is UTF-8 without control characters, and nothing known otherwise. A text may begin with the
letters of a signature.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from tolpack.container.parts.manifest import MANIFEST_NAME
from tolpack.container.preamble import FEATURES, MAGIC, PART_FILE_FEATURES
from tolpack.storage.inputs import InputPath, input_path, open_stream
from tolpack.storage.locations import Location
from tolpack.storage.remote_path import RemotePath

TORCH_SUFFIXES = (".pt", ".pth", ".bin")
_FILE_SUFFIXES = (
    *TORCH_SUFFIXES, ".safetensors", ".npy", ".h5", ".hdf5", ".gguf", ".tolpack", ".pkl", ".json",
    ".txt", ".html",
)  # fmt: skip
_MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
GGUF_MAGIC = b"GGUF"
# Any protocol since 2 (Python 2.3) begins so.
PICKLE = re.compile(rb"\x80[\x02-\x05]")
# The number by which files of ``torch.save`` before torch 1.6 begin, as it is pickled.
_OLD_TORCH = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_START_BYTES = 4096
_MAX_SAFETENSORS_HEADER = 100_000_000
# Bytes that no text has: control characters but for tab, line ends, form feed and escape.
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_BUILD = "`tolpack build` makes packs of checkpoints and tables"
_UNPACK = "unpack it, and give what it holds"
_FOLDER = "give the folder that it is in"


@dataclass(frozen=True, slots=True)
class FileKind:
    """A kind of file.

    ``name`` has its article. ``suffixes`` are those under which ``tolpack build`` reads it, none if
    it does not; ``advice`` says what to do with it where it is not what was expected.
    ``in_folder``: it is one of the files of a checkpoint's folder.
    """

    name: str
    suffixes: tuple[str, ...] = ()
    advice: str = ""
    in_folder: bool = False


PACK = FileKind("a pack")
PART_FILE = FileKind(
    "a part file of a pack", advice="give the folder of its parts, or the manifest.json beside it"
)
EDITS = FileKind(
    "a file of edits", advice="it goes with the pack that it was made from: --edits of a command"
)
GGUF = FileKind("a GGUF file", (".gguf",))
TORCH = FileKind("a torch checkpoint", TORCH_SUFFIXES)
SAFETENSORS = FileKind("a .safetensors file", (".safetensors",))
PICKLED = FileKind(
    "a pickle", advice="pickles can run code and are not read; save the state dict as "
    ".safetensors, or with torch.save as .pt",
)  # fmt: skip
NPY = FileKind("a .npy array", (".npy",))
_HDF5 = FileKind("an HDF5 file", (".h5", ".hdf5"))
_NPZ = FileKind("an .npz archive", advice="save its array alone with numpy.save, as .npy")
ZIP = FileKind("a zip archive", advice=_UNPACK)
EMPTY = FileKind("an empty file", advice="copy or download it again")
HTML = FileKind(
    "an HTML page", advice="a failed download leaves such a page, so download the file again"
)
LFS = FileKind("a Git LFS pointer", advice="run git lfs pull to get the file itself")
CONFIG = FileKind("a model's configuration", advice=_FOLDER, in_folder=True)
_INDEX = FileKind("the index of a checkpoint's shards", advice=_FOLDER, in_folder=True)
TOKENIZER = FileKind("a tokenizer", advice="it goes to --tokenizer")
MANIFEST = FileKind("the manifest of a pack in parts")
JSON = FileKind("a JSON file")
TEXT = FileKind("a text file")
# First bytes of other files that people have; compressed ones stand for what is in them.
_SIGNATURES = (
    (b"\x1f\x8b", FileKind("a gzip archive", advice=_UNPACK)),
    (b"\x28\xb5\x2f\xfd", FileKind("a zstd archive", advice=_UNPACK)),
    (b"\xfd7zXZ\x00", FileKind("an xz archive", advice=_UNPACK)),
    (b"BZh", FileKind("a bzip2 archive", advice=_UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", FileKind("a 7z archive", advice=_UNPACK)),
    (b"PAR1", FileKind("a Parquet file")),
    (b"ARROW1", FileKind("an Arrow file")),
    (b"SQLite format 3\x00", FileKind("an SQLite database")),
    (b"%PDF-", FileKind("a PDF document")),
    (b"\x89PNG\r\n", FileKind("a PNG picture")),
    (b"\xff\xd8\xff", FileKind("a JPEG picture")),
    (b"\x7fELF", FileKind("a program")),
    (GGUF_MAGIC, GGUF),
    (b"\x93NUMPY", NPY),
    (b"\x89HDF\r\n\x1a\n", _HDF5),
)
_JSON_KINDS = (
    (re.compile(rb'"tolpack"\s*:\s*"parts"'), MANIFEST),
    (re.compile(rb'"weight_map"\s*:'), _INDEX),
    (re.compile(rb'"(added_tokens|pre_tokenizer|truncation)"\s*:'), TOKENIZER),
    (re.compile(rb'"(model_type|architectures|hidden_size)"\s*:'), CONFIG),
)


def file_kind(location: Location | RemotePath) -> FileKind | None:
    """Return what a file is; ``None`` for a folder, what cannot be read, and unknown bytes."""
    try:
        with open_stream(location) as file:
            return kind_of_bytes(file.read(_START_BYTES), input_path(location).suffix)
    except OSError:
        return None


def kind_of_bytes(start: bytes, suffix: str = "") -> FileKind | None:
    """Return what a file is that begins with `start`, its first few thousand bytes or all of it;
    `suffix` tells texts of a form apart.
    """
    if not start:
        return EMPTY
    if start.startswith(MAGIC):
        return _kind_of_pack(start)
    if start.startswith(b"PK\x03\x04"):
        return _kind_of_zip(start)
    if PICKLE.match(start):
        return TORCH if _OLD_TORCH in start[:32] else PICKLED
    text = _kind_of_text(start, suffix)
    if start[257:262] == b"ustar" and text is None:
        return FileKind("a tar archive", advice=_UNPACK)
    for signature, kind in _SIGNATURES:
        if start.startswith(signature) and (text is None or suffix in kind.suffixes):
            return kind
    return SAFETENSORS if _is_safetensors(start) else text


def not_a_pack(location: Location) -> str | None:
    """Return the sentence that says what a file is and how packs are made; ``None`` if it begins as
    packs do, or cannot be read.
    """
    path = input_path(location)
    try:
        with open_stream(path) as file:
            kind = kind_of_bytes(file.read(_START_BYTES), path.suffix)
    except OSError:
        return None
    if kind in (PACK, PART_FILE, EDITS, MANIFEST):
        return None
    if kind is None:
        return f"{path} is not a pack, nor a file of another known kind: {_BUILD}"
    return f"{path} is {kind.name}, not a pack: {_pack_remedy(kind, path)}"


def not_a_pack_folder(folder: Path) -> str:
    """Return the sentence that says what a folder without a manifest holds, and what to do."""
    names = sorted(os.listdir(folder))
    packs = [name for name in names if name.endswith(".tolpack")]
    weights = [name for name in names if name.endswith((".safetensors", ".bin", ".pt", ".pth"))]
    start = f"folder {folder} holds no {MANIFEST_NAME}"
    if weights:
        return f"{start}, but a checkpoint, {weights[0]}: build a pack with tolpack build {folder}"
    if packs:
        return f"{start}, but a pack, {packs[0]}: give {folder / packs[0]}"
    return f"{start}: it is not a pack in parts, or one that is not finished"


def model_id_hint(path: InputPath) -> str:
    """Say how to download a model, if `path` looks like its id, such as ``org/name``, and nothing
    on this machine is called so.
    """
    if isinstance(path, RemotePath) or path.parent.exists() or path.suffix in _FILE_SUFFIXES:
        return ""
    name = path.as_posix()
    if not _MODEL_ID.fullmatch(name):
        return ""
    return (
        f": tolpack reads local folders and URLs; if it is a model id, download it first "
        f"(hf download {name} --local-dir {path.name}), then give the folder {path.name} to the "
        "same command"
    )


def _pack_remedy(kind: FileKind, path: InputPath) -> str:
    """Say how a pack is made of a file, if one can be."""
    if path.suffix in kind.suffixes:
        return f"build one with tolpack build {path}"
    if kind.suffixes:
        return f"rename it to end in {kind.suffixes[0]}, and build one with tolpack build"
    if kind.in_folder:
        return f"build one with tolpack build {path.parent}"
    return kind.advice or _BUILD


def _kind_of_pack(start: bytes) -> FileKind:
    if len(start) < 32:
        return PACK
    (features,) = struct.unpack_from("<Q", start, 24)
    if features & PART_FILE_FEATURES:
        return PART_FILE
    alone = features >> FEATURES["edits"] & 1 and b'"base"' in start
    return EDITS if alone else PACK


def _kind_of_zip(start: bytes) -> FileKind:
    """By the name of the first entry: torch writes ``NAME/data.pkl`` first, numpy ``NAME.npy``."""
    length = int.from_bytes(start[26:28], "little")
    name = start[30 : 30 + length]
    if name.endswith((b"/data.pkl", b"/.format_version", b"/byteorder", b"/version")):
        return TORCH
    return _NPZ if name.endswith(b".npy") else ZIP


def _is_safetensors(start: bytes) -> bool:
    length = int.from_bytes(start[:8], "little")
    return start[8:9] == b"{" and 2 <= length <= _MAX_SAFETENSORS_HEADER


def _kind_of_text(start: bytes, suffix: str) -> FileKind | None:
    if start.startswith(b"version https://git-lfs"):
        return LFS
    if _CONTROL.search(start):
        return None
    try:
        start.decode()
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3 or len(start) < _START_BYTES:  # not cut off in a character
            return None
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:14].lower().startswith((b"<!doctype html", b"<html")):
        return HTML
    if text.startswith(b"{") and suffix != ".jsonl":
        return next((kind for found, kind in _JSON_KINDS if found.search(text)), JSON)
    return TEXT
