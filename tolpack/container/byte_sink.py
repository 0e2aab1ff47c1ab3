"""`ByteSink`: where a writer's bytes go, until they are complete.

`tolpack.container.writer.PackWriter` lays a pack out, and knows no files. What it gives to a sink
is nowhere to be seen under the final name before `commit`; sections that are finished may be found
again by a writer that continues.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from tolpack.container.header import Section
from tolpack.runtime.array_types import Buffer


class ByteSink(ABC):
    """The bytes of one pack that is being written.

    All methods raise `FileAccessError` if bytes cannot be written or read back.

    Attributes
    ----------
    name : str
        The unfinished pack, for messages.
    resumes : bool
        Whether what an interrupted writer left is continued.
    finished : list of Section
        Sections that are stored for good: those of an interrupted writer that is continued, then
        those that were noted.
    """

    name: str
    resumes: bool
    finished: list[Section]

    @abstractmethod
    def begin(self, attempt: int) -> None:
        """Find out which sections are finished already, and forget the rest.

        `attempt` tells writers of other contents apart: their sections are not continued.
        """

    @abstractmethod
    def write(self, offset: int, parts: Iterable[Buffer]) -> int:
        """Write `parts` one after the other from `offset` on; returns how many bytes that were."""

    @abstractmethod
    def sync(self) -> None:
        """Have everything written outlive a loss of power."""

    @abstractmethod
    def note(self, section: Section) -> None:
        """Note that `section`, which was synced, is finished."""

    @abstractmethod
    def forget(self, count: int) -> None:
        """Take all but the first `count` finished sections for unfinished."""

    @abstractmethod
    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes that were written at `offset`."""

    @abstractmethod
    def expect(self, size: int) -> None:
        """Tell how many bytes there will be in all; raises at once if there is no room for them."""

    @abstractmethod
    def commit(self, size: int, start: bytes) -> None:
        """Write `start` at the beginning, and publish the first `size` bytes under the final name.

        Raises
        ------
        FileAccessError
            Also if the final name was taken meanwhile.
        """

    @abstractmethod
    def discard(self) -> None:
        """Remove what was written; the final name is not touched."""

    @abstractmethod
    def close(self, *, failed: bool) -> None:
        """Let go of what was not committed, for a writer that continues; nothing is left of a sink
        that was new and never begun.

        With `failed`, no error is raised: it must not hide the first one. Closing twice is allowed.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(failed=kind is not None)
