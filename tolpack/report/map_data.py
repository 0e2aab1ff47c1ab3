"""The data of a map of the vocabulary, small enough for a page: places, clusters and texts.

A layer is five planes of bytes, one for each token: both bytes of x and of y, and the cluster. They
are deflated and written in base64. Places hardly deflate, so their number of bits decides the size
of a page. They have 16 bits, and fewer where the page would become larger than `_LIMIT_BYTES`.
"""

from __future__ import annotations

import base64
import json
import math
import zlib

import numpy as np

from tolpack.report.page_content import MapCluster, MapLayer, TokenMap
from tolpack.runtime.array_types import Bytes, Floats

_LIMIT_BYTES = 14_000_000
_MOST_BITS, _LEAST_BITS = 16, 8


def map_elements(token_map: TokenMap) -> str:
    """Return the script elements that hold a map's data."""
    bits = _bits(token_map)
    parts = [_element("application/json", "map-index", _safe_json(_index(token_map)))]
    if token_map.texts is not None:
        parts.append(_packed("map-texts", _safe_json(list(token_map.texts)).encode()))
    parts += [
        _packed(f"map-layer-{number}", _planes(layer, bits))
        for number, layer in enumerate(token_map.layers)
    ]
    return "\n".join(parts)


def _index(token_map: TokenMap) -> object:
    return {
        "tokens": len(token_map.layers[0].labels),
        "named": token_map.texts is not None,
        "layers": [
            {"layer": one.layer, "clusters": [_cluster(cluster) for cluster in one.clusters]}
            for one in token_map.layers
        ],
    }


def _cluster(cluster: MapCluster) -> object:
    key = None
    if cluster.key is not None:
        number, share, everywhere = cluster.key
        key = [number, round(100 * share), round(100 * everywhere, 1)]
    return {"size": cluster.size, "tokens": cluster.tokens, "key": key}


def _bits(token_map: TokenMap) -> int:
    """Return the bits of a coordinate with which the page stays below its limit."""
    tokens, layers = len(token_map.layers[0].labels), len(token_map.layers)
    label = math.log2(max(2, *(len(one.clusters) for one in token_map.layers)))
    texts = sum(len(text or "") for text in token_map.texts or ())
    room = (_LIMIT_BYTES - texts) * 3 / 4 * 8 / (tokens * layers)
    return max(_LEAST_BITS, min(_MOST_BITS, math.floor((room - label) / 2)))


def _planes(layer: MapLayer, bits: int) -> bytes:
    """Return the planes of a layer, its places quantized to `bits` of the unit square."""
    places = np.round(_unit_square(layer.places) * (2**bits - 1)).astype(np.uint16)
    places <<= _MOST_BITS - bits
    high, low = (places >> 8).astype(np.uint8), (places & 255).astype(np.uint8)
    labels = layer.labels.astype(np.uint8)
    planes: Bytes = np.stack([high[:, 0], low[:, 0], high[:, 1], low[:, 1], labels])
    return planes.tobytes()


def _unit_square(places: Floats) -> Floats:
    """Move and scale places into the unit square, x and y by the same factor."""
    low, high = places.min(axis=0), places.max(axis=0)
    size = float((high - low).max())
    if size <= 0:
        return np.full_like(places, 0.5)
    moved: Floats = (places - (low + high) / 2) / size + 0.5
    return np.clip(moved, 0, 1)


def _packed(name: str, data: bytes) -> str:
    return _element("text/plain", name, base64.b64encode(zlib.compress(data, 9)).decode())


def _safe_json(value: object) -> str:
    """Return JSON in ASCII without the characters that could end its element."""
    encoded = json.dumps(value, separators=(",", ":"))
    return encoded.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _element(kind: str, name: str, content: str) -> str:
    return f'<script type="{kind}" id="{name}">{content}</script>'
