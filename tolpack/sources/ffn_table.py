"""The table of a MemoryLLM: its memory FFNs compute the rows, a layer at a time."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.container.provenance import StoredWeights
from tolpack.sources.checkpoint.checkpoint import Checkpoint
from tolpack.sources.checkpoint.description import group_tensors
from tolpack.sources.checkpoint.readiness import check_memory_ffns
from tolpack.sources.checkpoint.tensors import DTYPE_BYTES
from tolpack.sources.ffn import load_memory_ffn
from tolpack.sources.protocol import FieldRows, check_finite
from tolpack.sources.table_limits import equal_fields
from tolpack.sources.uniform_table import UniformTable


class FFNTable(UniformTable):
    """Token-wise lookups computed from a MemoryLLM or Flex checkpoint.

    Parameters
    ----------
    checkpoint : Checkpoint
        The model.
    compute : torch.dtype
        Dtype that the FFNs are multiplied in; see `tolpack.sources.ffn`. Rows are float32.
    """

    checkpoint: Checkpoint
    fields_compensate = True

    def __init__(self, checkpoint: Checkpoint, compute: torch.dtype = torch.float32) -> None:
        self._tensors = check_memory_ffns(checkpoint)
        config = checkpoint.config
        fields = equal_fields(config.num_hidden_layers, config.hidden_size, "float32")
        super().__init__(config.vocab_size, fields)
        self.checkpoint = checkpoint
        self.compute = compute
        self.inner_size = int(config.require("memory_intermediate_size", "the memory FFNs"))
        self.weight_bytes = 3 * self.hidden_size * self.inner_size * 4
        memory = [tensor for name, tensor in self._tensors.items() if ".memory_" in name]
        self.ffn_bytes = sum(tensor.nbytes for tensor in memory)
        dtypes = dict.fromkeys(tensor.dtype for tensor in memory)
        parameters = sum(tensor.nbytes // DTYPE_BYTES[tensor.dtype] for tensor in memory)
        self._replaced = StoredWeights(parameters, self.ffn_bytes, ", ".join(dtypes))

    def field_rows(self, field: int) -> FieldRows:
        """See `TableSource.field_rows`."""
        norm, ffn = load_memory_ffn(self.checkpoint, field, self.compute)

        @torch.inference_mode()
        def rows(ids: NDArray[np.int64]) -> NDArray[np.float32]:
            x = self.checkpoint.rows("embed_tokens.weight", torch.from_numpy(ids)).float()
            values = np.asarray(ffn(norm(x)).numpy())
            check_finite(values, ids, field)
            return values

        return rows

    @property
    def replaced(self) -> StoredWeights:
        """See `TableSource.replaced`: the memory FFNs, their norms included."""
        return self._replaced

    @property
    def stored_bytes(self) -> int:
        """Bytes of the weights that rows depend on, as stored."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def check(self, done: Callable[[int], object]) -> None:
        """See `TableSource.check`; reads every weight, and checks that all are finite."""
        for name in self._tensors:
            self.checkpoint.digest(name, done)

    def check_unchanged(self) -> None:
        """See `TableSource.check_unchanged`."""
        self.checkpoint.check_unchanged()

    def computed_in(self, compute: torch.dtype) -> Self:
        """See `TableSource.computed_in`."""
        if compute is self.compute:
            return self
        other = copy.copy(self)
        other.compute = compute
        return other

    def fingerprint(self) -> bytes:
        """See `TableSource.fingerprint`: configuration, and every bit of the weights."""
        return self._settings_digest() + self.checkpoint.fingerprint(self._tensors)

    def sampled_fingerprint(self) -> bytes:
        """See `TableSource.sampled_fingerprint`."""
        return self._settings_digest() + self.checkpoint.sampled_digest()

    def _settings_digest(self) -> bytes:
        config = self.checkpoint.config
        settings = (config.norm, config.rms_norm_eps, config.hidden_act, self.compute)
        return hashlib.sha256(repr(settings).encode()).digest()

    def describe(self) -> list[str]:
        """See `TableSource.describe`."""
        named = f"tensor names: {self.checkpoint.key_map.name}"
        groups = group_tensors(self.checkpoint, self._tensors)
        return [named, *map(str, groups), *_unused_line(self.checkpoint.unknown)]


def _unused_line(names: tuple[str, ...]) -> list[str]:
    """The line that names tensors which no map knows; none if there are none."""
    if not names:
        return []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"not used: {', '.join(names[:3])}{more}"]
