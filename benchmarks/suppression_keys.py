"""Ways to choose the keys that `suppress_tokens.py` takes from rows, besides `--suppress-like`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tolpack.keys.layer_keys import LayerKeys
from tolpack.model.decoder import Decoder

Keys = dict[int, list[int]]
_BATCH = 4  # windows


class TextKeys:
    """Coefficients of every key for every token, and what keys do to the losses of a text.

    Parameters
    ----------
    decoder : Decoder
        The model.
    layers : list of LayerKeys
        The keys of all its layers.
    rows : torch.Tensor
        float32 (layers, vocab, hidden): the table.
    """

    def __init__(self, decoder: Decoder, layers: list[LayerKeys], rows: torch.Tensor) -> None:
        self.decoder, self.layers, self.rows = decoder, layers, rows
        ids = np.arange(decoder.vocab_size)
        self.coefficients = [one.coefficients(ids) for one in layers]

    def by_lens(self, windows: torch.Tensor, targets: torch.Tensor, count: int) -> Keys:
        """Return the keys that promote the targets most where they come next.

        The logit lens (nostalgebraist 2020; Geva et al., arXiv 2203.14680) puts a key's value
        through final norm and head. A key's score is the mean logit that it gives the targets less
        that of all tokens, times its mean coefficient over the tokens that targets follow.
        """
        head = next(iter(self.decoder.head.blocks()))[1] * self.decoder.norm.weight
        direction = head[targets].mean(0) - head.mean(0)
        before = windows[:, :-1][torch.isin(windows[:, 1:], targets)]
        scores = [c[before].mean(0) * (one.values @ direction)
                  for c, one in zip(self.coefficients, self.layers)]  # fmt: skip
        return _top(torch.stack(scores), count)

    def by_gradient(
        self, windows: torch.Tensor, sets: Mapping[str, torch.Tensor], count: int
    ) -> dict[str, Keys]:
        """Return, for each set of targets, the keys whose removal lowers them most for its cost.

        Removing key k from all rows moves a log-probability by ``-Σ c_k W_down[:, k]·∂/∂row``, to
        first order. The gain is the fall of the targets where they come next. The cost is the rise
        of all other losses: the first order if it is one, and half the summed squares, by which the
        Fisher information is estimated. Keys are chosen by gain over cost.
        """
        shape = (len(self.layers), self.layers[0].count)
        gains = {name: torch.zeros(shape) for name in sets}
        first, squares = torch.zeros(shape), torch.zeros(shape)
        for batch in torch.split(windows, _BATCH):
            for name, sums, square in self._effects(batch, sets):
                if name is None:
                    first, squares = first + sums, squares + square
                else:
                    gains[name] += sums
        cost = first.clamp(min=0) + squares / 2
        return {name: _top(gain.clamp(min=0) / (cost + cost.median()), count)
                for name, gain in gains.items()}  # fmt: skip

    def _effects(self, windows: torch.Tensor, sets: Mapping[str, torch.Tensor]) -> Any:
        """Yield (set or None for all others, Σ over positions of a key's effect on the summed
        log-probability, and Σ of its square): (layers, keys) each.
        """
        fed, following = windows[:, :-1], windows[:, 1:]
        rows = [one[fed].requires_grad_() for one in self.rows]
        logits = self.decoder(fed, None, lambda layer, ids: rows[layer])
        log_p = torch.log_softmax(logits, -1).gather(-1, following[..., None])[..., 0]
        masks: dict[str | None, torch.Tensor] = {
            name: torch.isin(following, targets) for name, targets in sets.items()
        }
        masks[None] = ~torch.stack(list(masks.values())).any(0)
        for name, mask in masks.items():
            grads = torch.autograd.grad((log_p * mask).sum(), rows, retain_graph=name is not None)
            effects = [(grad.flatten(0, 1) @ one.values.T) * c[fed.flatten()]
                       for grad, one, c in zip(grads, self.layers, self.coefficients)]  # fmt: skip
            sums = torch.stack([effect.sum(0) for effect in effects])
            yield name, sums, torch.stack([effect.square().sum(0) for effect in effects])


def random_keys(layers: int, keys: int, count: int, seed: int) -> Keys:
    """Return `count` keys of all layers, each equally likely."""
    scores = torch.rand(layers, keys, generator=torch.Generator().manual_seed(seed))
    return _top(scores, count)


def _top(scores: torch.Tensor, count: int) -> Keys:
    """Return the keys of the largest scores (layers, keys), by layer."""
    found: Keys = {}
    for place in scores.flatten().topk(count).indices.tolist():
        found.setdefault(place // scores.shape[1], []).append(place % scores.shape[1])
    return found
