"""Faults of the system below: calls that fail, and a disk that loses its power.

`Calls` makes the n-th call of a kind fail; `Disk` records what is done to the files of one folder,
and rebuilds what may be found there after the power was lost at any moment: what was synced, and
any part of what was not.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
from pathlib import Path

from tolpack.container import atomic_write


class Calls:
    """Counts calls, and lets the one of number `at` fail (0: none).

    ``count``: calls so far; ``failed``: whether one did.
    """

    def __init__(self, at: int, error: int = errno.EIO, *, every: bool = False) -> None:
        self.at, self.error, self.every = at, error, every
        self.count, self.failed = 0, False

    def __call__(self) -> None:
        """Count a call; raise `OSError` if it is to fail."""
        self.count += 1
        if self.at and (self.count == self.at or (self.every and self.count >= self.at)):
            self.failed = True
            raise OSError(self.error, os.strerror(self.error))


class _FailingFile(io.FileIO):
    """A file whose calls may fail."""

    calls: Calls

    def write(self, data):
        self.calls()
        return super().write(data)

    def truncate(self, size=None):
        self.calls()
        return super().truncate(size)

    def readinto(self, buffer):
        self.calls()
        return super().readinto(buffer)


def fail_writing(patch, calls: Calls) -> None:
    """Let opening, writing, reading back, syncing, renaming and removing outputs go by `calls`."""

    def opened(path, mode, opener=None):
        calls()
        raw = _FailingFile(path, mode.replace("b", ""), opener=opener)
        raw.calls = calls
        return io.BufferedRandom(raw)

    patch.setattr(atomic_write, "open", opened, raising=False)
    for name in ("fsync", "replace", "unlink"):
        patch.setattr(os, name, _failing(getattr(os, name), calls))


def fail_reading(patch, calls: Calls) -> None:
    """Let the calls by which packs are read go by `calls`."""
    for name in ("open", "fstat", "pread", "preadv", "posix_fadvise"):
        patch.setattr(os, name, _failing(getattr(os, name), calls))


def _failing(function, calls: Calls):
    def call(*arguments, **named):
        calls()
        return function(*arguments, **named)

    return call


class _RecordedFile(io.FileIO):
    disk: Disk
    number: int

    def write(self, data):
        written = super().write(data)
        kept = bytes(memoryview(data).cast("B")[:written])
        self.disk.changes.append(("write", self.number, self.tell() - written, kept))
        return written

    def truncate(self, size=None):
        result = super().truncate(size)
        self.disk.changes.append(("truncate", self.number, result))
        return result


class Disk:
    """Records what happens to the files of `folder`, which are in it now or created by outputs.

    ``changes``, in their order: ``("create", name, number)``, ``("write", number, offset, data)``,
    ``("truncate", number, size)``, ``("sync", number)``, ``("rename", name, name)``,
    ``("remove", name)``, ``("sync folder",)``.
    """

    def __init__(self, folder: Path, patch) -> None:
        self.folder = folder
        self.changes: list[tuple] = []
        self.first = {path.name: number for number, path in enumerate(sorted(folder.iterdir()))}
        self.contents = {n: (folder / name).read_bytes() for name, n in self.first.items()}
        self._names = dict(self.first)
        self._numbers: dict[int, int] = {}
        self._patch(patch)

    def _patch(self, patch) -> None:
        fsync, replace, unlink = os.fsync, os.replace, os.unlink

        def opened(path, mode, opener=None):
            raw = _RecordedFile(path, mode.replace("b", ""), opener=opener)
            name = Path(path).name
            if "x" in mode:
                self._names[name] = 1 + max([-1, *self.contents])
                self.contents[self._names[name]] = b""
                self.changes.append(("create", name, self._names[name]))
            raw.disk, raw.number = self, self._names[name]
            self._numbers[os.fstat(raw.fileno()).st_ino] = raw.number
            return io.BufferedRandom(raw)

        def synced(fd):
            fsync(fd)
            number = self._numbers.get(os.fstat(fd).st_ino)
            self.changes.append(("sync folder",) if number is None else ("sync", number))

        def renamed(source, destination):
            replace(source, destination)
            names = Path(source).name, Path(destination).name
            self._names[names[1]] = self._names.pop(names[0])
            self.changes.append(("rename", *names))

        def removed(path, **named):
            unlink(path, **named)
            self.changes.append(("remove", Path(path).name))

        patch.setattr(atomic_write, "open", opened, raising=False)
        patch.setattr(os, "fsync", synced)
        patch.setattr(os, "replace", renamed)
        patch.setattr(os, "unlink", removed)

    def after_loss(self, count: int, luck: random.Random) -> dict[str, bytes]:
        """Return what the folder may hold after a loss of power behind the first `count` changes.

        Of each file what was synced, and of the writes behind that any, in any order, the last one
        chosen perhaps in part; of the names those of the last sync of the folder, and some of the
        changes behind, in order.
        """
        done = self.changes[:count]
        names = dict(self.first)
        of_names = [change for change in done if change[0] in ("create", "rename", "remove")]
        since = _behind_last(done, ("sync folder",), of_names)
        kept = len(of_names) - since + luck.randint(0, since)
        for change in of_names[:kept]:
            if change[0] == "create":
                names[change[1]] = change[2]
            elif change[1] in names:
                number = names.pop(change[1])
                if change[0] == "rename":
                    names[change[2]] = number
        return {name: self._content(number, done, luck) for name, number in names.items()}

    def _content(self, number: int, done: list[tuple], luck: random.Random) -> bytes:
        own = [c for c in done if c[0] in ("write", "truncate") and c[1] == number]
        since = _behind_last(done, ("sync", number), own)
        certain, others = own[: len(own) - since], own[len(own) - since :]
        chosen = [change for change in others if luck.random() < luck.choice((0.0, 0.5, 1.0))]
        luck.shuffle(chosen)
        data = bytearray(self.contents[number])
        for change in certain + chosen:
            if change[0] == "truncate":
                del data[change[2] :]
                data.extend(bytes(change[2] - len(data)))
                continue
            _, _, offset, written = change
            if change is (chosen or [None])[-1]:  # sectors of 512 bytes are written whole
                written = written[: luck.randint(0, len(written) // 512 + 1) * 512]
            data.extend(bytes(max(0, offset + len(written) - len(data))))
            data[offset : offset + len(written)] = written
        return bytes(data)


def _behind_last(done: list[tuple], sync: tuple, changes: list[tuple]) -> int:
    """How many of `changes`, some of those `done`, came after the last `sync`."""
    positions = [n for n, change in enumerate(done) if change == sync]
    last = positions[-1] if positions else -1
    behind = {id(change) for change in done[last + 1 :]}
    return sum(id(change) in behind for change in changes)


def lay_out(folder: Path, files: dict[str, bytes]) -> None:
    """Make `folder` hold these files and no others."""
    for path in folder.iterdir():
        path.unlink()
    for name, data in files.items():
        with builtins.open(folder / name, "wb") as file:
            file.write(data)
