"""Any pack that the format allows reads alike everywhere: in every mode, in bulk, by decode.py."""

import json
import runpy
import tempfile
from pathlib import Path

import jsonschema
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from packs import Layer, Recipe, Run, split, write

import tolpack
from tolpack.codecs.encodings import Part
from tolpack.container.header import parse_header

FORMAT = Path(__file__).parents[1] / "formats" / "v1"
DECODER = runpy.run_path(str(FORMAT / "decode.py"))["Pack"]
SCHEMA = json.loads((FORMAT / "header.schema.json").read_text("utf-8"))
GROUPS = st.integers(1, 8).map(lambda n: 2 * n)


def part(values):
    """Any codec for this many values."""
    grouped = st.builds(Part, st.sampled_from(["int8", "int4"]), st.just(values), GROUPS)
    return grouped | st.builds(Part, st.sampled_from(["f32", "f16", "bf16"]), st.just(values))


@st.composite
def parts(draw, values):
    """Any way to cut this many values into up to three parts."""
    cuts = sorted(draw(st.sets(st.integers(1, max(1, values - 1)), max_size=2)) - {values})
    bounds = [0, *cuts, values]
    return tuple(draw(part(b - a)) for a, b in zip(bounds, bounds[1:]) if b > a)


@st.composite
def layers(draw, width, rows):
    """Dropped, plain, or with a basis of any rank."""
    kind = draw(st.sampled_from(["dropped", "plain", "plain", "basis"]))
    if kind == "dropped":
        return Layer(dropped=True)
    rank = draw(st.integers(1, min(rows, width))) if kind == "basis" else None
    return Layer(draw(parts(rank or width)), rank=rank, mean=draw(st.booleans()))


@st.composite
def recipes(draw):
    """Any small pack."""
    width = draw(st.integers(1, 20))
    run = st.builds(Run, st.integers(1, 9), st.sampled_from(["raw", "zstd"]), st.integers(1, 5))
    runs = tuple(draw(st.lists(run, min_size=1, max_size=3)))
    rows = sum(run.rows for run in runs)
    found = draw(st.lists(layers(width, rows), min_size=1, max_size=4))
    if all(layer.dropped for layer in found):
        found.append(Layer((Part("f32", width),)))
    return Recipe(
        width, tuple(found), runs, shuffled=draw(st.booleans()),
        multiplier=draw(st.sampled_from([1.0, 16.0, -0.5])),
    )  # fmt: skip


@given(recipe=recipes(), data=st.data())
def test_any_pack_reads_alike_everywhere(recipe, data):
    """Every mode, with checksums and without, in bulk and one by one: the same bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "pack", recipe).path
        ids = data.draw(st.lists(st.integers(0, recipe.rows - 1), max_size=12))
        everything = []
        for mode in ("pread", "mmap", "memory"):
            for checksums in (True, False):
                with tolpack.open(path, io=mode, checksums=checksums) as pack:
                    rows = pack.rows(range(recipe.rows))
                    everything.append(rows.tobytes())
                    if not any(layer.rank for layer in recipe.layers):
                        assert pack.rows(ids).tobytes() == rows[ids].tobytes()
        assert len(set(everything)) == 1


@given(recipe=recipes())
def test_any_pack_is_read_by_the_independent_decoder(recipe):
    """``decode.py`` gives the same rows, exactly without a basis; `verify` finds nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "pack", recipe).path
        with tolpack.open(path) as pack:
            assert pack.verify() == []
            rows = pack.rows(range(recipe.rows))
        decoder = DECODER(path.read_bytes())
        expected = np.stack([decoder.row(token) for token in range(recipe.rows)])
    if any(layer.rank for layer in recipe.layers):
        np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-5 * abs(expected).max())
    else:
        assert rows.tobytes() == expected.astype(np.float32).tobytes()


@given(recipe=recipes())
def test_any_header_survives_its_json(recipe):
    """What a header writes is what it reads, and the schema allows it."""
    with tempfile.TemporaryDirectory() as folder:
        sample = write(Path(folder) / "pack", recipe)
        text = split(sample.data)[1]
    assert parse_header(sample.header.to_json()) == sample.header
    jsonschema.validate(text, SCHEMA)
