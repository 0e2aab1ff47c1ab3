"""What a pack says of its making: the header's key ``x-provenance``, and who shows it."""

import hashlib
import json
import shutil
from dataclasses import replace

import models
import numpy as np
import pytest
from click.testing import CliRunner

import tolpack
from tolpack.cli import main
from tolpack.compress.pack_provenance import longest_text, provenance_room
from tolpack.container.header import parse_header
from tolpack.container.provenance import (
    MAX_PROVENANCE_BYTES,
    PROVENANCE_KEY,
    CalibrationText,
    Provenance,
    StoredWeights,
    edited_text,
    provenance_text,
)
from tolpack.sources.open_source import open_tables
from tolpack.sources.table_digests import table_digests

DIGEST = "ab" * 32
WHOLE = Provenance(
    checkpoint={"tol": DIGEST},
    options={"bits": "auto", "rank": "50%", "trellis": True, "max_kld": 0.002},
    calibration=CalibrationText(1200, DIGEST),
    tokenizer=DIGEST,
    frequencies=DIGEST,
    memory_ffns=StoredWeights(4_720_640, 9_441_280, "bfloat16"),
    measured={"kl_mean_nats": 0.00198, "tokens": 300},
    edited=True,
)


def run(*arguments):
    """Run the command line; return its result, which must be 0."""
    result = CliRunner().invoke(main, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output
    return result


def made_from(path):
    """Return what a pack says of its making."""
    with tolpack.open(path) as pack:
        return Provenance.parse(pack.container.header.provenance)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model, a text of token ids, and counts."""
    folder = tmp_path_factory.mktemp("provenance")
    path = models.save_model(folder, vocab_size=300, hidden_size=16, num_hidden_layers=2)
    np.save(folder / "ids.npy", models.zipf_ids(1200, 300))
    np.save(folder / "counts.npy", np.arange(300)[::-1].copy())
    return path


@pytest.fixture(scope="module")
def pack(model):
    """A pack of the model, of 4 bits."""
    path = model.with_suffix(".tolpack")
    tolpack.build(model, path, frequencies=model.parent / "counts.npy")
    return path


def altered(model, folder):
    """Write a copy of a model with one weight of an FFN scaled; return its path."""
    import torch

    found = torch.load(model, weights_only=True)
    name = next(n for n in found["model"] if "memory_mlp.down_proj" in n)
    found["model"][name] = found["model"][name] * 0.5
    torch.save(found, folder / "altered.pt")
    return folder / "altered.pt"


# ---- what stands in the header -------------------------------------------------------------------


def test_json_gives_back_what_was_written():
    """Every part survives."""
    assert Provenance.parse(WHOLE.to_text()) == WHOLE


@pytest.mark.parametrize(
    "value",
    [None, 7, "text", [], [DIGEST], {}, {"checkpoint": 3}, {"checkpoint": {"tol": "AB" * 32}},
     {"calibration": {"tokens": -1, "sha256": DIGEST}}, {"calibration": {"tokens": 5}},
     {"memory_ffns": {"parameters": 0, "bytes": 1, "dtype": "x"}}, {"options": ["bits"]},
     {"stored_table": {"parameters": 1, "bytes": 1, "dtype": "![x](http://a/b.png)<b>"}},
     {"options": {"x; rm -rf ~ #": "v"}},
     {"options": {"bits": None, "rank": {}, "": "x"}}, {"measured": {"tokens": "many"}},
     {"tokenizer": 1e300}, {"edited": 1}, {"unknown": {"deep": [[[]]]}}],
)  # fmt: skip
def test_what_is_not_as_expected_is_absent(value):
    """No value makes a reader fail, and none is taken for another one."""
    assert Provenance.of(value) == Provenance()


@pytest.mark.parametrize(
    "value",
    ["1e999", "[1,2]", '"x"', "true", '{"options":{"bits":1e999}}',
     json.dumps({"checkpoint": {"x" * MAX_PROVENANCE_BYTES: DIGEST}})],
    ids=["infinite", "list", "text", "true", "infinite inside", "huge"],
)  # fmt: skip
def test_a_header_takes_any_value_there(pack, value):
    """A header with any JSON at the key is the same header without it."""
    with tolpack.open(pack) as opened:
        header = replace(opened.container.header, provenance=None)
    stored = header.to_json()
    assert parse_header(stored[:-1] + f',"{PROVENANCE_KEY}":{value}}}'.encode()) == header


def test_a_header_keeps_what_later_versions_write(pack):
    """Unknown keys inside stay, and edits are noted beside them."""
    text = provenance_text({"later": [1, {"x": "\ud800"}], "checkpoint": {"tol": DIGEST}})
    with tolpack.open(pack) as opened:
        header = replace(opened.container.header, provenance=text)
    assert parse_header(header.to_json()) == header
    assert json.loads(edited_text(text)) == {**json.loads(text), "edited": True}


def test_a_build_keeps_digests_options_and_weights(model, pack):
    """They are those of the inputs."""
    found, counts = made_from(pack), np.arange(300, dtype="<i8")[::-1]
    assert found.checkpoint == table_digests(open_tables(model))
    assert found.options == {"bits": "4"}
    assert found.frequencies == hashlib.sha256(counts.tobytes()).hexdigest()
    assert found.memory_ffns.bytes == open_tables(model)[0].ffn_bytes
    assert found.memory_ffns.bytes_16 * 2 == found.memory_ffns.bytes  # it is float32
    assert found.calibration is None and found.tokenizer is None and not found.measured


def test_a_searched_pack_keeps_text_and_cost(model, tmp_path):
    """The calibration text by its digest, and what the search measured."""
    ids = model.parent / "ids.npy"
    tolpack.build(model, tmp_path / "auto.tolpack", bits="auto", max_kld=0.01, calibrate=ids)
    found, stored = made_from(tmp_path / "auto.tolpack"), np.load(ids).astype("<i8")
    digest = hashlib.sha256(stored.tobytes()).hexdigest()
    assert found.calibration == CalibrationText(1200, digest)
    assert found.options == {"bits": "auto", "max_kld": 0.01}
    assert 0 < found.measured["kl_mean_nats"] <= 0.01
    tolpack.build(model, tmp_path / "sampled.tolpack", bits="auto")
    sampled = made_from(tmp_path / "sampled.tolpack").calibration
    assert sampled.sha256 is None and sampled.tokens > 0


def test_the_same_input_elsewhere_gives_the_same_bytes(model, pack, tmp_path):
    """No byte depends on paths, threads or memory."""
    other = tmp_path / "moved"
    other.mkdir()
    for name in (model.name, "ids.npy", "counts.npy"):
        shutil.copy(model.parent / name, other / f"other-{name}")
    moved = other / f"other-{model.name}"
    tolpack.build(
        moved, tmp_path / "a", frequencies=other / "other-counts.npy", threads=1, max_memory="1GB"
    )
    assert (tmp_path / "a").read_bytes() == pack.read_bytes()
    for folder, name in ((model.parent, "ids.npy"), (other, "other-ids.npy")):
        tolpack.build(model, tmp_path / name, bits="auto", calibrate=folder / name)
    assert (tmp_path / "ids.npy").read_bytes() == (tmp_path / "other-ids.npy").read_bytes()
    assert str(model.parent).encode() not in pack.read_bytes()


def test_compute_and_names_of_files_are_not_in_the_digest(model, tmp_path):
    """A table has one digest, however it is multiplied and wherever it lies."""
    shutil.copy(model, tmp_path / "x.pt")
    (source,), (copied,) = open_tables(model), open_tables(tmp_path / "x.pt")
    import torch

    assert table_digests([source.computed_in(torch.bfloat16)]) == table_digests([copied])
    assert table_digests(open_tables(altered(model, tmp_path))) != table_digests([copied])


@pytest.mark.parametrize("bits", [16, 8, 4, "lossless"])
@pytest.mark.parametrize("rank", ["none", "50%"])
def test_plan_counts_the_provenance(model, pack, tmp_path, bits, rank):
    """The predicted size of a plan is that of the file."""
    if bits == "lossless" and rank != "none":
        pytest.skip("there is no such pack")
    result = tolpack.build(model, tmp_path / "p", bits=bits, rank=rank, compression="none")
    (plan,) = json.loads(
        run("plan", model, "--bits", bits, "--rank", rank, "--compression", "none", "--json").stdout
    )["plans"]
    assert plan["bytes"] == pytest.approx(result.bytes, abs=0 if bits != "lossless" else 4096)


def test_the_room_that_is_kept_is_enough():
    """Of the longest values that a build writes."""
    longest = replace(
        WHOLE,
        options={
            "bits": "lossless", "rank": ",".join(["65535"] * 24), "size": 2**62,
            "drop": ",".join(map(str, range(10_000, 10_048, 2))), "compression": "none",
            "compute": "bfloat16",
        },
        calibration=CalibrationText(2**40, DIGEST),
        memory_ffns=StoredWeights(2**50, 2**51, "bfloat16, float16, float32"), measured={},
        edited=False,
    )  # fmt: skip
    taken = len(longest.to_text()) + len(f',"{PROVENANCE_KEY}":')
    assert taken <= provenance_room(["tol"], 24, longest)
    alone = replace(longest, calibration=None, tokenizer=None, frequencies=None)
    taken = len(alone.to_text()) + len(f',"{PROVENANCE_KEY}":')
    assert taken <= provenance_room(["tol"], 24)
    measured = {"tokens": 2**40, "step": 1.23e-05, "ppl_increase_pct": -1.23e-05,
                "ppl_increase_se_pct": 1.23e-05}  # fmt: skip
    auto = replace(longest, options={"bits": "auto"})
    assert len(replace(auto, measured=measured).to_text()) <= len(longest_text(auto))


# ---- who keeps it --------------------------------------------------------------------------------


def test_parts_joined_split_and_merged_packs_keep_it(model, pack, tmp_path):
    """Splitting and joining change no bit of it; merging notes that rows were edited."""
    tolpack.build(
        model, tmp_path / "parts", part_size="8KB", frequencies=model.parent / "counts.npy"
    )
    run("join", tmp_path / "parts", tmp_path / "joined.tolpack")
    run("split", pack, tmp_path / "split", "--part-size", "8KB")
    assert made_from(tmp_path / "parts") == made_from(pack)
    assert made_from(tmp_path / "split") == made_from(pack)
    assert (tmp_path / "joined.tolpack").read_bytes() == pack.read_bytes()
    np.save(tmp_path / "tokens.npy", [3])
    run("edit", pack, "-o", tmp_path / "a.edits", "--tokens", tmp_path / "tokens.npy", "--zero")
    run("merge", pack, tmp_path / "a.edits", "-o", tmp_path / "merged.tolpack")
    assert made_from(tmp_path / "merged.tolpack") == replace(made_from(pack), edited=True)
    run("verify", tmp_path / "merged.tolpack")


# ---- who shows it --------------------------------------------------------------------------------


def test_inspect_shows_it(pack):
    """In words, and in JSON."""
    found, text = made_from(pack), run("inspect", pack).stdout
    assert f"made from:\n  checkpoint: SHA-256 {found.checkpoint['tol']} (table tol)\n" in text
    assert "  options: --bits 4\n" in text
    value = json.loads(run("inspect", pack, "--json").stdout)
    assert value["provenance"] == found.to_json()
    assert value["ffn_bytes"] == found.memory_ffns.bytes
    assert value["ffn_bytes_16"] == 2 * found.memory_ffns.parameters


def test_eval_and_diff_warn_of_another_checkpoint(model, pack, tmp_path):
    """The digests of both stand in the warning; the right checkpoint gives none."""
    other, ids = altered(model, tmp_path), model.parent / "ids.npy"
    own = made_from(pack).checkpoint["tol"][:8]
    (digest,) = (one[:8] for one in table_digests(open_tables(other)).values())
    expected = (
        f"{pack.name} was made from another checkpoint (SHA-256 {own}…) than {other} "
        f"({digest}…): unless that is a copy in another dtype, its figures say nothing about it"
    )
    found = run("eval", other, pack, "--text", ids)
    assert f"\nWarning: {expected}\n" in found.stdout
    assert f"Warning: {expected}\n" in found.stderr
    assert (
        expected in json.loads(run("eval", other, pack, "--text", ids, "--json").stdout)["warnings"]
    )
    assert f"\n\nWarning: {expected}\n" in run("diff", pack, other).stdout
    assert json.loads(run("diff", pack, other, "--json").stdout)["warnings"] == [expected]
    for command in (("eval", model, pack, "--text", ids), ("diff", pack, model)):
        right = run(*command)
        assert "another checkpoint" not in right.stdout + right.stderr


def test_diff_warns_of_packs_of_two_checkpoints(model, pack, tmp_path):
    """Their difference is not the cost of packing."""
    tolpack.build(altered(model, tmp_path), tmp_path / "other.tolpack")
    text = run("diff", pack, tmp_path / "other.tolpack").stdout
    assert f"{pack.name} and other.tolpack were made from different checkpoints" in text
    assert "Warning" not in run("diff", pack, pack).stdout
