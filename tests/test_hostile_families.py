"""Checkpoints of every family with tensors that are missing, of other shapes, or there twice."""

import json

import numpy as np
import pytest
import torch
from expert_tables import HIDDEN, MEKI, MOLE, VOCAB, WIDTH, meki_tensors, mole_tensors
from expert_tables import random_tensors as random
from ngram_tables import (
    DEEPSEEK_CONFIG,
    DEMO_CONFIG,
    LONGCAT_CONFIG,
    TEXTS,
    deepseek,
    demo,
    longcat,
)
from safetensors.torch import save_file
from slow_ngrams import slow_compressed_ids

from tolpack.errors import CheckpointError, TolpackError
from tolpack.ngrams import qwen4_exp_hash
from tolpack.sources.open_source import open_tables

GEMMA = {
    "model_type": "gemma3n_text", "num_hidden_layers": 2, "hidden_size_per_layer_input": 4,
    "vocab_size_per_layer_input": VOCAB,
}  # fmt: skip
QWEN = {
    "model_type": "qwen4_exp_text", "vocab_size": 50, "hidden_size": 32, "eos_token_id": 3,
    "ple_layer_ids": [2], "ngram_size": 3, "heads_per_ngram": 2, "ngram_vocab_size_base": 10,
    "make_ngram_vocab_size_divisible_by": 16,
}  # fmt: skip
MODULE = "layers.1.ple.ple_embedding"


def qwen():
    """Return the tensors of a small Qwen4Exp, in two shards, with its hash."""
    ngrams = qwen4_exp_hash(
        vocab_size=50, eos_token_id=3, ngram_size=3, heads_per_ngram=2, ngram_vocab_size_base=10
    )
    rows = -(-ngrams.table_rows // 16) * 8
    tensors = random({f"{MODULE}.ngram_embedding.shard_{n}.weight": (rows, 8) for n in range(2)})
    for name, values in (
        ("layer_multipliers", ngrams.multipliers), ("ngram_heads_vocab_sizes", ngrams.sizes),
        ("ngram_heads_offsets", ngrams.offsets),
    ):  # fmt: skip
        tensors[f"{MODULE}.{name}"] = torch.tensor(values)
    return tensors


def checkpoints():
    """Return tensors and configuration of a small checkpoint of each family."""
    stem = {f"stem_embeddings.{n}.weight": (VOCAB, WIDTH) for n in range(2)}
    return {
        "gemma": (random({"embed_tokens_per_layer.weight": (VOCAB, 8)}), GEMMA),
        "qwen": (qwen(), QWEN),
        "deepseek": (deepseek(), DEEPSEEK_CONFIG),
        "demo": (demo(), DEMO_CONFIG),
        "longcat": (longcat(), LONGCAT_CONFIG),
        "meki": (meki_tensors(layers=(0, 1)), MEKI),
        "folded": (meki_tensors(layers=(0, 1), folded=True), MEKI),
        "stem": (random(stem, torch.bfloat16), {"stem_layers": [1, 4]}),
        "mole": (mole_tensors(), MOLE),
        "stored": (random({"model.moe_table.weight": (VOCAB, 6 * HIDDEN)}), MOLE),
    }


CHECKPOINTS = checkpoints()


@pytest.fixture(autouse=True)
def one_tokenizer(monkeypatch):
    """All of Engram's folders have one tokenizer, which it takes a process to read."""
    monkeypatch.setattr("tolpack.sources.families.engram.compressed_token_ids", _compressed_ids)


def _compressed_ids(path):
    return np.array(slow_compressed_ids(TEXTS), np.uint32)


CHANGES = {
    "missing": lambda tensor: None,
    "scalar": lambda tensor: tensor.flatten()[0].clone(),
    "vector": lambda tensor: tensor.flatten()[:3].clone(),
    "no rows": lambda tensor: tensor[:0].clone() if tensor.ndim else tensor,
    "no columns": lambda tensor: tensor[..., :0].clone() if tensor.ndim else tensor,
    "cube": lambda tensor: tensor[..., None].clone(),
    "integers": lambda tensor: torch.ones(tensor.shape, dtype=torch.int32),
    "fp8": lambda tensor: torch.ones(tensor.shape).to(torch.float8_e4m3fn),
    "float64": lambda tensor: torch.ones(tensor.shape, dtype=torch.float64),
}


def write(folder, tensors, config):
    """Write a folder of one file; returns it."""
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def use(path):
    """Open all tables and do with each what a build does."""
    tables = open_tables(path)
    for table in tables:
        table.describe()
        table.fingerprint()
        for n in range(len(table.fields)):
            table.stored_rows(n)(np.arange(table.rows))
    return tables


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("family", CHECKPOINTS)
def test_any_changed_tensor_is_an_error_or_no_matter(tmp_path, family, change):
    """A tensor that is missing, or of any other shape or dtype, gives rows or an error of ours."""
    tensors, config = CHECKPOINTS[family]
    for name in tensors:
        changed = tensors | {name: CHANGES[change](tensors[name])}
        kept = {key: one for key, one in changed.items() if one is not None}
        if kept:
            write(tmp_path, kept, config)
            try:
                use(tmp_path)
            except TolpackError as error:
                assert type(error) is CheckpointError, (name, error)


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_small_checkpoints_are_read_as_they_are(tmp_path, family):
    """The checkpoints of these tests are sound."""
    assert use(write(tmp_path, *CHECKPOINTS[family]))


@pytest.mark.parametrize(
    ("family", "name", "value", "message"),
    [
        ("meki", "layers.1.meki_module.word_emb_projection.gate_proj.weight", None,
         "tensor '.*gate_proj.weight' is missing from"),
        ("meki", "layers.0.meki_module.embeddings.weight", torch.tensor(1.0),
         r"tensor '.*embeddings.weight' has shape \[\], expected \[rows, columns\]"),
        ("meki", "word_emb.weight", torch.ones(VOCAB, HIDDEN).to(torch.float8_e4m3fn),
         "tensor 'word_emb.weight' is float8_e4m3fn"),
        ("stem", "stem_embeddings.1.weight", torch.ones(VOCAB, 2, 4),
         r"shape \[37, 2, 4\], expected \[rows, columns\]"),
        ("longcat", "model.ngram_embeddings.embedders.3.weight", torch.tensor(1.0),
         r"embedders.3.weight' has shape \[\]"),
        ("mole", "model.layers.1.experts.2.up_proj.weight", torch.tensor(1.0),
         r"up_proj.weight' has shape \[\]"),
        ("demo", "model.layers.1.engram.multi_head_embedding.embedding.weight", torch.tensor(1.0),
         r"embedding.weight' has shape \[\]"),
    ],
)  # fmt: skip
def test_shapes_that_are_no_matrix_are_named(tmp_path, family, name, value, message):
    """A table's tensor that is missing or no matrix is named, with its shape."""
    tensors, config = CHECKPOINTS[family]
    kept = {key: one for key, one in (tensors | {name: value}).items() if one is not None}
    with pytest.raises(CheckpointError, match=message):
        open_tables(write(tmp_path, kept, config))


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("gemma", "embed_tokens_per_layer.weight"),
        ("deepseek", "layers.14.engram.embed.weight"),
        ("longcat", "model.ngram_embeddings.embedders.3.weight"),
        ("meki", "layers.0.meki_module.embeddings.weight"),
        ("folded", "layers.1.meki_module.embeddings.weight"),
        ("stem", "stem_embeddings.1.weight"),
        ("mole", "model.layers.0.expert_layernorm.weight"),
        ("stored", "model.moe_table.weight"),
    ],
)
def test_tensors_of_two_models_are_both_named(tmp_path, family, name):
    """Of two tensors that would be the same part of a table none is taken: both are named."""
    tensors, config = CHECKPOINTS[family]
    write(tmp_path, tensors | {f"draft.{name}": tensors[name].clone()}, config)
    with pytest.raises(CheckpointError, match="expected one") as caught:
        open_tables(tmp_path)
    assert f"draft.{name}" in str(caught.value)
    assert str(caught.value).count(name) >= 2


def test_numbers_of_a_series_are_each_there_once(tmp_path):
    """--tensor with a number open takes no two tensors of one number, and none of another shape."""
    tensors = random(
        {"e.1.weight": (3, 4), "e.01.weight": (3, 4), "f.0": (3, 2, 4), "f.1": (3, 4, 2)}
    )
    path = write(tmp_path, tensors, {})
    with pytest.raises(
        CheckpointError, match=r"'e\.0?1\.weight' and 'e\.0?1\.weight' both have the"
    ):
        open_tables(path, tensor="e.*.weight")
    with pytest.raises(CheckpointError, match=r"'f\.1' has shape \[3, 4, 2\], expected that of 'f"):
        open_tables(path, tensor="f.*")
