"""Measurements kept between runs, so that one that was stopped goes on where it was.

Each is a small file of JSON (`tolpack.runtime.cache`, which tells damaged ones), named by a hash of
all that it depends on: versions, every byte of the weights, tokens, window, calibration, setting.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from tolpack.calibration.stats import CalibrationInputs
from tolpack.evaluation.evaluator import Evaluator, PackScore
from tolpack.model.text import find_tokenizer
from tolpack.runtime.cache import cached_file, keep_file, kept_file
from tolpack.runtime.progress import Reporter
from tolpack.sources.files import file_digest
from tolpack.version import __version__
from tolpack.workspace.resources import Resources

# Raised whenever the same inputs would be measured otherwise.
_MEASUREMENT = 1


class ResultCache:
    """Measurements on one checkpoint and text.

    Parameters
    ----------
    evaluator : Evaluator
        The checkpoint and the text.
    calibration, resources : CalibrationInputs, Resources
        What packs are built with.
    fresh : bool
        Whether to measure everything again.
    reporter : Reporter
        Is told if nothing can be kept.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        calibration: CalibrationInputs,
        resources: Resources,
        *,
        fresh: bool,
        reporter: Reporter,
    ) -> None:
        names = tuple(field.name for field in fields(PackScore))
        words = (__version__, _MEASUREMENT, torch.__version__, names, evaluator.context)
        digest = hashlib.sha256(
            repr((*words, resources.compute, evaluator.checkpoint.config)).encode()
        )
        digest.update(evaluator.checkpoint.fingerprint())
        digest.update(evaluator.token_ids.astype("<i8").tobytes())
        found = find_tokenizer(evaluator.checkpoint.path, calibration.tokenizer)
        for path in (calibration.text, calibration.frequencies, found):
            digest.update(b"none" if path is None else file_digest(Path(path)))
        self._identity = digest.digest()
        self._check_unchanged = evaluator.checkpoint.check_unchanged
        self._fresh = fresh
        self._reporter = reporter
        self._now: dict[str, dict[str, Any]] = {}
        self._told = False

    def get(
        self, what: object, keys: Sequence[str], measure: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return what `measure` gives, with `keys`, or gave when `what` was measured before."""
        known = self._known(what, keys)
        if known is not None:
            return known
        found = self._now[self._name(what)] = measure()
        self._check_unchanged()  # what is kept belongs to the weights in its name
        path = cached_file(self._name(what))
        data = json.dumps(found).encode()
        kept = path is None or keep_file(path, lambda file: file.write(data))
        if not kept and not self._told:
            self._told = True
            self._reporter.say(
                f"measurements cannot be kept in {path and path.parent}: if this is stopped, it "
                "starts over (TOLPACK_CACHE names another folder)"
            )
        return found

    def _known(self, what: object, keys: Sequence[str]) -> dict[str, Any] | None:
        name = self._name(what)
        if name in self._now or self._fresh:
            return self._now.get(name)
        path = cached_file(name)
        found = None if path is None else _read(path)
        return found if isinstance(found, dict) and set(keys) <= found.keys() else None

    def _name(self, what: object) -> str:
        digest = hashlib.sha256(self._identity + repr(what).encode())
        return f"measured-{digest.hexdigest()[:32]}.json"


def _read(path: Path) -> object:
    """Return what was kept in a file; ``None`` if nothing was, or if it is damaged."""
    try:
        with kept_file(path) as kept:
            return None if kept is None else json.loads(kept[0].read(kept[1]))
    except (OSError, ValueError):
        return None
