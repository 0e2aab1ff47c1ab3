"""Checkpoints on disk: every spelling opens, and every wrong input is refused with a remedy."""

import json
import os
import pickle
import zipfile

import models
import numpy as np
import pytest
import torch
from packs import memory_limit

from tolpack.errors import CheckpointError, ConfigError, TolpackError
from tolpack.sources.checkpoint.checkpoint import open_checkpoint
from tolpack.sources.checkpoint.options import CheckpointOptions
from tolpack.sources.checkpoint.readiness import check_decoder
from tolpack.sources.open_source import open_source

CONFIG = models.make_config()


def spellings(folder, dtype):
    """Save the same weights in every spelling: (path, config to give beside it)."""
    state, config = models.make_state(CONFIG, dtype), CONFIG
    beside = models.save_config(folder / "given.json", config)
    alone = folder / "alone"
    alone.mkdir()
    models.save_config(alone / "config.json", config)
    longer = models.prefixed(state)
    return {
        "pt": (models.save_pt(folder / "a.pt", state, config), None),
        "pt prefixed": (models.save_pt(folder / "b.pth", longer, config), None),
        "bare pt": (models.save_pt(folder / "c.pt", state), beside),
        "safetensors": (models.save_safetensors(folder / "d.safetensors", state), beside),
        "safetensors beside config": (
            models.save_safetensors(alone / "e.safetensors", longer), None,
        ),
        "folder": (models.save_folder(folder / "f", longer, config), None),
        "shards": (models.save_folder(folder / "g", state, config, shards=3), None),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_spelling_gives_the_same_tensors(tmp_path, dtype):
    """File kind, prefix and sharding change no tensor's name, dtype or value."""
    state = models.make_state(CONFIG, dtype)
    for path, config in spellings(tmp_path, dtype).values():
        checkpoint = open_checkpoint(path, CheckpointOptions(config))
        assert checkpoint.config.hidden_size == 24
        for name, tensor in state.items():
            loaded = checkpoint.tensor(name)
            assert loaded.dtype == dtype
            assert torch.equal(loaded, tensor)


def test_old_torch_format_opens(tmp_path):
    """A checkpoint in torch's format before 1.6, which cannot be mapped, opens as well."""
    path = tmp_path / "old.pt"
    state = models.make_state(CONFIG)
    torch.save({"model": state, "config": CONFIG}, path, _use_new_zipfile_serialization=False)
    loaded = open_checkpoint(path).tensor("norm.weight")
    assert torch.equal(loaded, state["norm.weight"])


def test_given_config_replaces_the_embedded_one(tmp_path):
    """The file of --config wins over the config inside the checkpoint."""
    path = models.save_model(tmp_path)
    given = models.save_config(tmp_path / "c.json", CONFIG | {"rms_norm_eps": 1e-3})
    assert open_checkpoint(path, CheckpointOptions(given)).config.rms_norm_eps == 1e-3


def test_describe_lists_patterns_with_shapes(memoryllm):
    """What was matched is told as patterns with shape, dtype and count."""
    first, *lines = open_source(memoryllm).describe()
    assert first == "tensor names: hf-llama"
    assert len(lines) == 5
    assert lines[0].split() == ["embed_tokens.weight", "[97,", "24]", "float32"]
    assert "layers.N.memory_mlp.down_proj.weight" in lines[4]
    assert lines[4].split()[1:] == ["[24,", "20]", "float32", "×", "3"]


class Payload:
    """Unpickles by running code that leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain pickle"])
def test_pickle_with_code_is_refused_and_not_run(tmp_path, kind):
    """A checkpoint whose pickle calls code gives an error, and the code does not run."""
    path, mark = tmp_path / "evil.pt", tmp_path / "ran"
    content = {"model": models.make_state(CONFIG), "config": CONFIG, "extra": Payload(mark)}
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(Payload(mark)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(CheckpointError, match=r"evil\.pt.*can run code.*safetensors"):
        open_checkpoint(path)
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch warns of what it then refuses
def test_damaged_pt_never_gives_a_foreign_error(tmp_path):
    """Foreign, cut and overwritten bytes of a .pt give CheckpointError, or what was intact."""
    path = models.save_model(tmp_path, vocab_size=7, num_hidden_layers=1)
    whole = path.read_bytes()
    cases = [b"", b"\x80", b"\x80\x02.", b"PK\x03\x04", b"hello", bytes(1000), b"\xff" * 1000]
    cases += [whole[:n] for n in (1, 10, 100, 1000, len(whole) // 2, len(whole) - 1)]
    start = whole.index(b"\x80\x02}")  # the pickle inside
    random = np.random.default_rng(0)
    for _ in range(800):
        damaged = bytearray(whole)
        for at in random.integers(start, start + 1500, random.integers(1, 4)):
            damaged[at] = random.integers(256)
        cases.append(bytes(damaged))
    foreign = set()
    for case in cases:
        path.write_bytes(case)
        try:
            open_source(path).field_rows(0)
        except CheckpointError:
            continue
        except Exception as error:  # noqa: BLE001 (that none comes is the claim)
            foreign.add(type(error).__name__)
    assert foreign == set()


def test_zip_that_is_no_checkpoint_is_refused(tmp_path):
    """A ZIP of something else under the name .pt is refused."""
    path = tmp_path / "other.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"other\.pt"):
        open_checkpoint(path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"model": {}}, torch.zeros(3), "text"])
def test_pt_of_something_else_says_what_is_expected(tmp_path, content):
    """A .pt that holds no state dict gives an error that shows the expected form."""
    path = tmp_path / "x.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="expected a state dict.*torch.save"):
        open_checkpoint(path)


@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_exotic_tensor_is_refused(tmp_path, kind):
    """A sparse or storage-less tensor in place of a weight gives CheckpointError."""
    state = models.make_state(CONFIG)
    name = "layers.0.memory_mlp.up_proj.weight"
    state[name] = state[name].to_sparse() if kind == "sparse" else state[name].to("meta")
    path = models.save_pt(tmp_path / "x.pt", state, CONFIG)
    with pytest.raises(CheckpointError):
        open_source(path).field_rows(0)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "..", "a/b.safetensors"])
def test_shard_index_cannot_leave_the_folder(tmp_path, name):
    """An index that names a file outside its folder is refused, even if that file is there."""
    folder = models.save_folder(tmp_path / "m", models.make_state(CONFIG), CONFIG)
    (folder / "a").mkdir()
    for target in (tmp_path / "secret.safetensors", folder / "a" / "b.safetensors"):
        models.save_safetensors(target, models.make_state(CONFIG))
    index = {"weight_map": {"norm.weight": "model.safetensors", "embed_tokens.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(CheckpointError, match="names shard .*which is not in"):
        open_checkpoint(folder)


def test_missing_shard_is_named(tmp_path):
    """An index that names a shard that is not there gives an error with the shard's name."""
    folder = models.save_folder(tmp_path / "m", models.make_state(CONFIG), CONFIG, shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        open_checkpoint(folder)


def test_doubled_tensor_is_named_with_both_shards(tmp_path):
    """A tensor in two shards gives an error with the tensor, both files and the remedy."""
    state = models.make_state(CONFIG)
    folder = models.save_folder(tmp_path / "m", state, CONFIG)
    models.save_safetensors(folder / "again.safetensors", {"norm.weight": state["norm.weight"]})
    with pytest.raises(
        CheckpointError,
        match=r"'norm.weight' is in both again.safetensors and model.safetensors: remove one",
    ):
        open_checkpoint(folder)


def test_tensor_with_and_without_prefix_is_refused(tmp_path):
    """The same tensor under both spellings of its name is ambiguous and refused."""
    state = models.make_state(CONFIG)
    path = models.save_pt(tmp_path / "m.pt", state | models.prefixed(state), CONFIG)
    with pytest.raises(CheckpointError, match="are the same but for a prefix: keep one"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": ["a"]}', "[" * 100_000]
)
def test_broken_index_is_named(tmp_path, text):
    """An index file without a usable weight_map gives an error with its path."""
    folder = models.save_folder(tmp_path / "m", models.make_state(CONFIG), CONFIG)
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="index.json is not an index with a 'weight_map'"):
        open_checkpoint(folder)


def test_shards_of_mixed_dtypes_open(tmp_path):
    """Shards may differ in dtype: each tensor keeps its own."""
    state = models.make_state(CONFIG)
    folder = models.save_folder(tmp_path / "m", state, CONFIG, shards=2)
    first = folder / "model-00001-of-00002.safetensors"
    halved = {name: state[name].bfloat16() for name in sorted(state)[0::2]}
    models.save_safetensors(first, halved)
    checkpoint = open_checkpoint(folder)
    dtypes = {checkpoint.tensor(name).dtype for name in state}
    assert dtypes == {torch.float32, torch.bfloat16}
    open_source(folder).field_rows(0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["embed_tokens.weight", "layers.1.memory_mlp.up_proj.weight"])
def test_nan_and_inf_weights_are_refused_by_name(tmp_path, value, dtype, name):
    """One NaN or Inf in a weight that the tables need gives an error with the tensor's name."""
    state = models.make_state(CONFIG, dtype)
    state[name][3, 4] = value
    path = models.save_pt(tmp_path / "m.pt", state, CONFIG)
    with pytest.raises(CheckpointError, match=f"'{name}' holds NaN or Inf"):
        source = open_source(path)
        source.check(lambda size: None)
        source.field_rows(1)


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("vocab_size", 98, "embed_tokens.weight"),
        ("hidden_size", 32, "embed_tokens.weight"),
        ("memory_intermediate_size", 21, "layers.0.memory_mlp.gate_proj.weight"),
    ],
)
def test_shape_against_config_is_named(tmp_path, field, value, name):
    """A config that asks for another shape gives an error with tensor, both shapes and remedy."""
    path = models.save_pt(tmp_path / "m.pt", models.make_state(CONFIG), CONFIG | {field: value})
    with pytest.raises(CheckpointError, match=f"'{name}' has shape .*asks for .*correct config"):
        open_source(path)


def test_transposed_weight_is_refused(tmp_path):
    """A projection stored the other way round is refused with that hint, rather than used."""
    state = models.make_state(CONFIG)
    name = "layers.2.memory_mlp.down_proj.weight"
    state[name] = state[name].T.contiguous()
    path = models.save_pt(tmp_path / "m.pt", state, CONFIG)
    with pytest.raises(CheckpointError, match=rf"'{name}' has shape \[20, 24\]") as caught:
        open_source(path)
    assert "stored the other way round, transpose it" in str(caught.value)


@pytest.mark.parametrize("count", [2, 1])
def test_extra_layers_are_refused(tmp_path, count):
    """A checkpoint with more layers than its config says is refused with the remedy."""
    config = CONFIG | {"num_hidden_layers": count}
    path = models.save_pt(tmp_path / "m.pt", models.make_state(CONFIG), config)
    with pytest.raises(
        CheckpointError, match=rf"layers.{count}.*num_hidden_layers = {count}: correct"
    ):
        open_source(path)


def test_config_with_absurdly_many_layers_is_refused_at_once(tmp_path):
    """A config that promises two billion layers names the first that is missing, cheaply."""
    for model_type in ("memoryllm", "flex_memoryllm", "llama"):
        config = models.make_config(model_type)
        path = models.save_pt(
            tmp_path / "m.pt", models.make_state(config), config | {"num_hidden_layers": 2**31 - 1}
        )
        with memory_limit(), pytest.raises(CheckpointError, match=r"'layers\.3\..*' is missing"):
            check_decoder(open_checkpoint(path))


def test_extra_layer_after_a_gap_is_refused(tmp_path):
    """Extra layers are noticed even if the first of them is missing."""
    state = models.make_state(CONFIG)
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("layers.1.")}
    path = models.save_pt(tmp_path / "m.pt", kept, CONFIG | {"num_hidden_layers": 1})
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        open_source(path)


def test_missing_tensor_is_named_with_similar_ones(tmp_path):
    """A missing tensor is named, with names that look alike and where names are documented."""
    state = models.make_state(CONFIG)
    del state["layers.1.memory_mlp.up_proj.weight"]
    path = models.save_pt(tmp_path / "m.pt", state, CONFIG)
    with pytest.raises(CheckpointError) as caught:
        open_source(path)
    message = str(caught.value)
    assert "'layers.1.memory_mlp.up_proj.weight' is missing" in message
    assert "layers.0.memory_mlp.up_proj.weight" in message
    assert "docs/checkpoints.md" in message


def test_integer_tensor_is_refused(tmp_path):
    """A weight that is not a float, such as a quantized one, is refused with the dtypes allowed."""
    state = models.make_state(CONFIG)
    state["embed_tokens.weight"] = state["embed_tokens.weight"].to(torch.int8)
    path = models.save_pt(tmp_path / "m.pt", state, CONFIG)
    with pytest.raises(CheckpointError, match="is int8.*expected .*float32, bfloat16 or float16"):
        open_source(path)


@pytest.mark.parametrize(
    "bias",
    ["layers.0.memory_mlp.up_proj.bias", "layers.0.memory_layernorm.bias"],
)
def test_bias_that_would_be_left_out_is_refused(tmp_path, bias):
    """A bias in the memory FFN, or of an RMSNorm, is refused: rows without it would be wrong."""
    state = models.make_state(CONFIG)
    state[bias] = torch.ones(20 if "mlp" in bias else 24)
    path = models.save_pt(tmp_path / "m.pt", state, CONFIG)
    with pytest.raises(CheckpointError, match="bias"):
        open_source(path).field_rows(0)


def test_dense_checkpoint_is_refused_for_tables(tmp_path):
    """A dense model gives an error that says why and names the config field to set."""
    path = models.save_model(tmp_path, "llama")
    with pytest.raises(CheckpointError, match="dense model.*'llama'.*set model_type to"):
        open_source(path)


@pytest.mark.parametrize("name", ["memory_intermediate_size", "norm", "rms_norm_eps", "hidden_act"])
def test_config_field_that_tables_need_is_asked_for(tmp_path, name):
    """A missing field that the tables need is named with the remedy; nothing is guessed."""
    config = models.make_config(**{name: None})
    path = models.save_pt(tmp_path / "m.pt", models.make_state(CONFIG), config)
    with pytest.raises(CheckpointError, match=f"'{name}' is missing and needed for .*--config"):
        open_source(path).field_rows(0)


def test_config_fields_that_tables_do_not_need_may_be_missing(tmp_path):
    """Attention, rotary and head settings are not asked for when only rows are wanted."""
    unneeded = ["num_attention_heads", "num_key_value_heads", "rope_theta", "rope_interleaved",
                "max_position_embeddings", "tie_word_embeddings", "flex_input",
                "intermediate_size"]  # fmt: skip
    config = models.make_config(**dict.fromkeys(unneeded))
    path = models.save_pt(tmp_path / "m.pt", models.make_state(CONFIG), config)
    assert open_source(path).num_layers == 3


def test_checkpoint_without_config_says_how_to_give_one(tmp_path):
    """A bare state dict or lone .safetensors without config asks for --config."""
    state = models.make_state(CONFIG)
    bare = models.save_pt(tmp_path / "m.pt", state)
    alone = models.save_safetensors(tmp_path / "m.safetensors", state)
    for path in (bare, alone):
        with pytest.raises(CheckpointError, match="carries no config: give one with --config"):
            open_source(path)


def test_absent_and_unknown_paths_say_what_is_expected(tmp_path):
    """A path that is absent, empty or of an unknown kind is refused with what is expected."""
    with pytest.raises(CheckpointError, match="does not exist"):
        open_source(tmp_path / "absent.pt")
    with pytest.raises(CheckpointError, match="holds no .safetensors file"):
        open_source(tmp_path)
    other = tmp_path / "model.gguf"
    other.write_bytes(b"x")
    with pytest.raises(CheckpointError, match="is a text file, expected a checkpoint"):
        open_source(other)
    other.write_bytes(b"\xff\x00")
    with pytest.raises(ConfigError, match="expected .pt, .pth, .safetensors, or a folder"):
        open_source(other)


def test_damaged_safetensors_is_named(tmp_path):
    """Empty, cut and random .safetensors give CheckpointError with the path."""
    config = models.save_config(tmp_path / "c.json", CONFIG)
    path = models.save_safetensors(tmp_path / "m.safetensors", models.make_state(CONFIG))
    whole = path.read_bytes()
    for data in (b"", whole[:5], whole[:100], whole[:-1], whole + b"x", b"\xff" * 100):
        path.write_bytes(data)
        with pytest.raises(TolpackError, match=r"m\.safetensors"):
            open_source(path, CheckpointOptions(config))
