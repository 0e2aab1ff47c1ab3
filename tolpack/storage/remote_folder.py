"""A folder of object storage, by way of obstore."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tolpack.errors import ConfigError, FileAccessError
from tolpack.storage.folder import AlreadyExistsError, Folder, check_name

# What is lost by asking for bytes between two extents, against another request.
_COALESCE_BYTES = 64 << 10
# Objects of memory:// live as long as the process.
_memory: dict[str, Any] = {}


class RemoteFolder(Folder):
    """See `Folder`.

    Parameters
    ----------
    url : str
        ``s3://``, ``gs://``, ``az://``, ``memory://``, or, for reading, ``http(s)://``.
        Credentials are those that obstore finds, such as variables of the environment.

    Raises
    ------
    ConfigError
        The kind of URL is unknown, or obstore is not installed.
    """

    is_remote = True

    def __init__(self, url: str) -> None:
        if importlib.util.find_spec("obstore") is None:
            raise ConfigError(f"{url} needs obstore: pip install 'tolpack[remote]'")
        self.location = url.rstrip("/")
        self._store = _open_store(self.location)

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFolder, (self.location,)

    def names(self) -> list[str]:
        """See `Folder`."""
        import obstore

        with self._errors("list"):
            found = obstore.list_with_delimiter(self._store)["objects"]
        return sorted(one["path"].rpartition("/")[2] for one in found)

    def size(self, name: str) -> int | None:
        """See `Folder`."""
        found = self.state(name)
        return None if found is None else int(found[0])

    def state(self, name: str) -> tuple[Any, ...] | None:
        """See `Folder`: size, ETag, version and time."""
        import obstore

        with self._errors(f"look at {name} in"):
            try:
                found = obstore.head(self._store, check_name(name))
            except FileNotFoundError:
                return None
        return found["size"], found["e_tag"], found["version"], found["last_modified"]

    def read_many(self, name: str, extents: Sequence[tuple[int, int]]) -> list[memoryview]:
        """See `Folder`."""
        import obstore

        starts, lengths = [one[0] for one in extents], [one[1] for one in extents]
        with self._errors(f"read {name} in"):
            found = obstore.get_ranges(
                self._store, check_name(name), starts=starts, lengths=lengths,
                coalesce=_COALESCE_BYTES,
            )  # fmt: skip
        views = [memoryview(one) for one in found]
        for (offset, length), view in zip(extents, views):
            if len(view) != length:
                raise FileAccessError(
                    f"{self.file_location(name)} gave {len(view)} bytes at {offset}, expected "
                    f"{length}"
                )
        return views

    @contextlib.contextmanager
    def temporary(self) -> Iterator[Path]:
        """See `Folder`: a file of the system's folder for temporary files."""
        fd, name = tempfile.mkstemp(prefix="tolpack-")
        os.close(fd)
        try:
            yield Path(name)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(name)

    def put(self, name: str, file: Path) -> None:
        """See `Folder`."""
        import obstore

        with self._errors(f"write {name} to"):
            obstore.put(self._store, check_name(name), file)

    def create(self, name: str, data: bytes) -> None:
        """See `Folder`."""
        import obstore
        from obstore.exceptions import AlreadyExistsError as Exists

        with self._errors(f"write {name} to"):
            try:
                obstore.put(self._store, check_name(name), data, mode="create")
            except Exists as error:
                raise AlreadyExistsError(f"{self.file_location(name)} exists") from error

    def delete(self, name: str) -> None:
        """See `Folder`."""
        import obstore

        with self._errors(f"remove {name} from"), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, check_name(name))

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except FileAccessError:
            raise
        except (BaseError, OSError, ValueError) as error:
            raise FileAccessError(f"cannot {doing} {self.location}: {error}") from error


def _open_store(url: str) -> Any:
    from obstore.exceptions import BaseError
    from obstore.store import MemoryStore, from_url

    if url.lower().startswith("memory://"):
        return _memory.setdefault(url, MemoryStore())
    plain = url.lower().startswith("http://")
    try:
        return from_url(url, client_options={"allow_http": True} if plain else None)
    except (BaseError, ValueError) as error:
        raise ConfigError(f"cannot open {url}: {error}") from error
