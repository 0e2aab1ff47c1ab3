"""Measurements kept between runs, so that one that was stopped goes on where it was.

Each is a small JSON file (`tolpack.cache`), named by a hash of all that it depends on: version,
weights, text, window, calibration, setting.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tolpack.cache import cached_file, keep_file
from tolpack.errors import ConfigError
from tolpack.judging import Judge
from tolpack.version import __version__
from tolpack.workshop import Knowledge

# Raised whenever the same inputs would be measured otherwise.
_MEASUREMENT = 1


class Measured:
    """Measurements on one checkpoint and text.

    Parameters
    ----------
    judge : Judge
        The checkpoint and the text.
    knowledge : Knowledge
        What packs are built with.
    fresh : bool
        Whether to measure everything again.
    """

    def __init__(self, judge: Judge, knowledge: Knowledge, *, fresh: bool = False) -> None:
        digest = hashlib.sha256(repr((__version__, _MEASUREMENT, judge.context)).encode())
        digest.update(repr(judge.checkpoint.config).encode() + judge.checkpoint.fingerprint())
        digest.update(judge.token_ids.astype("<i8").tobytes())
        for path in (knowledge.calibrate, knowledge.frequencies, knowledge.tokenizer):
            digest.update(_file_digest(path))
        self._identity = digest.digest()
        self._fresh = fresh

    def get(self, what: object, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what `measure` gives, or gave when `what` was measured before."""
        path = self._path(what)
        known = None if self._fresh else _read(path)
        if known is not None:
            return known
        found = measure()
        if path is not None:
            text = json.dumps(found).encode()
            keep_file(path, lambda file: file.write(text))
        return found

    def knows(self, what: object) -> bool:
        """Whether `what` was measured before."""
        return not self._fresh and _read(self._path(what)) is not None

    def _path(self, what: object) -> Path | None:
        name = hashlib.sha256(self._identity + repr(what).encode()).hexdigest()[:32]
        return cached_file(f"measured-{name}.json")


def _read(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _file_digest(path: str | Path | None) -> bytes:
    if path is None:
        return b"none"
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
