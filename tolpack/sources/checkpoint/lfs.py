"""Git LFS pointers: small text files that stand where a large file should be."""

from __future__ import annotations

from tolpack.storage.inputs import InputPath, open_stream

_POINTER = b"version https://git-lfs"


def lfs_hint(path: InputPath) -> str:
    """Say so if `path` is only Git LFS's note of where the file is; else nothing."""
    try:
        with open_stream(path) as file:
            pointer = file.read(len(_POINTER)) == _POINTER
    except OSError:
        return ""
    return " (it is a Git LFS pointer, not the file itself: run git lfs pull)" if pointer else ""
