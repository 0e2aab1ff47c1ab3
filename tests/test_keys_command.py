"""``tolpack keys``: tables, JSON, the report, and what is refused before the work."""

import base64
import json
import re
import shutil
import zlib

import models
import numpy as np
import pytest
from click.testing import CliRunner

import tolpack
from tolpack.cli import main
from tolpack.demo import MODEL

ALL = ("--clusters", "6")


def run(*args):
    """Run ``tolpack keys`` in this process."""
    return CliRunner().invoke(main, ["keys", *map(str, args)])


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A tiny model of 4,096 tokens beside the demo's tokenizer."""
    folder = tmp_path_factory.mktemp("named")
    path = models.save_model(folder, vocab_size=4096, num_hidden_layers=1)
    shutil.copy(MODEL / "tokenizer.json", folder)
    return path


def test_tables_without_a_tokenizer(memoryllm):
    """A line for each layer, and the clusters of the first by token ids."""
    result = run(memoryllm, *ALL)
    assert result.exit_code == 0, result.stderr
    header, _, *lines = result.stdout.split("\n\n")[1].splitlines()
    assert header.split()[:3] == ["layer", "keys", "clustering"] and "same kind" not in header
    assert [line.split()[:2] for line in lines] == [["0", "20"], ["1", "20"], ["2", "20"]]
    assert result.stdout.count("of layer 0") == 6


def test_json_has_every_layer(memoryllm):
    """Each layer has its measures, clusters that hold all tokens, and what was looked up."""
    result = run(memoryllm, *ALL, "--layers", "0,2", "--token", 5, "--key", "2:7", "--json")
    found = json.loads(result.stdout)
    assert [one["layer"] for one in found["layers"]] == [0, 2]
    for one in found["layers"]:
        assert len(one["token_clusters"]) == 97
        sizes = np.bincount(one["token_clusters"], minlength=6).tolist()
        assert [cluster["size"] for cluster in one["clusters"]] == sizes
        assert set(one["agreement"]) == {"keys", "random_keys", "shuffled"}
        (token,) = one["tokens"]
        assert token["token"] == 5 and token["text"] is None and len(token["nearest"]) == 12
        assert len(token["keys"]) == 8
    first, second = (one["found_keys"] for one in found["layers"])
    assert first == [] and [one["key"] for one in second] == [7]
    assert second[0]["used_by"] > 0 and len(second[0]["tokens"]) == 16


def test_tokens_by_their_texts(named):
    """A token is found by its text, quoted digits are a text, and names stand in the tables."""
    result = run(named, *ALL, "--token", " the", "--token", "'1'", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["layers"][0]
    assert [one["text"] for one in found["tokens"]] == [" the", "1"]
    assert found["agreement"]["keys"]["same_kind"] is not None
    shown = run(named, *ALL, "--token", " the").stdout
    assert "same kind" in shown and "' the', layer 0: nearest by keys: " in shown


def test_a_report_is_one_file(named, tmp_path):
    """The report has the map with printable texts, and the clusters as a table, in one file."""
    path = tmp_path / "keys.html"
    result = run(named, *ALL, "--report", path, "--projection", "pca")
    assert result.exit_code == 0, result.stderr
    text = path.read_text("utf-8")
    assert 'id="map-layer-0"' in text and "Outlier keys" in text and "Clusters" in text
    assert [one.name for one in tmp_path.iterdir()] == ["keys.html"]
    packed = re.search('id="map-texts">([^<]*)<', text)[1]
    names = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert len(names) == 4096 and all(name is None or name.isprintable() for name in names)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("the cat", "is 3 tokens: give one of them (383 'the', "),
        ("'statement'", "words begin with a space"),
        ("", "is 0 tokens: give a text, or an id"),
        ("99999", "--token 99999: ids of tokens are 0 … 4095"),
    ],
)
def test_texts_that_are_no_token(named, value, message):
    """A text of several tokens lists them, or says that a space is missing."""
    result = run(named, "--token", value)
    assert result.exit_code == 1 and message in result.stderr, result.stderr


def test_a_text_needs_a_tokenizer(memoryllm):
    """Without a tokenizer a text is not a token, and the error says what to give."""
    result = run(memoryllm, "--token", " the")
    assert result.exit_code == 1
    assert "no tokenizer.json beside the model: give --tokenizer" in result.stderr


def test_inputs_without_keys(memoryllm, tmp_path):
    """A pack, a plain table and a dense model have no keys; the error says why and what to give."""
    pack = tolpack.build(memoryllm, tmp_path / "p.tolpack", bits=8).path
    np.save(tmp_path / "t.npy", np.zeros((9, 2, 4), np.float16))
    dense = models.save_model(tmp_path, "llama", "dense.pt")
    for path, why in ((pack, "is a pack"), (tmp_path / "t.npy", "is a plain table")):
        result = run(path)
        assert result.exit_code == 1 and why in result.stderr
        assert "Give the MemoryLLM checkpoint that the rows were computed from" in result.stderr
    result = run(dense)
    assert result.exit_code == 1 and "is a dense model" in result.stderr


def test_scikit_learn_is_asked_for(memoryllm, monkeypatch):
    """Where it is missing, the error names the extra, before a weight is read."""
    monkeypatch.setattr("tolpack.keys.clusters.importlib.util.find_spec", lambda name: None)
    result = run(memoryllm)
    assert result.exit_code == 1 and "pip install 'tolpack[keys]'" in result.stderr


def test_a_report_that_cannot_be_written_is_refused_first(memoryllm, tmp_path):
    """A wrong suffix, a folder that is not there, and the checkpoint itself are not reports."""
    for path in (tmp_path / "r.txt", tmp_path / "none" / "r.html", tmp_path):
        result = run(memoryllm, "--report", path)
        assert result.exit_code == 1 and str(path) in result.stderr


def test_flex_checkpoints_have_keys(tmp_path):
    """A Flex-MemoryLLM's FFN-M is read, not its FFN-C."""
    path = models.save_model(tmp_path, "flex_memoryllm", memory_intermediate_size=12)
    result = run(path, *ALL, "--json")
    assert [one["keys"] for one in json.loads(result.stdout)["layers"]] == [12, 12, 12]
