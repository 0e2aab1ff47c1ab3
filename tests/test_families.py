"""Tables of Gemma and Qwen4Exp, in folders that transformers saved, against its own modules."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from saved_tables import NGRAMS, PLE, read, save_models, write

import tolpack
from tolpack.cli import main
from tolpack.errors import CheckpointError, ConfigError, TolpackError
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.open_source import open_source, open_tables


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny random model of each family: name → the model and its folder, for reading only."""
    return save_models(tmp_path_factory.mktemp("saved"))


def all_rows(table):
    """Return the rows of every field, float32 (rows, fields, width)."""
    ids = np.arange(table.rows)
    return np.stack([table.field_rows(n)(ids) for n in range(table.num_layers)], axis=1)


def stored(table, dtype):
    """Return the codes of every field as torch `dtype`, (rows, fields, width)."""
    ids = np.arange(table.rows)
    codes = [table.stored_rows(n)(ids)[1] for n in range(table.num_layers)]
    return torch.from_numpy(np.stack(codes, axis=1)).view(dtype)


@pytest.mark.parametrize("family", ["gemma3n", "gemma4"])
def test_gemma_rows_times_the_multiplier_are_the_models(saved, family):
    """Fields are the layers' vectors, bit for bit, and times √width what the module gives."""
    model, folder = saved[family]
    table = open_source(folder)
    assert (table.name, table.rows, table.dtype) == ("embed_tokens_per_layer", 48, "bfloat16")
    assert [field.name for field in table.fields] == ["layer.0", "layer.1", "layer.2"]
    assert [field.layer for field in table.fields] == [0, 1, 2]
    module = model.model.embed_tokens_per_layer
    ids = torch.arange(48)
    assert torch.equal(stored(table, torch.bfloat16), module.weight.detach().reshape(48, 3, 16))
    expected = model.model.get_per_layer_inputs(ids[None])[0].detach()
    assert table.fields[0].multiplier == 4.0
    assert np.array_equal(all_rows(table) * 4, expected.float().numpy())


@pytest.mark.parametrize(
    ("prefix", "nested"),
    [("", False), ("model.", False), ("language_model.model.", True), ("language_model.", True),
     ("model.language_model.", True)],
)  # fmt: skip
def test_gemma_under_any_prefix(saved, tmp_path, prefix, nested):
    """Text-only and multimodal folders, in every spelling of the prefix, give the same table."""
    folder = saved["gemma3n"][1]
    tensors, config = read(folder)
    config |= {"vision_config": {"num_hidden_layers": 9}}
    if nested:
        config = {"model_type": "gemma3n", "text_config": config, "num_hidden_layers": 7}
    other = {f"{prefix}{PLE}": tensors[f"model.{PLE}"], "vision.weight": torch.zeros(2, 2)}
    found = open_source(write(tmp_path / "m", other, config))
    assert found.fingerprint() == open_source(folder).fingerprint()


def test_qwen_rows_are_those_that_the_module_reads(saved):
    """Shards are one table, and its hash gives the rows that the module's forward gives."""
    model, folder = saved["qwen4_exp"]
    table = open_source(folder)
    module = model.model.layers[1].ple.ple_embedding
    assert (table.name, table.num_layers, table.fields[0].layer) == ("ngram_embedding", 1, 1)
    weight = module.ngram_embedding.weight.detach()
    assert torch.equal(stored(table, torch.bfloat16)[:, 0], weight)
    assert table.describe()[1].startswith(f"{NGRAMS}.ngram_embedding.shard_{{0…3}}.weight")
    ids = torch.randint(0, 64, (1, 300))
    ids[0, 37] = ids[0, 38] = ids[0, 299] = 1  # ends of texts
    rows = table.ngrams.rows(ids[0].numpy())
    found = table.field_rows(0)(rows.reshape(-1)).reshape(300, -1)
    assert np.array_equal(found, module(ids, None)[0].detach().float().numpy())


def test_qwen_hash_from_tensors_is_that_of_the_config(saved, tmp_path):
    """A folder without the hash's tensors, and with one tensor for the table, is the same."""
    folder = saved["qwen4_exp"][1]
    tensors, config = read(folder)
    shards = [tensors[f"{NGRAMS}.ngram_embedding.shard_{n}.weight"] for n in range(4)]
    whole = {f"{NGRAMS}.ngram_embedding.weight": torch.cat(shards), "x": torch.zeros(1)}
    found = open_source(write(tmp_path / "m", whole, config))
    assert found.ngrams == open_source(folder).ngrams
    assert found.fingerprint() == open_source(folder).fingerprint()


def test_qwen_with_two_tables(saved):
    """Each layer with an n-gram embedding has a table of its own, with its own hash."""
    model, folder = saved["qwen4_exp_two"]
    tables = open_tables(folder)
    assert [table.name for table in tables] == ["layer.0", "layer.2"]
    ids = torch.randint(0, 64, (1, 50))
    for table, layer in zip(tables, (0, 2)):
        rows = table.ngrams.rows(ids[0].numpy()).reshape(-1)
        module = model.model.layers[layer].ple.ple_embedding
        expected = module(ids, None)[0].detach().float().numpy()
        assert np.array_equal(table.field_rows(0)(rows).reshape(50, -1), expected)
    with pytest.raises(ConfigError, match=r"2 tables \(layer.0, layer.2\)"):
        open_source(folder)


@pytest.mark.parametrize("family", ["gemma3n", "gemma4"])
def test_lossless_pack_of_gemma_gives_what_the_model_reads(saved, tmp_path, family):
    """Rows of a lossless pack are those of the module's forward, bit for bit."""
    model, folder = saved[family]
    tolpack.build(folder, tmp_path / "p.tolpack", bits="lossless")
    ids = torch.randint(0, 48, (30,))
    expected = model.model.get_per_layer_inputs(ids[None])[0].detach()
    with tolpack.open(tmp_path / "p.tolpack") as pack:
        assert np.array_equal(pack.lookup(ids.numpy()), expected.float().numpy())


def test_lossless_pack_of_qwen_gives_what_the_model_reads(saved, tmp_path):
    """A lossless pack finds the rows of a text itself, and gives those of the module's forward."""
    model, folder = saved["qwen4_exp"]
    tolpack.build(folder, tmp_path / "p.tolpack", bits="lossless")
    ids = torch.randint(0, 64, (1, 40))
    expected = model.model.layers[1].ple.ple_embedding(ids, None)[0].detach()
    with tolpack.open(tmp_path / "p.tolpack") as pack:
        found = pack.lookup(ids[0].numpy())
    assert found.shape == (40, 8, 1, 8)
    assert np.array_equal(found.reshape(40, 64), expected.float().numpy())


def fp8(tensors):
    """Return tensors with the n-gram embedding in fp8 and one scale for all of it."""
    scale = torch.tensor([0.0123], dtype=torch.bfloat16)
    found = {f"{NGRAMS}.ngram_embedding.weight_scale": scale}
    for name, tensor in tensors.items():
        is_shard = ".shard_" in name
        found[name] = (tensor / 0.0123).to(torch.float8_e4m3fn) if is_shard else tensor
    return found


def test_qwen_in_fp8_has_its_codes_and_one_step(saved, tmp_path):
    """fp8 shards with one ``weight_scale`` keep their codes, and the scale is the step."""
    tensors, config = read(saved["qwen4_exp"][1])
    tensors = fp8(tensors)
    table = open_source(write(tmp_path / "m", tensors, config))
    part = table.fields[0].part
    scale = float(tensors[f"{NGRAMS}.ngram_embedding.weight_scale"])
    assert (part.codec, part.step, part.values) == ("f8e4m3-step", scale, 8)
    codes = torch.cat([tensors[f"{NGRAMS}.ngram_embedding.shard_{n}.weight"] for n in range(4)])
    assert torch.equal(stored(table, torch.uint8)[:, 0], codes.view(torch.uint8))
    expected = (codes.float() * scale).numpy()
    assert np.array_equal(all_rows(table)[:, 0], expected)
    tolpack.build(tmp_path / "m", tmp_path / "p.tolpack", bits="lossless")
    with tolpack.open(tmp_path / "p.tolpack") as pack:
        assert np.array_equal(pack.rows(np.arange(table.rows))[:, 0], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 4}, r"has shape \[48, 48\].*num_hidden_layers 4"),
        ({"vocab_size_per_layer_input": 40}, "vocab_size_per_layer_input 40"),
        ({"hidden_size_per_layer_input": None}, "'hidden_size_per_layer_input' is missing"),
        ({"num_hidden_layers": "3"}, "'num_hidden_layers' is '3', expected an integer"),
    ],
)
def test_gemma_of_another_config_is_refused(saved, tmp_path, change, message):
    """A table that does not fit the config is refused by name and value."""
    tensors, config = read(saved["gemma4"][1])
    with pytest.raises(CheckpointError, match=message):
        open_source(write(tmp_path / "m", tensors, config | change))


def test_gemma_without_its_table_is_refused(saved, tmp_path):
    """A Gemma whose config promises a table that no shard holds."""
    tensors, config = read(saved["gemma4"][1])
    del tensors[f"model.{PLE}"]
    with pytest.raises(CheckpointError, match=f"has none of tensors …{PLE}"):
        open_source(write(tmp_path / "m", tensors, config))


def test_gemma_in_another_quantization_is_refused_by_its_dtype(saved, tmp_path):
    """Packed integers of other quantizers are named as such, not as a model of another shape."""
    tensors, config = read(saved["gemma4"][1])
    tensors[f"model.{PLE}"] = torch.zeros(48, 3, dtype=torch.int32)
    with pytest.raises(CheckpointError, match="is int32 .* expected rows of float32"):
        open_source(write(tmp_path / "m", tensors, config))


def edited(tensors, number, change):
    """Return tensors with shard `number` of the n-gram embedding changed, or gone for ``None``."""
    name = f"{NGRAMS}.ngram_embedding.shard_{number}.weight"
    others = {key: tensor for key, tensor in tensors.items() if key != name}
    return others if change is None else others | {name: change(tensors[name])}


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (2, None, "has shards 0 … 3, but number 2 is missing"),
        (3, None, r"shard_{0…2}.weight: 3 tensors \(split_ngram_parts of the config: 4\) have"),
        (1, lambda t: t[:, :4].contiguous(), r"shard_1.weight' in model.safetensors has rows of 8"),
        (1, lambda t: t.float(), r"shard_1.weight' in .* \(float32\)"),
        (3, lambda t: t[:-5].contiguous(), r"have 555 rows of 8 values, expected 560 of 8"),
    ],
)
def test_qwen_shards_that_do_not_fit_are_named(saved, tmp_path, number, change, message):
    """A shard that is missing, narrow, of another dtype or short is named when it is opened."""
    tensors, config = read(saved["qwen4_exp"][1])
    with pytest.raises(CheckpointError, match=message):
        open_source(write(tmp_path / "m", edited(tensors, number, change), config))


def test_qwen_layers_must_be_those_of_the_config(saved, tmp_path):
    """ple_layer_ids count from 1; a config of another model is refused."""
    tensors, config = read(saved["qwen4_exp"][1])
    folder = write(tmp_path / "m", tensors, config | {"ple_layer_ids": [1]})
    with pytest.raises(CheckpointError, match=r"layers \[1\], but ple_layer_ids .* \[0\]"):
        open_source(folder)


def test_any_tensor_by_its_name(saved):
    """``--tensor`` takes an exact name, a series of shards, and divides rows into layers."""
    model, folder = saved["qwen4_exp"]
    embedding = open_source(folder, tensor="model.embed_tokens.weight")
    weight = model.model.embed_tokens.weight.detach()
    assert embedding.name == "model.embed_tokens.weight"
    assert torch.equal(stored(embedding, torch.bfloat16)[:, 0], weight)
    layers = open_source(folder, layers=2, tensor="model.embed_tokens.weight")
    assert torch.equal(stored(layers, torch.bfloat16), weight.reshape(64, 2, 8))
    table = open_source(folder)
    for number in ("*", "{}", "{0…3}"):
        series = open_source(folder, tensor=f"{NGRAMS}.ngram_embedding.shard_{number}.weight")
        assert series.name == f"{NGRAMS}.ngram_embedding.shard_*.weight"
        assert torch.equal(stored(series, torch.bfloat16), stored(table, torch.bfloat16))


def test_named_series_is_in_the_order_of_its_numbers(tmp_path):
    """Shard 10 comes after shard 9, not after shard 1."""
    tensors = {f"t.{n}.weight": torch.full((1, 2), float(n)) for n in range(12)}
    table = open_source(write(tmp_path / "m", tensors, {}), tensor="t.*.weight")
    assert all_rows(table)[:, 0, 0].tolist() == list(range(12))


def test_three_dimensional_tensor_has_its_layers(tmp_path):
    """A tensor [rows, layers, width] has a field for each layer."""
    tensor = torch.randn(5, 3, 4)
    folder = write(tmp_path / "m", {"a": tensor, "b": tensor[0].clone()}, {})
    assert np.array_equal(all_rows(open_source(folder, tensor="a")), tensor.numpy())
    with pytest.raises(ConfigError, match="--layers is 2"):
        open_source(folder, layers=2, tensor="a")


@pytest.mark.parametrize(
    ("name", "layers", "error", "message"),
    [
        ("model.embed_token.weight", None, CheckpointError, "nearest.*model.embed_tokens.weight"),
        ("model.embed_tokens.weight", 5, ConfigError, "does not divide rows of 16"),
        (
            "model.layers.1.ple.norm_key.weight",
            None,
            CheckpointError,
            r"shape \[\d+\], expected \[rows, width\]",
        ),
        ("model.*.*", None, ConfigError, "has several"),
        ("model.layers.*.nothing", None, CheckpointError, "is not in"),
    ],
)
def test_tensors_that_are_no_table(saved, name, layers, error, message):
    """A name that is not there gets the nearest ones; a shape that is not a table is refused."""
    with pytest.raises(error, match=message):
        open_source(saved["qwen4_exp"][1], layers=layers, tensor=name)


def test_folder_without_a_known_table(saved, tmp_path):
    """The error lists all families, the nearest names, and that --tensor takes any tensor."""
    tensors = {"model.embed_tokens.weight": torch.zeros(4, 4), "lm_head.weight": torch.zeros(4, 4)}
    folder = write(tmp_path / "m", tensors, {"model_type": "qwen3"})
    with pytest.raises(CheckpointError, match="Looked for: MemoryLLM") as raised:
        open_source(folder)
    for part in ("'qwen3'", f"…{PLE}", "shard_N.weight", "embed_tokens.weight", "--tensor NAME"):
        assert part in str(raised.value)


def test_options_of_memoryllms_leave_families_out(saved):
    """--arch says that the checkpoint is a MemoryLLM, and its errors are about that."""
    with pytest.raises(CheckpointError, match="memory|norm"):
        open_source(saved["gemma4"][1], CheckpointOptions(arch="memoryllm"))


def test_inspect_shows_tables(saved):
    """``tolpack inspect`` shows family, table, shape, dtype, rows a token and what is left over."""
    runner = CliRunner()
    text = runner.invoke(main, ["inspect", str(saved["qwen4_exp"][1])]).output
    for part in ("qwen4_exp_text", "ngram_embedding", "rows/token", "shard_{0…3}", "build: ready"):
        assert part in text
    text = runner.invoke(main, ["inspect", str(saved["gemma4"][1])]).output
    assert "the model multiplies its rows by 4" in text
    folder = str(saved["qwen4_exp_two"][1])
    info = json.loads(runner.invoke(main, ["inspect", folder, "--json"]).output)
    assert [table["name"] for table in info["tables"]] == ["layer.0", "layer.2"]
    table = info["tables"][1]
    assert (table["rows_per_token"], table["width"], table["layers"]) == (8, 8, [2])
    assert table["bytes"] == table["rows"] * 8 * 2
    assert "lm_head.weight" in info["left_over"]
    assert not [name for name in info["left_over"] if "ple_embedding" in name]
    command = ["inspect", folder, "--json", "--tensor", "model.embed_tokens.weight"]
    (table,) = json.loads(runner.invoke(main, command).output)["tables"]
    assert (table["name"], table["rows"]) == ("model.embed_tokens.weight", 64)


def test_inspect_says_what_was_looked_for(tmp_path):
    """A folder without a known table ends with the list of families, and no traceback."""
    tensors = {"model.embed_tokens.weight": torch.zeros(4, 4), "b": torch.zeros(1)}
    folder = write(tmp_path / "m", tensors, {"model_type": "qwen3"})
    result = CliRunner().invoke(main, ["inspect", str(folder)])
    assert result.exit_code != 0
    assert "Looked for" in result.output


JUNK = [None, True, 0, -1, 3.5, 2**31, 2**70, "3", [], [0], [2**70], {}, [[1]], {"a": 1}]


@pytest.mark.parametrize("family", ["gemma4", "qwen4_exp"])
def test_junk_in_settings_is_refused_or_has_no_effect(saved, tmp_path, family):
    """Any value in any setting gives a table or an error of tolpack that is soon there."""
    tensors, config = read(saved[family][1])
    folder = write(tmp_path / "m", tensors, config)
    names = [name for name in config if "per_layer" in name or "ngram" in name or "ple" in name]
    names += ["vocab_size", "hidden_size", "num_hidden_layers", "eos_token_id", "seed",
              "text_config", "model_type"]  # fmt: skip
    for name in names:
        for value in JUNK:
            text = json.dumps(config | {name: value})
            (folder / "config.json").write_text(text, encoding="utf-8")
            try:
                assert open_tables(folder)[0].rows
            except TolpackError as error:
                assert len(str(error)) < 2000
