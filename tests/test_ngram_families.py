"""Engram and LongCat checkpoints: tables whose rows are those that the models' modules look up."""

import json

import numpy as np
import pytest
import torch
from ngram_tables import (
    DEEPSEEK_CONFIG,
    DEMO_CONFIG,
    LONGCAT_CONFIG,
    TEXT,
    TEXTS,
    VOCAB,
    deepseek,
    demo,
    longcat,
    random,
    save,
)
from slow_ngrams import save_tokenizer, slow_compressed_ids, slow_engram, slow_longcat

from tolpack.errors import CheckpointError
from tolpack.sources.open_source import open_tables


def values_of(table, rows):
    """Return the values of rows of a table, float32 (rows, width), and their stored codes."""
    ids = np.array(rows).ravel()
    return table.field_rows(0)(ids), table.stored_rows(0)(ids)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("spelling", ["dense", "sparse"])
def test_longcat_rows_are_those_of_its_embedders(tmp_path, spelling, padding):
    """Either spelling, with tables padded or not, gives each embedder's own rows, bit for bit."""
    config, name = LONGCAT_CONFIG, "model.ngram_embeddings.embedders.{}.weight"
    if spelling == "sparse":
        name = "model.oe_embed_tokens{}.weight"
        oe = {"oe_vocab_size_ratio": 3.0, "oe_neighbor_num": 4, "oe_split_num": 2}
        config = {k: v for k, v in config.items() if "emb_" not in k and "ratio" not in k} | oe
    tensors = longcat(name, padding)
    (table,) = open_tables(save(tmp_path / "m", tensors, config))
    assert (table.name, table.rows, table.hidden_size) == (
        "ngram_embeddings", sum(3 * VOCAB + 2 * n + 1 + padding for n in range(6)), 8,
    )  # fmt: skip
    slow = slow_longcat(VOCAB, 3, 4, 2, 2, TEXT)
    expected = torch.stack([tensors[name.format(n)][[row[n] for row in slow]] for n in range(6)], 1)
    values, (scales, codes) = values_of(table, table.ngrams.rows(TEXT))
    assert np.array_equal(values, expected.float().flatten(0, 1).numpy())
    assert np.array_equal(codes, expected.flatten(0, 1).view(torch.uint8).numpy())
    assert scales.shape == (len(codes), 0)


def test_deepseek_rows_are_those_of_its_engram(tmp_path):
    """Both layers are tables: codes and scales as stored, values their exact products."""
    tensors = deepseek()
    tables = open_tables(save(tmp_path / "m", tensors, DEEPSEEK_CONFIG))
    assert [table.name for table in tables] == ["layer.1", "layer.14"]
    assert [table.fields[0].layer for table in tables] == [1, 14]
    compressed = slow_compressed_ids(TEXTS)
    for table, layer in zip(tables, (1, 14)):
        slow = slow_engram([1, 14], layer, [40] * 3, 2, compressed, 2, 0, TEXT)
        assert table.ngrams.rows(TEXT).tolist() == slow
        ids = np.array(slow).ravel()
        weight = tensors[f"layers.{layer}.engram.embed.weight"][ids]
        scale = tensors[f"layers.{layer}.engram.embed.scale"][ids]
        values, (scales, codes) = values_of(table, slow)
        assert np.array_equal(codes, weight.view(torch.uint8).numpy())
        assert np.array_equal(scales, scale.view(torch.uint8).numpy())
        powers = torch.exp2(scale.view(torch.uint8).float() - 127)
        expected = weight.float() * powers.repeat_interleave(32, 1)
        assert np.array_equal(values, expected.numpy())
        assert table.fields[0].dtype == "bfloat16"
        assert torch.equal(expected.bfloat16().float(), expected)


def test_tables_of_the_real_sizes_open(tmp_path):
    """DeepSeek-V4.1-Flash's two files of 101 GB are opened and read, whatever memory there is."""
    config = deepseek_with(engram_vocab_size=16_000_000, engram_n_heads=8)
    files, rows = [], {1: 384_006_168, 14: 384_016_682}
    config["text_config"]["engram_compressed_vocab_size"] = 99_092
    config["text_config"]["engram_num_embeddings"] = list(rows.values())
    for layer, count in rows.items():
        name, shapes = f"layers.{layer}.engram.embed", [[count, 256], [count, 8]]
        ends = np.cumsum([0, *map(np.prod, shapes)]).tolist()
        header = {
            f"{name}.{part}": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
            for part, dtype, shape, start, end in zip(
                ("weight", "scale"), ("F8_E4M3", "F8_E8M0"), shapes, ends, ends[1:]
            )
        }
        text = json.dumps(header).encode()
        path = tmp_path / f"model-0000{len(files) + 1}-of-00002.safetensors"
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + ends[-1])  # a hole, which takes no room on disk
        files.append(path)
    save_tokenizer(tmp_path, [f"{a}{n}" for a in "wW" for n in range(99_092)][:129_280])
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    tables = open_tables(tmp_path)
    assert [table.rows for table in tables] == list(rows.values())
    assert [table.ngrams.table_rows for table in tables] == list(rows.values())
    ids = tables[1].ngrams.rows([5, 129_279])
    assert [part.shape for part in tables[1].stored_rows(0)(ids.ravel())] == [(48, 8), (48, 256)]


def test_demo_rows_are_those_of_its_multi_head_embedding(tmp_path):
    """The demo's settings, with primes in the order of its layers, give its rows."""
    tensors = demo()
    tables = open_tables(save(tmp_path / "m", tensors, DEMO_CONFIG))
    assert [table.name for table in tables] == ["layer.1", "layer.15"]
    compressed = slow_compressed_ids(TEXTS)
    for table, layer in zip(tables, (1, 15)):
        slow = slow_engram([15, 1], layer, [101, 103], 2, compressed, 2, 5, TEXT)
        weight = tensors[f"model.layers.{layer}.engram.multi_head_embedding.embedding.weight"]
        values, _ = values_of(table, table.ngrams.rows(TEXT))
        assert np.array_equal(values, weight[np.array(slow).ravel()].float().numpy())


def test_text_after_an_image_begins_anew(tmp_path):
    """DeepSeek-V4.1 pads n-grams where an image was, and so does its table's hash."""
    table, _ = open_tables(save(tmp_path / "m", deepseek(), DEEPSEEK_CONFIG))
    image = DEEPSEEK_CONFIG["image_token_id"]
    after = table.ngrams.rows([3, 4, image, image, 5, 6, 7])[4:]
    np.testing.assert_array_equal(after, table.ngrams.rows([5, 6, 7]))


def test_other_checkpoints_are_left_alone(tmp_path):
    """A model without such tensors, and without such settings, is of neither family."""
    tensors = {"a": random(2, 2), "b": random(2, 2), "c": random(2, 2)}
    folder = save(tmp_path / "m", tensors, {"model_type": "other"})
    with pytest.raises(CheckpointError, match=r"Looked for: .*Engram .*LongCat"):
        open_tables(folder)


def longcat_with(**changed):
    """Return the settings of `LONGCAT_CONFIG` with some changed; ``None`` takes one out."""
    config = LONGCAT_CONFIG | changed
    return {key: value for key, value in config.items() if value is not None}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (longcat_with(vocab_size=None), "'vocab_size' is missing"),
        (longcat_with(eos_token_id=None), "'eos_token_id' is missing"),
        (longcat_with(ngram_vocab_size_ratio=None), "'ngram_vocab_size_ratio' is None"),
        (longcat_with(ngram_vocab_size_ratio=float("nan")), "'ngram_vocab_size_ratio' is nan"),
        (longcat_with(ngram_vocab_size_ratio=True), "'ngram_vocab_size_ratio' is True"),
        (longcat_with(emb_split_num="2"), "'emb_split_num' is '2'"),
        (longcat_with(emb_split_num=3), r"embeddings \[0, 1, 2, 3, 4, 5\].*asks for 0 … 8"),
        (longcat_with(emb_neighbor_num=10**6), "orders up to 2 … 64"),
        (longcat_with(vocab_size=VOCAB + 1), "has 91 rows, but the config asks for 94"),
        (longcat_with(ngram_exclude_sp_token=True), "'ngram_exclude_sp_token' is set"),
    ],
)  # fmt: skip
def test_longcat_needs_its_config(tmp_path, config, message):
    """A setting that is missing, wrong or of another model is named."""
    folder = save(tmp_path / "m", longcat(), config)
    with pytest.raises(CheckpointError, match=message):
        open_tables(folder)


def test_missing_embedders_are_named(tmp_path):
    """A LongCat checkpoint without one of its embedders, or with one twice, is refused."""
    tensors = longcat()
    del tensors["model.ngram_embeddings.embedders.4.weight"]
    with pytest.raises(CheckpointError, match=r"\[0, 1, 2, 3, 5\].*a shard is missing"):
        open_tables(save(tmp_path / "a", tensors, LONGCAT_CONFIG))
    tensors = longcat() | {"model.oe_embed_tokens5.weight": random(101, 8)}
    with pytest.raises(CheckpointError, match=r"embedders\.5\.weight' and 'model\.oe_embed_tok"):
        open_tables(save(tmp_path / "b", tensors, LONGCAT_CONFIG))
    others = {name: random(2, 2) for name in "abc"}
    with pytest.raises(CheckpointError, match=r"embeddings \[\], but the config asks for 0 … 5"):
        open_tables(save(tmp_path / "c", others, LONGCAT_CONFIG))


def deepseek_with(**changed):
    """Return the settings of `DEEPSEEK_CONFIG` with some changed."""
    return DEEPSEEK_CONFIG | {"text_config": DEEPSEEK_CONFIG["text_config"] | changed}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "'engram_layer_ids' is None"),
        (deepseek_with(engram_layer_ids=[1]), r"of layers \[1, 14\], but .* asks for \[1\]"),
        (deepseek_with(engram_layer_ids=[1, 14, 14]), r"asks for \[1, 14, 14\]"),
        (deepseek_with(engram_layer_ids=[1] * 65), "expected 1 … 64 integers"),
        (deepseek_with(engram_layer_ids=[1, "14"]), "'engram_layer_ids'"),
        (deepseek_with(engram_vocab_size=None), "'engram_vocab_size' is None"),
        (deepseek_with(engram_vocab_size=50), "rows, but the config asks for"),
        (deepseek_with(engram_num_embeddings=[1, 2]), "'engram_num_embeddings' is .1, 2."),
        (deepseek_with(engram_vocab_size=0), "engram_vocab_size is 0"),
        (deepseek_with(engram_n_heads=None), "'engram_n_heads' is missing"),
        (deepseek_with(engram_n_heads=64, engram_max_ngram_size=64), "8,064 heads"),
        (deepseek_with(engram_pad_token_id=VOCAB), "pad_id is 30, expected 0 … 29"),
        (deepseek_with(engram_compressed_vocab_size=3), "27 different texts, .* asks for 3 "),
    ],
)  # fmt: skip
def test_deepseek_needs_its_config(tmp_path, config, message):
    """A setting that is missing, wrong or of another model is named."""
    folder = save(tmp_path / "m", deepseek(), config)
    with pytest.raises(CheckpointError, match=message):
        open_tables(folder)


def test_missing_parts_of_deepseek_are_named(tmp_path):
    """A layer, scales or a tokenizer that is missing is named."""
    tensors = deepseek()
    del tensors["layers.14.engram.embed.weight"]
    with pytest.raises(CheckpointError, match=r"of layers \[1\], but .* asks for \[1, 14\]"):
        open_tables(save(tmp_path / "a", tensors, DEEPSEEK_CONFIG))
    tensors = deepseek()
    del tensors["layers.14.engram.embed.scale"]
    with pytest.raises(CheckpointError, match=r"layers\.14\.engram\.embed\.weight' is fp8"):
        open_tables(save(tmp_path / "b", tensors, DEEPSEEK_CONFIG))
    folder = save(tmp_path / "c", deepseek(), DEEPSEEK_CONFIG)
    (tmp_path / "c" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"copy the model's tokenizer\.json there"):
        open_tables(folder)


def test_offsets_of_the_demo_are_checked(tmp_path):
    """Offsets in the checkpoint that are not those of the config's primes are refused."""
    tensors = demo()
    tensors["model.layers.1.engram.multi_head_embedding.offsets"] += 1
    with pytest.raises(CheckpointError, match="holds other offsets"):
        open_tables(save(tmp_path / "m", tensors, DEMO_CONFIG))
