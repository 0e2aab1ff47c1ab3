"""A folder of object storage, by way of obstore.

Credentials are obstore's business: it finds them in variables of the environment, in files, or at
the machine's own service. They are never asked for, kept or shown here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tolpack.errors import ConfigError, FileAccessError, FormatError
from tolpack.storage.folder import AlreadyExistsError, Folder, NoSuchFileError, check_name
from tolpack.storage.ranges import joined, pieces
from tolpack.storage.remote_errors import NoSuchRangeError, reason, status
from tolpack.storage.remote_object import RemoteObject

if TYPE_CHECKING:
    from obstore import GetOptions

# Time limits: for a connection; for each step of an answer, whatever its length; for the whole.
_CLIENT = {"connect_timeout": "5s", "read_timeout": "20s", "timeout": "300s"}
# What users set for obstore's client by variables, which its own options would replace.
_CLIENT_VARIABLES = (
    "allow_http", "allow_invalid_certificates", "connect_timeout", "proxy_ca_certificate",
    "proxy_excludes", "proxy_url", "read_timeout", "timeout",
)  # fmt: skip
_PREFIXES = {"s3": "AWS", "s3a": "AWS", "gs": "GOOGLE", "az": "AZURE", "adl": "AZURE",
             "azure": "AZURE", "abfs": "AZURE", "abfss": "AZURE",
             "http": "", "https": ""}  # fmt: skip
# Where a header may be sent that is not signed.
_DEMANDING = ("s3", "s3a", "gs", "http", "https")
# Requests that get 5xx, a reset or no answer are repeated, at most for a minute.
_RETRIES: dict[str, Any] = {
    "max_retries": 6,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5)},
}
# Attempts to create an object, and seconds after the first, doubled after each further one.
_CREATE_ATTEMPTS, _CREATE_WAIT = 5, 0.2
# Objects of memory:// live as long as the process.
_memory: dict[str, Any] = {}
# The process in which obstore has begun to run, by its number.
_process: int | None = None


class _UnansweredError(FileAccessError):
    """Nobody knows whether a request to write was obeyed."""


class RemoteFolder(Folder):
    """See `Folder`.

    Parameters
    ----------
    url : str
        ``s3://``, ``gs://``, ``az://``, ``memory://``, or, for reading, ``http(s)://``.

    Raises
    ------
    ConfigError
        The kind of URL is unknown, or obstore is not installed.
    """

    is_remote = True

    def __init__(self, url: str) -> None:
        if importlib.util.find_spec("obstore") is None:
            raise ConfigError(f"{url} needs obstore: pip install 'tolpack[remote]'")
        scheme, _, path = url.partition("://")
        self.location = f"{scheme}://{path.rstrip('/')}"
        self._store = _open_store(self.location)
        import obstore
        from obstore.exceptions import BaseError

        self._get, self._get_ranges, self.error_type = obstore.get, obstore.get_ranges, BaseError

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
        """See `Folder`: size, then ETag or time."""
        try:
            found = RemoteObject(self, check_name(name)).look()
        except NoSuchFileError:
            return None
        return found.size, found.etag, found.modified

    def read_many(self, name: str, extents: Sequence[tuple[int, int]]) -> list[memoryview]:
        """See `Folder`: extents that lie close together by one request, all at the same time."""
        one = RemoteObject(self, check_name(name))
        cut = [list(pieces(*extent)) for extent in extents]
        flat = [piece for some in cut for piece in some]
        found: list[memoryview] = [memoryview(b"")] * len(flat)
        ranges = joined(flat)
        answers = one.begin([(part.start, part.stop) for part in ranges])
        try:
            for part, answer in zip(ranges, answers):
                data = answer.result()
                for n in part.numbers:
                    start = flat[n][0] - part.start
                    found[n] = data[start : start + flat[n][1]]
        finally:
            for answer in answers:
                answer.cancel()
        rest = iter(found)
        return [_put_together([next(rest) for _ in some]) for some in cut]

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

        with self._errors("write", check_name(name)):
            obstore.put(self._store, name, file)

    def create(self, name: str, data: bytes) -> None:
        """See `Folder`."""
        error: FileAccessError | None = None
        for attempt in range(_CREATE_ATTEMPTS):
            try:
                self._create_once(check_name(name), data)
            except AlreadyExistsError:
                if error is not None and self._holds(name, data):
                    return  # an attempt that got no answer has made it
                raise
            except _UnansweredError as unanswered:
                error = unanswered
                time.sleep(_CREATE_WAIT * 2**attempt)
            else:
                return
        if error is not None and not self._holds(name, data):
            raise error

    def _create_once(self, name: str, data: bytes) -> None:
        """Send one request: the answer to a second one could not tell who has made the object."""
        import obstore
        from obstore.exceptions import AlreadyExistsError as Exists
        from obstore.exceptions import GenericError

        with self._errors("write", name):
            try:
                obstore.put(_open_store(self.location, retries=0), name, data, mode="create")
            except Exists:
                raise AlreadyExistsError(f"{self.file_location(name)} exists") from None
            except GenericError as error:
                if (status(error) or 500) < 500:
                    raise
                said = f"cannot write {self.file_location(name)}: {reason(error)}"
                raise _UnansweredError(said) from None

    def _holds(self, name: str, data: bytes) -> bool:
        return self.size(name) == len(data) and bytes(self.read(name, 0, len(data))) == data

    def delete(self, name: str) -> None:
        """See `Folder`."""
        import obstore

        with contextlib.suppress(NoSuchFileError), self._errors("remove", check_name(name)):
            obstore.delete(self._store, name)

    def request(self, doing: str, key: str, options: GetOptions) -> Any:
        """Send a GET, and return obstore's result, whose body was not read yet.

        Raises
        ------
        FormatError
            Code ``changed``: the object is not the one that the options demand.
        FileAccessError
            The storage gives none; the message says what was being done.
        """
        check_process()
        try:
            return self._get(self._store, key, options=options)
        except (OSError, ValueError, self.error_type) as error:
            raise self._translated(error, doing, key) from None

    def store_of_version(self, key: str, demand: str) -> Any:
        """Return a store whose every request demands an ETag, also those that take no options.

        ``None`` if the server does not refuse another ETag; or for storage whose signatures would
        have to cover the header.
        """
        if self.location.partition("://")[0].lower() not in _DEMANDING:
            return None
        try:
            self.request("look at", key, {"range": (0, 1), "if_match": '"of-no-version"'})
        except FormatError:
            return _open_store(self.location, headers={"If-Match": demand})
        except FileAccessError:
            return None
        return None

    def request_ranges(self, store: Any, key: str, ranges: Sequence[tuple[int, int]]) -> list[Any]:
        """Read ranges by obstore's ``get_ranges``; errors as of `request`."""
        starts, stops = zip(*ranges)
        check_process()
        try:
            return list(self._get_ranges(store, key, starts=starts, ends=stops, coalesce=0))
        except (OSError, ValueError, self.error_type) as error:
            doing = f"read {len(ranges)} ranges within bytes {starts[0]} … {stops[-1]} of"
            raise self._translated(error, doing, key) from None

    @contextlib.contextmanager
    def _errors(self, doing: str, name: str | None = None) -> Iterator[None]:
        check_process()
        try:
            yield
        except (FileAccessError, FormatError):
            raise
        except (OSError, ValueError, self.error_type) as error:
            raise self._translated(error, doing, name) from None

    def _translated(self, error: Exception, doing: str, name: str | None) -> Exception:
        from obstore.exceptions import PreconditionError

        place = self.location if name is None else self.file_location(name)
        if isinstance(error, FileNotFoundError):
            return NoSuchFileError(f"{place} does not exist")
        if isinstance(error, PreconditionError):
            return FormatError("changed", place, "another object", "the one that was opened")
        kind = NoSuchRangeError if status(error) == 416 else FileAccessError
        return kind(f"cannot {doing} {place}: {reason(error)}")


def check_process() -> None:
    """Refuse object storage in a child of a fork whose parent has used it.

    The threads of obstore are gone there, and every request would wait for ever.

    Raises
    ------
    FileAccessError
        This is such a child.
    """
    global _process
    if _process is None:
        _process = os.getpid()
    if _process != os.getpid():
        raise FileAccessError(
            "object storage was used before this process was forked, and cannot be in both: start "
            "processes by multiprocessing's 'spawn' or 'forkserver'"
        )


def _put_together(some: Sequence[memoryview]) -> memoryview:
    return some[0] if len(some) == 1 else memoryview(b"".join(some))


def _open_store(url: str, retries: int | None = None, headers: dict[str, str] | None = None) -> Any:
    from obstore.exceptions import BaseError
    from obstore.store import MemoryStore, from_url

    scheme = url.partition("://")[0].lower()
    if scheme == "memory":
        return _memory.setdefault(url, MemoryStore())
    if scheme not in _PREFIXES:
        known = ", ".join(f"{one}://" for one in ("s3", "gs", "az", "http", "https", "memory"))
        raise ConfigError(f"{url} is of no known kind: expected {known} or file://")
    options: dict[str, Any] = {**_CLIENT, "allow_http": scheme == "http"}
    if headers is not None:
        options["default_headers"] = headers
    for name in _CLIENT_VARIABLES:
        if chosen := os.environ.get(f"{_PREFIXES[scheme]}_{name.upper()}"):
            options[name] = chosen
    retry_config = _RETRIES if retries is None else {**_RETRIES, "max_retries": retries}
    open_store: Any = from_url  # its types tell the kinds of storage apart
    try:
        return open_store(url, client_options=options, retry_config=retry_config)
    except (BaseError, ValueError) as error:
        raise ConfigError(f"cannot open {url}: {reason(error)}") from None
