"""Tables of MeKi, STEM and MoLE, in folders with the names of the authors' code, against slow
computations of the papers' formulas.
"""

import json

import numpy as np
import pytest
import torch
from expert_tables import (
    HIDDEN,
    MEKI,
    MOLE,
    VOCAB,
    WIDTH,
    meki_row,
    meki_tensors,
    mole_row,
    mole_tensors,
    random_tensors,
    write,
)

import tolpack
from tolpack.errors import CheckpointError
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.open_source import open_source

IDS = np.array([36, 0, 5, 6, 5], np.int64)


def all_rows(table, ids=IDS):
    """Return float32 (ids, fields, width)."""
    return np.stack([table.field_rows(n)(ids) for n in range(len(table.fields))], axis=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("prefix", "words"), [("", "word_emb"), ("model.", "embed_tokens")])
def test_meki_is_folded_as_the_paper_says(tmp_path, dtype, prefix, words):
    """Rows of a model as trained are RMSNorm(E[t] + β · SwiGLU(emb[t])) · α of each layer."""
    tensors = meki_tensors(dtype=dtype, prefix=prefix, words=words)
    table = open_source(write(tmp_path, tensors, MEKI))
    assert (table.name, table.rows) == ("meki", VOCAB)
    assert [(one.name, one.layer, one.width) for one in table.fields] == [
        ("layer.0", 0, WIDTH), ("layer.2", 2, WIDTH),
    ]  # fmt: skip
    found = all_rows(table)
    for row, token in enumerate(IDS):
        for place, layer in enumerate((0, 2)):
            module = f"{prefix}layers.{layer}.meki_module."
            expected = meki_row(tensors, module, f"{prefix}{words}.weight", token)
            np.testing.assert_allclose(found[row, place], expected, rtol=2e-5, atol=2e-5)


def test_folded_meki_is_read_as_it_is(tmp_path):
    """Without the SwiGLU's weights the stored rows are the table, bit for bit."""
    tensors = meki_tensors(folded=True, dtype=torch.bfloat16)
    table = open_source(write(tmp_path, tensors, MEKI))
    for place, layer in enumerate((0, 2)):
        stored = tensors[f"layers.{layer}.meki_module.embeddings.weight"][IDS]
        assert np.array_equal(all_rows(table)[:, place], stored.float().numpy())
        codes = table.stored_rows(place)(IDS)[1]
        assert codes.tobytes() == stored.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.0.meki_module.beta_scale": None}, "beta_scale' is missing"),
        ({"layers.2.meki_module.mix_norm.weight": torch.ones(3)}, r"\[3\], expected \[8\]"),
        ({"word_emb.weight": None}, "has 0 token embeddings, expected one word_emb.weight"),
        ({"word_emb.weight": torch.ones(36, HIDDEN)}, r"\[37, 8\], expected \[36, 8\]"),
        ({"layers.0.meki_module.alpha_scale": torch.ones(2)}, r"\[2\], expected \[\]"),
        ({f"layers.0.meki_module.word_emb_projection.{part}_proj.weight": None
          for part in ("gate", "up", "down")}, "layer 2 .* has a word_emb_projection and layer 0"),
    ],
)  # fmt: skip
def test_meki_must_be_complete(tmp_path, change, message):
    """A tensor that is missing or of another shape is named."""
    tensors = meki_tensors() | change
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message):
        open_source(write(tmp_path, tensors, MEKI))


@pytest.mark.parametrize("eps", [None, 0, -1e-5, True, "1e-5", 2])
def test_the_norm_needs_its_epsilon(tmp_path, eps):
    """rms_norm_eps is never guessed."""
    with pytest.raises(CheckpointError, match="'rms_norm_eps' is .*, expected a positive number"):
        open_source(write(tmp_path, meki_tensors(), MEKI | {"rms_norm_eps": eps}))


def test_computed_tables_are_checked_and_fingerprinted(tmp_path):
    """Every weight is read once and counts, and NaN in one is an error that names it."""
    tensors = meki_tensors(layers=(0,))
    for name in ("gate_proj", "out_proj"):  # which rows do not depend on
        del tensors[f"layers.0.meki_module.{name}.weight"]
    table = open_source(write(tmp_path, tensors, MEKI))
    sizes = []
    table.check(sizes.append)
    assert sum(sizes) == table.stored_bytes == sum(one.nbytes for one in tensors.values())
    seen = {table.fingerprint()}
    for name, tensor in tensors.items():
        changed = tensor.clone()
        changed.view(-1)[-1] += 1
        seen.add(open_source(write(tmp_path, tensors | {name: changed}, MEKI)).fingerprint())
        changed.view(-1)[-1] = torch.nan
        broken = open_source(write(tmp_path, tensors | {name: changed}, MEKI))
        with pytest.raises(CheckpointError, match=f"tensor '{name}' holds NaN or Inf at row"):
            broken.check(lambda size: None)
    seen.add(open_source(write(tmp_path, tensors, MEKI | {"rms_norm_eps": 1e-6})).fingerprint())
    assert len(seen) == len(tensors) + 2
    assert table.describe()[0] == "family: MeKi"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_computed_rows_are_told(tmp_path, dtype):
    """weight_bytes are those of the largest field in float32; tables that are read have none."""
    meki = meki_tensors(dtype=dtype)
    module = "layers.2.meki_module.word_emb_projection."
    for part, shape in (("gate", (9, HIDDEN)), ("up", (9, HIDDEN)), ("down", (WIDTH, 9))):
        meki[f"{module}{part}_proj.weight"] = torch.ones(shape, dtype=dtype)
    mole = mole_tensors(dtype)
    mole["model.layers.1.experts.0.up_proj.weight"] = torch.ones(7, HIDDEN, dtype=dtype)
    mole["model.layers.1.experts.0.down_proj.weight"] = torch.ones(HIDDEN, 7, dtype=dtype)
    folded = meki_tensors(folded=True, dtype=dtype)
    sizes = []
    for name, tensors, config in (("a", meki, MEKI), ("b", mole, MOLE), ("c", folded, MEKI)):
        (tmp_path / name).mkdir()
        sizes.append(open_source(write(tmp_path / name, tensors, config)).weight_bytes)
    assert sizes == [4 * (9 * (2 * HIDDEN + WIDTH) + 2 + WIDTH), 4 * (2 * 7 + 1) * HIDDEN, 0]


@pytest.mark.parametrize("nested", [False, True])
def test_stem_has_a_field_for_each_chosen_layer(tmp_path, nested):
    """stem_embeddings.J belongs to the J-th layer of stem_layers, bit for bit."""
    shapes = {f"stem_embeddings.{n}.weight": (VOCAB, WIDTH) for n in range(3)}
    tensors = random_tensors(shapes, torch.bfloat16)
    settings = {"stem_layers": [1, 4, 11], "stem_embedding_dim": WIDTH}
    table = open_source(write(tmp_path, tensors, {"model": settings} if nested else settings))
    assert (table.name, [one.layer for one in table.fields]) == ("stem_embeddings", [1, 4, 11])
    for n in range(3):
        stored = tensors[f"stem_embeddings.{n}.weight"][IDS]
        assert np.array_equal(all_rows(table)[:, n], stored.float().numpy())


def test_stem_of_the_authors_trainer(tmp_path):
    """consolidated_stem.pth with params.json for its config is a table as well."""
    shapes = {f"stem_embeddings.{n}.weight": (VOCAB, WIDTH) for n in range(2)}
    tensors = random_tensors(shapes, torch.bfloat16)
    torch.save(tensors, tmp_path / "consolidated_stem.pth")
    params = tmp_path / "params.json"
    params.write_text(json.dumps({"model": {"stem_layers": [3, 5]}}), encoding="utf-8")
    table = open_source(tmp_path / "consolidated_stem.pth", CheckpointOptions(config=params))
    assert [one.layer for one in table.fields] == [3, 5]
    stored = tensors["stem_embeddings.1.weight"][IDS]
    assert np.array_equal(all_rows(table)[:, 1], stored.float().numpy())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (None, "'stem_layers' is None, expected the layers"),
        ([4, 1, 11], "expected the layers with an embedding, from 0, ascending"),
        ([1, 1, 4], "ascending"),
        ([1, 4, 11, 12], "with the numbers .0, 1, 2., expected 0 … 3"),
        ([], "expected the layers"),
        ([0, 1, 1e9], "expected the layers"),
        ("0 1 2", "expected the layers"),
    ],
)
def test_stem_layers_are_not_guessed(tmp_path, layers, message):
    """Without a list of layers that fits the tensors there is no table."""
    shapes = {f"stem_embeddings.{n}.weight": (VOCAB, WIDTH) for n in range(3)}
    with pytest.raises(CheckpointError, match=message):
        open_source(write(tmp_path, random_tensors(shapes), {"stem_layers": layers}))


def test_mole_is_reparameterized_as_the_paper_says(tmp_path):
    """Rows of a model as trained are the experts' outputs on the normed token embedding."""
    tensors = mole_tensors()
    table = open_source(write(tmp_path, tensors, MOLE))
    assert (table.name, table.rows) == ("experts", VOCAB)
    assert [(one.name, one.layer) for one in table.fields] == [
        (f"layer.{layer}.expert.{expert}", layer) for layer in range(2) for expert in range(3)
    ]
    found = all_rows(table)
    for row, token in enumerate(IDS):
        for n in range(6):
            expected = mole_row(tensors, n // 3, n % 3, token)
            np.testing.assert_allclose(found[row, n], expected, rtol=2e-5, atol=2e-5)


def test_reparameterized_mole_is_read_as_it_is(tmp_path):
    """moe_table holds layers, then experts, then values, bit for bit."""
    tensors = random_tensors({"model.moe_table.weight": (VOCAB, 6 * HIDDEN)}, torch.float16)
    table = open_source(write(tmp_path, tensors | mole_tensors(), MOLE))
    stored = tensors["model.moe_table.weight"][IDS].reshape(len(IDS), 6, HIDDEN)
    assert np.array_equal(all_rows(table), stored.float().numpy())
    assert table.fields[4].name == "layer.1.expert.1"
    assert table.dtype == "float16"


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        ({}, {"num_experts": 4}, r"experts.3.up_proj.weight' is missing"),
        ({}, {"hidden_size": 16}, r"\[37, 12\], expected \[37, 16\]"),
        ({}, {"num_experts": None}, "'num_experts' is missing"),
        ({}, {"num_experts": 4000}, "8,000 fields, expected at most 4,096"),
        ({"model.moe_table.weight": torch.ones(VOCAB, 70)}, {}, r"expected \[vocab, 72\]"),
        ({"model.layers.1.experts.2.down_proj.weight": torch.ones(HIDDEN, 5)}, {}, r"\[12, 6\]"),
    ],
)
def test_mole_must_fit_its_config(tmp_path, change, config, message):
    """Layers, experts and width of the config are held against the tensors."""
    with pytest.raises(CheckpointError, match=message):
        open_source(write(tmp_path, mole_tensors() | change, MOLE | config))


@pytest.mark.parametrize("family", ["meki", "stem", "mole"])
def test_packs_without_loss_hold_the_rows(tmp_path, family):
    """A lossless pack of each family gives the source's rows bit for bit, under their names."""
    shapes = {f"stem_embeddings.{n}.weight": (VOCAB, WIDTH) for n in range(2)}
    tensors, config = {
        "meki": (meki_tensors(), MEKI),
        "stem": (random_tensors(shapes, torch.bfloat16), {"stem_layers": [1, 4]}),
        "mole": (mole_tensors(), MOLE),
    }[family]
    table = open_source(write(tmp_path, tensors, config))
    tolpack.build(tmp_path, tmp_path / "x.tolpack", bits="lossless")
    with tolpack.open(tmp_path / "x.tolpack") as pack:
        # All at once, as the build computes them: products of other shapes round differently.
        assert np.array_equal(pack.rows(IDS), all_rows(table, np.arange(VOCAB))[IDS])
        assert pack.tables == (table.name,)
