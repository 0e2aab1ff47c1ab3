"""A decode step: the ids that rows were fetched for, and these rows, layer by layer.

A model asks for the layers of a step one by one with the same ids. So a step recognises its ids
and keeps its layers as tensors of their final shape; `tolpack.torch.memory` has the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tolpack.torch.pack_module import check_integers
from tolpack.torch.rows import Layer, StackedRows

# Steps of more bytes are cut again at each call, because a prompt's products may be gigabytes.
_KEPT_BYTES = 16 << 20


class StepIds:
    """Token ids, and whether a tensor holds the same ones.

    Contents are compared, and not a tensor's version: arrays of numpy that share its memory,
    ``tensor.data`` and replayed CUDA graphs write without a new version, and tensors of inference
    mode have none. Of a few ids in the host's memory that takes 40 ns.

    Parameters
    ----------
    token_ids : torch.Tensor
        Integers of any shape, on any device. It is held, but changes to it are noticed.

    Raises
    ------
    TokenIdError
        They are not integers.
    """

    __slots__ = ("_bytes", "_dtype", "_pointer", "_tensor", "_view", "flat", "shape")

    def __init__(self, token_ids: torch.Tensor) -> None:
        check_integers(token_ids)
        self._tensor, self._dtype, self.shape = token_ids, token_ids.dtype, token_ids.shape
        # Another tensor on the same memory, which is kept when `token_ids` is given other memory.
        self._view = token_ids.detach().cpu().numpy()
        is_shared = token_ids.device.type == "cpu" and token_ids.is_contiguous()
        self._pointer = token_ids.data_ptr() if is_shared else -1
        self._bytes = self._view.tobytes()
        # int64 (ids,), a copy.
        self.flat = np.frombuffer(self._bytes, self._view.dtype).astype(np.int64)

    def are_in(self, token_ids: torch.Tensor) -> bool:
        """Whether `token_ids` has this shape and dtype, and these ids now."""
        if (
            token_ids is self._tensor
            and token_ids.data_ptr() == self._pointer
            and token_ids.shape == self.shape
            and token_ids.is_contiguous()
        ):
            return self._view.tobytes() == self._bytes
        if token_ids.shape != self.shape or token_ids.dtype != self._dtype:
            return False
        return token_ids.detach().cpu().numpy().tobytes() == self._bytes


@dataclass(frozen=True, slots=True)
class FetchedRows:
    """Rows of some ids, one after the other.

    ``rows``: of the distinct ones; ``inverse``: each id's number among them, unless it is its own.
    """

    rows: Layer
    inverse: torch.Tensor | None = None

    def layer(self, layer: int) -> torch.Tensor:
        """Return one layer's rows, (ids, width)."""
        rows = self.rows(layer)
        return rows if self.inverse is None else rows.index_select(0, self.inverse)


class Step:
    """The rows of all layers for the ids of a step.

    ``layers``: by layer ``(*shape of the ids, width)``, ``None`` where `make` has yet to make it.

    Parameters
    ----------
    ids : StepIds
    fetched : FetchedRows
        Of these ids.
    widths : tuple of int
        Values of each layer in a row.
    keeps : bool
        Whether layers that were made may be kept.
    """

    __slots__ = ("_fetched", "_keeps", "_widths", "ids", "layers")

    def __init__(
        self, ids: StepIds, fetched: FetchedRows, widths: tuple[int, ...], *, keeps: bool
    ) -> None:
        self.ids, self._fetched, self._widths = ids, fetched, widths
        self._keeps = keeps and 4 * len(ids.flat) * sum(widths) <= _KEPT_BYTES
        self.layers: list[torch.Tensor | None] = [None] * len(widths)
        if isinstance(fetched.rows, StackedRows) and (self._keeps or fetched.inverse is None):
            self.layers = list(fetched.rows.cut(ids.shape, fetched.inverse))

    def make(self, layer: int) -> torch.Tensor:
        """Return a layer that `layers` has not, and keep it there unless the step is large."""
        with torch.inference_mode(False):  # it may be used where gradients are recorded
            rows = self._fetched.layer(layer).view(*self.ids.shape, self._widths[layer])
        if self._keeps:
            self.layers[layer] = rows
        return rows
