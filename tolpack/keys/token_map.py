"""A map of the vocabulary: a place in the plane for each token, near to tokens of similar keys.

t-SNE makes the map that shows most clusters, but takes minutes for 100,000 tokens. So it places a
sample of tokens, the landmarks; each other token is put beside the landmark whose keys are most
like its own: the nearer in keys, the nearer on the map, around it in a spiral of even density.
PCA takes the first two principal components instead: its distances mean the same everywhere, but
two components show a few percent of what there is.
"""

from __future__ import annotations

import numpy as np

from tolpack.keys.clusters import one_thread
from tolpack.runtime.array_types import Floats, Ints

PROJECTIONS = ("tsne", "pca")
_PERPLEXITY, _ITERATIONS, _ANGLE = 15.0, 350, 0.7
_LEAST_TOKENS = 8  # t-SNE of fewer says nothing
_LEAST_DISTANCE = 1e-6
_BLOCK_TOKENS = 4096
_GOLDEN_ANGLE = np.pi * (3 - 5**0.5)


def map_tokens(coordinates: Floats, landmarks: Ints, projection: str, seed: int) -> Floats:
    """Return the place of each token: float32 (tokens, 2).

    Parameters
    ----------
    coordinates : ndarray
        float32 (tokens, components), of norm 1.
    landmarks : ndarray
        int64 (landmarks,), ascending: the tokens that t-SNE places.
    projection : str
        ``"tsne"`` or ``"pca"``.
    seed : int
        Of t-SNE.
    """
    # Of tokens that are all alike t-SNE ends the process: its tree has no depth that parts them.
    alike = np.ptp(coordinates[landmarks], axis=0).max(initial=0) < _LEAST_DISTANCE
    if projection == "pca" or len(landmarks) < _LEAST_TOKENS or alike:
        places = np.zeros((len(coordinates), 2), np.float32)
        used = min(2, coordinates.shape[1])
        places[:, :used] = coordinates[:, :used]
        return places
    fitted = _tsne(coordinates[landmarks], seed)
    if len(landmarks) == len(coordinates):
        return fitted
    return _place_others(coordinates, landmarks, fitted)


def _tsne(coordinates: Floats, seed: int) -> Floats:
    from sklearn.manifold import TSNE

    model = TSNE(
        perplexity=min(_PERPLEXITY, (len(coordinates) - 1) / 3),
        max_iter=_ITERATIONS,
        angle=_ANGLE,
        init="pca" if coordinates.shape[1] >= 2 else "random",
        random_state=seed,
    )
    with one_thread():
        return np.asarray(model.fit_transform(coordinates), np.float32)


def _place_others(coordinates: Floats, landmarks: Ints, fitted: Floats) -> Floats:
    """Place each token in a spiral around its most similar landmark, most similar innermost."""
    nearest, similarity = _nearest(coordinates, coordinates[landmarks])
    nearest[landmarks], similarity[landmarks] = np.arange(len(landmarks)), 2.0
    order = np.lexsort((np.arange(len(nearest)), -similarity, nearest))
    counts = np.bincount(nearest, minlength=len(landmarks))
    rank = np.empty(len(nearest), np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    step = _spacing(fitted) / 2 / np.sqrt(len(nearest) / len(landmarks))
    radius, angle = step * np.sqrt(rank), rank * _GOLDEN_ANGLE
    spiral = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    places: Floats = (fitted[nearest] + spiral).astype(np.float32)
    return places


def _nearest(coordinates: Floats, landmarks: Floats) -> tuple[Ints, Floats]:
    """Return the most similar landmark of each token, and their cosine."""
    nearest = np.empty(len(coordinates), np.int64)
    similarity = np.empty(len(coordinates), np.float32)
    for start in range(0, len(coordinates), _BLOCK_TOKENS):
        block = slice(start, start + _BLOCK_TOKENS)
        cosines = coordinates[block] @ landmarks.T
        nearest[block] = cosines.argmax(axis=1)
        similarity[block] = cosines.max(axis=1)
    return nearest, similarity


def _spacing(places: Floats) -> float:
    """Return the median distance of a place from its nearest other."""
    from scipy.spatial import KDTree

    distances, _ = KDTree(places).query(places, k=2)
    return float(np.median(distances[:, 1]))
