"""Packs that were pickled: opened again where they are unpickled, by path, if they are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tolpack.errors import FileAccessError

if TYPE_CHECKING:
    from tolpack.pack import Pack

_REMEDY = "open the right file where it is wanted, and pickle its path instead of a pack"


def reopen(kind: type[Pack], path: str, settings: dict[str, Any], identity: bytes) -> Pack:
    """Open the pack at `path` with `settings`, if its preamble is `identity`.

    Raises
    ------
    FileAccessError
        The file is gone, or is another pack by now.
    FormatError
        It is none.
    """
    try:
        pack = kind(path, **settings)
    except FileAccessError as error:
        raise FileAccessError(
            f"a pickled pack cannot be opened again: {error}; {_REMEDY}"
        ) from error
    if pack.container.preamble.to_bytes() != identity:
        pack.close()
        raise FileAccessError(f"{path} is no longer the pack that was pickled: {_REMEDY}")
    return pack
