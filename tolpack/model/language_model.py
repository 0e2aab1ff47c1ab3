"""What calibration and evaluation ask of a model that reads rows of a table, whoever runs it.

The reference decoder (`tolpack.model.decoder.Decoder`) is one. Rows come from a *memory*:
``memory(field, ids) -> (…, width)``, with ids as of `LanguageModel.row_ids`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, Self

import torch

Memory = Callable[[int, torch.Tensor], torch.Tensor]
# Changes the rows of a field: (…, width) to (…, width).
RowChange = Callable[[torch.Tensor], torch.Tensor]


class LanguageModel(Protocol):
    """A causal model over token ids; everything it returns is float32."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        ...

    @property
    def max_position_embeddings(self) -> int | None:
        """Longest window, in tokens, if the model says so."""
        ...

    @property
    def memory(self) -> Memory | None:
        """Gives the rows as the checkpoint has them; ``None`` for a model without a table."""
        ...

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each field of a row; empty without a table."""
        ...

    @property
    def macs_per_token(self) -> int:
        """Multiply-adds of weights in a forward pass of a token, about."""
        ...

    @property
    def activation_bytes(self) -> int:
        """Bytes that `row_gradients` holds for each token of a batch, about."""
        ...

    def __call__(self, token_ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
        """Return logits (batch, length, vocab_size) for int64 ids (batch, length).

        Parameters
        ----------
        token_ids : torch.Tensor
            int64 (batch, length).
        cache : optional
            From `new_cache`; the ids continue the tokens already in it, and it is extended.
        """
        ...

    def new_cache(self) -> Any:
        """Return an empty key–value cache for `__call__`."""
        ...

    def with_memory(self, memory: Memory) -> Self:
        """Return the same model with rows from another memory.

        Raises
        ------
        ConfigError
            The model has no table.
        """
        ...

    def row_ids(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the ids at which a memory is asked for windows of ids (batch, length).

        int64 (batch, length), or (batch, length, n) where a token reads n rows. A model that puts a
        token of its own before a window has the rows of that token too: length + 1.
        """
        ...

    def nll(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the negative log-likelihood of each next token, in nats: (batch, length).

        ``windows`` int64 (batch, length + 1): each feeds its ids but the last, and scores all but
        the first.
        """
        ...

    def row_gradients(
        self, windows: torch.Tensor, changes: Sequence[RowChange | None] | None = None
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor | None]]:
        """Yield (field, gradient of the summed loss at the field's rows, those rows), last first.

        Gradient and rows have the shape ``(*row_ids.shape, width)``. With `changes` the gradient is
        taken with the rows changed so, and the rows yielded are the unchanged ones; else no rows
        are held.
        """
        ...

    def fingerprint(self) -> bytes:
        """Return bytes that differ if anything does on which results depend."""
        ...

    def check_unchanged(self) -> None:
        """Raise `CheckpointError` if a file is another one than when it was opened."""
        ...
