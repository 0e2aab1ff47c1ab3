"""The trainer under ``examples/``: its checkpoints, its resumption, and its share of a batch."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tolpack
from tolpack.model.decoder import Decoder
from tolpack.model.perplexity import score
from tolpack.sources.checkpoint.checkpoint import open_checkpoint

EXAMPLES = Path(__file__).parents[1] / "examples"
SIZE = [
    *("--hidden-size=24", "--layers=2", "--heads=2", "--context=16", "--batch=4"),
    *("--vocab-size=64", "--log-every=2", "--eval-every=4", "--save-every=3"),
]
KINDS = {
    "llama": ["--beta", "8"],
    "memoryllm": ["--beta", "0"],
    "flex_memoryllm": ["--beta", "2.5"],
    "flex_memoryllm, residual": ["--beta", "1", "--flex-input", "residual"],
}


@pytest.fixture(autouse=True)
def train(monkeypatch):
    """The module; torch's random state and threads are as before afterwards."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import train

    with torch.random.fork_rng():
        yield train


@pytest.fixture(scope="module")
def ids(tmp_path_factory):
    """Token ids of which every other one follows from the one before it."""
    drawn = np.random.default_rng(0).integers(1, 64, 3000)
    drawn[1::2] = drawn[0::2] * 7 % 64
    path = tmp_path_factory.mktemp("ids") / "ids.npy"
    np.save(path, drawn.astype(np.uint16))
    return path


def run(train, ids, folder, *more):
    """Train on the ids, and return what was reached."""
    return train.main(["--data", str(ids), "--out", str(folder), *SIZE, *more])


def log(folder):
    """Return the lines of a log without times."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_decoder_reads_the_checkpoint(train, ids, tmp_path, kind):
    """The decoder has the loss that the trainer found with its rounded weights."""
    found = run(train, ids, tmp_path, "--steps", "6", *KINDS[kind])
    checkpoint = open_checkpoint(tmp_path)
    assert found["model_type"] == checkpoint.config.model_type == kind.partition(",")[0]
    valid = np.load(ids)[-150:].astype(np.int64)
    own = score(Decoder(checkpoint), valid, 16).mean_nll_nats
    assert own == pytest.approx(found["validation_loss_saved"], rel=1e-5)
    assert found["validation_loss_saved"] == pytest.approx(found["validation_loss"], rel=1e-2)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "training.pt").exists()


def test_memories_are_packed_as_they_were_trained(train, ids, tmp_path):
    """A pack of float16 rows has the rows of the trained FFN-M."""
    run(train, ids, tmp_path / "model", "--steps", "2", *KINDS["flex_memoryllm"])
    tolpack.build(tmp_path / "model", tmp_path / "model.tolpack", bits=16)
    from memoryllm_model import ModelConfig, Transformer

    model = Transformer(ModelConfig(64, 24, 2, 2, 20, 44, 16))
    state = load_file(tmp_path / "model" / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): t.float() for name, t in state.items()})
    layer = model.layers[1]
    with torch.no_grad():
        wanted = layer.memory_mlp(layer.memory_layernorm(model.embed_tokens.weight))
    with tolpack.open(tmp_path / "model.tolpack") as pack:
        rows = pack.rows(np.arange(64))[:, 1]
    assert np.allclose(rows, wanted.numpy(), atol=1e-3 * wanted.abs().max())


def test_all_kinds_have_as_many_weights(train):
    """β moves weights between the FFNs: inner sizes have the same sum, and β·h² are FFN-C's."""
    from memoryllm_model import split_ffn

    for hidden in (96, 128, 200, 768):
        splits = {beta: split_ffn(hidden, beta) for beta in (0, 0.5, 1, 2, 3, 7.9, 8)}
        assert {sum(split) for split in splits.values()} == {round(8 * hidden / 3)}
        for beta, (inner, memory) in splits.items():
            assert abs(3 * inner * hidden - beta * hidden**2) <= 1.5 * hidden
            assert (inner == 0) == (beta == 0)
            assert (memory == 0) == (beta == 8)


def test_the_loss_falls(train, ids, tmp_path):
    """The model learns, and the log has the gradient norm of every group."""
    run(train, ids, tmp_path, "--steps", "30", "--learning-rate", "0.02", "--beta", "2")
    lines = log(tmp_path)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.1
    assert [line["step"] for line in lines] == list(range(2, 31, 2))
    assert [line["step"] for line in lines if "validation_loss" in line] == [*range(4, 30, 4), 30]
    groups = {"attention", "ffn_c", "ffn_m", "embedding", "norms"}
    assert all(set(line["gradient_norm"]) == groups for line in lines)
    assert all(norm > 0 for line in lines for norm in line["gradient_norm"].values())
    assert lines[-1]["tokens"] == 30 * 4 * 16


def test_a_resumed_run_is_as_if_it_had_not_stopped(train, ids, tmp_path):
    """Weights and log are equal bit for bit; dropout and batches go on where they were."""
    settings = ["--steps", "9", "--beta", "3", "--dropout", "0.2", "--seed", "5"]
    whole = run(train, ids, tmp_path / "whole", *settings)
    parts = tmp_path / "parts"
    assert run(train, ids, parts, *settings, "--stop-at", "5") == {"step": 5, "stopped": True}
    assert not (parts / "model.safetensors").exists()
    torch.manual_seed(99)
    resumed = run(train, ids, parts, *settings, "--resume")
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert log(parts) == log(tmp_path / "whole")


def test_a_stopped_run_is_neither_lost_nor_changed(train, ids, tmp_path, capsys):
    """Without --resume it is refused, and so is it with other settings."""
    run(train, ids, tmp_path, "--steps", "4", "--stop-at", "2")
    with pytest.raises(SystemExit):
        run(train, ids, tmp_path, "--steps", "4")
    assert "--resume" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="other --steps, --learning-rate"):
        run(train, ids, tmp_path, "--steps", "5", "--learning-rate", "1", "--resume")


def test_micro_batches_add_up(train, ids, tmp_path):
    """Gradients of parts of a batch sum to those of the whole."""
    run(train, ids, tmp_path / "whole", "--steps", "4")
    run(train, ids, tmp_path / "parts", "--steps", "4", "--micro-batch", "3")
    for one, other in zip(log(tmp_path / "whole"), log(tmp_path / "parts"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_mixed_precision_is_near_float32(train, ids, tmp_path):
    """Losses of bfloat16 products differ, but little."""
    exact = run(train, ids, tmp_path / "float32", "--steps", "4", "--beta", "2")
    mixed = run(train, ids, tmp_path / "bf16", "--steps", "4", "--beta", "2", "--precision", "bf16")
    assert mixed["validation_loss"] != exact["validation_loss"]
    assert mixed["validation_loss"] == pytest.approx(exact["validation_loss"], rel=1e-2)


def test_texts_are_split_into_documents(train, tmp_path):
    """A tokenizer is trained on texts, whose documents end with its first token."""
    text = tmp_path / "text.txt"
    documents = ["one two three four " * 40, "five six seven " * 40]
    text.write_text(train.END_OF_TEXT.join(documents))
    more = ["--vocab-size", "280", "--steps", "1"]
    found = run(train, text, tmp_path / "model", "--valid", str(text), *more)
    tokenizer = train.Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    ids = train.read_ids([text], tokenizer)
    assert [tokenizer.decode(part) for part in np.split(ids, np.flatnonzero(ids == 0) + 1)] == [
        *documents,
        "",
    ]
    assert found["tokens"] == 64
    decoder = Decoder(open_checkpoint(tmp_path / "model"))
    assert decoder.vocab_size == tokenizer.get_vocab_size() <= 280


def test_two_processes_are_as_good_as_one(train, ids, tmp_path):
    """Processes of torchrun share a batch, and have the losses of one that has all of it."""
    more = ["--steps", "4", "--beta", "2", "--threads", "1"]
    run(train, ids, tmp_path / "one", *more)
    command = ["--data", str(ids), "--out", str(tmp_path / "two"), *SIZE, *more]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(EXAMPLES / "train.py"), *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert [line["step"] for line in two] == [2, 4]
    for first, second in zip(one, two, strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
        assert second["validation_loss" if "validation_loss" in first else "loss"] == (
            pytest.approx(first.get("validation_loss", first["loss"]), rel=1e-5)
        )
        for group, norm in first["gradient_norm"].items():
            assert second["gradient_norm"][group] == pytest.approx(norm, rel=1e-3)
    found = json.loads(done.stdout)
    assert math.isclose(found["validation_loss"], two[-1]["validation_loss"])


def test_the_demo_model_is_trained_and_read_back(train, tmp_path, monkeypatch, capsys):
    """Its script ships the trainer's checkpoint and the held-out text, and scores the files."""
    import demo_text
    import train_demo_model

    def write(folder):
        folder.mkdir(parents=True)
        for name in ("train.txt", "validation.txt", "heldout.txt"):
            (folder / name).write_text(f"{name} one two three " * 99)

    monkeypatch.setattr(demo_text, "write", write)
    small = ["--steps=2", "--hidden-size=24", "--heads=2", "--layers=1", "--context=16"]
    folders = ["--output", str(tmp_path / "demo"), "--work", str(tmp_path / "work")]
    command = ["train_demo_model.py", *folders, "--", *small, "--vocab-size=290", "--threads=1"]
    monkeypatch.setattr(sys, "argv", command)
    train_demo_model.main()
    found = json.loads(capsys.readouterr().out)
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {
        *train_demo_model.CHECKPOINT,
        "heldout.txt",
    }
    assert found["validation_ppl"] == pytest.approx(found["validation_ppl_saved"], rel=1e-4)
    assert all(math.isfinite(found[f"{name}_ppl"]) for name in ("train", "heldout"))


def test_settings_of_the_demo_model_are_those_of_the_shipped_one(train):
    """Config of the shipped model is that of the trainer with the demo's settings."""
    import train_demo_model

    arguments = [*train_demo_model.SETTINGS.split(), "--data", "x", "--out", "x"]
    args = train.parse_arguments(arguments)
    ids = np.zeros(1, np.int64)
    config = train.model_config(args, train.Data(args.vocab_size, ids, ids)).to_json()
    shipped = Path(tolpack.__file__).parent / "demo" / "model" / "config.json"
    assert config == json.loads(shipped.read_text())
