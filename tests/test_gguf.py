"""Tables in GGUF files, against the gguf package's own quantization and dequantization."""

import dataclasses
import importlib.util
import json
import os
import tracemalloc

import gguf_files
import numpy as np
import pytest
from click.testing import CliRunner

import tolpack
from tolpack.cli import main
from tolpack.codecs.encodings import Part
from tolpack.codecs.part_values import decode_values
from tolpack.errors import CheckpointError, ConfigError
from tolpack.ngrams import NGramHash
from tolpack.sources.gguf.blocks import ggml_blocks
from tolpack.sources.gguf.open_gguf import PER_LAYER, open_gguf

ROWS = 37
IDS = np.array([0, 36, 5, 6, 7, 5, 30], np.int64)
GEMMA = {"gemma3n.embedding_length_per_layer_input": 256, "gemma3n.block_count": 3}


def values(rows=ROWS, width=512, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def write_one(path, stored, kind, name="token_embd.weight", **options):
    return gguf_files.write(path, {name: (stored, kind)}, **options)


def open_named(path, name="token_embd.weight", layers=None):
    (table,) = open_gguf(path, name, layers)
    return table


def all_rows(table, ids=None):
    """Return float32 (ids, all values)."""
    ids = np.arange(table.rows) if ids is None else ids
    return np.concatenate([table.field_rows(n)(ids) for n in range(len(table.fields))], axis=1)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", gguf_files.QUANTIZED + gguf_files.DEQUANTIZED)
def test_rows_are_what_the_package_dequantizes(tmp_path, kind, layers):
    """Rows of every type are those of gguf.quants.dequantize, bit for bit, whole or in fields."""
    if kind in gguf_files.QUANTIZED:
        stored = gguf_files.quantize(values(), kind)
    else:
        stored = gguf_files.random_blocks(kind, ROWS, 512)
    path = write_one(tmp_path / "m.gguf", stored, kind)
    table = open_named(path, layers=layers)
    expected = gguf_files.dequantize(stored, kind)
    assert (table.rows, len(table.fields), table.hidden_size) == (ROWS, layers, 512 // layers)
    assert np.array_equal(all_rows(table), expected)
    assert np.array_equal(all_rows(table, IDS), expected[IDS])


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_stored_rows_lead_back_to_the_files_bytes(tmp_path, kind):
    """Scales and codes decode to the rows, and make the file's own blocks again, bit for bit."""
    if kind.startswith("Q"):
        stored = gguf_files.random_blocks(kind, ROWS, 512)
    else:
        stored = gguf_files.quantize(values(), kind)
    table = open_named(write_one(tmp_path / "m.gguf", stored, kind))
    scales, codes = table.stored_rows(0)(IDS)
    part = table.fields[0].part
    assert scales.shape == (7, part.scale_bytes)
    assert codes.shape == (7, part.code_bytes)
    assert np.array_equal(decode_values(scales, codes, part), table.field_rows(0)(IDS))
    name, blocks = ggml_blocks(scales, codes, part)
    assert name == kind
    assert blocks.tobytes() == stored[IDS].tobytes()


def test_other_types_are_float32(tmp_path):
    """A type for which a pack has no codec is stored as the float32 values that it stands for."""
    stored = gguf_files.random_blocks("Q6_K", ROWS, 512)
    table = open_named(write_one(tmp_path / "m.gguf", stored, "Q6_K"))
    assert table.fields[0].part == Part("f32", 512)
    scales, codes = table.stored_rows(0)(IDS)
    assert scales.size == 0
    assert codes.tobytes() == gguf_files.dequantize(stored, "Q6_K")[IDS].tobytes()
    assert table.describe() == [
        "family: GGUF",
        "token_embd.weight  37 rows of 420 bytes, Q6_K",
    ]


@pytest.mark.parametrize(
    "part", [Part("int8", 64, 32), Part("q8_0", 64, 16), Part("q8_0", 48, 32), Part("step8", 64)]
)
def test_parts_that_are_no_type_of_ggml_are_refused(part):
    """Only the codecs that GGML has, in groups of 32, are made into blocks."""
    with pytest.raises(ConfigError, match="are not a type of GGML, expected one of f32, f16"):
        ggml_blocks(np.zeros((1, 4), np.uint8), np.zeros((1, 64), np.uint8), part)


def test_per_layer_embeddings_of_gemma(tmp_path):
    """Gemma's table has a field of 256 values for each layer, with the multiplier 16."""
    stored = gguf_files.quantize(values(width=768), "Q8_0")
    other = gguf_files.quantize(values(), "F16")
    tensors = {"token_embd.weight": (other, "F16"), PER_LAYER: (stored, "Q8_0")}
    path = gguf_files.write(tmp_path / "m.gguf", tensors, "gemma3n", GEMMA)
    for (table,) in (open_gguf(path), open_gguf(path, PER_LAYER)):
        assert table.name == PER_LAYER
        assert [(one.name, one.layer, one.width) for one in table.fields] == [
            (f"layer.{n}", n, 256) for n in range(3)
        ]
        assert {one.multiplier for one in table.fields} == {16.0}
        assert np.array_equal(all_rows(table), gguf_files.dequantize(stored, "Q8_0"))
    assert open_named(path).fields[0].multiplier == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gemma3n.block_count": 4}, r"expected \[vocab, 1024\]: 4 layers \(gemma3n.block_count\)"),
        ({"gemma3n.block_count": 0}, "gemma3n.block_count is 0, expected an integer from 1"),
        ({"gemma3n.embedding_length_per_layer_input": None}, "per_layer_input is None, expected"),
    ],
)
def test_per_layer_metadata_must_fit_the_shape(tmp_path, changed, message):
    """Layers and width come from the metadata, and are never guessed from the shape."""
    stored = gguf_files.quantize(values(width=768), "F16")
    numbers = {key: value for key, value in (GEMMA | changed).items() if value is not None}
    path = write_one(tmp_path / "m.gguf", stored, "F16", PER_LAYER, arch="gemma3n", numbers=numbers)
    with pytest.raises(CheckpointError, match=message):
        open_gguf(path)


QWEN = {
    "embedding_length_per_layer_input": 160, "block_count": 48, "ple.layers": [1],
    "ple.ngram_size": 3, "ple.heads_per_ngram": 2, "ple.eos_token_id": 7,
    "ple.layer_multipliers": [3, 2**62 + 1, 5], "ple.head_vocab_sizes": [7, 11, 5, 13],
    "ple.head_offsets": [0, 7, 18, 23],
}  # fmt: skip


def write_qwen(path, **changes):
    """Write a Qwen4Exp as llama.cpp's converter does."""
    stored = gguf_files.quantize(values(width=160), "Q4_1")
    numbers = {f"qwen4exp.{key}": value for key, value in (QWEN | changes).items()}
    return write_one(path, stored, "Q4_1", PER_LAYER, arch="qwen4exp", numbers=numbers)


def test_the_same_tensor_of_qwen4exp_is_a_table_of_ngrams(tmp_path):
    """There it holds one field, multiplied by nothing, and the hash is in the metadata."""
    (table,) = open_gguf(write_qwen(tmp_path / "m.gguf"))
    assert [(one.layer, one.width, one.multiplier) for one in table.fields] == [(1, 160, 1.0)]
    assert table.ngrams == NGramHash(
        "xor", (2, 2, 3, 3), (7, 11, 5, 13), (0, 7, 18, 23), (3, 2**62 + 1, 5), 7, 7
    )
    (table,) = open_gguf(
        write_one(tmp_path / "o.gguf", values(width=160), "F32", PER_LAYER, arch="other")
    )
    assert (len(table.fields), table.ngrams) == (1, None)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ple.head_offsets", [0, 7, 18, 25], "37 rows, but the heads of .* have 38"),
        ("ple.head_offsets", [0, 7, 18], "qwen4exp.ple.. give no hash: "),
        ("ple.head_offsets", 7, "head_offsets is 7, expected a short list of integers"),
        ("ple.heads_per_ngram", 0, "heads_per_ngram is 0, expected an integer from 1 on"),
        ("ple.eos_token_id", 2**31, "eos_token_id is 2147483648, expected an integer from 0"),
    ],
)
def test_the_hash_must_fit_the_table(tmp_path, key, value, message):
    """A hash whose numbers do not fit each other, or the rows, is an error."""
    path = write_qwen(tmp_path / "m.gguf", **{key: value})
    with pytest.raises(CheckpointError, match=message):
        open_gguf(path)


def test_engram_tables_are_one_for_each_layer(tmp_path):
    """Each blk.N.engram_embd.weight is a table of its own, in the order of the layers."""
    tensors = {
        f"blk.{layer}.engram_embd.weight": (gguf_files.quantize(values(rows, 64), "Q8_0"), "Q8_0")
        for layer, rows in ((14, 5), (1, 9))
    }
    tables = open_gguf(gguf_files.write(tmp_path / "m.gguf", tensors))
    assert [(one.name, one.rows, one.fields[0].layer) for one in tables] == [
        ("blk.1.engram_embd.weight", 9, 1),
        ("blk.14.engram_embd.weight", 5, 14),
    ]


def test_two_tables_of_one_layer_are_both_named(tmp_path):
    """Of two tensors with one layer's number none is taken."""
    stored = gguf_files.quantize(values(9, 64), "F16")
    tensors = {f"blk.{n}.engram_embd.weight": (stored, "F16") for n in ("1", "01")}
    path = gguf_files.write(tmp_path / "m.gguf", tensors)
    with pytest.raises(CheckpointError, match=r"'blk\.0?1\..*' and 'blk\.0?1\..*expected one"):
        open_gguf(path)


def test_three_dimensions_are_layers(tmp_path):
    """A tensor [vocab, layers, values] has a field for each layer."""
    whole = values(width=192)
    path = write_one(tmp_path / "m.gguf", whole.reshape(ROWS, 3, 64), "F32", "x")
    table = open_named(path, "x")
    assert len(table.fields) == 3
    assert np.array_equal(all_rows(table), whole)


def test_what_is_no_table_is_refused_with_names(tmp_path):
    """Without a table, with an unknown name, or with a vector, errors name what is there."""
    tensors = {
        "token_embd.weight": (values(width=64), "F32"),
        "output_norm.weight": (values(1, 64)[0], "F32"),
    }
    path = gguf_files.write(tmp_path / "m.gguf", tensors)
    with pytest.raises(CheckpointError, match="neither per_layer_token_embd.weight nor .*--tensor"):
        open_gguf(path)
    with pytest.raises(CheckpointError, match="no tensor 'token_emb.weight', .*token_embd.weight"):
        open_gguf(path, "token_emb.weight")
    with pytest.raises(CheckpointError, match=r"output_norm.weight' has shape \[64\], expected"):
        open_gguf(path, "output_norm.weight")
    with pytest.raises(CheckpointError, match="cannot be cut into 5 layers"):
        open_gguf(path, "token_embd.weight", 5)
    with pytest.raises(CheckpointError, match="cannot be cut into 0 layers"):
        open_gguf(path, "token_embd.weight", 0)
    with pytest.raises(ConfigError, match="--layers is for one tensor"):
        open_gguf(path, layers=2)


def test_layers_are_whole_blocks(tmp_path):
    """A row is not cut within a block, whose values share a scale."""
    path = write_one(tmp_path / "m.gguf", gguf_files.random_blocks("Q6_K", 3, 512), "Q6_K")
    with pytest.raises(CheckpointError, match="4 layers of whole blocks of 256 values"):
        open_named(path, layers=4)


def test_the_package_may_be_missing(tmp_path, monkeypatch):
    """Without the gguf package the error has the line that installs it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs gguf: pip install 'tolpack\[gguf\]'"):
        open_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q6_K"])
def test_values_that_are_not_finite_are_refused(tmp_path, kind):
    """NaN and infinity in a row are an error that names its token, also in stored rows."""
    if kind == "F16":
        stored = gguf_files.quantize(values(), kind)
        stored[7, 3] = np.inf
    else:
        stored = gguf_files.random_blocks(kind, ROWS, 512)
        place = {"Q8_0": 0, "Q6_K": 208}[kind]
        stored[7, place : place + 2] = np.array([np.nan], np.float16).view(np.uint8)
    table = open_named(write_one(tmp_path / "m.gguf", stored, kind))
    for rows in (table.field_rows(0), table.stored_rows(0)):
        rows(np.array([6, 8]))
        with pytest.raises(CheckpointError, match="NaN or Inf at token 7, layer 0"):
            rows(np.arange(ROWS))


def test_fingerprint_sees_every_bit_and_the_name(tmp_path):
    """Another bit, type or name changes the fingerprint; other tensors do not."""
    stored = gguf_files.random_blocks("Q8_0", ROWS, 64)
    changed = stored.copy()
    changed[-1, -1] ^= 1
    first = open_named(write_one(tmp_path / "a.gguf", stored, "Q8_0")).fingerprint()
    tensors = {
        "b": (values(), "F32"), "token_embd.weight": (stored, "Q8_0"), "c": (stored, "Q8_0"),
    }  # fmt: skip
    path = gguf_files.write(tmp_path / "b.gguf", tensors)
    assert open_named(path).fingerprint() == first
    assert open_named(path, "c").fingerprint() != first
    path = write_one(tmp_path / "c.gguf", changed, "Q8_0")
    assert open_named(path).fingerprint() != first


def test_check_counts_all_bytes(tmp_path):
    """`check` reads every byte of the tensor once, and says how many."""
    stored = gguf_files.random_blocks("Q4_0", ROWS, 64)
    table = open_named(write_one(tmp_path / "m.gguf", stored, "Q4_0"))
    sizes = []
    table.check(sizes.append)
    assert sum(sizes) == table.stored_bytes == stored.nbytes


def test_changed_files_are_noticed(tmp_path):
    """A file that is cut off or replaced behind the table's back gives an error, not rows."""
    path = write_one(tmp_path / "m.gguf", gguf_files.quantize(values(), "F32"), "F32")
    table = open_named(path)
    rows = table.field_rows(0)
    table.check_unchanged()
    os.truncate(path, path.stat().st_size - 2000)
    with pytest.raises(CheckpointError, match=r"m\.gguf"):
        rows(np.arange(ROWS))
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        table.check_unchanged()


def test_a_tensor_is_never_held_whole(tmp_path):
    """Rows of a tensor of 544 MB are read within some megabytes."""
    count, row = (
        1 << 16,
        gguf_files.by_hand(tensors=[gguf_files.tensor("x", (8192, 1 << 16), 8, 0)]),
    )
    path = tmp_path / "m.gguf"
    path.write_bytes(row)
    os.truncate(path, len(row) + count * 8192 // 32 * 34)
    table = open_named(path, "x")
    ids = np.array([0, 1, count - 1, 5000, 70, 30000])
    tracemalloc.start()
    assert not table.field_rows(0)(ids).any()
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def split_model(folder):
    """Write a model of three tensors in three files; returns the first."""
    tensors = {
        name: (gguf_files.quantize(values(width=768, seed=n), "F16"), "F16")
        for n, name in enumerate(("token_embd.weight", PER_LAYER, "output.weight"))
    }
    gguf_files.write(folder / "m.gguf", tensors, "gemma3n", GEMMA, split_max_tensors=1)
    return folder / "m-00001-of-00003.gguf"


def test_all_splits_are_read(tmp_path):
    """Any of the files of a model that was split opens all of them."""
    first = split_model(tmp_path)
    expected = gguf_files.dequantize(gguf_files.quantize(values(width=768, seed=1), "F16"), "F16")
    for path in (first, first.with_name("m-00003-of-00003.gguf")):
        (table,) = open_gguf(path)
        assert table.num_layers == 3
        assert np.array_equal(all_rows(table), expected)


def test_splits_must_be_complete_and_of_one_model(tmp_path):
    """A split that is missing, renamed, or of another model is named."""
    first = split_model(tmp_path)
    second = first.with_name("m-00002-of-00003.gguf")
    third = first.with_name("m-00003-of-00003.gguf")
    kept = second.read_bytes()
    second.unlink()
    with pytest.raises(CheckpointError, match="split m-00002-of-00003.gguf is missing from"):
        open_gguf(first)
    second.write_bytes(third.read_bytes())
    with pytest.raises(CheckpointError, match="m-00002-of-00003.gguf says that its split.no is 2"):
        open_gguf(first)
    second.write_bytes(kept)
    alone = tmp_path / "alone.gguf"
    alone.write_bytes(first.read_bytes())
    with pytest.raises(CheckpointError, match="alone.gguf is one of 3 splits, expected a name"):
        open_gguf(alone)
    gguf_files.write(
        third,
        {PER_LAYER: (values(2, 64), "F32")},
        numbers={"split.no": 2, "split.count": 3},
    )
    with pytest.raises(CheckpointError, match="is in both m-00002.* and m-00003"):
        open_gguf(first)
    gguf_files.write(
        third,
        {"a": (values(2, 64), "F32"), "b": (values(2, 64), "F32")},
        numbers={"split.no": 2, "split.count": 3},
    )
    with pytest.raises(CheckpointError, match="all splits hold 3 tensors, found 4"):
        open_gguf(first)


def test_equal_tables_are_equal_in_one_file_and_in_splits(tmp_path):
    """Splitting a model changes neither fields nor fingerprint."""
    (split,) = open_gguf(split_model(tmp_path))
    stored = gguf_files.quantize(values(width=768, seed=1), "F16")
    path = write_one(tmp_path / "w.gguf", stored, "F16", PER_LAYER, arch="gemma3n", numbers=GEMMA)
    (whole,) = open_gguf(path)
    assert [dataclasses.astuple(one) for one in whole.fields] == [
        dataclasses.astuple(one) for one in split.fields
    ]
    assert whole.fingerprint() == split.fingerprint()


def test_inspect_shows_tables_and_other_tensors(tmp_path):
    """Tables of a GGUF file are shown as build reads them, and the tensors that are left over."""
    tensors = {
        PER_LAYER: (gguf_files.quantize(values(width=768), "Q8_0"), "Q8_0"),
        "token_embd.weight": (values(width=64), "F32"),
    }
    path = gguf_files.write(tmp_path / "m.gguf", tensors, "gemma3n", GEMMA)
    result = CliRunner().invoke(main, ["inspect", "--json", str(path)])
    found = json.loads(result.output)
    assert (found["model_type"], found["left_over"]) == ("gemma3n", ["token_embd.weight"])
    (table,) = found["tables"]
    assert (table["name"], table["rows"], table["layers"]) == (PER_LAYER, ROWS, [0, 1, 2])
    assert (table["codecs"], table["multiplier"]) == (["q8_0"], 16)
    shown = CliRunner().invoke(main, ["inspect", "--tensor", "token_embd.weight", str(path)])
    assert "f32" in shown.output
    assert f"left over, 1 tensors:\n  {PER_LAYER}" in shown.output


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "BF16", "Q6_K"])
def test_packs_without_loss_hold_the_rows(tmp_path, kind):
    """A lossless pack gives the rows that the package dequantizes, times Gemma's multiplier."""
    if kind == "BF16":
        stored = gguf_files.quantize(values(width=768), kind)
    else:
        stored = gguf_files.random_blocks(kind, ROWS, 768)
    path = write_one(tmp_path / "m.gguf", stored, kind, PER_LAYER, arch="gemma3n", numbers=GEMMA)
    tolpack.build(path, tmp_path / "m.tolpack", bits="lossless")
    with tolpack.open(tmp_path / "m.tolpack") as pack:
        found = pack.rows(IDS)
    expected = gguf_files.dequantize(stored, kind)[IDS].reshape(len(IDS), 3, 256)
    assert np.array_equal(found, expected * np.float32(16))


def test_packs_hold_all_tables_and_their_hash(tmp_path):
    """Engram's tables share a pack, and a pack of n-grams is looked up by token ids."""
    tensors = {
        f"blk.{layer}.engram_embd.weight": (gguf_files.quantize(values(rows, 64), "Q8_0"), "Q8_0")
        for layer, rows in ((1, 9), (14, 5))
    }
    path = gguf_files.write(tmp_path / "e.gguf", tensors)
    tolpack.build(path, tmp_path / "e.tolpack", bits="lossless")
    for name, (stored, kind) in tensors.items():
        with tolpack.open(tmp_path / "e.tolpack", table=name) as pack:
            assert np.array_equal(
                pack.rows([4, 0])[:, 0], gguf_files.dequantize(stored, kind)[[4, 0]]
            )
    path = write_qwen(tmp_path / "q.gguf")
    tolpack.build(path, tmp_path / "q.tolpack", bits="lossless")
    with tolpack.open(tmp_path / "q.tolpack") as pack:
        rows = pack.row_ids([1, 2, 3])
        assert np.array_equal(rows, open_gguf(path)[0].ngrams.rows([1, 2, 3]))
        found = pack.lookup([1, 2, 3])
    expected = gguf_files.dequantize(gguf_files.quantize(values(width=160), "Q4_1"), "Q4_1")
    assert np.array_equal(found[:, :, 0], expected[rows])
