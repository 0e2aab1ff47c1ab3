"""Results cached between runs, so that a sweep or study that was stopped goes on where it was.

Each is a small file of JSON (`tolpack.runtime.disk_cache`, which recognises damaged ones). Its name
is a hash of all that the result depends on: versions, every byte of the weights, tokens, window,
calibration and options.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from tolpack.calibration.calibrate import CalibrationInputs
from tolpack.evaluation.evaluator import Evaluator
from tolpack.evaluation.scores import PackScore
from tolpack.model.text import find_tokenizer
from tolpack.runtime.disk_cache import cached_file, keep_file, kept_file, kept_name
from tolpack.runtime.progress import Reporter
from tolpack.sources.identity import file_digest
from tolpack.storage.inputs import input_path
from tolpack.version import __version__
from tolpack.workspace.resources import Resources

# Raised whenever the same inputs give other results.
_RESULT_VERSION = 3


class ResultCache:
    """Results on one checkpoint and text.

    Parameters
    ----------
    evaluator : Evaluator
        The checkpoint and the text.
    calibration, resources : CalibrationInputs, Resources
        Inputs and resources of the builds.
    fresh : bool
        Whether to measure again what was cached by earlier runs.
    reporter : Reporter
        Receives a line if nothing can be cached.
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
        words = (__version__, _RESULT_VERSION, torch.__version__, names, evaluator.context)
        digest = hashlib.sha256(repr((*words, resources.compute)).encode())
        digest.update(evaluator.model.fingerprint())
        texts = evaluator.texts if len(evaluator.texts) > 1 else ()  # results of several name them
        digest.update(repr((texts, [ids.size for ids in evaluator.text_ids])).encode())
        digest.update(evaluator.token_ids.astype("<i8").tobytes())
        found = find_tokenizer(evaluator.subject.path, calibration.tokenizer)
        for path in (calibration.text, calibration.frequencies, found):
            digest.update(b"none" if path is None else file_digest(input_path(path)))
        self._identity = digest.digest()
        self._check_unchanged = evaluator.model.check_unchanged
        self._fresh = fresh
        self._reporter = reporter
        self._measured: dict[str, dict[str, Any]] = {}
        self._reported = False

    def get(
        self, experiment: object, keys: Sequence[str], measure: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return the cached result of an experiment, or what `measure` returns.

        Parameters
        ----------
        experiment : object
            Its ``repr`` names the experiment.
        keys : sequence of str
            Keys of the result; a cached one without them is measured again.
        measure : callable
            Returns plain values for JSON.
        """
        name = self._name(experiment)
        cached = self._cached(name, keys)
        if cached is not None:
            return cached
        result = self._measured[name] = measure()
        self._check_unchanged()  # the name holds the weights that were measured
        path = cached_file(name)
        data = json.dumps(result).encode()
        written = path is None or keep_file(path, lambda file: file.write(data))
        if not written and not self._reported:
            self._reported = True
            self._reporter.say(
                f"measurements cannot be kept in {path and path.parent}: if this is stopped, it "
                "starts over (TOLPACK_CACHE names another folder)"
            )
        return result

    def _cached(self, name: str, keys: Sequence[str]) -> dict[str, Any] | None:
        if name in self._measured or self._fresh:
            return self._measured.get(name)
        path = cached_file(name)
        result = None if path is None else _read(path)
        return result if isinstance(result, dict) and set(keys) <= result.keys() else None

    def _name(self, experiment: object) -> str:
        digest = hashlib.sha256(self._identity + repr(experiment).encode())
        return kept_name("measurement", digest.hexdigest())


def _read(path: Path) -> object:
    """Return the value in a file; ``None`` if there is no file, or if it is damaged."""
    try:
        with kept_file(path) as opened:
            if opened is None:
                return None
            file, size = opened
            return json.loads(file.read(size))
    except (OSError, ValueError):
        return None
