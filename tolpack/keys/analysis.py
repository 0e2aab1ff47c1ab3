"""The keys of all layers: clusters, controls, outliers, and answers on single tokens and keys.

Layers are read one after the other. What is kept of a layer is small; its coefficients are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tolpack.errors import ConfigError
from tolpack.keys.agreement import ControlledAgreement, measure_with_controls
from tolpack.keys.clusters import (
    MOST_CLUSTERS,
    TokenCluster,
    check_scikit_learn,
    describe_clusters,
    fit_clusters,
)
from tolpack.keys.layer_keys import LayerKeys, load_layer_keys
from tolpack.keys.lookups import KeyTokens, TokenKeys, look_up_key, look_up_token
from tolpack.keys.outliers import find_outliers
from tolpack.keys.scan import LayerScan, kurtosis_of, scan_layer
from tolpack.keys.token_kinds import kinds_of
from tolpack.keys.token_map import map_tokens
from tolpack.runtime.array_types import Floats, Ints
from tolpack.runtime.progress import Reporter
from tolpack.sources.checkpoint.checkpoint import Checkpoint
from tolpack.sources.checkpoint.readiness import check_memory_ffns

# Tokens of the principal components, and landmarks of the map.
_SAMPLE_TOKENS = 4096
# Tokens that the layer and its controls are compared on: all their pairs are.
_COMPARED_TOKENS = 2048
_MOST_ASKED = 256
_SHOWN_OUTLIERS = 8


@dataclass(frozen=True, slots=True)
class KeySettings:
    """What is asked of the keys.

    Parameters
    ----------
    layers : tuple of int, optional
        Layers to read; default: all.
    clusters : int
        Clusters of tokens in each layer.
    seed : int
        The same seed gives the same result with the same number of threads.
    projection : str, optional
        Of `tolpack.keys.token_map.map_tokens`; ``None``: no map is made.
    tokens : tuple of int
        Tokens to look up.
    keys : tuple of (int, int)
        Layer and key of keys to look up.
    """

    layers: tuple[int, ...] | None = None
    clusters: int = 32
    seed: int = 0
    projection: str | None = None
    tokens: tuple[int, ...] = ()
    keys: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class LayerAnalysis:
    """What is known of a layer's keys.

    Attributes
    ----------
    layer, keys : int
        Number of the layer, and of its keys.
    clusters : tuple of TokenCluster
        The closest first.
    labels : ndarray
        int64 (tokens,): the cluster of each token.
    places : ndarray or None
        float32 (tokens, 2): the map.
    agreement : ControlledAgreement
        How far tokens fall into clusters.
    outliers : int
        Number of outlier keys.
    random_outliers : int
        Their number among random keys, over a sample of the tokens.
    strongest_outliers : tuple of KeyTokens
        The first of them, of the largest kurtosis.
    median_kurtosis : float
        Over the keys.
    found_tokens, found_keys : tuple
        What was looked up.
    """

    layer: int
    keys: int
    clusters: tuple[TokenCluster, ...]
    labels: Ints
    places: Floats | None
    agreement: ControlledAgreement
    outliers: int
    random_outliers: int
    strongest_outliers: tuple[KeyTokens, ...]
    median_kurtosis: float
    found_tokens: tuple[TokenKeys, ...]
    found_keys: tuple[KeyTokens, ...]


@dataclass(frozen=True, slots=True)
class KeyAnalysis:
    """The keys of a checkpoint.

    Attributes
    ----------
    path, model_type : str
        The checkpoint.
    vocab_size : int
        Number of tokens.
    settings : KeySettings
        What was asked.
    texts : tuple of (str or None), optional
        Text of each token, if a tokenizer was there.
    layers : tuple of LayerAnalysis
        In order.
    """

    path: str
    model_type: str
    vocab_size: int
    settings: KeySettings
    texts: tuple[str | None, ...] | None
    layers: tuple[LayerAnalysis, ...]

    def text(self, token: int) -> str | None:
        """Return the text of a token, if it is known."""
        return None if self.texts is None else self.texts[token]


def check_settings(checkpoint: Checkpoint, settings: KeySettings) -> tuple[int, ...]:
    """Check what is asked before the work begins, and return the layers to read.

    Raises
    ------
    CheckpointError
        The checkpoint has no memory FFNs.
    ConfigError
        A layer, key, token or number of clusters is out of range, or scikit-learn is missing.
    """
    check_memory_ffns(checkpoint)
    check_scikit_learn()
    config, most = checkpoint.config, min(MOST_CLUSTERS, checkpoint.config.vocab_size)
    if config.vocab_size < 2:
        raise ConfigError("the checkpoint has one token: clusters need two at least")
    if not 2 <= settings.clusters <= most:
        raise ConfigError(f"--clusters {settings.clusters} must be 2 … {most}")
    count = config.num_hidden_layers
    layers = tuple(range(count)) if settings.layers is None else settings.layers
    if not layers or max(layers) >= count:
        wrong = max(layers, default=-1)
        raise ConfigError(f"--layers names {wrong}: the checkpoint has layers 0 … {count - 1}")
    if len(settings.tokens) + len(settings.keys) > _MOST_ASKED:
        raise ConfigError(f"at most {_MOST_ASKED} tokens and keys can be looked up at once")
    for token in settings.tokens:
        if not 0 <= token < config.vocab_size:
            raise ConfigError(f"--token {token}: ids of tokens are 0 … {config.vocab_size - 1}")
    _check_keys(settings.keys, layers, checkpoint.check("layers.0.memory_mlp.up_proj.weight").shape)
    return layers


def _check_keys(
    keys: Sequence[tuple[int, int]], layers: Sequence[int], shape: tuple[int, ...]
) -> None:
    for layer, key in keys:
        if layer not in layers:
            named = ",".join(map(str, layers))
            raise ConfigError(f"--key {layer}:{key}: only layers {named} are read")
        if not 0 <= key < shape[0]:
            raise ConfigError(f"--key {layer}:{key}: keys of a layer are 0 … {shape[0] - 1}")


def analyse_keys(
    checkpoint: Checkpoint,
    settings: KeySettings,
    texts: Sequence[str | None] | None = None,
    reporter: Reporter | None = None,
) -> KeyAnalysis:
    """Analyse the keys of the memory FFNs of a MemoryLLM or Flex checkpoint.

    Parameters
    ----------
    checkpoint : Checkpoint
        The model.
    settings : KeySettings
        What is asked.
    texts : sequence of (str or None), optional
        Text of each token, for kinds of tokens and for names.
    reporter : Reporter, optional
        Receives progress.

    Raises
    ------
    CheckpointError, ConfigError
        As `check_settings`.
    """
    layers, vocab_size = check_settings(checkpoint, settings), checkpoint.config.vocab_size
    kinds = None if texts is None else kinds_of(texts)
    reporter = reporter or Reporter()
    with reporter.phase("tokens × layers", vocab_size * len(layers), "token") as done:
        found = []
        for layer in layers:
            keys = load_layer_keys(checkpoint, layer)
            found.append(analyse_layer(keys, vocab_size, settings, kinds, done))
    return KeyAnalysis(
        str(checkpoint.path), checkpoint.config.model_type, vocab_size, settings,
        None if texts is None else tuple(texts), tuple(found),
    )  # fmt: skip


def analyse_layer(
    keys: LayerKeys,
    vocab_size: int,
    settings: KeySettings,
    kinds: Ints | None = None,
    done: Callable[[int], object] = lambda tokens: None,
) -> LayerAnalysis:
    """Analyse one layer; `kinds` are numbers of kinds, int64 (tokens,)."""
    random = np.random.default_rng([settings.seed, keys.layer])
    sampled = random.choice(vocab_size, min(vocab_size, _SAMPLE_TOKENS), replace=False)
    compared, sampled = np.sort(sampled[:_COMPARED_TOKENS]), np.sort(sampled)
    sample = keys.coefficients(sampled).float()
    asked = np.array(settings.tokens, np.int64)
    scan = scan_layer(keys, vocab_size, sample, asked, done)
    labels, centres = fit_clusters(scan.coordinates, settings.clusters, settings.seed)
    places = None
    if settings.projection is not None:
        places = map_tokens(scan.coordinates, sampled, settings.projection, settings.seed)
    control = keys.randomized(settings.seed).coefficients(compared).float()
    agreement = measure_with_controls(
        sample[np.isin(sampled, compared)], control, None if kinds is None else kinds[compared],
        min(settings.clusters, len(compared)), settings.seed,
    )  # fmt: skip
    outliers = find_outliers(scan.kurtosis)
    random_kurtosis = kurtosis_of(control, keys.layer)
    return LayerAnalysis(
        layer=keys.layer,
        keys=keys.count,
        clusters=describe_clusters(scan.coordinates, labels, centres, scan.token_keys, keys.count),
        labels=labels,
        places=places,
        agreement=agreement,
        outliers=len(outliers),
        random_outliers=len(find_outliers(random_kurtosis)),
        strongest_outliers=_look_up_keys(keys, scan, outliers[:_SHOWN_OUTLIERS].tolist()),
        median_kurtosis=float(np.median(scan.kurtosis)),
        found_tokens=tuple(look_up_token(keys, scan, n, t) for n, t in enumerate(settings.tokens)),
        found_keys=_look_up_keys(keys, scan, [k for n, k in settings.keys if n == keys.layer]),
    )


def _look_up_keys(keys: LayerKeys, scan: LayerScan, wanted: list[int]) -> tuple[KeyTokens, ...]:
    return tuple(look_up_key(keys, scan, key) for key in wanted)
