"""Every example runs as its docstring says."""

import runpy
import sys
from pathlib import Path

import pytest

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


def test_a_mounted_pack_gives_the_logits_of_the_ffns(monkeypatch, capsys):
    """Within what 16 bits cost."""
    (line,) = run("mount_in_model.py", monkeypatch, capsys)
    assert float(line.split()[-1]) < 0.01


def test_a_mounted_gemma_gives_the_logits_of_the_stock_one(monkeypatch, capsys):
    """Bit for bit, from a folder that has no table any more."""
    removed, generated, same = run("mount_gemma.py", monkeypatch, capsys)
    assert removed.startswith("removed 131,072 bytes")
    assert generated.count(",") == 19
    assert same.endswith("bit for bit: True")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_say_how_they_are_run(path):
    """The docstring has the command."""
    assert f"python examples/{path.name}" in path.read_text(encoding="utf-8").split('"""')[1]
