"""Every example runs as its docstring says."""

import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import models
import pytest
from click.testing import CliRunner

import tolpack
from tolpack.cli import main
from tolpack.demo import MODEL

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, monkeypatch, capsys, *arguments):
    """Run an example and return what it printed, line by line."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_decoding_by_hand_gives_what_the_decoder_gives(monkeypatch, capsys):
    """The same greedy text, and counters that tell of hits in the cache and few reads."""
    text = run("generate.py", monkeypatch, capsys, "The with statement", "--tokens", "12")
    found = run("decode_by_hand.py", monkeypatch, capsys, "The with statement", "--tokens", "12")
    assert found[:-1] == text
    assert "'cache_hits'" in found[-1]


@pytest.mark.parametrize("name", ["generate.py", "decode_by_hand.py"])
def test_examples_take_a_model_of_ones_own(name, tmp_path, monkeypatch, capsys):
    """Checkpoint, pack and tokenizer; another model's pack and a missing tokenizer are refused."""
    folder = tmp_path / "model"
    folder.mkdir()
    for one in ("config.json", "model.safetensors"):
        shutil.copy(MODEL / one, folder)
    pack = tolpack.build(folder, tmp_path / "own.tolpack", bits=16).path
    own = ["The with statement", "--tokens", "12", "--checkpoint", str(folder)]
    given = ["--pack", str(pack), "--tokenizer", str(MODEL / "tokenizer.json")]
    found = run(name, monkeypatch, capsys, *own, *given)
    result = CliRunner().invoke(
        main, ["generate", str(folder), str(pack), own[0], "--tokens", "12", "--temperature", "0",
               "--tokenizer", given[-1]],
    )  # fmt: skip
    assert "\n".join(found).startswith(result.stdout.rstrip("\n"))
    with pytest.raises(SystemExit):
        run(name, monkeypatch, capsys, *own, "--pack", str(pack))
    assert "has no tokenizer.json: give --tokenizer" in capsys.readouterr().err
    other = models.save_model(tmp_path)
    wrong = tolpack.build(other, tmp_path / "wrong.tolpack").path
    with pytest.raises((SystemExit, tolpack.ConfigError)):
        run(name, monkeypatch, capsys, *own, "--pack", str(wrong), *given[2:])


def test_a_mounted_pack_gives_the_logits_of_the_ffns(monkeypatch, capsys):
    """Within what 16 bits cost."""
    (line,) = run("mount_in_model.py", monkeypatch, capsys)
    assert float(line.split()[-1]) < 0.01


def test_the_readme_mounts_a_gemma(tmp_path, monkeypatch, capsys):
    """The README's commands and its Python lines run as they stand, one after the other."""
    text = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    section = text.partition("## A Gemma model with its embeddings in a pack")[2].split("\n## ")[0]
    console, code = re.findall(r"^```(?:console|python)\n(.*?)^```", section, flags=re.M | re.S)
    monkeypatch.chdir(tmp_path)
    make, *commands = (shlex.split(line.removeprefix("$ ")) for line in console.splitlines())
    assert make[:2] == ["python", "examples/make_gemma.py"]
    run("make_gemma.py", monkeypatch, capsys, *make[2:])
    for program, *arguments in commands:
        assert program == "tolpack"
        assert CliRunner().invoke(main, arguments).exit_code == 0
    capsys.readouterr()
    exec(compile(code, "README.md", "exec"), {})
    (generated,) = json.loads(capsys.readouterr().out)
    assert generated[:4] == [2, 17, 5, 300]
    assert len(generated) == 12


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_say_how_they_are_run(path):
    """The docstring has the command."""
    assert f"python examples/{path.name}" in path.read_text(encoding="utf-8").split('"""')[1]
