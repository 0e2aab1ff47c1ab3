"""The entropy coders of a pack: made from their sections when they are first needed, and kept."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tolpack.codecs.ans.basis_coder import BasisCoder
from tolpack.codecs.ans.models import CodeModels
from tolpack.codecs.ans.record_coder import RecordCoder
from tolpack.codecs.encodings import CoderSettings
from tolpack.container.header import Header
from tolpack.runtime.fork_safety import ForkSafe


class Coders(ForkSafe):
    """The coders of a header's encodings and bases; safe to use from several threads.

    Parameters
    ----------
    header : Header
        The checked header.
    array : callable
        Reads an array section by its number, checked.
    """

    def __init__(self, header: Header, array: Callable[[int], NDArray[np.generic]]) -> None:
        self._header, self._array = header, array
        self._of_encodings: dict[int, RecordCoder] = {}
        self._models: dict[int, CodeModels] = {}
        self._classes: dict[int, NDArray[np.uint8]] = {}
        super().__init__()

    def of_encoding(self, number: int) -> RecordCoder:
        """Return the coder of the records of encoding `number`, whose frame is ``ans``.

        Raises
        ------
        FormatError, ChecksumError, FileAccessError
            ``code-models``, ``code-classes``, or its sections cannot be read.
        """
        found = self._of_encodings.get(number)
        if found is None:
            with self._lock:  # not by every thread at once
                found = self._of_encodings.get(number) or self._record_coder(number)
                self._of_encodings[number] = found
        return found

    def of_basis(self, number: int) -> BasisCoder:
        """Return the coder of section `number`, an entropy-coded basis; raises as `of_encoding`.

        It is not kept, as a basis is decoded once.
        """
        section = self._header.sections[number]
        coder, (rank, width) = _settings(section.coder), section.shape or ()
        with self._lock:
            classes, models = self._parts(coder)
        place = f"sections[{number}].classes"
        return BasisCoder.of((rank, width), classes, models, coder.lanes, place)

    def _record_coder(self, number: int) -> RecordCoder:
        encoding = self._header.encodings[number]
        coder, place = _settings(encoding.coder), f"encodings[{number}].classes"
        parts = self._parts(coder)
        return RecordCoder.of(encoding.fields, *parts, coder.lanes, coder.trellis, place)

    def _parts(self, coder: CoderSettings) -> tuple[NDArray[np.uint8], CodeModels]:
        """Return classes and models, read once; the lock is held."""
        if coder.models not in self._models:
            stored = self._array(coder.models).astype(np.uint16, copy=False)
            self._models[coder.models] = CodeModels.of(stored, f"sections[{coder.models}]")
        if coder.classes not in self._classes:
            classes = self._array(coder.classes).astype(np.uint8, copy=False)
            self._classes[coder.classes] = classes
        return self._classes[coder.classes][coder.class_row], self._models[coder.models]


def _settings(coder: CoderSettings | None) -> CoderSettings:
    if coder is None:
        raise ValueError("no entropy coder is named here")
    return coder
