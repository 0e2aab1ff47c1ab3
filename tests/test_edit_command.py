"""``tolpack edit``: what it prints, what it writes, and what it refuses."""

import json
import shutil
from pathlib import Path

import models
import numpy as np
import pytest
from click.testing import CliRunner

import tolpack
from tolpack.cli import main

DEMO = Path(tolpack.__file__).parent / "demo" / "model"


def run(*args):
    """Run ``tolpack edit`` in this process."""
    return CliRunner().invoke(main, ["edit", *map(str, args)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny MemoryLLM of the demo's vocabulary, its exact pack, and the demo's tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    checkpoint = models.save_model(folder, vocab_size=4096)
    tolpack.build(checkpoint, folder / "p.tolpack", bits="lossless")
    shutil.copy(DEMO / "tokenizer.json", folder)
    return folder


def edited(folder, edits):
    """Rows of the whole vocabulary, without and with edits."""
    with tolpack.open(folder / "p.tolpack") as plain:
        old = plain.rows(np.arange(4096))
    with tolpack.open(folder / "p.tolpack", edits=[edits]) as pack:
        return old, pack.rows(np.arange(4096))


def test_tokens_by_id_text_and_file(folder, tmp_path):
    """Tokens of --token and --tokens are edited together; texts find the tokenizer by the pack."""
    np.save(tmp_path / "ids.npy", np.array([9, 300]))
    result = run(folder / "p.tolpack", "-o", tmp_path / "e", "--token", " the", "--token", 9,
                 "--tokens", tmp_path / "ids.npy", "--scale", 0.5, "--layers", "0,2")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    old, new = edited(folder, tmp_path / "e")
    tokens = np.flatnonzero((old != new).any((1, 2)))
    assert len(tokens) == 3 and {9, 300} < set(tokens.tolist())
    old[np.ix_(tokens, [0, 2])] *= np.float32(0.5)
    assert np.array_equal(new, old)


def test_json_says_what_was_made(folder, tmp_path):
    """The JSON has the file, its bytes, tokens with texts, keys by layer, and changes by layer."""
    result = run(folder / "p.tolpack", "-o", tmp_path / "e", "--token", " the", "--json",
                 "--suppress-like", " with", "--keys-per-layer", 3,
                 "--checkpoint", folder / "model.pt")  # fmt: skip
    found = json.loads(result.stdout)
    assert found["nbytes"] == (tmp_path / "e").stat().st_size
    assert found["tokens"] == [" the"]
    assert {layer: len(keys) for layer, keys in found["keys"].items()} == {"0": 3, "1": 3, "2": 3}
    assert [one["layer"] for one in found["layers"]] == [0, 1, 2]
    old, new = edited(folder, tmp_path / "e")
    token = found["token_ids"][0]
    change = np.linalg.norm((new - old)[token].astype(float), axis=-1)
    expected = change / np.linalg.norm(old[token].astype(float), axis=-1)
    assert [one["largest"] for one in found["layers"]] == pytest.approx(expected.tolist())


def test_named_keys_and_a_printed_table(folder, tmp_path):
    """Only layers of the named keys change, and the table lists keys, tokens and bytes."""
    result = run(folder / "p.tolpack", "-o", tmp_path / "e", "--token", 5, "--suppress-keys",
                 "0:3,2:7,2:1", "--checkpoint", folder / "model.pt")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "edited tokens: 5 '%'" in result.stdout
    assert "\n2      1, 7 " in result.stdout
    assert "1 token of table tol" in result.stdout
    old, new = edited(folder, tmp_path / "e")
    assert (old[5] != new[5]).any(axis=1).tolist() == [True, False, True]


@pytest.mark.parametrize("source", ["model.pt", "p.tolpack", "rows.npy"])
def test_rows_from_elsewhere(source, folder, tmp_path):
    """--from takes a checkpoint, a pack or a plain table of the whole vocabulary."""
    np.save(tmp_path / "rows.npy", np.ones((4096, 3, 24), np.float32))
    path = tmp_path / source if source == "rows.npy" else folder / source
    result = run(folder / "p.tolpack", "-o", tmp_path / "e", "--token", 5, "--from", path)
    assert result.exit_code == 0, result.stderr
    old, new = edited(folder, tmp_path / "e")
    expected = np.ones_like(old[5]) if source == "rows.npy" else old[5]
    assert np.allclose(new[5], expected, rtol=1e-5, atol=1e-6)


REFUSED = {
    "no token": (["--zero"], "no token to edit"),
    "no change": (["--token", "5"], "one change is needed, none given"),
    "two changes": (["--token", "5", "--zero", "--scale", "2"], "--zero and --scale given"),
    "keys without checkpoint": (["--token", "5", "--suppress-keys", "0:1"], "give --checkpoint"),
    "a checkpoint for nothing": (["--token", "5", "--zero", "--checkpoint", "x.pt"],
                                 "it is not for --zero"),
    "a map for nothing": (["--token", "5", "--zero", "--map", "hf-llama"], "reads no checkpoint"),
    "keys per layer": (["--token", "5", "--zero", "--keys-per-layer", "3"], "--suppress-like"),
    "wrong keys": (["--token", "5", "--suppress-keys", "0-1"], "expected LAYER:KEY"),
    "wrong layers": (["--token", "5", "--zero", "--layers", "x"], "expected 0,3 or 2-5"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_usage_is_refused_before_the_pack_is_opened(name, tmp_path):
    """Options that make no sense together are wrong usage, whether or not the files exist."""
    options, message = REFUSED[name]
    result = run(tmp_path / "absent.tolpack", "-o", tmp_path / "e", *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_errors_are_one_line(folder, tmp_path):
    """What does not fit the pack or its model is one line, and no file is left."""
    pack, checkpoint = folder / "p.tolpack", folder / "model.pt"
    for options, message in (
        (["--token", "4096", "--zero"], "token id 4096 is out of range"),
        (["--token", "no such token", "--zero"], "token 'no such token' is 3 tokens"),
        (["--token", "5", "--zero", "--layers", "3"], "layer 3 does not exist"),
        (["--token", "5", "--scale", "inf"], "expected a finite number"),
        (["--token", "5", "--scale", "-1e39"], "expected a finite number of float32"),
        (["--token", "5", "--suppress-keys", "0:20", "--checkpoint", checkpoint], "no key 20"),
        (["--token", "5", "--suppress-keys", "0:2", "--checkpoint", checkpoint, "--layers", "1"],
         "which --layers leaves out"),
        (["--token", "5", "--rows", tmp_path / "absent.npy"], "cannot read rows"),
        (["--token", "5", "--from", tmp_path / "absent.pt"], "does not exist"),
    ):  # fmt: skip
        result = run(pack, "-o", tmp_path / "e", *options)
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        assert message in result.stderr
        assert not (tmp_path / "e").exists()


def test_edits_of_edits(folder, tmp_path):
    """With --edits, rows are changed that were edited before; the new file alone gives them."""
    pack, first, second = folder / "p.tolpack", tmp_path / "first", tmp_path / "second"
    run(pack, "-o", first, "--token", 5, "--scale", 0.5)
    assert run(pack, "-o", second, "--token", 5, "--scale", 4, "--edits", first).exit_code == 0
    old, new = edited(folder, second)
    assert np.array_equal(new[5], 2 * old[5])
    result = run(pack, "-o", first, "--token", 5, "--zero", "--edits", first, "--force")
    assert "is one of the inputs" in result.stderr


def test_a_factor_of_0_is_a_factor(folder, tmp_path):
    """--scale 0 gives zeros, like --zero."""
    result = run(folder / "p.tolpack", "-o", tmp_path / "e", "--token", 5, "--scale", 0)
    assert result.exit_code == 0, result.stderr
    assert not edited(folder, tmp_path / "e")[1][5].any()


def test_no_input_is_replaced(folder, tmp_path):
    """By --force neither: tokens, rows, other packs, checkpoints, and files in their folders; an
    older file of edits beside a checkpoint is.
    """
    pack = folder / "p.tolpack"
    model = Path(shutil.copytree(folder, tmp_path / "model"))
    (model / "weights.index.json").write_text("{}")
    np.save(tmp_path / "ids.npy", [5])
    np.save(tmp_path / "rows.npy", np.zeros((1, 3, 24), np.float32))
    keys = ["--suppress-keys", "0:3", "--checkpoint"]
    for name, options in {
        "ids.npy": ["--tokens", tmp_path / "ids.npy", "--zero"],
        "rows.npy": ["--rows", tmp_path / "rows.npy"],
        "model/p.tolpack": ["--from", model / "p.tolpack"],
        "model/model.pt": [*keys, model / "model.pt"],
        "model/weights.index.json": [*keys, model],
        "model/tokenizer.json": ["--zero", "--tokenizer", model / "tokenizer.json"],
    }.items():
        before = (tmp_path / name).read_bytes()
        token = [] if name == "ids.npy" else ["--token", 5]
        result = run(pack, "-o", tmp_path / name, *token, *options, "--force")
        assert "is one of the inputs" in result.stderr
        assert (tmp_path / name).read_bytes() == before
    assert run(pack, "-o", model / "e", "--token", 5, "--zero").exit_code == 0
    result = run(pack, "-o", model / "e", "--token", 5, *keys, model, "--force")
    assert "is one of the inputs" not in result.stderr


def test_files_are_replaced_only_by_force(folder, tmp_path):
    """An existing file stays unless --force is given; the pack itself is never replaced."""
    pack, out = folder / "p.tolpack", tmp_path / "e"
    assert run(pack, "-o", out, "--token", 5, "--zero").exit_code == 0
    assert "--force" in run(pack, "-o", out, "--token", 5, "--scale", 2).stderr
    assert run(pack, "-o", out, "--token", 5, "--scale", 2, "--force").exit_code == 0
    result = run(pack, "-o", pack, "--token", 5, "--zero", "--force")
    assert "is one of the inputs" in result.stderr
