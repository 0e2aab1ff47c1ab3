"""``--edits`` of the commands: packs are shown, measured and converted with their edits."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from edited_packs import edit, expected, fields_of, sample_pack
from packs import KEY, RECIPES, split, write

import tolpack
from tolpack.cli import main
from tolpack.edits.write_edits import write_edits
from tolpack.errors import ConfigError
from tolpack.evaluation.evaluator import Evaluator


def run(*arguments):
    """Run a command line in this process."""
    return CliRunner().invoke(main, list(map(str, arguments)))


def printed(*arguments):
    """Run a command that must succeed and return its JSON."""
    found = run(*arguments, "--json")
    assert found.exit_code == 0, found.stderr
    return json.loads(found.stdout)


@pytest.fixture
def pack(tmp_path):
    """An open pack without edits."""
    with sample_pack(tmp_path) as opened:
        yield opened


@pytest.fixture
def edits(pack, tmp_path):
    """A file of edits, the edited ids, and their rows by field."""
    return edit(pack, tmp_path / "e.tolpack")


def test_rows_shows_edited_rows(edits, pack):
    """Of several files the last one counts."""
    path, ids, _ = edits
    other, _, rows = edit(pack, path.with_name("other"), 1, ids=ids[:1])
    found = printed("rows", pack.path, *ids[:2], "--edits", path, "--edits", other)
    assert np.array_equal(np.array(found["rows"][0], np.float32), [one[0] for one in rows])
    assert found["stats"]["edited_rows"] == 2


def test_inspect_and_verify_say_what_edits_are(edits, pack):
    """Of which pack, by its digest, and of which tokens; of a pack how many tokens are edited."""
    path, ids, _ = edits
    found = printed("inspect", path)
    assert (found["base"], found["token_ids"]) == (pack.digest, ids.tolist())
    assert found["edits"] == {"table": "tols", "rows": pack.vocab_size}
    text = run("inspect", path).stdout
    assert pack.digest in text
    assert f"token ids {', '.join(map(str, ids))}" in text
    assert printed("inspect", pack.path)["edited_tokens"] == 0
    assert printed("inspect", pack.path, "--edits", path)["edited_tokens"] == len(ids)
    assert f"{len(ids)} tokens edited" in run("inspect", pack.path, "--edits", path).stdout
    assert f"edits of {len(ids)} rows of the pack {pack.digest}" in run("verify", path).stdout
    assert printed("verify", path)["base"] == pack.digest


def test_verify_names_the_tokens_of_damaged_edits(edits):
    """By their ids, not by their places in the file."""
    path, ids, _ = edits
    data = bytearray(path.read_bytes())
    blocks = next(one for one in split(data)[1]["sections"] if one["kind"] == "blocks")
    data[blocks["offset_bytes"]] ^= 1
    path.write_bytes(data)
    (damage,) = printed_damages(path)
    named = [n for first, last in damage["token_ranges"] for n in range(first, last + 1)]
    assert named == ids.tolist()


def printed_damages(path):
    found = run("verify", path, "--json")
    assert found.exit_code == 1
    return json.loads(found.stdout)["damages"]


def test_bench_takes_edits(edits, pack):
    """And refuses those of another pack."""
    found = printed("bench", pack.path, "--rows", 4, "--seconds", 0.01, "--edits", edits[0])
    assert {one["rows"] for one in found["timings"]} == {1, 4}
    assert run("bench", pack.path, "--edits", pack.path, "--rows", 1).exit_code == 1


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_convert_writes_edited_rows(dtype, edits, pack, tmp_path):
    """Of a pack with edits in files, and of a merged one."""
    path, ids, rows = edits
    tolpack.merge(pack.path, [path], tmp_path / "m")
    every = np.arange(pack.vocab_size)
    wanted = np.stack(expected(pack, every, (ids, rows)), axis=1).astype(dtype)
    for number, (source, own) in enumerate([(pack.path, [path]), (tmp_path / "m", [])]):
        output = tmp_path / f"{number}.npy"
        options = [word for one in own for word in ("--edits", one)]
        printed("convert", source, output, "--dtype", dtype, *options)
        assert np.array_equal(np.load(output), wanted)


def test_convert_stores_no_edits_as_tensors(tmp_path):
    """Their rows are whole, and the model's tensors may be of other numbers."""
    np.save(tmp_path / "t.npy", np.ones((6, 2, 4), np.float16))
    tolpack.build(tmp_path / "t.npy", tmp_path / "p", bits="lossless")
    with tolpack.open(tmp_path / "p") as pack:
        path, _, _ = edit(pack, tmp_path / "e")
    tolpack.merge(tmp_path / "p", [path], tmp_path / "m")
    for source, own in ((tmp_path / "p", [path]), (tmp_path / "m", [])):
        with pytest.raises(ConfigError, match="has edits, whose rows are not tensors"):
            tolpack.convert(source, tmp_path / "x.safetensors", dtype="stored", edits=own)
    assert not (tmp_path / "x.safetensors").exists()
    tolpack.convert(tmp_path / "p", tmp_path / "x.safetensors", dtype="stored")


def test_diff_holds_a_pack_against_its_edited_self(edits, pack):
    """The edited tokens differ, and no others; edits go to the pack that they belong to."""
    path, ids, _ = edits
    found = printed("diff", pack.path, pack.path, "--edits", path, "--worst", 100)
    differing = {one["token_id"] for one in found["worst"] if one["relative_error"]}
    assert differing == set(ids.tolist())
    other = write(path.with_name("other"), RECIPES["int8"], key=KEY[::-1]).path
    found = printed("diff", other, pack.path, "--edits", path, "--worst", 100)
    assert {one["token_id"] for one in found["worst"] if one["relative_error"]} == differing


def test_eval_gives_edits_to_their_packs(memoryllm, token_ids, tmp_path):
    """The edited pack changes as its merged one does; the other stays, and its edits are named."""
    a, b = (tmp_path / name for name in ("a.tolpack", "b.tolpack"))
    for path, bits in ((a, 8), (b, 4)):
        tolpack.build(memoryllm, path, bits=bits)
    with tolpack.open(b) as pack:
        ids = np.unique(np.load(token_ids))[:40]
        zeros = np.zeros((len(ids), pack.num_layers, pack.hidden_size), np.float32)
        write_edits(pack, tmp_path / "e", ids, {pack.table: zeros})
    tolpack.merge(b, [tmp_path / "e"], tmp_path / "m")
    evaluator = Evaluator(memoryllm, token_ids, context=16)
    found = evaluator.packs([a, b, tmp_path / "m"], [tmp_path / "e"])
    plain = evaluator.packs([a, b])
    assert [one.name for one in found] == ["a.tolpack", "b.tolpack + e", "m"]
    assert found[0].kl_mean_nats == plain[0].kl_mean_nats
    assert found[1].kl_mean_nats > 2 * plain[1].kl_mean_nats
    np.testing.assert_allclose(found[1].kl_mean_nats, found[2].kl_mean_nats, rtol=1e-6)
    assert found[1].read_bytes_per_token < plain[1].read_bytes_per_token
    text = run("eval", memoryllm, a, b, "--text", token_ids, "--edits", tmp_path / "e").stdout
    assert "b.tolpack + e" in text


@pytest.mark.parametrize("command", ["eval", "lm-eval"])
def test_edits_of_none_of_the_packs_are_refused(command, edits, pack, memoryllm, tmp_path):
    """Before anything is measured, with the names of all."""
    other = write(tmp_path / "other.tolpack", RECIPES["int8"], key=KEY[::-1]).path
    options = {"eval": ["--text", tmp_path / "none.txt"], "lm-eval": ["--tasks", "x"]}[command]
    found = run(command, memoryllm, other, *options, "--edits", edits[0])
    assert found.exit_code == 1
    assert f"holds edits of another pack than {other}" in found.stderr.replace("\n", " ")


@pytest.mark.parametrize("command", ["eval", "lm-eval"])
def test_edits_need_a_pack(command, edits, memoryllm, tmp_path):
    """The message asks for it."""
    options = {"eval": ["--text", tmp_path / "none.txt"], "lm-eval": ["--tasks", "x"]}[command]
    found = run(command, memoryllm, *options, "--edits", edits[0])
    assert found.exit_code == 1
    assert "holds edits of a pack, and none is named: add that PACK" in found.stderr


def test_models_of_transformers_read_edited_rows(tmp_path):
    """Mounted or loaded, they give the logits that they give with the merged pack; saving such a
    model asks for that one.
    """
    torch, mounted = pytest.importorskip("torch"), pytest.importorskip("mounted_models")
    import tolpack.hf

    folder, path = mounted.save_with_packs(tmp_path)["gemma3n"]
    with tolpack.open(path) as pack:
        edits, ids, _ = edit(pack, tmp_path / "e")
        tolpack.merge(path, [edits], tmp_path / "m.tolpack")
    asked = torch.from_numpy(np.resize(ids, (1, 9)))
    plain, merged = (tolpack.hf.load(folder, one)[0] for one in (path, tmp_path / "m.tolpack"))
    with tolpack.open(path) as pack:  # most rows that a model is known by
        other = edit(pack, tmp_path / "other", ids=np.arange(1, pack.vocab_size))[0]
    tolpack.hf.mount(mounted.stock(folder), path, edits=[other])
    loaded = tolpack.hf.load(folder, path, edits=[edits])[0]
    late = tolpack.hf.mount(mounted.stock(folder), path, edits=[edits])
    wanted = mounted.logits(merged, asked)
    assert not torch.equal(mounted.logits(plain, asked), wanted)
    for model in (loaded, late):
        assert torch.equal(mounted.logits(model, asked), wanted)
    with pytest.raises(ConfigError, match="mounted with edits.*tolpack.merge"):
        loaded.save_pretrained(tmp_path / "saved")
    merged.save_pretrained(tmp_path / "saved")
    assert torch.equal(mounted.logits(tolpack.hf.load(tmp_path / "saved")[0], asked), wanted)


def test_rows_of_edits_alone_are_refused(edits, tmp_path):
    """With what to do."""
    found = run("rows", edits[0], 0)
    assert found.exit_code == 1
    assert "open that pack with" in found.stderr
    for dtype in ("float32", "stored"):
        found = run("convert", edits[0], tmp_path / "x.safetensors", "--dtype", dtype)
        assert found.exit_code == 1
        assert "convert that pack, with --edits" in found.stderr


def test_merged_packs_of_auto_io_modes_agree(edits, pack, tmp_path):
    """In every I/O mode rows are the same."""
    tolpack.merge(pack.path, [edits[0]], tmp_path / "m")
    every = np.arange(pack.vocab_size)
    with tolpack.open(tmp_path / "m") as merged:
        wanted = fields_of(merged, every)
    for io in ("pread", "mmap", "direct", "memory"):
        with tolpack.open(tmp_path / "m", io) as merged:
            assert all(map(np.array_equal, fields_of(merged, every), wanted))
