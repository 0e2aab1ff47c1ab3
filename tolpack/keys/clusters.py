"""Clusters of tokens that use similar keys: k-means on coefficients of norm 1.

The paper clusters the vectors of ``c_k`` by k-means (arXiv 2602.00398 §3). Vectors of norm 1 make
it a k-means of directions: a token's norm says how much it adds, not which keys it uses.

`scikit-learn` runs on one thread here: sums of several threads come in no fixed order, and a seed
would not give the same clusters and maps again.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolpack.errors import ConfigError
from tolpack.runtime.array_types import Floats, Ints

MOST_CLUSTERS = 256  # a byte for each token in a report
# Tokens and keys that are told of a cluster.
_SHOWN_TOKENS, _SHOWN_KEYS = 24, 3
# Tokens that centres are fitted to; of a larger vocabulary every n-th.
_FITTED_TOKENS = 1 << 15


@dataclass(frozen=True, slots=True)
class TokenCluster:
    """A cluster of tokens.

    Attributes
    ----------
    size : int
        Number of its tokens.
    tokens : tuple of int
        Those nearest to its centre, nearest first.
    keys : tuple of (int, float, float)
        Keys that its tokens use more often than others do: key, the share of its tokens that have
        it among their strongest keys, and that share in the whole vocabulary.
    """

    size: int
    tokens: tuple[int, ...]
    keys: tuple[tuple[int, float, float], ...]


def check_scikit_learn() -> None:
    """Raise `ConfigError` if scikit-learn is not installed."""
    if importlib.util.find_spec("sklearn") is None:
        raise ConfigError("clusters and maps need scikit-learn: pip install 'tolpack[keys]'")


@contextmanager
def one_thread() -> Iterator[None]:
    """Let scikit-learn run on one thread, for results that depend on the seed alone."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct tokens than clusters, or no convergence
        yield


def fit_clusters(coordinates: Floats, count: int, seed: int) -> tuple[Ints, Floats]:
    """Assign tokens to clusters, numbered from the closest one to the widest.

    The order follows the mean cosine of a cluster's tokens with its centre.

    Parameters
    ----------
    coordinates : ndarray
        float32 (tokens, components), of norm 1.
    count : int
        Number of clusters.
    seed : int
        Of k-means++.

    Returns
    -------
    labels : ndarray
        int64 (tokens,).
    centres : ndarray
        float32 (count, components).
    """
    from sklearn.cluster import KMeans

    with one_thread():
        model = KMeans(count, n_init=1, max_iter=100, random_state=seed)
        model.fit(coordinates[:: -(-len(coordinates) // _FITTED_TOKENS)])
        labels = model.predict(coordinates)
    norms = np.linalg.norm(model.cluster_centers_, axis=1, keepdims=True)
    centres = model.cluster_centers_ / np.maximum(norms, np.finfo(np.float32).tiny)
    cosines = np.einsum("td,td->t", coordinates, centres[labels])
    sizes = np.bincount(labels, minlength=count)
    closeness = np.bincount(labels, cosines, count) / np.maximum(1, sizes)
    order = np.argsort(-closeness, kind="stable")
    number = np.empty(count, np.int64)
    number[order] = np.arange(count)
    return number[labels], model.cluster_centers_[order].astype(np.float32)


def describe_clusters(
    coordinates: Floats,
    labels: Ints,
    centres: Floats,
    token_keys: NDArray[np.int32],
    num_keys: int,
) -> tuple[TokenCluster, ...]:
    """Describe clusters by their tokens and keys; arguments as of `fit_clusters` and `LayerScan`.

    An empty cluster has no tokens and no keys.
    """
    everywhere = np.bincount(token_keys.ravel(), minlength=num_keys) / len(labels)
    found = []
    for number, centre in enumerate(centres):
        members = np.flatnonzero(labels == number)
        nearest = np.argsort(-(coordinates[members] @ centre), kind="stable")[:_SHOWN_TOKENS]
        used = np.bincount(token_keys[members].ravel(), minlength=num_keys)
        share = used / max(1, len(members))
        best = np.argsort(everywhere - share, kind="stable")[:_SHOWN_KEYS]
        keys = [
            (int(k), float(share[k]), float(everywhere[k]))
            for k in best
            if share[k] > everywhere[k]
        ]
        tokens = tuple(map(int, members[nearest]))
        found.append(TokenCluster(len(members), tokens, tuple(keys)))
    return tuple(found)
