"""`ToLMemory`: a pack as the module that inference code mounts in place of its memory FFNs.

``memory(layer, token_ids)`` is called once per layer with the same ids; the rows of all layers
are fetched together at the first of these calls, because they lie in one extent of the file.
"""

from __future__ import annotations

import numpy as np
import torch

from tolpack.errors import ConfigError, TokenIdError
from tolpack.pack import Pack


class ToLMemory(torch.nn.Module):
    """Memory outputs looked up in a pack.

    Parameters
    ----------
    pack : Pack
        An open pack; it stays open for as long as the module is used.
    dtype : torch.dtype
        Of the outputs: float32, bfloat16 or float16.
    device : str or torch.device
        Where the outputs go.
    """

    def __init__(
        self,
        pack: Pack,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__()
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ConfigError(f"dtype is {dtype}, expected float32, bfloat16 or float16")
        self.pack = pack
        self.dtype = dtype
        self.device = torch.device(device)
        self._ids: torch.Tensor | None = None
        self._inverse: torch.Tensor | None = None
        self._rows: torch.Tensor | None = None

    def forward(self, layer: int, token_ids: torch.Tensor) -> torch.Tensor:
        """Return layer `layer`'s memory output for `token_ids`.

        Parameters
        ----------
        layer : int
            Layer number.
        token_ids : torch.Tensor
            Integers of any shape, on any device.

        Returns
        -------
        torch.Tensor
            ``(*token_ids.shape, hidden_size)``; dropped layers give zeros.

        Raises
        ------
        ConfigError
            No such layer.
        TokenIdError, FormatError, FileAccessError
            As `Pack.rows`.
        """
        if not 0 <= layer < self.pack.num_layers:
            raise ConfigError(f"layer {layer} is out of range 0 … {self.pack.num_layers - 1}")
        rows, inverse = self._fetch(token_ids)
        return rows[:, layer][inverse]

    def _fetch(self, token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of the distinct ids, (distinct, layers, hidden), and each id's number among them."""
        known = self._ids
        same = (
            known is not None and known.device == token_ids.device and torch.equal(known, token_ids)
        )
        if not same or self._rows is None or self._inverse is None:
            if token_ids.dtype.is_floating_point or token_ids.dtype == torch.bool:
                raise TokenIdError(f"token ids are {token_ids.dtype}, expected integers")
            distinct, inverse = torch.unique(token_ids, return_inverse=True)
            rows = self.pack.rows(distinct.cpu().numpy().astype(np.int64))
            self._rows = torch.from_numpy(rows).to(self.device, self.dtype)
            self._inverse = inverse.to(self.device)
            self._ids = token_ids.clone()
        return self._rows, self._inverse
