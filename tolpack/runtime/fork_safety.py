"""Locks in forked processes: no child waits for one that nobody will release.

A fork copies the memory of all threads and goes on with one of them, so a lock that another thread
held at that moment would never be released in the child. So whatever has locks, threads or counts
of them makes them again in the child (`register_fork_reset`), and what the locks guard is changed
in steps that leave it usable after each one. Where that cannot be (a module is half imported, code
is half compiled, under locks of others), a fork waits until it is done (`fork_delaying_lock`).

Trade-off: owners keep plain locks of the interpreter, and replace them. A lock type that does so by
itself would cost a lookup of one row more than a microsecond.
"""

from __future__ import annotations

# Hooks that are registered first take their locks last. The holder of a `fork_delaying_lock` may
# want those of these two, so that a fork must not have them while it waits.
import concurrent.futures.thread  # noqa: F401
import logging  # noqa: F401
import os
import threading
import weakref
from typing import Protocol


class ForkReset(Protocol):
    """An object with locks or threads, neither of which live on in a forked process."""

    def reset_after_fork(self) -> None:
        """Begin again in the child of a fork: its other threads are gone, and what they held."""
        ...


class ForkSafe:
    """Base of what changes its state with ``_lock`` held; in a forked child nobody holds it."""

    def __init__(self) -> None:
        self.reset_after_fork()
        register_fork_reset(self)

    def reset_after_fork(self) -> None:
        """See `ForkReset`."""
        self._lock = threading.Lock()


_living: weakref.WeakSet[ForkReset] = weakref.WeakSet()


def register_fork_reset(one: ForkReset) -> None:
    """Have `one` renewed in every forked child, for as long as it lives."""
    _living.add(one)


def fork_delaying_lock() -> threading.RLock:
    """Return a lock; while another thread holds it, a fork of this process waits for it."""
    lock = threading.RLock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
        )
    return lock


def _reset_all() -> None:
    for one in list(_living):
        one.reset_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_all)
