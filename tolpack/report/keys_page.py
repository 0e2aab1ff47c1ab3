"""The report of ``tolpack keys``: the map of the vocabulary, clustering and outliers by layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tolpack.errors import printable
from tolpack.report.key_tables import quoted
from tolpack.report.page_content import (
    Axis,
    Chart,
    ChartPoint,
    DataTable,
    MapCluster,
    MapLayer,
    Page,
    PageSection,
    Series,
    TokenMap,
)
from tolpack.runtime.machine import machine, versions
from tolpack.runtime.sizes import counted

if TYPE_CHECKING:  # they load torch
    from tolpack.keys.agreement import Agreement
    from tolpack.keys.analysis import KeyAnalysis, LayerAnalysis

_LISTED_TOKENS, _TABLE_TOKENS, _OUTLIER_TOKENS = 12, 12, 10
_SETS = (("keys", "keys"), ("random keys", "random_keys"), ("shuffled coefficients", "shuffled"))


def keys_page(analysis: KeyAnalysis, command: str) -> Page:
    """Return the report; its map needs an analysis with places.

    Parameters
    ----------
    analysis : KeyAnalysis
        The keys of a checkpoint.
    command : str
        The command line that makes the report.
    """
    return Page(
        f"{printable(Path(analysis.path).name)}: tokens by the keys they use",
        f"{counted(analysis.vocab_size, 'token')}, {counted(len(analysis.layers), 'layer')} with "
        f"{analysis.layers[0].keys:,} keys each. Tokens that use similar keys of a memory FFN are "
        "near to each other on the map and share a colour.",
        (
            ("Model", f"{printable(analysis.path)}, {analysis.model_type}"),
            ("Clusters", f"{analysis.settings.clusters} in each layer, by k-means on key "
                         "coefficients of norm 1"),
            ("Map", _projection_text(analysis)),
            ("Seed", str(analysis.settings.seed)),
            ("Machine", machine()),
            ("Versions", _versions()),
            ("Command", command),
        ),
        (_clustering(analysis), _outliers(analysis), _clusters(analysis)),
        _token_map(analysis),
    )  # fmt: skip


def _versions() -> str:
    found = versions("torch", "scikit-learn", "numpy")
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _projection_text(analysis: KeyAnalysis) -> str:
    if analysis.settings.projection == "pca":
        return "the first two principal components of key coefficients"
    return (
        "t-SNE of a sample of tokens; others stand around the one whose keys are most like theirs"
    )


def _token_map(analysis: KeyAnalysis) -> TokenMap:
    layers = []
    for one in analysis.layers:
        if one.places is None:
            continue
        clusters = tuple(
            MapCluster(each.size, each.tokens[:_LISTED_TOKENS], next(iter(each.keys), None))
            for each in one.clusters
        )
        layers.append(MapLayer(one.layer, one.places, one.labels, clusters))
    text = (
        "Each point is a token. Drag to move; zoom with the buttons, or with the wheel after a "
        "click. A click in the list shows one cluster alone."
    )
    texts = analysis.texts and tuple(one and printable(one) for one in analysis.texts)
    return TokenMap("Map of the vocabulary", text, texts, tuple(layers))


def _clustering(analysis: KeyAnalysis) -> PageSection:
    text = (
        "The clustering coefficient is the silhouette coefficient of the clusters by the cosine "
        "distance of key coefficients: 1 for clusters far apart, 0 for clusters that touch. Random "
        "keys have the norms of the layer's keys and random directions: they show what the "
        "embeddings give by themselves. Shuffled coefficients keep each key's values, in a random "
        "order over the tokens: nothing is left but that each key has few large ones."
    )
    charts = [_by_layer(analysis, "clustering coefficient", lambda one: one.silhouette)]
    if analysis.texts is not None:
        text += (
            "\n\nWhether neighbours are alike can be asked without clusters: how many of a token's "
            "ten nearest tokens by keys are of its kind, judged by text alone (word, capitalized "
            "word, part of a word, number, sign and others)?"
        )
        charts.append(
            _by_layer(analysis, "neighbours of a kind (%)", lambda one: 100 * (one.same_kind or 0))
        )
    return PageSection("Clustering by layer", text, tuple(charts))


def _by_layer(analysis: KeyAnalysis, name: str, measure: Callable[[Agreement], float]) -> Chart:
    series = tuple(
        Series(
            label,
            tuple(
                ChartPoint(one.layer, measure(getattr(one.agreement, field)))
                for one in analysis.layers
            ),
            "line",
        )
        for label, field in _SETS
    )
    return Chart(Axis("layer"), Axis(name), series, "Keys of the layer, and two controls.")


def _outliers(analysis: KeyAnalysis) -> PageSection:
    text = (
        "A key that few tokens use has a large kurtosis over the vocabulary. Outlier keys are "
        "beyond Tukey's upper fence over the layer's keys, in logarithms. The table has those of "
        "the largest kurtosis, with their strongest tokens: those whose rows they add most to."
    )
    names = tuple(str(one.layer) for one in analysis.layers)
    counts = {"keys": [one.outliers for one in analysis.layers],
              "random keys": [one.random_outliers for one in analysis.layers]}  # fmt: skip
    bars = tuple(
        Series(name, tuple(ChartPoint(n, value) for n, value in enumerate(values)), "bars")
        for name, values in counts.items()
    )
    rows = tuple(
        (f"{one.layer}:{one.key}", one.kurtosis, float(one.used_by),
         quoted(analysis, [use.token for use in one.tokens[:_OUTLIER_TOKENS]]))
        for layer in analysis.layers
        for one in layer.strongest_outliers
    )  # fmt: skip
    table = DataTable(
        ("layer:key", "kurtosis", "one of the 8 strongest of", "strongest tokens"), rows,
        ("", ",.0f", ",.0f"),
    )  # fmt: skip
    chart = Chart(Axis("layer"), Axis("outlier keys"), bars, "", names)
    return PageSection("Outlier keys", text, (chart,), table if rows else None)


def _clusters(analysis: KeyAnalysis) -> PageSection:
    text = (
        "All clusters, with the tokens nearest to their centres, and the key that sets a cluster "
        "apart most: how many of its tokens have it among their eight strongest, and how many of "
        "all tokens."
    )
    rows = tuple(row for layer in analysis.layers for row in _cluster_rows(analysis, layer))
    header = ("layer", "cluster", "tokens", "key", "of its tokens (%)", "of all (%)", "nearest")
    formats = (",.0f", ",.0f", ",.0f", ".0f", ".0f", ".1f")
    return PageSection("Clusters", text, table=DataTable(header, rows, formats))


def _cluster_rows(
    analysis: KeyAnalysis, layer: LayerAnalysis
) -> list[tuple[str | float | None, ...]]:
    rows: list[tuple[str | float | None, ...]] = []
    for number, one in enumerate(layer.clusters):
        key, share, everywhere = one.keys[0] if one.keys else (None, None, None)
        shares = [None if part is None else 100 * part for part in (share, everywhere)]
        tokens = quoted(analysis, one.tokens[:_TABLE_TOKENS])
        rows.append((layer.layer, number, one.size, key, *shares, tokens))
    return rows
