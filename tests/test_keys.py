"""Keys of memory FFNs, against sums and sorts written out in float64 without tolpack."""

import base64
import json
import math
import re
import zlib

import models
import numpy as np
import pytest
import torch
from scipy.stats import kurtosis as scipy_kurtosis

from tolpack.errors import CheckpointError, ConfigError
from tolpack.keys import scan as scan_module
from tolpack.keys.agreement import measure_with_controls
from tolpack.keys.analysis import KeySettings, analyse_keys, analyse_layer
from tolpack.keys.clusters import describe_clusters, fit_clusters
from tolpack.keys.layer_keys import load_layer_keys
from tolpack.keys.lookups import look_up_key, look_up_token
from tolpack.keys.named_tokens import parse_key, parse_layers
from tolpack.keys.outliers import find_outliers
from tolpack.keys.scan import check_finite, kurtosis_of, scan_layer
from tolpack.keys.token_kinds import KINDS, kind_of, kinds_of
from tolpack.keys.token_map import map_tokens
from tolpack.report.map_data import map_elements
from tolpack.report.page_content import MapCluster, MapLayer, TokenMap
from tolpack.sources.checkpoint.checkpoint import open_checkpoint

VOCAB = 97


def coefficients(naive, layer):
    """Return the coefficients of all tokens from the equations: float64 (tokens, keys)."""
    name, rows = f"layers.{layer}.memory_mlp", []
    for row in naive.w["embed_tokens.weight"]:
        x = naive.norm(row, f"layers.{layer}.memory_layernorm")
        gate = naive.w[f"{name}.gate_proj.weight"] @ x
        rows.append((naive.w[f"{name}.up_proj.weight"] @ x) * gate / (1 + np.exp(-gate)))
    return np.array(rows)


@pytest.fixture(scope="module")
def naive():
    """The tiny MemoryLLM in float64."""
    config = models.make_config()
    return models.Naive(models.make_state(config), config)


@pytest.fixture(scope="module")
def checkpoint(memoryllm):
    """The same model, opened."""
    return open_checkpoint(memoryllm)


def scanned(keys, asked=(), vocab=VOCAB):
    """Scan a layer with the whole vocabulary as the sample."""
    sample = keys.coefficients(np.arange(vocab)).float()
    return scan_layer(keys, vocab, sample, np.array(asked, np.int64))


def unit(rows):
    """Return rows divided by their norms."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_row_is_the_sum_of_its_keys(checkpoint, naive):
    """Coefficients times values give the table's row, whatever the layer."""
    table = naive.table()
    for layer in range(3):
        keys = load_layer_keys(checkpoint, layer)
        rows = keys.coefficients(np.arange(VOCAB)) @ keys.values
        np.testing.assert_allclose(rows.numpy(), table[:, layer], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block_values", [640, 1 << 22])
def test_a_scan_finds_what_a_sort_of_all_finds(checkpoint, naive, monkeypatch, block_values):
    """Strongest keys and tokens, moments and cosines do not depend on the blocks."""
    monkeypatch.setattr(scan_module, "_BLOCK_VALUES", block_values)
    keys, c = load_layer_keys(checkpoint, 1), coefficients(naive, 1)
    found = scanned(keys, (5, 60))
    norms = np.linalg.norm(naive.w["layers.1.memory_mlp.down_proj.weight"], axis=0)
    signed = c * norms
    strengths = np.abs(signed)
    np.testing.assert_array_equal(found.token_keys, np.argsort(-strengths, axis=1)[:, :8])
    tokens = np.argsort(-strengths, axis=0)[:16].T
    np.testing.assert_array_equal(found.key_tokens, tokens)
    np.testing.assert_allclose(
        found.key_strengths, np.take_along_axis(signed.T, tokens, axis=1), rtol=1e-4
    )
    np.testing.assert_allclose(found.kurtosis, scipy_kurtosis(c, axis=0, fisher=False), rtol=1e-3)
    np.testing.assert_allclose(found.rms_strengths, np.sqrt((signed**2).mean(axis=0)), rtol=1e-4)
    cosines = unit(c) @ unit(c)[[5, 60]].T
    np.testing.assert_allclose(found.similarities, cosines, atol=1e-5)
    np.testing.assert_array_equal(
        found.used_by(), np.bincount(found.token_keys.ravel(), minlength=20)
    )


def test_coordinates_keep_angles(checkpoint, naive):
    """With as many components as keys, cosines of centred coefficients are those of all keys."""
    c = unit(coefficients(naive, 0))
    found = scanned(load_layer_keys(checkpoint, 0)).coordinates
    np.testing.assert_allclose(found @ found.T, c @ c.T, atol=1e-4)


def test_lookups_are_those_of_a_sort(checkpoint, naive):
    """A token's nearest tokens, its keys and their other tokens; a key's tokens with signs."""
    keys, c = load_layer_keys(checkpoint, 2), coefficients(naive, 2)
    found = scanned(keys, (7,))
    token, key = look_up_token(keys, found, 0, 7), look_up_key(keys, found, 3)
    norms = np.linalg.norm(naive.w["layers.2.memory_mlp.down_proj.weight"], axis=0)
    cosines = unit(c) @ unit(c)[7]
    cosines[7] = -2
    assert [t for t, _ in token.nearest] == np.argsort(-cosines)[:12].tolist()
    strengths = np.abs(c[7]) * norms
    order = np.argsort(-strengths)[:8]
    assert [use.key for use in token.keys] == order.tolist()
    assert [use.coefficient for use in token.keys] == pytest.approx(c[7][order].tolist(), rel=1e-4)
    assert token.share == pytest.approx(strengths[order].sum() / strengths.sum(), rel=1e-4)
    for use, others in zip(token.keys, token.other_tokens):
        assert 7 not in others
        assert all(np.sign(c[t, use.key]) == np.sign(use.coefficient) for t in others)
    assert [use.token for use in key.tokens] == np.argsort(-np.abs(c[:, 3]))[:16].tolist()
    assert key.used_by == int((found.token_keys == 3).sum())
    signs = [np.sign(use.coefficient) for use in key.tokens]
    assert signs == np.sign(c[[use.token for use in key.tokens], 3]).tolist()


def test_kurtosis_of_odd_keys():
    """A key that never changes has 1, one token of n has n; values that overflow are refused."""
    values = torch.zeros(100, 3)
    values[:, 0] = 4.0
    values[17, 1] = -2.0
    found = kurtosis_of(values, 0)
    assert found[0] == 1.0 and found[2] == 1.0
    assert found[1] == pytest.approx(scipy_kurtosis(values[:, 1].numpy(), fisher=False), rel=1e-5)
    values[3, 1] = 1e20
    with pytest.raises(CheckpointError, match="layer 4 are not finite"):
        kurtosis_of(values, 4)


def test_random_keys_keep_norms(checkpoint):
    """Random keys have the values and the norms of the learned ones, and other directions."""
    keys = load_layer_keys(checkpoint, 0)
    random = keys.randomized(3)
    assert torch.equal(random.values, keys.values)
    for name in ("gate", "up"):
        old, new = getattr(keys._ffn, name), getattr(random._ffn, name)
        torch.testing.assert_close(old.norm(dim=1), new.norm(dim=1))
        assert float(torch.cosine_similarity(old, new).abs().mean()) < 0.4
    again = keys.randomized(3).coefficients(np.arange(9))
    assert torch.equal(random.coefficients(np.arange(9)), again)


def planted(groups=4, each=30, width=12, noise=0.05):
    """Return vectors of norm 1 around a few directions, and their groups."""
    random = np.random.default_rng(0)
    centres = np.eye(groups, width)
    labels = np.repeat(np.arange(groups), each)
    rows = centres[labels] + noise * random.standard_normal((groups * each, width))
    return unit(rows).astype(np.float32), labels


def test_planted_clusters_are_found():
    """k-means gives back planted groups, and numbers the closest first."""
    rows, labels = planted()
    wide = labels == 2
    noise = np.random.default_rng(1).standard_normal((wide.sum(), 12))
    rows[wide] = unit(rows[wide] + 0.15 * noise)
    found, centres = fit_clusters(rows, 4, 0)
    assert all(len(set(found[labels == n])) == 1 for n in range(4))
    assert set(found[wide]) == {3}
    assert centres.shape == (4, 12)


def test_clusters_are_told_by_tokens_and_keys():
    """A cluster's key is one that its tokens use more often than others; empty ones have none."""
    rows, labels = planted(3, 10)
    token_keys = np.stack([labels + 5, np.zeros(30, int)], axis=1).astype(np.int32)
    centres = np.eye(4, 12, dtype=np.float32)
    found = describe_clusters(rows, labels, centres, token_keys, 9)
    for number, one in enumerate(found[:3]):
        assert one.size == 10 and set(one.tokens) == set(range(number * 10, number * 10 + 10))
        assert one.keys == ((5 + number, 1.0, pytest.approx(1 / 3)),)
        cosines = [float(rows[t] @ centres[number]) for t in one.tokens]
        assert cosines == sorted(cosines, reverse=True)
    assert (found[3].size, found[3].tokens, found[3].keys) == (0, (), ())


def test_agreement_tells_clusters_from_controls():
    """Planted groups have a coefficient near 1 and neighbours of a kind; controls have neither."""
    rows, labels = planted()
    random = torch.randn(rows.shape, generator=torch.Generator().manual_seed(2))
    found = measure_with_controls(torch.from_numpy(rows), random, labels, 4, 0)
    assert found.keys.silhouette > 0.9 and found.keys.same_kind == 1.0
    for control in (found.random_keys, found.shuffled):
        assert control.silhouette < 0.6 and control.same_kind < 0.6
    assert found.keys.nearest_cosine > 0.95 > found.random_keys.nearest_cosine


def test_the_silhouette_is_that_of_its_definition():
    """Each token: (b − a) / max(a, b), by the cosine distance; a its own cluster, b the nearest."""
    rows, labels = planted(3, 8, noise=0.4)
    same = torch.from_numpy(rows)
    found = measure_with_controls(same, same, None, 3, 0).keys
    coordinates = scan_module.project(torch.from_numpy(rows), torch.from_numpy(rows))
    labels, _ = fit_clusters(coordinates, 3, 0)
    distance = 1 - rows.astype(np.float64) @ rows.T
    values = []
    for t in range(24):
        means = [distance[t, labels == n].sum() / max(1, (labels == n).sum() - (labels[t] == n))
                 for n in range(3)]  # fmt: skip
        own, other = means[labels[t]], min(m for n, m in enumerate(means) if n != labels[t])
        values.append((other - own) / max(own, other) if (labels == labels[t]).sum() > 1 else 0.0)
    assert found.silhouette == pytest.approx(np.mean(values), abs=1e-5)
    assert found.same_kind is None


def test_outliers_are_beyond_the_fence():
    """Keys beyond Q3 + 1.5 (Q3 − Q1) of the logarithms are found, the largest first."""
    kurtosis = np.exp(np.random.default_rng(0).normal(2, 0.3, 500))
    kurtosis[[7, 300]] = 400, 900
    found = find_outliers(np.maximum(kurtosis, 1))
    assert found[:2].tolist() == [300, 7] and len(found) < 15
    assert find_outliers(np.full(20, 3.0)).size == 0


def test_tokens_that_are_all_alike():
    """Equal coefficients, as of a layer of zeros: one place, one cluster, no outliers."""
    alike = np.zeros((40, 6), np.float32)
    assert np.ptp(map_tokens(alike, np.arange(40), "tsne", 0), axis=0).max() == 0
    labels, centres = fit_clusters(alike, 4, 0)
    assert len(np.unique(labels)) == 1 and np.isfinite(centres).all()
    assert len(find_outliers(np.array([1, 1, 1 + 1e-15, 1 + 1e-9]))) == 0


def test_coefficients_that_are_not_finite():
    """A damaged sample is refused by the layer's number, before components are sought."""
    with pytest.raises(CheckpointError, match="layer 3 are not finite"):
        check_finite(np.array([[1.0, np.nan]], np.float32), 3)


def test_tokens_are_placed_beside_similar_landmarks():
    """Tokens that t-SNE does not place stand around the landmark that is most like them."""
    rows, labels = planted(4, 60)
    landmarks = np.arange(0, 240, 5)
    places = map_tokens(rows, landmarks, "tsne", 0)
    nearest = landmarks[(rows @ rows[landmarks].T).argmax(axis=1)]
    others = np.setdiff1d(np.arange(240), landmarks)
    beside = np.linalg.norm(places[others] - places[nearest[others]], axis=1)
    apart = np.linalg.norm(places[others] - places[landmarks[::-1]][others // 5], axis=1)
    assert beside.max() < np.median(apart) / 4
    assert (labels[others] == labels[nearest[others]]).all()
    assert len(np.unique(places, axis=0)) == 240
    np.testing.assert_array_equal(places, map_tokens(rows, landmarks, "tsne", 0))


def test_maps_of_components_and_of_few_tokens():
    """PCA is the first two components; so few tokens that t-SNE says nothing get them too."""
    rows, _ = planted()
    np.testing.assert_array_equal(map_tokens(rows, np.arange(120), "pca", 0), rows[:, :2])
    np.testing.assert_array_equal(map_tokens(rows[:5], np.arange(5), "tsne", 0), rows[:5, :2])
    narrow = map_tokens(rows[:5, :1], np.arange(5), "tsne", 0)
    assert narrow.shape == (5, 2) and not narrow[:, 1].any()


def test_kinds_of_tokens():
    """A kind follows from the text alone."""
    texts = (" the", " The", "ing", "Ing", " NATO", " 1998", "?!", "\n ", None, "", "“Ah", "I")
    kinds = ("word", "capitalized word", "part of a word", "capitalized part", "capitals",
             "number", "sign", "space", "no text", "no text", "capitalized part",
             "capitalized part")  # fmt: skip
    assert tuple(map(kind_of, texts)) == kinds
    assert [KINDS[n] for n in kinds_of(texts)] == list(kinds)


def test_layers_and_keys_are_parsed():
    """Numbers and ranges; a layer and a key; anything else is refused by name."""
    assert parse_layers("3,0-1, 1") == (0, 1, 3)
    assert parse_key("2:526") == (2, 526)
    for value in ("", "a", "3-1", "-1", "1,,2", "٣"):
        with pytest.raises(ConfigError, match="--layers"):
            parse_layers(value)
    for value in ("3", "3:", ":4", "a:b", "1:2:3", "-1:2"):
        with pytest.raises(ConfigError, match="LAYER:KEY"):
            parse_key(value)


def test_a_seed_gives_the_same_again(checkpoint):
    """Clusters, maps and measures depend on the seed alone."""
    asked = KeySettings(clusters=5, seed=4, projection="tsne", tokens=(3,), keys=((1, 2),))
    first, again = (analyse_layer(load_layer_keys(checkpoint, 1), VOCAB, asked) for _ in range(2))
    np.testing.assert_array_equal(first.places, again.places)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert first.agreement == again.agreement
    assert first.found_tokens == again.found_tokens and first.found_keys == again.found_keys
    assert sum(one.size for one in first.clusters) == VOCAB


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clusters": 1}, "--clusters 1 must be 2 … 97"),
        ({"clusters": 98}, "--clusters 98 must be 2 … 97"),
        ({"layers": (0, 3)}, "--layers names 3: the checkpoint has layers 0 … 2"),
        ({"tokens": (97,)}, "--token 97: ids of tokens are 0 … 96"),
        ({"keys": ((0, 20),)}, "--key 0:20: keys of a layer are 0 … 19"),
        ({"keys": ((1, 0),), "layers": (0,)}, "--key 1:0: only layers 0 are read"),
        ({"tokens": (1,) * 257}, "at most 256"),
    ],
)
def test_settings_out_of_range(checkpoint, changes, message):
    """A layer, key, token or number of clusters that is not there is named with its limit."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        analyse_keys(checkpoint, KeySettings(**changes))


# -- data of the map -----------------------------------------------------------------------------


def unpacked(elements, name):
    """Return the bytes of an element of the map's data."""
    packed = re.search(rf'id="{name}">([A-Za-z0-9+/=]*)<', elements)[1]
    return zlib.decompress(base64.b64decode(packed))


def test_places_are_quantized_to_what_fits(monkeypatch):
    """Places come back within half a step; a page that would be too large has larger steps."""
    random = np.random.default_rng(0)
    places = random.normal(0, 9, (500, 2)).astype(np.float32)
    labels = random.integers(0, 7, 500)
    clusters = tuple(MapCluster(1, (n,), (n, 0.5, 0.1)) for n in range(7))
    shown = TokenMap("t", "", (" a</script>",) * 500, (MapLayer(3, places, labels, clusters),))
    sizes = []
    for limit, bits in ((14_000_000, 16), (8000, 8)):
        monkeypatch.setattr("tolpack.report.map_data._LIMIT_BYTES", limit)
        elements = map_elements(shown)
        planes = np.frombuffer(unpacked(elements, "map-layer-0"), np.uint8).reshape(5, 500)
        np.testing.assert_array_equal(planes[4], labels)
        x, y = (planes[n].astype(float) * 256 + planes[n + 1] for n in (0, 2))
        low, high = places.min(axis=0), places.max(axis=0)
        size = (high - low).max()
        for got, n in ((x, 0), (y, 1)):
            expected = (places[:, n] - (low[n] + high[n]) / 2) / size + 0.5
            assert np.abs(got / 65535 - expected).max() < 1 / 2**bits
        sizes.append(len(elements))
        assert json.loads(unpacked(elements, "map-texts")) == [" a</script>"] * 500
        assert "</script>a" not in elements and elements.count("<script") == 3
    assert sizes[1] < sizes[0]


def test_a_silhouette_of_one_cluster_is_missing_in_json():
    """What cannot be measured is null, and no NaN."""
    rows = torch.ones(6, 4)
    found = measure_with_controls(rows, rows, None, 2, 0)
    assert math.isnan(found.keys.silhouette)
    assert found.to_json()["keys"]["clustering_coefficient"] is None
