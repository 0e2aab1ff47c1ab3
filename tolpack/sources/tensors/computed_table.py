"""Tables that a checkpoint does not hold: its weights compute each row from the token's embedding.

Products are made in float32. Embeddings are read row by row; the weights of a field are loaded
whole when its rows are asked for.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.codecs.encodings import Part
from tolpack.codecs.part_values import decode_values
from tolpack.errors import CheckpointError
from tolpack.runtime.array_types import Bytes
from tolpack.sources.checkpoint.tensors import DTYPE_BYTES
from tolpack.sources.families.checkpoint_files import CheckpointFiles
from tolpack.sources.identity import rows_digest
from tolpack.sources.protocol import FLOAT_CODECS, FieldRows, SourceField, check_finite
from tolpack.sources.tensors.finite_bytes import bad_rows
from tolpack.sources.tensors.tensor_rows import JoinedRows
from tolpack.sources.tensors.tensor_table import tensor_names
from tolpack.sources.uniform_table import UniformTable

# Maps token ids int64 (n,) to float32 rows (n, width).
TokenRows = Callable[[NDArray[np.int64]], torch.Tensor]


class Weights:
    """Tensors of a checkpoint, as float32.

    Parameters
    ----------
    files : CheckpointFiles
        The checkpoint.
    """

    def __init__(self, files: CheckpointFiles) -> None:
        self.files = files

    def check_shape(self, name: str, shape: tuple[int, ...]) -> str:
        """Return `name`, or raise `CheckpointError` if the tensor is missing or of another shape,
        or holds no floats.
        """
        if not self.files.has(name):
            raise CheckpointError(f"tensor {name!r} is missing from {self.files.path}")
        found, dtype = self.files.shape(name), self.files.dtype(name)
        if found != shape or dtype not in DTYPE_BYTES:
            raise CheckpointError(
                f"tensor {name!r} is {dtype} {list(found)}, expected {list(shape)} in one of "
                f"{', '.join(DTYPE_BYTES)}"
            )
        return name

    def whole(self, name: str) -> torch.Tensor:
        """Return a tensor, a copy."""
        if len(self.files.shape(name)) < 2:
            return self.files.store.load(name)[0].to(torch.float32, copy=True)
        return self.rows(name)(np.arange(self.files.shape(name)[0]))

    def nbytes(self, names: Iterable[str]) -> int:
        """Return the bytes of tensors as float32, none of which is read."""
        return 4 * sum(math.prod(self.files.shape(name)) for name in names)

    def rows(self, name: str) -> TokenRows:
        """Return a function that reads rows of a matrix."""
        stored = self.files.rows(name)
        part = Part(FLOAT_CODECS[stored.dtype], self.files.shape(name)[1])

        def rows(ids: NDArray[np.int64]) -> torch.Tensor:
            taken = stored.take(ids)
            return torch.from_numpy(decode_values(taken[:, :0], taken, part))

        return rows


class ComputedTable(UniformTable):
    """A table of computed rows.

    Parameters
    ----------
    name : str
        Name of the table in a pack.
    family : str
        The family of models, for messages.
    rows : int
        Number of token ids.
    fields : sequence of SourceField
        One at least, of equal widths, all float32.
    weights : Weights
        The checkpoint.
    tensors : sequence of sequence of str
        Names of all tensors that rows depend on; those of one kind together.
    settings : str
        Everything else that rows depend on, for the fingerprint.
    load : callable
        Loads the weights of a field by its number, and returns the function that computes rows.
    weight_bytes : int
        See `TableSource.weight_bytes`.

    ``tensors`` of the table are all of those names, each once.
    """

    def __init__(
        self, name: str, family: str, rows: int, fields: Sequence[SourceField], weights: Weights,
        tensors: Sequence[Sequence[str]], settings: str, load: Callable[[int], TokenRows],
        weight_bytes: int,
    ) -> None:  # fmt: skip
        super().__init__(rows, fields, name)
        self.family = family
        self._files, self._kinds, self._settings = weights.files, tensors, settings
        self._load, self.weight_bytes = load, weight_bytes
        self.tensors = tuple(dict.fromkeys(name for kind in tensors for name in kind))
        self._digests: dict[str, bytes] = {}

    def field_rows(self, field: int) -> FieldRows:
        """See `TableSource.field_rows`."""
        compute, layer = self._load(field), self.fields[field].layer

        @torch.inference_mode()
        def rows(ids: NDArray[np.int64]) -> NDArray[np.float32]:
            values = np.asarray(compute(ids).numpy())
            check_finite(values, ids, layer)
            return values

        return rows

    @property
    def stored_bytes(self) -> int:
        """Bytes of the weights that rows depend on, as stored."""
        return sum(self._nbytes(name) for name in self.tensors)

    @property
    def replaced(self) -> None:
        """See `TableSource.replaced`: rows follow from embeddings that the model keeps."""
        return None

    def check(self, done: Callable[[int], object]) -> None:
        """See `TableSource.check`."""
        for name in self.tensors[len(self._digests) :]:
            if len(self._files.shape(name)) > 1:
                rows = self._files.rows(name)
                block = functools.partial(_finite_block, rows)
                self._digests[name] = rows_digest(rows.rows, rows.row_bytes, block, done)
            else:
                self._digests[name] = self._vector_digest(name)
                done(self._nbytes(name))

    def check_unchanged(self) -> None:
        """See `TableSource.check_unchanged`."""
        self._files.store.check_unchanged()

    def fingerprint(self) -> bytes:
        """See `TableSource.fingerprint`: name, settings, and every bit of the weights."""
        self.check(lambda size: None)
        named = hashlib.sha256(self.digest(self._settings))
        for name, digest in self._digests.items():
            dtype = self._files.dtype(name)
            named.update(f"{self._files.shape(name)} {dtype}".encode() + digest)
        return named.digest()

    def sampled_fingerprint(self) -> bytes:
        """See `TableSource.sampled_fingerprint`."""
        return self.digest(self._settings) + self._files.store.states.sampled_digest()

    def describe(self) -> list[str]:
        """See `TableSource.describe`."""
        lines = [f"family: {self.family}"]
        for names in self._kinds:
            shape, dtype = self._files.shape(names[0]), self._files.dtype(names[0])
            lines.append(f"{tensor_names(names)}  {list(shape)} {dtype}")
        return lines

    def _nbytes(self, name: str) -> int:
        return math.prod(self._files.shape(name)) * DTYPE_BYTES[self._files.dtype(name)]

    def _vector_digest(self, name: str) -> bytes:
        """Digest of a tensor without rows, whose values are finite."""
        tensor = self._files.store.load(name)[0].reshape(1, -1).contiguous()
        _refuse_bad(name, self._files.dtype(name), tensor.view(torch.uint8).numpy(), 0)
        return hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).digest()


def _finite_block(rows: JoinedRows, start: int, stop: int) -> Bytes:
    block = rows.block(start, stop)
    _refuse_bad(rows.parts[0].name, rows.dtype, block, start)
    return block


def _refuse_bad(name: str, dtype: str, rows: Bytes, first: int) -> None:
    """Raise `CheckpointError` if `rows`, of which the first is number `first`, are not finite."""
    bad = bad_rows(dtype, rows)
    if len(bad):
        raise CheckpointError(
            f"tensor {name!r} holds NaN or Inf at row {first + int(bad[0])}: the file is damaged; "
            "copy it again"
        )


def rms_norm_eps(files: CheckpointFiles) -> float:
    """Return ``rms_norm_eps`` of the configuration.

    Raises
    ------
    CheckpointError
        It is missing, or no positive number below 1.
    """
    value = files.text_config.get("rms_norm_eps")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise CheckpointError(
            f"config field 'rms_norm_eps' is {repr(value)[:40]}, expected a positive number below "
            "1 for the norm of the tables: copy the model's own config.json"
        )
    return float(value)
