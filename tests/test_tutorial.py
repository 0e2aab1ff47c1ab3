"""``docs/tutorial.md`` runs as it stands, and prints what it shows."""

import io
import re
import runpy
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import pytest
import tqdm
from click.testing import CliRunner

from tolpack.cli import main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(console|python) ?(\w*)\n(.*?)^```", TEXT, flags=re.M | re.S)
NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?"
SIZE = rf"{NUMBER}(?: [KMG]?B\b)?"


def test_the_tutorials_blocks_are_of_known_kinds():
    """Each block is Python, or a command whose output is compared, compared but for its numbers
    (``varies``), or not compared (``unlike``); nothing runs that is not one of these.
    """
    assert {(kind, mark) for kind, mark, _ in BLOCKS} <= {
        ("python", ""), ("console", ""), ("console", "varies"), ("console", "unlike"),
    }  # fmt: skip
    assert all(body.startswith("$ ") for kind, _, body in BLOCKS if kind == "console")


def test_the_tutorial_runs_and_prints_what_it_shows(tmp_path, monkeypatch):
    """Its blocks run one after the other in one folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tolpack.commands.terminal.tqdm.tqdm", partial(tqdm.tqdm, disable=True))
    for name in ("tolpack", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    names = {}
    for kind, mark, body in BLOCKS:
        if kind == "python":
            shown = re.findall(r"^ *print\(.*\)  # (.*)$", body, flags=re.M)
            printed = printed_by(lambda body=body: exec(body, names)).splitlines()
            assert len(shown) == len(printed), body
            for comment, line in zip(shown, printed):
                assert comment == line or comment.startswith(f"{line}: "), body
        else:
            command, _, shown = body.removeprefix("$ ").partition("\n")
            printed = run_command(command, monkeypatch)
            if mark != "unlike":
                check_output(shown, printed, numbers=mark != "varies")


def printed_by(run):
    """Run something and return what it printed."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()):
        run()
    return out.getvalue()


def run_command(line, monkeypatch):
    """Run a line of the console in this process and return what it printed."""
    program, *arguments = shlex.split(line)
    if program == "tolpack":
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        return result.output
    assert program == "python"
    monkeypatch.setattr(sys, "argv", arguments)
    return printed_by(lambda: runpy.run_path(arguments[0], run_name="__main__"))


def check_output(shown, printed, *, numbers):
    """Check that `printed` is `shown`, where ``…`` alone in a line stands for any lines."""
    lines, skipping = iter(printed.rstrip().splitlines()), False
    for wanted in shown.rstrip().splitlines():
        if wanted == "…":
            skipping = True
            continue
        line = next((a for a in lines if not skipping or alike(wanted, a, numbers=numbers)), None)
        assert line is not None, f"{wanted!r} is not in\n{printed}"
        assert alike(wanted, line, numbers=numbers), f"shown {wanted!r}, printed {line!r}"
        skipping = False
    assert skipping or not list(lines), f"shown:\n{shown}\nprinted:\n{printed}"


def alike(shown, printed, *, numbers):
    """Whether two lines are the same but for the width of columns and for their numbers.

    With `numbers`, fractions may differ by 1 % or a unit of their last digit, as processors round
    differently; integers may not.
    """
    if not numbers:
        return words(shown, SIZE) == words(printed, SIZE)
    pairs = list(zip(re.findall(NUMBER, shown), re.findall(NUMBER, printed)))
    return words(shown, NUMBER) == words(printed, NUMBER) and all(close(*pair) for pair in pairs)


def words(line, pattern):
    """Return the words of a line with a mark for what fits `pattern`."""
    return re.sub(pattern, "#", re.sub(r"-{3,}", "---", line)).split()


def close(shown, printed):
    """Whether two numbers are close, see `alike`."""
    digits = len(shown.partition(".")[2])
    one, other = (float(text.replace(",", "")) for text in (shown, printed))
    room = max(10.0**-digits, 0.01 * abs(one)) if digits else 0.0
    return abs(one - other) <= 1.001 * room


@pytest.mark.parametrize(
    ("shown", "printed", "numbers", "fits"),
    [
        ("a  1\n", "a 1\n", True, True),
        ("a 1\n", "a 2\n", True, False),
        ("a 1\n", "a 2\n", False, True),
        ("a 1.500 KB", "a 1.514 KB", True, True),
        ("a 1.500 KB", "a 1.517 KB", True, False),
        ("a 1.500 KB", "a 1.500 MB", True, False),
        ("a 999 KB", "a 1.01 MB", False, True),
        ("a\n…\nz\n", "a\nb\nc\nz\n", True, True),
        ("a\n…\nz\n", "a\nb\nc\n", True, False),
        ("a\n…\n", "a\nb\nc\n", True, True),
        ("a\n", "a\nb\n", True, False),
    ],
)
def test_outputs_are_compared(shown, printed, numbers, fits):
    """Another word, a line too many and, unless they vary, another number are seen."""
    try:
        check_output(shown, printed, numbers=numbers)
    except AssertionError:
        assert not fits
    else:
        assert fits
