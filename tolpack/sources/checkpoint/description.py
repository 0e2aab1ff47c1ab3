"""A summary of what was recognised in a checkpoint, for ``tolpack inspect`` and ``build``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from tolpack.errors import CheckpointError, printable
from tolpack.sources.checkpoint.checkpoint import Checkpoint
from tolpack.sources.checkpoint.readiness import check_decoder, check_memory_ffns
from tolpack.sources.checkpoint.schema import pattern_of


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """The tensors of one kind, one per layer.

    ``name`` and ``stored`` are patterns in the schema and in the checkpoint; ``shape`` is the one
    that the config asks for, or ``None`` if a field for it is missing; ``rows`` says which part of
    a fused tensor it is, like ``"2 of 3"``.
    """

    name: str
    stored: str
    shape: tuple[int, ...] | None
    dtypes: tuple[str, ...]
    count: int
    rows: str | None

    def __str__(self) -> str:
        """One line: schema name, shape, dtype, count, and the stored name where it differs."""
        shape = "unknown" if self.shape is None else str(list(self.shape))
        dtype = "/".join(self.dtypes) + (f" × {self.count}" if "{N}" in self.name else "")
        line = f"{_shown(self.name):<40} {shape:<14} {dtype}"
        stored = printable(_shown(self.stored))
        if stored.removeprefix("model.") == _shown(self.name):
            return line
        return f"{line:<73} {stored}" + (f" (part {self.rows})" if self.rows else "")


@dataclass(frozen=True, slots=True)
class CheckpointSummary:
    """A checkpoint as ``tolpack inspect`` shows it; ``files`` are those that tensors are read from.

    ``build`` and ``eval`` are ``None`` if the checkpoint is ready for them, or else the reason why
    it is not. ``left_over`` are names that the key map does not know.
    """

    path: str
    files: tuple[str, ...]
    key_map: str
    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    rope_interleaved: bool | None
    tensors: tuple[TensorGroup, ...]
    left_over: tuple[str, ...]
    build: str | None
    eval: str | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def summarize_checkpoint(checkpoint: Checkpoint) -> CheckpointSummary:
    """Describe `checkpoint` and say what it can be used for; no weight is loaded."""
    config = checkpoint.config
    return CheckpointSummary(
        path=str(checkpoint.path),
        files=checkpoint.files,
        key_map=checkpoint.key_map.name,
        model_type=config.model_type,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        rope_interleaved=config.rope_interleaved,
        tensors=tuple(group_tensors(checkpoint, checkpoint.schema_tensors)),
        left_over=tuple(checkpoint.unknown),
        build=_refusal(check_memory_ffns, checkpoint),
        eval=_refusal(check_decoder, checkpoint),
    )


def group_tensors(checkpoint: Checkpoint, names: Iterable[str]) -> list[TensorGroup]:
    """Group tensors that differ only in their layer, in the order of `names`."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(pattern_of(name), []).append(name)
    return [_group(checkpoint, pattern, members) for pattern, members in kinds.items()]


def _group(checkpoint: Checkpoint, pattern: str, names: list[str]) -> TensorGroup:
    first = checkpoint.schema_tensors[names[0]]
    place = first.slice
    dtypes = tuple(sorted({checkpoint.schema_tensors[name].dtype for name in names}))
    rows = f"{place.number + 1} of {len(place.targets)}" if place.fused else None
    stored, shape = pattern_of(place.stored), first.shape or None
    return TensorGroup(pattern, stored, shape, dtypes, len(names), rows)


def _shown(pattern: str) -> str:
    return pattern.replace("{N}", "N")


def _refusal(check: Callable[[Checkpoint], object], checkpoint: Checkpoint) -> str | None:
    try:
        check(checkpoint)
    except CheckpointError as error:
        return str(error)
    return None
