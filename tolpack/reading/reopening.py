"""Packs that were pickled: opened again where they are unpickled, by path or URL, if they are the
same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from tolpack.errors import FileAccessError

_REMEDY = "open the right file where it is wanted, and pickle its path instead of a pack"


class _Opened(Protocol):
    @property
    def identity(self) -> bytes: ...

    def close(self) -> None: ...


_Pack = TypeVar("_Pack", bound=_Opened)


def reopen(
    open_pack: Callable[..., _Pack], path: str, settings: dict[str, Any], identity: bytes
) -> _Pack:
    """Open the pack at a path or URL with `settings`, if it has that `identity`: see
    `tolpack.Pack.identity`.

    Raises
    ------
    FileAccessError
        The file is gone, or is another pack by now.
    FormatError
        It is none.
    """
    try:
        pack = open_pack(path, **settings)
    except FileAccessError as error:
        raise FileAccessError(
            f"a pickled pack cannot be opened again: {error}; {_REMEDY}"
        ) from error
    if pack.identity != identity:
        pack.close()
        raise FileAccessError(
            f"{path} is no longer the pack that was pickled, or its edits are others: {_REMEDY}"
        )
    return pack
