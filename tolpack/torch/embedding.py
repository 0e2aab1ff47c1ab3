"""`PackEmbedding`: a pack as the module that stands where an ``nn.Embedding`` stood.

Ids become whole rows: all fields, one after the other. Rows are decoded on the host and go to the
device of the ids. Within `torch.compile` a call is one operator of the graph,
``tolpack::embedding_rows``, which finds the module by its name, as `tolpack.torch` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.errors import ConfigError
from tolpack.pack import Pack
from tolpack.reading.edited_rows import EditedIds
from tolpack.reading.row_decoder import StoredValueDecoder
from tolpack.runtime.array_types import Floats, Ints
from tolpack.runtime.buffers import Buffers
from tolpack.torch.pack_module import PackModule, check_integers, register_operator
from tolpack.torch.rows import find_edited

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Memory of rows that nobody uses any more, kept for the next ones.
_KEPT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class WeightDescription:
    """What models ask of an embedding's ``weight``, which is in the pack and has no values here."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool = False


class PackEmbedding(PackModule):
    """Rows looked up in a pack, in place of an ``nn.Embedding``.

    It has no parameters, and nothing in a state dict. ``to``, ``half`` and the like change `dtype`
    as they would change a weight's. A deep copy reads the same open pack; an unpickled one opens
    the pack again.

    Parameters
    ----------
    pack : Pack
        An open pack; it stays open for as long as the module is used.
    dtype : torch.dtype
        Of the rows: float32, bfloat16 or float16.
    device : str or torch.device
        What ``weight.device`` says. Rows go to the device of their ids.
    scale : float, optional
        Factor of all rows, rounded to `dtype` and multiplied in it, as Gemma's modules do. It
        takes the place of the pack's own multiplier, which is the default.

    Raises
    ------
    ConfigError
        `dtype` is none of those above.
    """

    _like: torch.Tensor

    _OWN = frozenset({"_buffers_of_rows", "_name"})

    def __init__(
        self,
        pack: Pack,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        *,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        if dtype not in _DTYPES:
            raise ConfigError(f"dtype is {dtype}, expected float32, bfloat16 or float16")
        self.pack = pack
        self.scale = pack.decoder.multiplier if scale is None else scale
        self.num_embeddings, self.embedding_dim = pack.vocab_size, sum(pack.widths)
        # Moved and cast with the model.
        empty = torch.empty(0, dtype=dtype, device=device)
        self.register_buffer("_like", empty, persistent=False)
        self._begin()

    def _begin(self) -> None:
        """Make what belongs to this module in this process alone."""
        self._buffers_of_rows = Buffers(_KEPT_BYTES)
        self._has_dropped = any(field.dropped for field in self.pack.fields)
        self._name = self._new_name()

    @property
    def weight(self) -> WeightDescription:
        """Shape, dtype and device that the table would have."""
        shape = torch.Size((self.num_embeddings, self.embedding_dim))
        return WeightDescription(shape, self._like.dtype, self._like.device)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the rows of `token_ids`.

        Parameters
        ----------
        token_ids : torch.Tensor
            Integers of any shape, on any device.

        Returns
        -------
        torch.Tensor
            ``(*token_ids.shape, embedding_dim)``, on the device of `token_ids`; dropped fields are
            zeros.

        Raises
        ------
        TokenIdError, FormatError, FileAccessError
            As `Pack.rows`.
        """
        if torch.compiler.is_compiling():
            rows: torch.Tensor = torch.ops.tolpack.embedding_rows(
                token_ids, self._name, self.embedding_dim, self._like.dtype
            )
            return rows
        return self._rows(token_ids, self._like.dtype)

    def extra_repr(self) -> str:
        """Describe the module where a model is printed.

        Returns
        -------
        str
            Its size, and the pack.
        """
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.pack!r}"

    def _rows(self, token_ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        with torch.inference_mode(False):  # rows may be used where gradients are recorded
            rows = self._unscaled(flat_ids(token_ids), dtype)
            if self.scale != 1.0:
                rows *= torch.tensor(self.scale, dtype=dtype, device="cpu").item()
            rows = rows.to(token_ids.device)
            return rows.view(*token_ids.shape, self.embedding_dim)

    def _unscaled(self, ids: Ints, dtype: torch.dtype) -> torch.Tensor:
        """Return rows (ids, embedding_dim) without any multiplier, in memory of their own."""
        decoder = self.pack.decoder
        plain = not (decoder.has_basis or decoder.has_mean or self._has_dropped)
        as_bits = plain and dtype == torch.bfloat16
        shape = len(ids), decoder.stored_values
        stored = self._buffers_of_rows.array(shape, np.uint16 if as_bits else np.float32)
        self._gather(ids, stored)
        edited = find_edited(self.pack, ids)
        if edited is not None:  # they are left out so far, and must not be any numbers
            stored[edited.positions] = 0
        if as_bits:
            rows = torch.from_numpy(stored).view(torch.bfloat16)
        else:
            rows = torch.from_numpy(stored if plain else self._expanded(stored)).to(dtype)
        return rows if edited is None else self._put_edited(edited, rows)

    def _put_edited(self, edited: EditedIds, rows: torch.Tensor) -> torch.Tensor:
        """Put the rows of edited tokens where they belong, without the pack's multiplier."""
        values = torch.from_numpy(edited.values() / np.float32(self.pack.decoder.multiplier))
        starts = np.cumsum([0, *self.pack.widths]).tolist()
        positions, begin = torch.from_numpy(edited.positions), 0
        for field in self.pack.kept_layers:
            end = begin + self.pack.widths[field]
            own = rows[:, starts[field] : starts[field + 1]]
            own.index_copy_(0, positions, values[:, begin:end].to(rows.dtype))
            begin = end
        return rows

    def _gather(self, ids: Ints, stored: NDArray[Any]) -> None:
        if len(ids):
            unique = self.pack.gather(ids, StoredValueDecoder(self.pack.decoder, stored))
            unique.fill_duplicates(stored)

    def _expanded(self, stored: Floats) -> Floats:
        """Return rows from stored values: products with bases, means, and zeros where dropped."""
        decoder, fields = self.pack.decoder, self.pack.fields
        rows = self._buffers_of_rows.array((len(stored), self.embedding_dim), np.float32)
        rows.fill(0)
        starts = np.cumsum([0, *self.pack.widths]).tolist()
        for kept, field in enumerate(self.pack.kept_layers):
            own = rows[:, starts[field] : starts[field] + fields[field].width]
            own += decoder.unscaled_rows(kept, stored[:, decoder.span(kept)])
        return rows


def flat_ids(token_ids: torch.Tensor) -> Ints:
    """Return ids as int64 (n,) on the host.

    Raises
    ------
    TokenIdError
        They are not integers.
    """
    check_integers(token_ids)
    return token_ids.reshape(-1).cpu().numpy().astype(np.int64)


def _embedding_rows(
    token_ids: torch.Tensor, embedding: str, width: int, dtype: torch.dtype
) -> torch.Tensor:
    """Return what the `PackEmbedding` of that name does."""
    return PackEmbedding.named(embedding)._rows(token_ids, dtype)


def _like_embedding_rows(
    token_ids: torch.Tensor, embedding: str, width: int, dtype: torch.dtype
) -> torch.Tensor:
    """Return a tensor of the shape, dtype and device of `_embedding_rows`, of any content."""
    return token_ids.new_empty((*token_ids.shape, width), dtype=dtype)


register_operator(
    "embedding_rows",
    "(Tensor token_ids, str embedding, int width, ScalarType dtype) -> Tensor",
    _embedding_rows, _like_embedding_rows,
)  # fmt: skip
