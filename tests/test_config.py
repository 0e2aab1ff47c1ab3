"""The model configuration: what is accepted, what is refused, and that nothing is guessed."""

import json

import pytest
from models import make_config, save_config

from tolpack.errors import CheckpointError
from tolpack.sources.checkpoint.config import parse_config, read_config

ALWAYS = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers")


@pytest.mark.parametrize("model_type", ["memoryllm", "flex_memoryllm", "llama"])
def test_complete_config_keeps_every_field(model_type):
    """A complete config of each model type is read field by field, unchanged."""
    raw = make_config(model_type)
    config = parse_config(raw)
    assert {name: getattr(config, name) for name in raw} == raw
    assert config.has_memory == (model_type != "llama")


def test_unknown_keys_are_ignored():
    """Fields that Hugging Face adds beside ours do no harm."""
    raw = make_config() | {"architectures": ["X"], "torch_dtype": "bfloat16"}
    assert parse_config(raw) == parse_config(make_config())


@pytest.mark.parametrize("name", ALWAYS)
def test_missing_basic_field_is_named(name):
    """Without a field that everything needs, the error names it and says to add it."""
    with pytest.raises(CheckpointError, match=rf"'{name}' is missing: add it"):
        parse_config(make_config(**{name: None}))


def test_missing_other_fields_stay_none():
    """Every other missing field is None rather than a default, and null counts as missing."""
    minimal = {name: make_config()[name] for name in ALWAYS}
    config = parse_config(minimal | {"rope_theta": None})
    others = set(make_config()) - set(ALWAYS)
    assert {getattr(config, name) for name in others} == {None}


def test_require_says_what_for_and_how_to_repair():
    """A required field that is missing gives an error with its purpose and the remedy."""
    config = parse_config(make_config(norm=None))
    with pytest.raises(CheckpointError, match="'norm' is missing.*the norms.*--config"):
        config.require("norm", "the norms")
    assert config.require("hidden_size", "anything") == 24


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("model_type", "gpt2", "one of memoryllm, flex_memoryllm, llama"),
        ("model_type", ["memoryllm"], "one of memoryllm"),
        ("norm", "batchnorm", "one of rmsnorm, layernorm"),
        ("hidden_act", "relu", "one of silu, gelu"),
        ("flex_input", "both", "one of post_attention, residual"),
        ("vocab_size", 0, "a positive integer"),
        ("vocab_size", -1, "a positive integer"),
        ("vocab_size", True, "a positive integer"),
        ("vocab_size", 97.0, "a positive integer"),
        ("vocab_size", "97", "a positive integer"),
        ("hidden_size", 2**31, "a positive integer below 2\\^31"),
        ("rms_norm_eps", 0, "a positive number"),
        ("rms_norm_eps", float("nan"), "a positive number"),
        ("rope_theta", float("inf"), "a positive number"),
        ("rope_theta", 10**400, "a positive number"),
        ("rope_theta", "10000", "a positive number"),
        ("tie_word_embeddings", 1, "true or false"),
        ("rope_interleaved", "true", "true or false"),
    ],
)
def test_wrong_value_is_refused_by_name(name, value, expected):
    """A value of the wrong type or range gives an error with the field and what is expected."""
    with pytest.raises(CheckpointError, match=f"'{name}' is .*expected {expected}"):
        parse_config(make_config() | {name: value})


@pytest.mark.parametrize("name", ["vocab_size", "rope_theta"])
def test_absurdly_long_integer_is_refused(name):
    """An integer of more digits than Python prints is refused like any other wrong value."""
    with pytest.raises(CheckpointError, match=name):
        parse_config(make_config() | {name: 10**5000})


@pytest.mark.parametrize("raw", [None, [], "memoryllm", 3])
def test_config_must_be_an_object(raw):
    """Anything but a JSON object is refused."""
    with pytest.raises(CheckpointError, match="must be a JSON object"):
        parse_config(raw)


def test_file_is_read_as_utf8_json(tmp_path):
    """A config file gives the same as the object that it holds."""
    path = save_config(tmp_path / "config.json", make_config() | {"name": "naïve"})
    assert read_config(path) == parse_config(make_config())


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 200_000, b'{"a": ' + b"9" * 5000])
def test_broken_file_names_itself(tmp_path, data):
    """A file that is not JSON gives an error with its path, never another exception."""
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON"):
        read_config(path)


def test_unreadable_file_names_itself(tmp_path):
    """A config that is missing, or a folder, gives an error with its path."""
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(CheckpointError, match=f"cannot read config {path}"):
            read_config(path)


def test_json_numbers_may_be_integers_where_floats_belong(tmp_path):
    """A JSON 10000 serves as rope_theta as well as 10000.0."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(make_config(rope_theta=10000)), encoding="utf-8")
    assert read_config(path).rope_theta == 10000
