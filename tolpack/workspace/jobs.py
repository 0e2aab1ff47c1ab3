"""Jobs: what the tasks of a build have in common, stored once for all workers.

A job is pickled into a file, ``SHA-256.job``, in the folder of the build. What is sent to workers
names it: the folder, the digest, and the number of a task. So arrays never pass through the
scheduler of an engine. A worker compares the digest before it unpickles anything. It keeps the job,
and what it opened for it, for its next tasks.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from tolpack.container.parts.manifest import PART_SUFFIX
from tolpack.errors import ConfigError, FileAccessError
from tolpack.storage.folder import AlreadyExistsError, Folder, NoSuchFileError
from tolpack.storage.local_folder import UNFINISHED
from tolpack.storage.locations import open_folder
from tolpack.version import PRODUCER

JOB_SUFFIX, SUMS_SUFFIX, PARTS_SUFFIX = ".job", ".sums", ".parts"
_HASH = "[0-9a-f]{64}"
_BUILD_FILE = re.compile(
    rf"{_HASH}({re.escape(PART_SUFFIX)}|{re.escape(JOB_SUFFIX)}|-\d+-{_HASH}{re.escape(SUMS_SUFFIX)})"
    rf"|{re.escape(UNFINISHED)}[0-9a-f]{{32}}"
)
# Jobs that a process keeps opened: that of a build, and that of its next plan.
_KEPT_JOBS = 2
# A job holds an order of tokens and matrices of all layers: far below this.
_MOST_JOB_BYTES = 1 << 36
# Stands before the pickled job: those of another version may mean something else.
_PRODUCER_LINE = f"{PRODUCER}\n".encode()


def parts_folder(path: Path) -> Path:
    """Return where the part files of a pack lie until it is one file."""
    return path.with_name(path.name + PARTS_SUFFIX)


def is_build_file(name: str) -> bool:
    """Whether a file in a folder of part files has a name that builds give, finished or not."""
    return _BUILD_FILE.fullmatch(name) is not None


def store_job(job: object, folder: Folder) -> str:
    """Store a job, and return its digest, 64 hex digits."""
    data = _PRODUCER_LINE + pickle.dumps(job, protocol=5)
    digest = hashlib.sha256(data).hexdigest()
    with contextlib.suppress(AlreadyExistsError):  # stored by a build that was interrupted
        folder.create(digest + JOB_SUFFIX, data)
    return digest


def load_job(folder: Folder, digest: str) -> Any:
    """Load the job of `digest`.

    Raises
    ------
    FileAccessError
        It cannot be read, or its bytes have another digest.
    ConfigError
        Another version of tolpack stored it.
    """
    name = digest + JOB_SUFFIX
    try:
        data = folder.read_whole(name, _MOST_JOB_BYTES)
    except NoSuchFileError as error:
        raise FileAccessError(
            f"{folder.file_location(name)} is not there: another build of the same has ended, or "
            "this worker does not see the folder"
        ) from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise FileAccessError(
            f"{folder.file_location(name)} was changed: remove it, and give the same command again"
        )
    if not data.startswith(_PRODUCER_LINE):
        raise ConfigError(
            f"the build was started by another version than this worker's {PRODUCER}: install the "
            "same version everywhere"
        )
    return pickle.loads(data[len(_PRODUCER_LINE) :])


class Opened(Protocol):
    """What a worker opened for a job."""

    def is_unchanged(self) -> bool:
        """Whether the input is still what was opened."""
        ...


_O = TypeVar("_O", bound=Opened)


class OpenJobs(Generic[_O]):
    """The jobs that a process has opened last, for tasks that may run in several threads."""

    def __init__(self) -> None:
        self._opened: OrderedDict[tuple[str, str], _O] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, location: str, digest: str, open_it: Callable[[Folder, Any], _O]) -> _O:
        """Return what `open_it` made of the job of `digest` in the folder at `location`; errors as
        of `load_job` and `open_it`.
        """
        with self._lock:
            found = self._opened.get((location, digest))
            if found is None or not found.is_unchanged():
                folder = open_folder(location)
                found = self._opened[location, digest] = open_it(folder, load_job(folder, digest))
            self._opened.move_to_end((location, digest))
            while len(self._opened) > _KEPT_JOBS:
                self._opened.popitem(last=False)
            return found
