"""What a pack was made from, and how: the header's key ``x-provenance`` (docs/provenance.md).

The format leaves keys that begin with ``x-`` to applications, so a reader never fails on this one:
the header keeps it as text, and what is not as expected counts as absent. It holds digests, numbers
and settings, but no path, host, user or time, so that the same input gives the same bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PROVENANCE_KEY = "x-provenance"
# A value that takes more bytes counts as absent.
MAX_PROVENANCE_BYTES = 1 << 18
_DIGEST = re.compile(r"[0-9a-f]{64}")
# Names of settings and of dtypes, which are shown in command lines and pages.
_NAME, _DTYPES = re.compile(r"[a-z][a-z0-9_]*"), re.compile(r"\w+(, \w+)*", re.ASCII)
# Characters of a setting, or of a name in it, that is taken as one.
_MAX_TEXT = 1 << 10
_MAX_INTEGER = 2**63 - 1

Setting = str | int | float | bool


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """Weights that a pack stands for: how many, and their bytes and dtypes in the checkpoint."""

    parameters: int
    bytes: int
    dtype: str

    @property
    def bytes_16(self) -> int:
        """Bytes of as many values of 16 bits."""
        return 2 * self.parameters

    def to_json(self) -> dict[str, Setting]:
        """Return plain values for JSON."""
        return {"parameters": self.parameters, "bytes": self.bytes, "dtype": self.dtype}


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """Token ids that losses and counts were measured on: ``sha256`` of their int64 values, or
    ``None`` where they were sampled from the model.
    """

    tokens: int
    sha256: str | None = None

    def to_json(self) -> dict[str, Setting]:
        """Return plain values for JSON."""
        found: dict[str, Setting] = {"tokens": self.tokens}
        return {**found, **({"sampled": True} if self.sha256 is None else {"sha256": self.sha256})}


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a pack was made from, and how; every part may be absent.

    Attributes
    ----------
    checkpoint : mapping of str to str
        SHA-256 of everything that the values of a table follow from, by the table's name.
    options : mapping of str to str, int, float or bool
        Settings of the build that decide the pack's bytes.
    calibration : CalibrationText, optional
        What losses and token counts were measured on.
    tokenizer, frequencies : str, optional
        SHA-256 of the tokenizer's file, and of the token counts that were given.
    memory_ffns, stored_table : StoredWeights, optional
        Weights that the pack replaces: of a model's memory FFNs, or the tables as the checkpoint
        stores them.
    measured : mapping of str to int or float
        What the pack costs on held-out text, as its build measured it.
    edited : bool
        Whether rows were edited since.
    """

    checkpoint: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Setting] = field(default_factory=dict)
    calibration: CalibrationText | None = None
    tokenizer: str | None = None
    frequencies: str | None = None
    memory_ffns: StoredWeights | None = None
    stored_table: StoredWeights | None = None
    measured: Mapping[str, Setting] = field(default_factory=dict)
    edited: bool = False

    def weight_bytes(self) -> dict[str, int | None]:
        """Return the bytes of what the pack replaces, as results have them in JSON: memory FFNs as
        stored and in 16 bits, or tables as stored.
        """
        ffns, table = self.memory_ffns, self.stored_table
        return {
            "ffn_bytes": None if ffns is None else ffns.bytes,
            "ffn_bytes_16": None if ffns is None else ffns.bytes_16,
            "table_bytes": None if table is None else table.bytes,
        }

    @property
    def replaced(self) -> StoredWeights | None:
        """The weights that the pack replaces, whatever they are."""
        return self.memory_ffns or self.stored_table

    def to_json(self) -> dict[str, Any]:
        """Return the parts that are there as plain values for JSON."""
        parts: dict[str, Any] = {
            "checkpoint": dict(self.checkpoint), "options": dict(self.options),
            "calibration": self.calibration and self.calibration.to_json(),
            "tokenizer": self.tokenizer, "frequencies": self.frequencies,
            "memory_ffns": self.memory_ffns and self.memory_ffns.to_json(),
            "stored_table": self.stored_table and self.stored_table.to_json(),
            "measured": dict(self.measured), "edited": self.edited,
        }  # fmt: skip
        return {key: value for key, value in parts.items() if value}

    def to_text(self) -> str:
        """Return it as compact JSON, as a header keeps it."""
        return json.dumps(self.to_json(), separators=(",", ":"), allow_nan=False)

    @classmethod
    def parse(cls, text: str | None) -> Provenance:
        """Return what a header's text says, as `of` does."""
        return cls.of(None if text is None else json.loads(text))

    @classmethod
    def of(cls, found: object) -> Provenance:
        """Return what JSON says; a part that is not as expected is absent."""
        value = _object(found)
        return cls(
            checkpoint={
                name: str(digest) for name, digest in _object(value.get("checkpoint")).items()
                if _is_text(name) and _digest(digest)
            },
            options=_settings(value.get("options")),
            calibration=_calibration(_object(value.get("calibration"))),
            tokenizer=_digest(value.get("tokenizer")),
            frequencies=_digest(value.get("frequencies")),
            memory_ffns=_weights(_object(value.get("memory_ffns"))),
            stored_table=_weights(_object(value.get("stored_table"))),
            measured={
                key: number for key, number in _settings(value.get("measured")).items()
                if type(number) in (int, float)
            },
            edited=value.get("edited") is True,
        )  # fmt: skip


def provenance_text(value: object) -> str | None:
    """Return the value of a header's key as compact JSON, or ``None`` for what is no object, takes
    too many bytes, or has numbers beyond all limits.
    """
    if not isinstance(value, dict):
        return None
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:  # 1e999 is a number in JSON, and infinite here
        return None
    return text if len(text) <= MAX_PROVENANCE_BYTES else None


def finite_settings(values: Mapping[str, Any]) -> dict[str, Setting]:
    """Return the values that JSON can hold: neither ``None`` nor NaN or infinite."""
    return {
        key: value
        for key, value in values.items()
        if value is not None and (not isinstance(value, float) or math.isfinite(value))
    }


def edited_text(text: str | None) -> str | None:
    """Return a pack's provenance, with a mark that rows were edited."""
    return None if text is None else provenance_text({**json.loads(text), "edited": True})


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_TEXT


def _digest(value: object) -> str | None:
    return value if isinstance(value, str) and _DIGEST.fullmatch(value) else None


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= _MAX_INTEGER else None


def _settings(value: object) -> dict[str, Setting]:
    """Return the texts and numbers of an object."""
    return {
        key: one
        for key, one in _object(value).items()
        if _is_text(key) and _NAME.fullmatch(key)
        if _is_text(one) or isinstance(one, (int, float))
    }


def _calibration(value: dict[str, Any]) -> CalibrationText | None:
    tokens, digest = _count(value.get("tokens")), _digest(value.get("sha256"))
    if tokens is None or (digest is None and value.get("sampled") is not True):
        return None
    return CalibrationText(tokens, digest)


def _weights(value: dict[str, Any]) -> StoredWeights | None:
    parameters, size = _count(value.get("parameters")), _count(value.get("bytes"))
    dtype = value.get("dtype")
    if not parameters or not size or not isinstance(dtype, str) or not _is_text(dtype):
        return None
    if not _DTYPES.fullmatch(dtype):
        return None
    return StoredWeights(parameters, size, dtype)
