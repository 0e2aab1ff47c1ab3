"""Tasks of workers that end abruptly, fail or are slow; in a module that workers import."""

import os
import signal
from concurrent.futures import Executor
from pathlib import Path

from tolpack.compress import part_tasks


class Through(Executor):
    """Gives tasks to another executor, within one of the functions below.

    ``names`` are the tasks that were submitted, in order; ``before`` is called before each.
    """

    def __init__(self, executor, wrap=None, *arguments, before=lambda: None):
        self.executor, self.wrap, self.arguments = executor, wrap, arguments
        self.names, self.before = [], before

    def submit(self, function, /, *arguments):
        """See `Executor`."""
        self.before()
        self.names.append(function.__name__)
        if self.wrap is None:
            return self.executor.submit(function, *arguments)
        return self.executor.submit(self.wrap, *self.arguments, function, *arguments)


def killed_once(flag, function, *arguments):
    """End this process as SIGKILL does, before the third part file that is made; only once."""
    location = Path(arguments[0])
    made = sum(one.suffix == ".part" for one in location.iterdir()) if location.exists() else 0
    if function is part_tasks.encode_part and made >= 2:
        _kill_unless(flag)
    return function(*arguments)


def killed_always(function, *arguments):
    """End this process as SIGKILL does."""
    os.kill(os.getpid(), signal.SIGKILL)


def failing(function, *arguments):
    """Fail as a bug would."""
    raise ZeroDivisionError("a bug")


def _kill_unless(flag):
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
