"""`tolpack convert --dtype stored`: the bytes of the model's file back, for every codec."""

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import gguf
import gguf_files
import numpy as np
import pytest
import test_ngram_families as ngram_families
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import RECIPES, SHAPES, Layer, Recipe, Run, write
from safetensors import safe_open
from safetensors.torch import save_file

import tolpack
from tolpack.cli import main
from tolpack.codecs.encodings import Part
from tolpack.export import stored_table
from tolpack.runtime.progress import Reporter

FLOATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
SCALES = {"f8e4m3-step": None, "f8e4m3-e8m0": torch.float8_e8m0fnu, "f8e4m3": torch.float32}
GGML = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
ROWS = 700
PAGE = Path(__file__).parents[1] / "docs" / "convert.md"
GEMMA = {"model_type": "gemma3n", "vocab_size": 64, "vocab_size_per_layer_input": 60,
         "hidden_size_per_layer_input": 16, "num_hidden_layers": 3}  # fmt: skip


class Listener(Reporter):
    """Keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        """See `Reporter`."""
        self.lines.append(text)


def run(*args):
    """Run the command line in this process."""
    return CliRunner().invoke(main, [str(arg) for arg in args])


def float_tensor(codec, rows=ROWS, width=48, seed=0):
    """Return random values, (rows, width)."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=source).to(FLOATS[codec])


def float8_tensors(codec, name="e", rows=ROWS, width=64):
    """Return random fp8 codes and their scales, by name."""
    source = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 256, (rows, width), generator=source, dtype=torch.uint8)
    codes[codes & 127 == 127] = 5  # those are NaN
    dtype = SCALES[codec]
    if dtype is None:
        scales = torch.tensor(0.0123)
    elif dtype is torch.float32:
        scales = torch.rand(rows, width // 32, generator=source) + 0.1
    else:
        powers = torch.randint(100, 150, (rows, width // 32), generator=source, dtype=torch.uint8)
        scales = powers.view(dtype)
    return {f"{name}.weight": codes.view(torch.float8_e4m3fn), f"{name}.weight_scale": scales}


def build(source, path, **settings):
    """Build a lossless pack; returns its path."""
    return tolpack.build(source, path, **{"bits": "lossless", **settings}).path


def raw(tensor):
    """Return the bytes of a tensor."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def read(path):
    """Return the tensors of a safetensors file by the library: name → dtype, shape and bytes."""
    with safe_open(path, "pt") as file:
        names = file.keys()
        found = {name: file.get_tensor(name) for name in names}
    return {name: (one.dtype, tuple(one.shape), raw(one)) for name, one in found.items()}


def read_gguf(path):
    """Return the tensors of a GGUF file by the package: name → type, shape and bytes."""
    return {
        one.name: (one.tensor_type.name, tuple(one.shape.tolist()[::-1]), one.data.tobytes())
        for one in gguf.GGUFReader(path).tensors
    }


def expected(tensors):
    """Return what `read` gives for these tensors."""
    return {name: (one.dtype, tuple(one.shape), raw(one)) for name, one in tensors.items()}


def rows_of(path, table=None):
    """Return all rows of a pack, float32 (rows, fields, width)."""
    with tolpack.open(path, table=table) as pack:
        return pack.rows(np.arange(pack.vocab_size))


def frames_of(path):
    """Return the frames of a pack's chunks."""
    with tolpack.open(path) as pack:
        return {view.encoding.frame for view in pack.container.chunks}


# -- the model's bytes ---------------------------------------------------------------------------


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("compression", ["none", "auto"])
@pytest.mark.parametrize("codec", FLOATS)
def test_floats_come_back(codec, compression, shuffled, tmp_path):
    """A tensor of floats is the same after a build and a conversion, and builds the same pack."""
    name, tensor = "model.embed.weight", float_tensor(codec)
    save_file({name: tensor, "other": torch.zeros(2, 2)}, tmp_path / "m.safetensors")
    given = {"tensor": name, "layers": 3, "compression": compression}
    if shuffled:
        np.save(tmp_path / "n.npy", np.random.default_rng(0).integers(0, 99, ROWS))
        given["frequencies"] = tmp_path / "n.npy"
    pack = build(tmp_path / "m.safetensors", tmp_path / "p.tolpack", **given)
    if compression == "none":
        assert frames_of(pack) == {"raw"}
    elif codec == "bf16" and not shuffled:
        assert "zstd-planes" in frames_of(pack)
    result = tolpack.convert(pack, tmp_path / "t.safetensors", dtype="stored")
    assert read(result.path) == expected({name: tensor})
    assert result.shape == (ROWS, 48)
    again = build(result.path, tmp_path / "q.tolpack", **given)
    assert rows_of(again).tobytes() == rows_of(pack).tobytes()
    if codec != "bf16":
        found = np.load(tolpack.convert(pack, tmp_path / "t.npy", dtype="stored").path)
        assert found.shape == (ROWS, 48)
        assert found.dtype == tensor.numpy().dtype
        assert found.tobytes() == raw(tensor)


@pytest.mark.parametrize("compression", ["none", "auto"])
@pytest.mark.parametrize("codec", SCALES)
def test_float8_comes_back_with_its_scales(codec, compression, tmp_path):
    """Codes and scales, one number or one for each group, are those of the model's file."""
    tensors = float8_tensors(codec)
    save_file(tensors, tmp_path / "m.safetensors")
    given = {"tensor": "e.weight", "compression": compression}
    given["layers"] = 2
    pack = build(tmp_path / "m.safetensors", tmp_path / "p.tolpack", **given)
    result = tolpack.convert(pack, tmp_path / "t.safetensors", dtype="stored")
    assert read(result.path) == expected(tensors)
    assert [one["name"] for one in result.tables[0].tensors] == list(tensors)
    again = build(result.path, tmp_path / "q.tolpack", **given)
    assert rows_of(again).tobytes() == rows_of(pack).tobytes()


@pytest.mark.parametrize("compression", ["none", "auto"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", GGML)
def test_ggml_blocks_come_back(kind, layers, compression, tmp_path):
    """A tensor of a GGUF file is the same block for block, read by the package."""
    if kind.startswith("Q"):
        stored = gguf_files.random_blocks(kind, ROWS, 96)
    else:
        stored = gguf_files.quantize(float_tensor("f32", width=96).numpy(), kind)
    gguf_files.write(tmp_path / "m.gguf", {"token_embd.weight": (stored, kind)})
    given = {"tensor": "token_embd.weight", "layers": layers, "compression": compression}
    pack = build(tmp_path / "m.gguf", tmp_path / "p.tolpack", **given)
    result = tolpack.convert(pack, tmp_path / "t.gguf", dtype="stored")
    assert read_gguf(result.path) == {"token_embd.weight": (kind, (ROWS, 96), stored.tobytes())}
    again = build(result.path, tmp_path / "q.tolpack", **given)
    assert rows_of(again).tobytes() == rows_of(pack).tobytes()


def test_per_layer_embeddings_are_one_tensor_and_not_multiplied(tmp_path):
    """Gemma's fields are the columns of its tensor; what rows are multiplied by is said."""
    tensor = float_tensor("bf16", 60)
    folder = tmp_path / "m"
    folder.mkdir()
    save_file({"model.embed_tokens_per_layer.weight": tensor}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(GEMMA), encoding="utf-8")
    pack, listener = build(folder, tmp_path / "p.tolpack"), Listener()
    result = tolpack.convert(pack, tmp_path / "t.safetensors", dtype="stored", reporter=listener)
    assert read(result.path) == expected({"embed_tokens_per_layer": tensor})
    assert result.tables[0].multiplier == 4
    assert "not multiplied: rows of the pack are 4 times them" in listener.lines[0]
    with safe_open(result.path, "np") as file:
        texts = file.metadata()
    assert (texts["dtype"], texts["multiplier"]) == ("stored", "4.0")
    stored = {"width": 16, "codec": "bf16", "group_size": None}
    assert json.loads(texts["fields"]) == [
        {"name": f"layer.{n}", "layer": n, **stored} for n in range(3)
    ]
    shown = run("convert", pack, tmp_path / "u.safetensors", "--dtype", "stored").stdout
    assert shown.endswith("not multiplied by 4\n")
    tolpack.convert(pack, tmp_path / "f.npy")
    assert np.array_equal(np.load(tmp_path / "f.npy").reshape(60, 48), tensor.float().numpy() * 4)


def test_shards_are_joined(tmp_path):
    """Tensors that are one table come as one tensor, one after the other."""
    shards = {f"t.shard_{n}.weight": float_tensor("bf16", n + 5, 8, n) for n in range(11)}
    save_file(shards, tmp_path / "m.safetensors")
    pack = build(tmp_path / "m.safetensors", tmp_path / "p.tolpack", tensor="t.shard_*.weight")
    path = tolpack.convert(pack, tmp_path / "t.safetensors", dtype="stored").path
    whole = torch.cat([shards[f"t.shard_{n}.weight"] for n in range(11)])
    assert read(path) == expected({"t.shard_*.weight": whole})
    again = build(path, tmp_path / "q.tolpack", tensor="t.shard_*.weight")
    assert np.array_equal(rows_of(again), rows_of(pack))


# -- several tables ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engram(tmp_path_factory):
    """A pack of two tables in fp8, and the tensors that it was built from."""
    folder = tmp_path_factory.mktemp("engram")
    tensors = ngram_families.deepseek()
    ngram_families.save(folder / "m", tensors, ngram_families.DEEPSEEK_CONFIG)
    found = {}
    for layer in (1, 14):
        name = f"layers.{layer}.engram.embed"
        found[f"layer.{layer}"] = tensors[f"{name}.weight"]
        found[f"layer.{layer}.weight_scale"] = tensors[f"{name}.scale"]
    return build(folder / "m", folder / "p.tolpack"), found


def test_several_tables_are_several_tensors(engram, tmp_path):
    """All tables of a pack are in one file, each under its name, and can be built again."""
    pack, tensors = engram
    result = tolpack.convert(pack, tmp_path / "t.safetensors", dtype="stored")
    assert read(result.path) == expected(tensors)
    assert result.shape is None
    assert [one.name for one in result.tables] == ["layer.1", "layer.14"]
    with safe_open(result.path, "np") as file:
        tables = json.loads(file.metadata()["tables"])
    assert [one["vocab_size"] for one in tables] == [len(tensors[f"layer.{n}"]) for n in (1, 14)]
    for name in ("layer.1", "layer.14"):
        again = build(result.path, tmp_path / f"{name}.tolpack", tensor=name)
        assert np.array_equal(rows_of(again), rows_of(pack, name))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_several_tables_as_values(dtype, tmp_path):
    """Other dtypes give the rows of all tables as tensors, with the rounding of all."""
    pack = write(tmp_path / "p", SHAPES["two-tables"]).path
    result = tolpack.convert(pack, tmp_path / "t.safetensors", dtype=dtype)
    names, changed = ("layer.1", "layer.14", "layer.15"), []
    with safe_open(result.path, "pt") as file:
        assert sorted(file.keys()) == sorted(names)
        for name in names:
            exact, found = torch.from_numpy(rows_of(pack, name)), file.get_tensor(name)
            assert torch.equal(found, exact.to(getattr(torch, dtype)))
            changed.append(int((found.float() != exact).sum()))
        tables = json.loads(file.metadata()["tables"])
    assert [one["changed_values"] for one in tables] == changed
    assert result.changed_values == sum(changed)
    assert (sum(changed) > 0) == (dtype != "float32")


def test_one_of_several_tables(engram, tmp_path):
    """``--table`` chooses one, which every format can hold."""
    pack, tensors = engram
    path = tmp_path / "t.safetensors"
    done = run("convert", pack, path, "--dtype", "stored", "--table", "layer.14", "--json")
    assert read(path) == expected({k: v for k, v in tensors.items() if k.startswith("layer.14")})
    found = json.loads(done.stdout)
    assert found["shape"] == list(tensors["layer.14"].shape)
    assert found["tables"] == [{
        "name": "layer.14", "dropped_layers": [], "multiplier": 1.0,
        "tensors": [
            {"name": "layer.14", "dtype": "float8_e4m3fn", "shape": found["shape"]},
            {"name": "layer.14.weight_scale", "dtype": "float8_e8m0fnu",
             "shape": [found["shape"][0], 2]},
        ],
    }]  # fmt: skip
    for suffix in (".npy", ".h5"):
        result = tolpack.convert(pack, tmp_path / f"t{suffix}", table="layer.1")
        assert result.shape == rows_of(pack, "layer.1").shape
    assert np.array_equal(np.load(tmp_path / "t.npy"), rows_of(pack, "layer.1"))


@pytest.mark.parametrize("dtype", ["float32", "stored"])
def test_files_of_one_tensor_refuse_several_tables(dtype, engram, tmp_path):
    """The error names the tables, the format that holds them, and the option that chooses one."""
    for suffix in (".npy", ".h5") if dtype == "float32" else (".npy",):
        done = run("convert", engram[0], tmp_path / f"t{suffix}", "--dtype", dtype)
        assert done.exit_code == 1
        assert "2 tables, 'layer.1', 'layer.14': use .safetensors" in done.stderr
        assert "--table NAME" in done.stderr
    done = run("convert", engram[0], tmp_path / "t.safetensors", "--table", "layer.2")
    assert "no table 'layer.2': it has 'layer.1', 'layer.14'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_several_tables_of_ggml(tmp_path):
    """GGUF files with a table for each layer come back whole."""
    tensors = {
        f"blk.{n}.engram_embd.weight": (gguf_files.random_blocks("Q8_0", 40 + n, 64, n), "Q8_0")
        for n in (3, 7)
    }
    gguf_files.write(tmp_path / "m.gguf", tensors)
    pack = build(tmp_path / "m.gguf", tmp_path / "p.tolpack")
    path = tolpack.convert(pack, tmp_path / "t.gguf", dtype="stored").path
    assert read_gguf(path) == {
        name: (kind, (len(stored), 64), stored.tobytes())
        for name, (stored, kind) in tensors.items()
    }
    assert build(path, tmp_path / "q.tolpack").stat().st_size == pack.stat().st_size


# -- any pack ------------------------------------------------------------------------------------

_PARTS = st.sampled_from(["f32", "f16", "bf16"])


@st.composite
def float_recipes(draw):
    """Packs of floats in any number of chunks, frames and fields of one or several kinds."""
    codecs = draw(st.lists(_PARTS, min_size=1, max_size=3))
    if draw(st.booleans()):
        codecs = codecs[:1] * len(codecs)
    width = draw(st.integers(1, 9))
    runs = st.builds(
        Run, st.integers(1, 40), st.sampled_from(["raw", "zstd", "zstd-planes"]), st.integers(1, 7)
    )
    return Recipe(
        width,
        tuple(Layer((Part(codec, width),)) for codec in codecs),
        tuple(draw(st.lists(runs, min_size=1, max_size=4))),
        shuffled=draw(st.booleans()),
    )


@settings(max_examples=20, deadline=None)
@given(recipe=float_recipes(), rows=st.integers(1, 50))
def test_any_pack_of_floats(recipe, rows, tmp_path_factory):
    """However a pack is cut into chunks and blocks, tensors hold its rows, bit for bit."""
    folder = tmp_path_factory.mktemp("any")
    sample = write(folder / "p", recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_table, "_BLOCK_ROWS", rows)
        path = tolpack.convert(sample.path, folder / "t.safetensors", dtype="stored").path
    exact = torch.from_numpy(rows_of(sample.path))
    codecs = [layer.parts[0].codec for layer in recipe.layers]
    if len(set(codecs)) == 1:
        wanted = {"tols": exact.flatten(1).to(FLOATS[codecs[0]])}
    else:
        names = [field.name for field in sample.header.tables[0].fields]
        wanted = {f"tols.{name}": exact[:, n].to(FLOATS[codecs[n]]) for n, name in enumerate(names)}
    assert read(path) == expected(wanted)


def test_fields_of_different_widths_are_tensors_of_their_own(tmp_path):
    """Each has its own name and shape, in `.gguf` too; a `.npy` cannot hold them."""
    layers = tuple(Layer((Part("bf16", width),), width=width) for width in (6, 10, 6))
    sample = write(tmp_path / "p", Recipe(6, layers, (Run(7, "raw", 3),), shuffled=True))
    result = tolpack.convert(sample.path, tmp_path / "t.safetensors", dtype="stored")
    assert result.shape is None
    with tolpack.open(sample.path) as pack:
        wanted = {
            f"tols.{field.name}": torch.from_numpy(pack.rows(range(7), [n])[:, 0]).bfloat16()
            for n, field in enumerate(pack.fields)
        }
    assert read(result.path) == expected(wanted)
    path = tolpack.convert(sample.path, tmp_path / "t.gguf", dtype="stored").path
    assert read_gguf(path) == {
        name: ("BF16", tuple(one.shape), raw(one)) for name, one in wanted.items()
    }
    with pytest.raises(tolpack.ConfigError, match=r"these are 3 tensors, .*: use .safetensors"):
        tolpack.convert(sample.path, tmp_path / "t.npy", dtype="stored")


@pytest.mark.parametrize("name", ["f8e4m3", "f8e4m3-e8m0", "f8e4m3-step"])
def test_fields_that_are_not_stored_alike_are_tensors_of_their_own(name, samples, tmp_path):
    """Scales of groups that end inside a field, or differ between fields, keep their field."""
    sample, recipe = samples[name], RECIPES[name]
    path = tolpack.convert(sample.path, tmp_path / "t.safetensors", dtype="stored").path
    exact, part = rows_of(sample.path), recipe.layers[0].parts[0]
    with safe_open(path, "pt") as file:
        for n, field in enumerate(sample.header.tables[0].fields):
            scales = file.get_tensor(f"tols.{field.name}.weight_scale").float()
            if part.group_size:
                scales = scales.repeat_interleave(part.group_size, 1)[:, : recipe.width]
            values = file.get_tensor(f"tols.{field.name}").float() * scales
            assert np.array_equal(values.numpy(), exact[:, n], equal_nan=True)


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("int4", "'layer.0' of table 'tols' is stored as int4, as no model's file is"),
        ("int8", "is stored as int8"),
        ("steps", "is stored as step8|has a mean"),
        ("dropped", "'layer.0' of table 'tols' was dropped"),
        ("basis", "has a basis"),
        ("mixed-parts", "is stored as int4 and int8, as"),
        ("planes", "is not stored in one way|is stored as int4 and step16"),
    ],
)
def test_what_no_model_stores_is_refused(name, why, samples, tmp_path):
    """The error names the field, why it has no stored values, and the dtype that there is."""
    with pytest.raises(tolpack.ConfigError, match=why) as caught:
        tolpack.convert(samples[name].path, tmp_path / "t.safetensors", dtype="stored")
    assert "--dtype stored is for what --bits lossless stores; use --dtype float32" in str(
        caught.value
    )
    assert list(tmp_path.iterdir()) == []


def test_chunks_that_are_stored_differently_are_refused(tmp_path):
    """One tensor has one dtype."""
    other = ((Part("f16", 4),),)
    recipe = Recipe(4, (Layer((Part("bf16", 4),)),), (Run(5), Run(5, parts=other)))
    pack = write(tmp_path / "p", recipe).path
    with pytest.raises(tolpack.ConfigError, match="is not stored in one way"):
        tolpack.convert(pack, tmp_path / "t.safetensors", dtype="stored")


@pytest.mark.parametrize(
    ("part", "suffix", "message"),
    [
        (Part("q8_0", 64, 32), ".safetensors", "is q8_0, which .safetensors has not: use .gguf"),
        (Part("q4_0", 64, 32), ".npy", "is q4_0, which .npy has not: use .gguf"),
        (Part("bf16", 64), ".npy", "which .npy has not: use .safetensors or .gguf"),
        (Part("f8e4m3-step", 64, step=0.5), ".gguf", "is float8_e4m3fn, which .gguf has not"),
        (Part("f8e4m3", 64, 32), ".npy", "holds one tensor, and these are 2 tensors, 'tols', "),
        (Part("q8_0", 64, 16), ".gguf", "64 values of q8_0 in groups of 16 are not a type of GGML"),
    ],
)
def test_dtypes_that_a_format_has_not(part, suffix, message, tmp_path):
    """The error names the dtype and the formats that have it."""
    pack = write(tmp_path / "p", Recipe(64, (Layer((part,)),), (Run(3),))).path
    with pytest.raises(tolpack.ConfigError, match=re.escape(message)):
        tolpack.convert(pack, tmp_path / f"t{suffix}", dtype="stored")
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize(
    ("name", "dtype", "words"),
    [
        ("t.h5", "stored", ".h5 cannot hold stored values: use .safetensors, .gguf or .npy"),
        ("t.gguf", "float32", ".gguf is for --dtype stored only"),
    ],
)
def test_wrong_usage(name, dtype, words, samples, tmp_path):
    """A dtype that a format is not written in is wrong usage, before anything is read."""
    done = run("convert", samples["f16"].path, tmp_path / name, "--dtype", dtype)
    assert done.exit_code == 2
    assert words in done.stderr


def test_names_that_tensors_cannot_have(tmp_path):
    """Two tensors of one name, and names too long for GGUF, are errors that name the remedy."""
    fp8 = (Layer((Part("f8e4m3-step", 4, step=0.5),)),)
    more = (Recipe(4, (Layer((Part("f32", 4),)),), (Run(3),), name="a.weight_scale"),)
    pack = write(tmp_path / "p", Recipe(4, fp8, (Run(3),), name="a", more=more)).path
    with pytest.raises(tolpack.ConfigError, match=r"two tensors would be called 'a.weight_scale'"):
        tolpack.convert(pack, tmp_path / "t.safetensors", dtype="stored")
    long = write(tmp_path / "q", Recipe(4, more[0].layers, (Run(3),), name="x" * 64)).path
    with pytest.raises(tolpack.ConfigError, match="has 64 characters, and GGUF allows 63"):
        tolpack.convert(long, tmp_path / "t.gguf", dtype="stored")
    reserved = write(tmp_path / "r", Recipe(4, more[0].layers, (Run(3),), name="__metadata__")).path
    with pytest.raises(tolpack.ConfigError, match="would be called '__metadata__'"):
        tolpack.convert(reserved, tmp_path / "t.safetensors", dtype="stored")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "q", "r"]


@pytest.mark.parametrize("table", [0, 1])
@pytest.mark.parametrize("frame", ["raw", "zstd"])
def test_damage_is_named_and_leaves_nothing(frame, table, tmp_path):
    """Blocks are verified as they are read; the error names block, slots and byte."""
    layers, runs = (Layer((Part("bf16", 50),)),), (Run(3), Run(30, frame, 4))
    recipe = Recipe(50, layers, runs, name="a", more=(Recipe(50, layers, runs, name="b"),))
    sample = write(tmp_path / "p", recipe)
    with tolpack.open(sample.path, table="ab"[table]) as pack:
        offset, length = pack.container.block_extent(1, 5)
    data = bytearray(sample.data)
    data[offset + length // 2] ^= 1
    (tmp_path / "p").write_bytes(data)
    with pytest.raises(tolpack.ChecksumError) as caught:
        tolpack.convert(tmp_path / "p", tmp_path / "t.safetensors", dtype="stored")
    place = f"chunk 1 of {'ab'[table]}, block 5 (slots from 23, byte {offset})"
    assert caught.value.place == place
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    """What docs/convert.md shows of stored values runs, and cuts a tensor into its fields."""
    monkeypatch.chdir(tmp_path)
    layers = tuple(Layer((Part("bf16", width),), width=width) for width in (5, 5))
    write(tmp_path / "lossless.tolpack", Recipe(5, layers, (Run(4),), name="embeddings"))
    quantized = Recipe(64, (Layer((Part("q8_0", 64, 32),)),), (Run(4),))
    write(tmp_path / "quantized.tolpack", quantized)
    text = PAGE.read_text(encoding="utf-8").partition("## The model's own tensors")[2]
    shown = re.findall(r"^\$ tolpack (.*)", text.partition("\n## ")[0], flags=re.M)
    for line in shown:
        assert run(*line.split()).exit_code == 0
    assert len(shown) == 2
    names = {}
    exec(textwrap.dedent(re.search(r"(?s)```python\n(.*?)```", text)[1]), names)
    exact = rows_of("lossless.tolpack")
    found = [one.float().numpy() for one in names["layers"].values()]
    assert np.array_equal(np.stack(found, axis=1), exact)
    with tolpack.open("lossless.tolpack") as pack:
        assert list(names["layers"]) == [field.name for field in pack.fields]


# -- what it takes -------------------------------------------------------------------------------

_PEAK = """
import re, sys, tolpack
def peak():  # not ru_maxrss, which begins with the parent's
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
tolpack.convert(sys.argv[1], sys.argv[3], dtype="stored", force=True)
before = peak()
size = tolpack.convert(sys.argv[2], sys.argv[3], dtype="stored", force=True).bytes
print(size, peak() - before)
"""


def test_memory_does_not_grow_with_the_table(samples, tmp_path):
    """A table of 98 MB takes less than half of that in memory."""
    layers = (Layer((Part("bf16", 1024),)),) * 2
    large = write(tmp_path / "p", Recipe(1024, layers, (Run(24_000, "raw", 2),))).path
    args = [samples["f16"].path, large, tmp_path / "t.safetensors"]
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, *map(str, args)], capture_output=True, text=True, check=True
    )
    size, grown = map(int, done.stdout.split())
    assert size > 98e6
    assert grown * 1024 < 45e6


def test_gguf_needs_its_package(samples, tmp_path):
    """Without it the error says how to install it, and nothing is left; others need nothing."""
    script = (
        "import sys\n"
        "for name in ('torch', 'safetensors', 'h5py', 'gguf'):\n"
        "    sys.modules[name] = None\n"
        "from tolpack.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", script, "convert", str(samples["f16"].path)]
    for suffix, code in ((".gguf", 1), (".safetensors", 0)):
        done = subprocess.run(
            [*command, str(tmp_path / f"t{suffix}"), "--dtype", "stored"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert ("pip install 'tolpack[gguf]'" in done.stderr) == (suffix == ".gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]
