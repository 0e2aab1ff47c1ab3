"""An object of object storage, read by ranges that all belong to the same version of it.

The first answer tells size and ETag; every later request demands that ETag (``If-Match``), and the
size and ETag of every answer are compared, also where a server ignores the demand. So an object
that is replaced gives an error, never bytes of two versions.

Requests that fail are repeated by obstore, with back-off: 5xx, resets, time limits, and what breaks
within an answer, from where it broke. It does not compare an answer's length with its range; that
is done here, as servers and what stands before them may cut answers short.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from tolpack.errors import FileAccessError, FormatError
from tolpack.runtime.fork_safety import ForkSafe
from tolpack.runtime.pool import Pool
from tolpack.storage.remote_errors import NoSuchRangeError, reason

if TYPE_CHECKING:
    from obstore import GetOptions


# Requests of the process that wait at the same time, each in a thread. 512 rows at 20 ms for a
# request take two rounds; one call of obstore's `get_ranges` has 10 at once, and takes 52
# (benchmarks/remote_lookup.py).
_AT_ONCE = 256
# So many ranges, or more, are read by calls of `get_ranges` for 10 each, which take half of the
# processor's time. They need a store of their own, as they cannot demand a version otherwise.
_MANY_RANGES, _TOGETHER = 32, 10
# Attempts to get an answer that is not too short, and seconds between them.
_ATTEMPTS = 3
_WAIT = 0.2

_requests = Pool(_AT_ONCE, "remote")
_requests_together = Pool(_AT_ONCE // _TOGETHER, "remote-many")
_Begun = tuple[tuple[int, int], "Future[memoryview]"]


class ObjectRequests(Protocol):
    """What an object asks of its folder: requests, whose errors name neither secrets nor causes."""

    @property
    def error_type(self) -> type[Exception]:
        """The root of obstore's own errors."""
        ...

    def file_location(self, name: str) -> str:
        """Return the URL of an object."""
        ...

    def request(self, doing: str, key: str, options: GetOptions) -> Any:
        """Send a GET, and return obstore's result, whose body was not read yet."""
        ...

    def store_of_version(self, key: str, demand: str) -> Any:
        """Return a store whose requests demand an ETag; ``None`` where that is not obeyed."""
        ...

    def request_ranges(self, store: Any, key: str, ranges: Sequence[tuple[int, int]]) -> list[Any]:
        """Read ranges of an object in a store."""
        ...


@dataclass(frozen=True, slots=True)
class Version:
    """What tells one content of an object from another."""

    size: int
    etag: str | None
    modified: datetime | None

    @property
    def demand(self) -> str | None:
        """The value of ``If-Match``; a weak ETag never matches, says RFC 9110, 13.1.1."""
        return None if self.etag is None or self.etag.startswith("W/") else self.etag

    def is_told_by(self, meta: Any) -> bool:
        """Whether obstore's description of an answer has this ETag and size."""
        return bool(self.etag == meta["e_tag"] and self.size == meta["size"])

    def __str__(self) -> str:
        return f"{self.size} bytes, ETag {self.etag}, of {self.modified}"


class RemoteObject(ForkSafe):
    """See the module. Safe to use from several threads.

    Parameters
    ----------
    folder : ObjectRequests
        Where it lies: a `tolpack.storage.remote_folder.RemoteFolder`.
    key : str
        Its name there.
    size : int, optional
        Bytes that it must have; the first answer is compared.

    Attributes
    ----------
    version : Version or None
        That of the first answer, once there was one.
    """

    def __init__(self, folder: ObjectRequests, key: str, size: int | None = None) -> None:
        self._folder, self._key, self._size = folder, key, size
        self.url = folder.file_location(key)
        self.version: Version | None = None
        self._many: Future[Any] | None = None
        super().__init__()

    def look(self) -> Version:
        """Ask for size and ETag alone; errors as of `read`."""
        meta = self._folder.request("look at", self._key, {"head": True}).meta
        return self._check_version(meta)

    def read_start(self, most_bytes: int) -> memoryview:
        """Read the first bytes, at most `most_bytes`, in one request that also tells the version.

        Raises
        ------
        FileAccessError, FormatError
            As `read`.
        """
        try:
            return self._read(0, most_bytes)
        except NoSuchRangeError:
            if self.look().size:
                raise
            return memoryview(b"")

    def read(self, start: int, stop: int) -> memoryview:
        """Return the bytes `start` … `stop`, which the object must have.

        Raises
        ------
        FormatError
            Code ``changed``: the object is another one than at the first answer; ``truncated`` or
            ``trailing-bytes``: it has another size than expected.
        FileAccessError
            It cannot be reached, or gives other bytes than those, also after several attempts;
            `NoSuchFileError`: there is none.
        """
        try:
            data = self._read(start, stop)
        except NoSuchRangeError:
            self.look()  # it ends before `start`: is it another one?
            raise
        if len(data) != stop - start:
            raise self._wrong_range(start, stop, f"{len(data)} bytes")
        return data

    def begin(self, ranges: Sequence[tuple[int, int]]) -> list[Future[memoryview]]:
        """Begin to `read` ranges; at most 256 requests of the process wait at the same time."""
        answers: list[Future[memoryview]] = [Future() for _ in ranges]
        work = list(zip(ranges, answers))
        store = self._store_of_version() if len(work) >= _MANY_RANGES else None
        if store is not None:
            read_together = partial(self._read_together, store)
            for n in range(0, len(work), _TOGETHER):
                _requests_together.submit(read_together, work[n : n + _TOGETHER])
        else:
            shares = min(len(work), _AT_ONCE)  # a dispatch costs as much as a request
            for n in range(shares):
                _requests.submit(self._read_share, work[n::shares])
        return answers

    def _read_share(self, share: Sequence[_Begun]) -> None:
        for (start, stop), answer in share:
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(self.read(start, stop))
                except BaseException as error:  # noqa: BLE001 - whoever waits gets it
                    answer.set_exception(error)

    def _store_of_version(self) -> Any:
        """Return the store for many ranges, once it is there; the first call has it made. An object
        whose size is given is one of many, and each store has connections of its own.
        """
        if self._size is not None:
            return None
        with self._lock:
            version, store = self.version, self._many
            if store is None and version is not None and version.demand is not None:
                make = partial(self._folder.store_of_version, self._key)
                store = self._many = _requests.submit(make, version.demand)
        return store.result() if store is not None and store.done() else None

    def _read_together(self, store: Any, share: Sequence[_Begun]) -> None:
        """Read ranges by one call of ``get_ranges``; those of other lengths one by one."""
        share = [one for one in share if one[1].set_running_or_notify_cancel()]
        try:
            found = self._folder.request_ranges(store, self._key, [one for one, _ in share])
            for ((start, stop), answer), data in zip(share, found):
                whole = len(data) == stop - start
                answer.set_result(memoryview(data) if whole else self.read(start, stop))
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            for _, answer in share:
                if not answer.done():
                    answer.set_exception(error)

    def _read(self, start: int, stop: int) -> memoryview:
        """As `read`, but an object may end before `stop`."""
        found = 0
        for _ in range(_ATTEMPTS):
            data, length = self._request(start, stop)
            found = len(data)
            if found == length:
                return data
            time.sleep(_WAIT)
        raise self._wrong_range(start, stop, f"{found} bytes, {_ATTEMPTS} times")

    def _request(self, start: int, stop: int) -> tuple[memoryview, int]:
        """Return what one request brings, and how many bytes it should be."""
        options: GetOptions = {"range": (start, stop)}
        if self.version is not None and self.version.demand is not None:
            options["if_match"] = self.version.demand
        found = self._folder.request(f"read bytes {start} … {stop} of", self._key, options)
        stop_there = min(stop, self._check_version(found.meta).size)
        try:
            return memoryview(found.bytes()), stop_there - start
        except (OSError, ValueError, self._folder.error_type) as error:
            raise self._wrong_range(start, stop, reason(error)) from None

    def _check_version(self, meta: Any) -> Version:
        """Keep the version of the first answer, and compare that of any other."""
        known = self.version
        if known is not None and known.etag and known.is_told_by(meta):
            return known
        found = Version(int(meta["size"]), meta.get("e_tag"), meta.get("last_modified"))
        if found.etag is not None:  # it tells more than the time
            found = Version(found.size, found.etag, None)
        if self._size not in (None, found.size):
            code = "truncated" if found.size < int(self._size or 0) else "trailing-bytes"
            raise FormatError(code, self.url, f"{found.size} bytes", f"{self._size} bytes")
        with self._lock:
            if self.version is None:
                self.version = found
        if found != self.version:
            raise FormatError("changed", self.url, found, f"{self.version}, as it was opened")
        return found

    def _wrong_range(self, start: int, stop: int, said: str) -> FileAccessError:
        return FileAccessError(f"cannot read bytes {start} … {stop} of {self.url}: {said}")
