"""What is given as an input and is not a regular file: refused at once, whatever it is for."""

import json
import os
import pickle
import re
import signal
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import tolpack
from tolpack.calibration import metrics_cache
from tolpack.cli import main
from tolpack.errors import CheckpointError, ConfigError
from tolpack.evaluation.result_cache import _read
from tolpack.runtime.scratch import Scratch

CONFIG = models.make_config()


@pytest.fixture(autouse=True)
def _limit():
    """End a test that waits for a writer or reads a device without end."""

    def stop(*_):
        raise TimeoutError("the input was waited for")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put(path, kind):
    """Put a FIFO, a device, a folder or a loop of links where a file should be; returns it."""
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path.name)
    return path


@pytest.fixture
def model(tmp_path):
    """A folder of two shards with index, config and tokenizer, and a pack, text and ids beside."""
    folder = models.save_folder(tmp_path / "m", models.make_state(CONFIG), CONFIG, shards=2)
    tolpack.build(folder, tmp_path / "p.tolpack")
    np.save(tmp_path / "ids.npy", models.zipf_ids(300, 97))
    return folder


# An input: the command that reads it, with {x} for its path; where it is not given by its path, the
# file inside the folder that is replaced.
INPUTS = {
    "checkpoint .pt": "build {x}.pt -o {out}",
    "checkpoint .pth": "build {x}.pth -o {out}",
    "checkpoint .bin": "inspect {x}.bin",
    "checkpoint .safetensors": "build {x}.safetensors -o {out}",
    "table .npy": "build {x}.npy --layers 2 -o {out}",
    "table .h5": "build {x}.h5 --layers 2 -o {out}",
    "planned .hdf5": "plan {x}.hdf5",
    "config": "build {m} -o {out} --config {x}.json",
    "key map": "build {m} -o {out} --key-map {x}.toml",
    "calibration text": "build {m} -o {out} --bits auto --calibrate {x}.txt "
    "--tokenizer {tokenizer}",
    "calibration ids": "build {m} -o {out} --bits auto --calibrate {x}.npy",
    "counts": "build {m} -o {out} --frequencies {x}.npy",
    "text": "eval {m} {p} --text {x}.txt --tokenizer {tokenizer}",
    "ids": "eval {m} {p} --text {x}.npy",
    "tokenizer": "rows {p} 1 --tokenizer {x}.json",
    "tokenizer of a text": "rows {p} --text a --tokenizer {x}.json",
    "pack": "rows {x}.tolpack 1",
    "pack without a suffix": "inspect {x}",
    "pack to verify": "verify {x}.tolpack",
    "pack to convert": "convert {x}.tolpack {out}.npy",
    "pack to compare": "diff {x}.tolpack {p}",
    "pack to compare with": "diff {p} {x}.tolpack",
    "reference without a suffix": "diff {p} {x}",
    "pack to evaluate": "eval {m} {x}.tolpack --text {ids}",
    "counts of a comparison": "diff {p} {p} --frequencies {x}.npy",
    "config beside": "build {m} -o {out}",
    "index": "build {m} -o {out}",
    "shard": "build {m} -o {out}",
}
BESIDE = {
    "config beside": "config.json",
    "index": "model.safetensors.index.json",
    "shard": "model-00001-of-00002.safetensors",
}


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "loop"])
@pytest.mark.parametrize("name", INPUTS)
def test_only_regular_files_are_read(model, tmp_path, name, kind):
    """A FIFO, a device, a folder or a loop of links in place of any input gives one line."""
    words = INPUTS[name].split()
    given = next((word for word in words if "{x}" in word), None)
    if given is not None:
        put(tmp_path / given.format(x="input"), kind)
    else:
        put(model / BESIDE[name], kind)
    here = tokenizer(tmp_path / "tokenizer.json")
    places = {"x": tmp_path / "input", "m": model, "p": tmp_path / "p.tolpack", "tokenizer": here,
              "out": tmp_path / "out.tolpack", "ids": tmp_path / "ids.npy"}  # fmt: skip
    if (name, kind) == ("index", "loop"):
        pytest.skip("a link to nothing is not an index, and the shards are complete without")
    result = CliRunner().invoke(main, [word.format(**places) for word in words])
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.stderr.count("\n") >= 1
    assert not (tmp_path / "out.tolpack").exists()


def tokenizer(path):
    """Save a tokenizer of one token per byte; returns `path`."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    made = Tokenizer(BPE({letter: number for number, letter in enumerate(letters)}, []))
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    made.save(str(path))
    return path


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "loop"])
def test_a_cache_that_is_no_file_is_none(tmp_path, monkeypatch, kind):
    """What lies in place of a kept file is as good as none."""
    monkeypatch.setenv("TOLPACK_CACHE", str(tmp_path))
    put(tmp_path / f"calibration-{bytes(16).hex()}.metrics", kind)
    assert metrics_cache.load(bytes(16), Scratch(tmp_path, 1 << 20)) is None
    assert _read(put(tmp_path / "measured.json", kind)) is None


def _pickled(path):
    path.write_bytes(pickle.dumps({"embed_tokens.weight": [1.0]}))


def _whole_module(path):
    torch.save(torch.nn.Linear(2, 2), path)


def _gguf(path):
    path.write_bytes(b"GGUF\3\0\0\0" + bytes(100))


def _gguf_folder(path):
    path.mkdir()
    models.save_config(path / "config.json", CONFIG)
    _gguf(path / "model-q8.gguf")


def _bin_folder(path):
    path.mkdir()
    torch.save(models.make_state(CONFIG), path / "weights.bin")


def _pack(path):
    models.save_model(path.parent, name="m.pt")
    tolpack.build(path.parent / "m.pt", path)


def _nothing(path):
    pass


# Commands that take tables look for them; others say what is read from such a file.
_NO_GGUF_TABLE = (
    "[mg].(gguf|bin) (is a GGUF file, expected .* only tables are read|holds neither per_layer_tok)"
)
# What people give as a checkpoint that is none: how it is made, and its error.
NO_CHECKPOINTS = {
    "a GGUF file": ("m.gguf", _gguf, _NO_GGUF_TABLE),
    "GGUF by its bytes": ("g.bin", _gguf, _NO_GGUF_TABLE),
    "a folder of GGUF": ("q", _gguf_folder, "q holds no .safetensors file, but model-q8.gguf:"),
    "a folder of other .bin": ("b", _bin_folder, r"but weights.bin: .*pytorch_model\*.bin.* name"),
    "a model id": ("org/Model-1.5B", _nothing, "org/Model-1.5B does not exist: .*hf download "
                   "org/Model-1.5B --local-dir Model-1.5B.* give the folder Model-1.5B"),
    "a pickle": ("m.pkl", _pickled, "m.pkl is a pickle, expected .* can run code"),
    "a pickle named .pt": ("p.pt", _pickled, "p.pt is a pickle, expected .* can run code"),
    "a whole module": ("w.pt", _whole_module, "w.pt holds a pickled object of class torch.nn.*Lin"),
    "a pack": ("p.tolpack", _pack, "p.tolpack is a pack, expected .*tolpack eval CHECKPOINT p.tol"),
    "a pack by its bytes": ("p.safetensors", _pack, "p.safetensors is a pack, expected a checkpo"),
    "a pack named as a table": ("p.npy", _pack, "p.npy is a pack, expected .* or a plain table"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_CHECKPOINTS)
def test_what_is_no_checkpoint_is_named_with_a_remedy(tmp_path, monkeypatch, kind):
    """Every command that takes a checkpoint, and tolpack.build, say in one line what was given,
    what was expected and what to do.
    """
    monkeypatch.chdir(tmp_path)
    name, make, message = NO_CHECKPOINTS[kind]
    make(Path(name))
    _pack(Path("other.tolpack"))
    np.save("ids.npy", models.zipf_ids(40, 97))
    for words in ("build", "build -o out.tolpack", "plan", "inspect", "eval --text ids.npy",
                  "study --text ids.npy", "diff other.tolpack"):  # fmt: skip
        if make is _pack and words.startswith(("inspect", "diff")):
            continue  # they take packs
        result = CliRunner().invoke(main, [*words.split(), name])
        assert result.exit_code == 1, (words, result.output)
        (line,) = result.stderr.splitlines()
        assert re.search(message, line), (words, line)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        tolpack.build(name)


def test_path_that_is_absent_is_no_model_id(tmp_path, monkeypatch):
    """A missing file of a known kind, or one in a folder that is there, is just missing."""
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    for name in ("models/absent", "other/absent.safetensors", "absent", "a/b/c", "../up"):
        with pytest.raises(CheckpointError, match="does not exist$"):
            tolpack.build(name)


def test_inspect_knows_a_pack_by_its_bytes(tmp_path):
    """A pack under a checkpoint's or a table's name is shown as the pack that it is."""
    for name in ("p.safetensors", "p.npy", "p"):
        _pack(tmp_path / name)
        result = CliRunner().invoke(main, ["inspect", str(tmp_path / name), "--json"])
        assert json.loads(result.output)["vocab_size"] == 97


@pytest.mark.parametrize("command", ["inspect", "verify", "rows", "bench", "convert", "diff"])
def test_a_table_given_as_a_pack_is_named(tmp_path, command):
    """A file that is not a pack is called what it is, and the error says how a pack is made."""
    path = tmp_path / "table.tolpack"
    np.save(tmp_path / "table.npy", np.zeros((4, 2, 8), np.float32))
    (tmp_path / "table.npy").rename(path)
    more = {"rows": ["0"], "convert": [str(tmp_path / "o.npy")], "diff": [str(path)]}
    result = CliRunner().invoke(main, [command, str(path), *more.get(command, [])])
    assert result.exit_code == 1
    assert result.output == (
        f"Error: {path} is a .npy array, not a pack: rename it to end in .npy, and build one with "
        "tolpack build\n"
    )
