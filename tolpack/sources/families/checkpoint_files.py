"""The files of a checkpoint as families look at them: raw configuration, names, shapes, rows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from tolpack.errors import CheckpointError
from tolpack.runtime.fork_safety import ForkSafe
from tolpack.sources.checkpoint.config import shown_value
from tolpack.sources.checkpoint.tensors import DTYPE_BYTES, TensorStore
from tolpack.sources.protocol import TransformersFolder
from tolpack.sources.tensors.tensor_fields import FLOAT8, StoredCodes
from tolpack.sources.tensors.tensor_rows import (
    FileRows,
    InputFile,
    JoinedRows,
    LoadedRows,
    TensorRows,
    open_input,
)
from tolpack.storage.inputs import InputPath

# Bytes of a value, by torch's name of the dtype, for tensors whose rows are read.
_VALUE_BYTES = {**DTYPE_BYTES, FLOAT8: 1, "float8_e8m0fnu": 1}
# Values of a small tensor, such as the multipliers of a hash.
_MAX_VALUES = 4096
# How scales are called, behind the name of the tensor without ``weight``.
_SCALE_NAMES = ("weight_scale", "weight_scale_inv", "scale")


class CheckpointFiles(ForkSafe):
    """Tensors by their names in the files, and the configuration as it was decoded.

    Parameters
    ----------
    path : Path or RemotePath
        For messages only.
    store : TensorStore
        The tensors.
    config : dict
        The decoded ``config.json``; empty if there is none.

    ``used`` are the names of the tensors that were asked for with `values` and `rows`.
    """

    def __init__(self, path: InputPath, store: TensorStore, config: dict[str, Any]) -> None:
        self.path = path
        self.store = store
        self.config = config
        self.used: set[str] = set()
        self._opened: dict[InputPath, InputFile] = {}
        super().__init__()

    @property
    def model_type(self) -> str:
        """``model_type`` of the configuration, or nothing."""
        found = self.config.get("model_type")
        return found if isinstance(found, str) else ""

    @property
    def pack_name(self) -> str | None:
        """The pack that holds the table of a folder that `tolpack strip` wrote, and of no other."""
        settings = self.config.get("quantization_config")
        if not isinstance(settings, dict) or settings.get("quant_method") != "tolpack":
            return None
        return str(settings.get("pack"))

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's settings: ``text_config`` in multimodal folders, else all."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, dict) else self.config

    def setting(
        self, name: str, purpose: str, *, default: int | None = None, least: int = 1,
        most: int = 2**31 - 1,
    ) -> int:  # fmt: skip
        """Return an integer of `text_config`, or `default` where it is not said.

        Raises
        ------
        CheckpointError
            It is missing and has no default, or not from `least` to `most`; the message says what
            it is for.
        """
        value = self.text_config.get(name)
        value = default if value is None else value
        if type(value) is not int or not least <= value <= most:
            shown = "missing" if value is None else shown_value(value)
            raise CheckpointError(
                f"config field {name!r} is {shown}, expected an integer {least} … {most} for "
                f"{purpose}: {self.config_remedy}"
            )
        return value

    @property
    def config_remedy(self) -> str:
        """What to do about a setting that is missing or wrong."""
        lacks = "" if self.config else f"{self.path} has no config.json; "
        return f"{lacks}copy the model's own config.json"

    def transformers_model(self, table: Iterable[str]) -> TransformersFolder | None:
        """Return the folder from which transformers can run the model: it has a configuration, and
        an embedding beside the tensors `table`. ``None`` if it has no such thing.
        """
        others = set(self.store.infos) - set(table)
        embedded = any(re.search(r"(^|\.)embed_tokens\.weight$", name) for name in others)
        if not self.path.is_dir() or not self.model_type or not embedded:
            return None
        values = sum(math.prod(info.shape) for name in others for info in self.store.infos[name])
        return TransformersFolder(self.path, values)

    def matching(self, pattern: str) -> dict[str, re.Match[str]]:
        """Return the tensors whose whole name matches a regular expression, by name."""
        found = ((name, re.fullmatch(pattern, name)) for name in self.store.infos)
        return {name: match for name, match in found if match is not None}

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self.store.infos

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self.store.infos[name][0].shape

    def matrix_shape(self, name: str) -> tuple[int, int]:
        """Return the rows and columns of a tensor.

        Raises
        ------
        CheckpointError
            It is missing, or is not a matrix, or holds nothing.
        """
        if not self.has(name):
            raise CheckpointError(f"tensor {name!r} is missing from {self.path}")
        shape = self.shape(name)
        if len(shape) != 2 or min(shape) == 0:
            raise CheckpointError(
                f"tensor {name!r} has shape {list(shape)}, expected [rows, columns]: the files "
                "are damaged, or of another model; --tensor NAME makes a table of any tensor"
            )
        return shape[0], shape[1]

    def dtype(self, name: str) -> str:
        """Return the dtype of a tensor, as torch names it."""
        return self.store.infos[name][0].dtype

    def values(self, name: str) -> torch.Tensor:
        """Return a small tensor of at most 4,096 values. It is read, as torch would map all of its
        file, which may be larger than the machine's memory.

        Raises
        ------
        CheckpointError
            It is larger, or cannot be read.
        """
        if math.prod(self.shape(name)) > _MAX_VALUES:
            raise CheckpointError(
                f"tensor {name!r} has shape {list(self.shape(name))}, expected at most "
                f"{_MAX_VALUES} values"
            )
        self.used.add(name)
        dtype, extent = getattr(torch, self.dtype(name), None), self.store.extents(name)[0]
        if extent is None or not isinstance(dtype, torch.dtype):
            return self.store.load(name)[0].clone()
        values = torch.empty(math.prod(self.shape(name)), dtype=dtype)
        file = self._file(self.store.infos[name][0].path)
        file.read_into(extent[0], values.view(torch.uint8).numpy())
        return values.reshape(self.shape(name))

    def integers(self, name: str) -> tuple[int, ...]:
        """Return a small one-dimensional tensor of integers; errors as of `values`."""
        values = self.values(name)
        if values.dtype not in (torch.int64, torch.int32) or values.ndim != 1:
            raise CheckpointError(
                f"tensor {name!r} is {self.dtype(name)} {list(values.shape)}, expected a list of "
                "int64"
            )
        return tuple(values.tolist())

    def rows(self, *names: str) -> JoinedRows:
        """Return the rows of tensors, one tensor after the other.

        Raises
        ------
        CheckpointError
            A tensor has no rows, or is of a dtype whose rows are not read, or is split over files,
            or tensors differ in dtype or width.
        """
        self.used.update(names)
        return JoinedRows([self._rows(name) for name in names])

    def codes(self, *names: str) -> StoredCodes:
        """Return the rows of matrices with their scales: see `stacked_codes`.

        Raises
        ------
        CheckpointError
            As of `matrix_shape` and `stacked_codes`.
        """
        for name in names:
            self.matrix_shape(name)
        return self.stacked_codes(*names)

    def stacked_codes(self, *names: str) -> StoredCodes:
        """Return the rows of tensors of any shape with their scales, if they are fp8.

        Scales stand beside ``X.weight`` as ``X.weight_scale``, ``X.weight_scale_inv`` or
        ``X.scale``: one number, or as many rows as the tensor has.

        Raises
        ------
        CheckpointError
            As of `rows` and `StoredCodes`, or numbers of several tensors differ.
        """
        rows = self.rows(*names)
        if rows.dtype != FLOAT8:
            return StoredCodes(rows)
        scales = [self._scale_name(name) for name in names]
        if any(math.prod(self.shape(name)) != 1 for name in scales):
            return StoredCodes(rows, self.rows(*scales))
        steps = {name: float(self.values(name).float()) for name in dict.fromkeys(scales)}
        if len(set(steps.values())) > 1:
            raise CheckpointError(
                f"scales {', '.join(steps)} differ: a table has one scale for all tensors, or one "
                "for each group of values"
            )
        return StoredCodes(rows, step=next(iter(steps.values())))

    def _scale_name(self, name: str) -> str:
        """Return the name of an fp8 tensor's scales; a shard may share those of all shards."""
        base = name.removesuffix("weight").removesuffix(".")
        parent = re.sub(r"\.(?:shards\.|[a-z_]*)\d+$", "", base)
        for sought in dict.fromkeys((base, parent)):
            for last in _SCALE_NAMES:
                if self.has(f"{sought}.{last}"):
                    return f"{sought}.{last}"
        raise CheckpointError(
            f"tensor {name!r} is fp8, but {self.path} has no scales for it: expected "
            f"{', '.join(f'{base}.{last}' for last in _SCALE_NAMES)}"
        )

    def _rows(self, name: str) -> TensorRows:
        infos, dtype, shape = self.store.infos[name], self.dtype(name), self.shape(name)
        if len(infos) > 1:
            raise CheckpointError(
                f"tensor {name!r} is split over {len(infos)} files of a tensor-parallel trainer: "
                "join it first"
            )
        if dtype not in _VALUE_BYTES or len(shape) < 2 or not math.prod(shape):
            raise CheckpointError(
                f"tensor {name!r} in {infos[0].path.name} is {dtype} {list(shape)}, expected rows "
                f"of {', '.join(_VALUE_BYTES)}"
            )
        extent = self.store.extents(name)[0]
        if extent is None:
            return LoadedRows(self.store, name)
        row_bytes = math.prod(shape[1:]) * _VALUE_BYTES[dtype]
        return FileRows(self._file(infos[0].path), name, dtype, extent[0], shape[0], row_bytes)

    def _file(self, path: InputPath) -> InputFile:
        with self._lock:
            if path not in self._opened:
                self._opened[path] = open_input(path)
            return self._opened[path]


def numbered(found: Mapping[str, re.Match[str]], group: str | int) -> dict[int, str]:
    """Return the names of tensors by the number in group `group` of their matches, ascending.

    Raises
    ------
    CheckpointError
        Two have the same number.
    """
    names: dict[int, str] = {}
    for name, match in found.items():
        number = int(match[group])
        other = names.setdefault(number, name)
        if other != name:
            raise CheckpointError(
                f"tensors {other!r} and {name!r} both have the number {number}, expected one: "
                "remove that of the other model, or choose one with --tensor NAME"
            )
    return dict(sorted(names.items()))
