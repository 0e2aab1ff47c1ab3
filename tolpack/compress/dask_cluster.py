"""The executor of a Dask cluster, by the address of its scheduler."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

from tolpack.errors import ConfigError, ExecutorError

_CONNECT_SECONDS = 10
_ADDRESS = re.compile(r"[a-z][a-z0-9+]*://[^/:]+:\d+|(tcp|tls|ws|wss)://\[[0-9a-fA-F:]+\]:\d+")
_LOGGERS = ("distributed", "tornado", "asyncio")


@contextmanager
def cluster_executor(address: str) -> Iterator[Executor]:
    """Yield an executor whose tasks run on the workers of the Dask scheduler at `address`.

    Raises
    ------
    ConfigError
        distributed is not installed, or it is no such address.
    ExecutorError
        No scheduler answers there.
    """
    if importlib.util.find_spec("distributed") is None:
        raise ConfigError("--cluster needs distributed: pip install 'tolpack[dask]'")
    distributed: Any = importlib.import_module("distributed")
    if not _ADDRESS.fullmatch(address):
        raise ConfigError(
            f"--cluster is {address!r}, expected the address that 'dask scheduler' prints, like "
            "tcp://host:8786"
        )
    for name in _LOGGERS:  # what they would tell of a lost scheduler, the error says
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = distributed.Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ExecutorError(
            f"no Dask scheduler answers at {address} ({error}): start one with 'dask scheduler', "
            "and give the address that it prints"
        ) from error
    with client:
        executor: Executor = client.get_executor()
        yield executor
