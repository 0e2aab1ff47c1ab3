"""Layers of different widths: read since format 1.2 (bit 26)."""

import numpy as np
import pytest
from packs import Layer, Recipe, Run, int4, write

import tolpack
from tolpack.codecs.encodings import Part
from tolpack.errors import ConfigError
from tolpack.evaluation.pack_description import describe_pack

F32, F32_WIDE = Part("f32", 6), Part("f32", 10)
# Two widths, each of a kept and of a dropped layer.
RECIPE = Recipe(
    6,
    (
        Layer((F32,)), Layer((F32_WIDE,), width=10, mean=True), Layer(dropped=True, width=10),
        Layer((F32,)), Layer(dropped=True),
    ),
    (Run(7, "raw", 2), Run(4, "zstd", 3)),
    shuffled=True,
)  # fmt: skip
WITH_BASIS = Recipe(
    6,
    (Layer((int4(4),), rank=4), Layer((int4(5),), rank=5, width=10, mean=True), Layer((F32,))),
    (Run(9, "zstd", 4),),
)
NARROW, WIDE = [0, 3, 4], [1, 2]


@pytest.fixture
def pack(tmp_path):
    """A pack of layers of 6 and of 10 values."""
    with tolpack.open(write(tmp_path / "pack", RECIPE).path) as opened:
        yield opened


def expected(path, layer):
    """Rows of a layer, from a pack that has no other width."""
    recipe = Recipe(RECIPE.width, RECIPE.layers, RECIPE.runs, shuffled=True)
    sample = write(path, recipe)
    if recipe.layers[layer].dropped:
        return np.zeros((recipe.rows, recipe.layers[layer].width or recipe.width), np.float32)
    kept = [n for n, one in enumerate(recipe.layers) if not one.dropped].index(layer)
    values = sample.values[kept][sample.slots]
    mean = sample.header.tables[0].fields[layer].mean
    if mean is not None:
        section = sample.header.sections[mean]
        values = values + np.frombuffer(sample.data, "<f4", 10, section.offset_bytes)
    return values


@pytest.mark.parametrize("layers", [NARROW, WIDE, [1], [2], [4, 0, 0]])
def test_layers_of_one_width_are_one_array(layers, pack, tmp_path):
    """Rows of layers that are alike come as ever, dropped ones as zeros of their own width."""
    found = pack.rows(range(pack.vocab_size), layers=layers)
    for n, layer in enumerate(layers):
        assert np.array_equal(found[:, n], expected(tmp_path / "same", layer))


def test_one_array_of_different_widths_is_refused(pack):
    """The error names the layers, their widths and the remedy; so does `hidden_size`."""
    remedy = "layer 0 has 6 values in a row and layer 1 has 10: give layers=… of one width"
    for ask in (
        lambda: pack.rows([0]),
        lambda: pack.rows([0], layers=[0, 1]),
        lambda: pack.hidden_size,
    ):
        with pytest.raises(ConfigError, match=remedy):
            ask()
    with pytest.raises(ConfigError, match=remedy):
        tolpack.convert(pack._path, pack._path + ".npy")


def test_what_gives_no_array_knows_all_widths(pack):
    """Opening, prefetching, verification and descriptions need no common width."""
    pack.prefetch(range(pack.vocab_size))
    assert pack.verify() == []
    assert pack.widths == (6, 10, 10, 6, 6)
    assert "× 6/10, " in repr(pack)
    found = describe_pack(pack)
    assert found["hidden_size"] is None
    assert found["ratio_fp16"] == pack.vocab_size * 38 * 2 / pack.nbytes


@pytest.mark.parametrize("recipe", [RECIPE, WITH_BASIS])
@pytest.mark.parametrize("settings", [
    {}, {"hot_rows": 3}, {"expand": "device"}, {"expand": "device", "hot_rows": 3}
])  # fmt: skip
def test_a_memory_gives_each_layer_its_own_width(recipe, settings, tmp_path):
    """`ToLMemory` is asked layer by layer, so widths may differ."""
    torch = pytest.importorskip("torch")
    from tolpack.torch import ToLMemory

    ids = torch.tensor([[3, 0], [1, 3]])
    with tolpack.open(write(tmp_path / "pack", recipe).path) as pack:
        memory = ToLMemory(pack, **settings)
        for layer, width in enumerate(pack.widths):
            rows = memory(layer, ids)
            assert rows.shape == (2, 2, width)
            own = pack.rows(ids.ravel().tolist(), layers=[layer])[:, 0]
            assert np.allclose(rows.reshape(4, width), own, rtol=1e-5, atol=1e-5)
