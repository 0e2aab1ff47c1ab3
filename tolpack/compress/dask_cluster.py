"""The executor of a Dask cluster, by the address of its scheduler."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

from tolpack.errors import ConfigError, ExecutorError

_CONNECT_SECONDS = 10


@contextmanager
def cluster_executor(address: str) -> Iterator[Executor]:
    """Yield an executor whose tasks run on the workers of the Dask scheduler at `address`.

    Raises
    ------
    ConfigError
        distributed is not installed.
    ExecutorError
        No scheduler answers there.
    """
    if importlib.util.find_spec("distributed") is None:
        raise ConfigError("--cluster needs distributed: pip install 'tolpack[dask]'")
    distributed: Any = importlib.import_module("distributed")
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
