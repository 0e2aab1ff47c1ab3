"""What is printed for people holds nothing that a terminal obeys."""

import json

import models
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import tolpack
from tolpack.cli import main
from tolpack.commands.terminal import Terminal, echo
from tolpack.errors import printable

# Clears the screen, sets the title, turns the direction of writing, ends the line, rings, goes
# back, and is half a pair.
EVIL = "\x1b[2J\x1b]0;x\x07\u202e\n\r\b\x9b1m\u2028\u200b\udc80"


def run(*args):
    """Run the command line in this process; returns all that it printed, and the result."""
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    return result.stdout + result.stderr, result


def assert_plain(text):
    """Check that every line is printable."""
    assert [line for line in text.split("\n") if not line.isprintable()] == []


def test_what_a_terminal_obeys_is_escaped():
    """Each such character has an escape, and what can be printed stays."""
    assert printable(EVIL).isprintable()
    assert printable("\x1b[2J") == "\\x1b[2J"
    assert printable("naïve × 日本語 ± “…” 🙂") == "naïve × 日本語 ± “…” 🙂"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_tensor_names_are_escaped(tmp_path, suffix):
    """Names of tensors in tables, in what is left over, and in errors."""
    name = EVIL.replace("\udc80", "")
    config = models.make_config(num_hidden_layers=1)
    state = models.make_state(config) | {f"other.{name}": torch.ones(2)}
    (tmp_path / "m").mkdir()
    models.save_config(tmp_path / "m" / "config.json", config)
    if suffix == ".pt":
        torch.save(state, tmp_path / "m" / "model.pt")
    else:
        models.save_safetensors(tmp_path / "m" / "model.safetensors", state)
    for call in (("inspect", tmp_path / "m"), ("build", tmp_path / "m", "-o", tmp_path / "p")):
        text, result = run(*call)
        assert result.exit_code == 0, text
        assert_plain(text)
        assert "\\x1b[2J" in text
    state[f"{name}.memory"] = torch.ones(1)
    torch.save({"model": state, "config": config}, tmp_path / "n.pt")
    text, result = run("build", tmp_path / "n.pt")
    assert result.exit_code == 1
    assert_plain(text)


def test_file_names_are_escaped(tmp_path, memoryllm):
    """Paths in results and in errors, names that are not UTF-8 among them."""
    folder = tmp_path / EVIL
    folder.mkdir()
    calls = [
        ("build", memoryllm, "-o", folder / "p.tolpack"), ("inspect", folder / "p.tolpack"),
        ("verify", folder / "p.tolpack"), ("diff", folder / "p.tolpack", folder / "p.tolpack"),
        ("convert", folder / "p.tolpack", folder / "t.npy"), ("inspect", folder / "absent.pt"),
        ("rows", folder / "absent"), ("rows", folder / "absent", "1"), ("plan", folder),
        ("inspect", memoryllm, "--config", folder / "no.json"),
        ("diff", folder / "p.tolpack", folder / "p.tolpack", "--layers", "2", "--arch", "llama"),
    ]  # fmt: skip
    for call in calls:
        text, _ = run(*call)
        assert text
        assert_plain(text)


def test_values_of_a_config_are_escaped(tmp_path):
    """What a config says, in the errors about it."""
    for change in ({"model_type": EVIL}, {"rope_scaling": {EVIL: EVIL}}, {"norm": EVIL}):
        config = models.make_config() | change
        models.save_config(tmp_path / "config.json", config)
        state = models.make_state(models.make_config())
        path = models.save_safetensors(tmp_path / "m.safetensors", state)
        np.save(tmp_path / "ids.npy", models.zipf_ids(300, 97))
        text, result = run("eval", path, "--text", tmp_path / "ids.npy")
        assert result.exit_code == 1
        assert_plain(text)


def test_tokens_are_escaped(tmp_path, memoryllm):
    """Texts of tokens, in the tables of ``rows`` and ``diff``; JSON has escapes of its own."""
    token = EVIL.replace("\udc80", "")
    vocab = {(token if n == 5 else f"t{n}"): n for n in range(97)}
    parts = {"version": "1.0", "added_tokens": [],
             "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"}}  # fmt: skip
    (tmp_path / "t.json").write_text(json.dumps(parts), "utf-8")
    for bits in (4, 8):
        tolpack.build(memoryllm, tmp_path / f"{bits}.tolpack", bits=bits)
    call = ("rows", tmp_path / "4.tolpack", "5", "--tokenizer", tmp_path / "t.json")
    assert_plain(run(*call)[0])
    assert "\\x1b" in run(*call)[0]
    assert json.loads(run(*call, "--json")[1].stdout)["tokens"] == [f" {token}"]
    packs = (tmp_path / "4.tolpack", tmp_path / "8.tolpack")
    text, result = run("diff", *packs, "--tokenizer", tmp_path / "t.json", "--worst", "97")
    assert result.exit_code == 0
    assert_plain(text)


def test_lines_of_progress_are_escaped(capsys):
    """Whatever is told while something runs is one line."""
    Terminal().say(EVIL)
    echo("a\nb" + EVIL.replace("\n", ""))
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.out.count("\n") == 2
    assert_plain(captured.err + captured.out)
