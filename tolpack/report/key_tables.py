"""Text tables of keys: ``tolpack keys``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tolpack.errors import printable
from tolpack.report.row_tables import quote_token
from tolpack.report.tables import format_table

if TYPE_CHECKING:  # they load torch
    from tolpack.keys.analysis import KeyAnalysis, LayerAnalysis
    from tolpack.keys.clusters import TokenCluster
    from tolpack.keys.lookups import KeyTokens, KeyUse, TokenKeys

# Clusters of a layer that are shown, and their tokens.
_SHOWN_CLUSTERS, _SHOWN_TOKENS = 12, 7
_KEY_TOKENS = 8


def keys_text(analysis: KeyAnalysis) -> str:
    """Write the layers, their outlier keys and what was looked up; clusters of a single layer."""
    head = (
        f"{printable(analysis.path)}: {analysis.vocab_size} tokens, "
        f"{analysis.settings.clusters} clusters in each layer"
    )
    parts = [head, layers_table(analysis)]
    asked = analysis.settings.tokens or analysis.settings.keys
    if not asked:
        parts += [clusters_table(analysis, layer) for layer in analysis.layers[:1]]
        parts.append(outliers_table(analysis))
    for layer in analysis.layers:
        parts += [token_table(analysis, one) for one in layer.found_tokens]
        parts += [key_table(analysis, one) for one in layer.found_keys]
    return "\n\n".join(parts)


def layers_table(analysis: KeyAnalysis) -> str:
    """Write a line per layer: clustering against its controls, and outlier keys."""
    named = analysis.texts is not None
    header = ["layer", "keys", "clustering", "random keys", "shuffled",
              *(["same kind", "random keys", "shuffled"] if named else []),
              "outlier keys", "random keys", "kurtosis"]  # fmt: skip
    lines = []
    for one in analysis.layers:
        found = one.agreement
        sets = (found.keys, found.random_keys, found.shuffled)
        kinds = [f"{100 * (each.same_kind or 0):.1f} %" for each in sets]
        lines.append(
            [
                str(one.layer),
                str(one.keys),
                *[f"{each.silhouette:.3f}" for each in sets],
                *(kinds if named else []),
                str(one.outliers),
                str(one.random_outliers),
                f"{one.median_kurtosis:.1f}",
            ]
        )
    notes = (
        "clustering: silhouette coefficient of the clusters, by the cosine of key coefficients; "
        "random keys and shuffled coefficients are controls"
    )
    if named:
        notes += (
            "\nsame kind: share of a token's 10 nearest that are of its kind, as word or number"
        )
    notes += "\noutlier keys are used by far fewer tokens than others; kurtosis: the median key's"
    return f"{format_table(header, lines)}\n\n{notes}"


def clusters_table(analysis: KeyAnalysis, layer: LayerAnalysis) -> str:
    """Write the closest clusters of a layer, and the key that sets each apart most."""
    numbered = [pair for pair in enumerate(layer.clusters) if pair[1].keys]
    lines = [
        [
            f"cluster {number} of layer {layer.layer}",
            str(one.size),
            str(one.keys[0][0]),
            f"{100 * one.keys[0][1]:.0f} %",
            f"{100 * one.keys[0][2]:.1f} %",
            quoted(analysis, one.tokens[:_SHOWN_TOKENS]),
        ]
        for number, one in numbered[:_SHOWN_CLUSTERS]
    ]
    table = format_left(["", "tokens", "key", "use it", "of all", "nearest to the centre"], lines)
    more = len(layer.clusters) - len(lines)
    note = "use it: share of the cluster's tokens that have the key among their 8 strongest"
    return f"{table}\n\n{note}" + (f"; {more} clusters more: --report, --json" if more else "")


def outliers_table(analysis: KeyAnalysis) -> str:
    """Write the outlier keys of the largest kurtosis in each layer."""
    lines = [
        [f"key {one.layer}:{one.key}", f"{one.kurtosis:.0f}", str(one.used_by),
         quoted(analysis, [use.token for use in one.tokens[:_SHOWN_TOKENS]])]
        for layer in analysis.layers
        for one in layer.strongest_outliers[:2]
    ]  # fmt: skip
    if not lines:
        return "no outlier keys"
    return format_left(["outliers", "kurtosis", "used by", "strongest tokens"], lines)


def token_table(analysis: KeyAnalysis, found: TokenKeys) -> str:
    """Write a token's strongest keys with their other tokens, and its nearest tokens."""
    name = f"{found.token} {quote_token(analysis.text(found.token))}"
    lines = [
        [str(use.key), f"{use.coefficient:.3f}", f"{use.strength:.3f}", quoted(analysis, others)]
        for use, others in zip(found.keys, found.other_tokens)
    ]
    header = ["key", "coefficient", "strength", "other tokens of the key"]
    near = ", ".join(
        f"{quote_token(analysis.text(t)) if analysis.texts else t} {cosine:.2f}"
        for t, cosine in found.nearest
    )
    return (
        f"token {name}, layer {found.layer}: nearest by keys: {near}\n\n"
        f"{format_left(header, lines)}\n\n"
        f"these keys have {100 * found.share:.0f} % of the sum of strengths"
    )


def key_table(analysis: KeyAnalysis, found: KeyTokens) -> str:
    """Write the strongest tokens of a key."""
    lines = [[_name(analysis, use), f"{use.coefficient:.3f}", f"{use.strength:.3f}"]
             for use in found.tokens]  # fmt: skip
    return (
        f"key {found.layer}:{found.key}: one of the strongest keys of {found.used_by} tokens, "
        f"kurtosis {found.kurtosis:.1f}, strength {found.rms_strength:.3f} (root mean square)\n\n"
        f"{format_table(['token', 'coefficient', 'strength'], lines)}"
    )


def _name(analysis: KeyAnalysis, use: KeyUse) -> str:
    text = analysis.text(use.token)
    return str(use.token) if text is None else f"{use.token} {quote_token(text)}"


def quoted(analysis: KeyAnalysis, tokens: Sequence[int]) -> str:
    """Write tokens by their texts in quotes, or by their ids."""
    if analysis.texts is None:
        return ", ".join(map(str, tokens))
    return ", ".join(quote_token(analysis.text(token)) for token in tokens)


def format_left(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns as `format_table` does, but the last one to the left."""
    widest = max(len(printable(row[-1])) for row in [header, *rows])
    padded = [[*row[:-1], printable(row[-1]).ljust(widest)] for row in (header, *rows)]
    return "\n".join(map(str.rstrip, format_table(padded[0], padded[1:]).split("\n")))


def keys_json(analysis: KeyAnalysis) -> dict[str, Any]:
    """Return the analysis as plain values; a token is its id and its text."""
    return {
        "checkpoint": analysis.path,
        "model_type": analysis.model_type,
        "vocab_size": analysis.vocab_size,
        "clusters": analysis.settings.clusters,
        "seed": analysis.settings.seed,
        "layers": [_layer_json(analysis, layer) for layer in analysis.layers],
    }


def _layer_json(analysis: KeyAnalysis, layer: LayerAnalysis) -> dict[str, Any]:
    return {
        "layer": layer.layer,
        "keys": layer.keys,
        "agreement": layer.agreement.to_json(),
        "outlier_keys": layer.outliers,
        "outlier_keys_of_random_keys": layer.random_outliers,
        "median_kurtosis": layer.median_kurtosis,
        "strongest_outliers": [_key_json(analysis, one) for one in layer.strongest_outliers],
        "clusters": [_cluster_json(analysis, one) for one in layer.clusters],
        "token_clusters": layer.labels.tolist(),
        "tokens": [_token_json(analysis, one) for one in layer.found_tokens],
        "found_keys": [_key_json(analysis, one) for one in layer.found_keys],
    }


def _cluster_json(analysis: KeyAnalysis, cluster: TokenCluster) -> dict[str, Any]:
    return {
        "size": cluster.size,
        "tokens": [_named(analysis, token) for token in cluster.tokens],
        "keys": [
            {"key": key, "share": share, "share_of_all": everywhere}
            for key, share, everywhere in cluster.keys
        ],
    }


def _named(analysis: KeyAnalysis, token: int) -> dict[str, Any]:
    return {"token": token, "text": analysis.text(token)}


def _use_json(analysis: KeyAnalysis, use: KeyUse) -> dict[str, Any]:
    return {**_named(analysis, use.token), "coefficient": use.coefficient, "strength": use.strength}


def _key_json(analysis: KeyAnalysis, found: KeyTokens) -> dict[str, Any]:
    return {
        "layer": found.layer,
        "key": found.key,
        "kurtosis": found.kurtosis,
        "rms_strength": found.rms_strength,
        "used_by": found.used_by,
        "tokens": [_use_json(analysis, use) for use in found.tokens],
    }


def _token_json(analysis: KeyAnalysis, found: TokenKeys) -> dict[str, Any]:
    return {
        **_named(analysis, found.token),
        "nearest": [{**_named(analysis, t), "cosine": cosine} for t, cosine in found.nearest],
        "keys": [
            {
                "key": use.key,
                "coefficient": use.coefficient,
                "strength": use.strength,
                "other_tokens": [_named(analysis, t) for t in others],
            }
            for use, others in zip(found.keys, found.other_tokens)
        ],
        "share_of_strength": found.share,
    }
