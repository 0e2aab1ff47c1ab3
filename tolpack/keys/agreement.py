"""How far tokens fall into clusters by their keys, against two controls.

The paper reports a clustering coefficient for each layer (arXiv 2602.00398 §3). Here it is the
silhouette coefficient of the k-means clusters (Rousseeuw, 1987) by the cosine distance of
coefficients: 1 where tokens are far nearer to their own cluster than to any other, 0 where clusters
touch. Beside it stands how many of a token's ten nearest tokens are of its kind (word, part of a
word, number, sign …), which no clustering enters.

Numbers like these mean something against controls only, which are measured by the same steps on
the same tokens:

* random keys (`LayerKeys.randomized`): what the embeddings give without learned keys;
* shuffled coefficients: each key's are put in a random order over the tokens. No two tokens share
  more than chance, but each key keeps its few large coefficients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from tolpack.keys.clusters import fit_clusters, one_thread
from tolpack.keys.scan import cosines, project
from tolpack.runtime.array_types import Floats, Ints

_NEAREST = 10


@dataclass(frozen=True, slots=True)
class Agreement:
    """Measures of one set of coefficients.

    Attributes
    ----------
    silhouette : float
        Mean silhouette coefficient, −1 … 1; NaN where there is one cluster only.
    nearest_cosine : float
        Mean cosine of a token with its ten nearest tokens.
    same_kind : float or None
        Share of these that are of the token's kind; ``None`` without texts.
    """

    silhouette: float
    nearest_cosine: float
    same_kind: float | None

    def to_json(self) -> dict[str, float | None]:
        """Return the measures as plain values."""
        silhouette = None if math.isnan(self.silhouette) else self.silhouette
        return {
            "clustering_coefficient": silhouette,
            "nearest_cosine": self.nearest_cosine,
            "same_kind": self.same_kind,
        }


@dataclass(frozen=True, slots=True)
class ControlledAgreement:
    """The agreement of a layer's keys, of random keys, and of shuffled coefficients."""

    keys: Agreement
    random_keys: Agreement
    shuffled: Agreement

    def to_json(self) -> dict[str, dict[str, float | None]]:
        """Return all measures as plain values."""
        return {
            "keys": self.keys.to_json(),
            "random_keys": self.random_keys.to_json(),
            "shuffled": self.shuffled.to_json(),
        }


def measure_with_controls(
    coefficients: torch.Tensor, random: torch.Tensor, kinds: Ints | None, clusters: int, seed: int
) -> ControlledAgreement:
    """Measure the agreement of a layer and its controls on a sample of tokens.

    Parameters
    ----------
    coefficients, random : Tensor
        float32 (tokens, keys): of the layer, and of its keys as `LayerKeys.randomized` gives them.
    kinds : ndarray, optional
        int64 (tokens,): kinds of these tokens.
    clusters : int
        Number of clusters.
    seed : int
        Of k-means, and of the order of shuffled coefficients.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(coefficients.shape, generator=generator).argsort(dim=0)
    sets = (coefficients, random, coefficients.gather(0, order))
    return ControlledAgreement(*(_measure(one, kinds, clusters, seed) for one in sets))


def _measure(coefficients: torch.Tensor, kinds: Ints | None, clusters: int, seed: int) -> Agreement:
    labels, _ = fit_clusters(project(coefficients, coefficients), clusters, seed)
    similar = cosines(coefficients)
    silhouette = _silhouette(similar, labels)
    np.fill_diagonal(similar, -2.0)
    count = min(_NEAREST, len(similar) - 1)
    nearest = np.argpartition(-similar, count - 1, axis=1)[:, :count]
    cosine = float(np.take_along_axis(similar, nearest, axis=1).mean())
    same = None if kinds is None else float((kinds[nearest] == kinds[:, None]).mean())
    return Agreement(silhouette, cosine, same)


def _silhouette(similar: Floats, labels: Ints) -> float:
    from sklearn.metrics import silhouette_score

    if not 2 <= len(np.unique(labels)) < len(labels):
        return math.nan
    distances = np.clip(1 - similar, 0, 2)
    np.fill_diagonal(distances, 0)
    with one_thread():
        return float(silhouette_score(distances, labels, metric="precomputed"))
