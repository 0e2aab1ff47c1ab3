"""Console blocks of a document: running them, and comparing what they print with what is shown."""

import io
import re
import runpy
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import tqdm
from click.testing import CliRunner

from tolpack.cli import main

ROOT = Path(__file__).parents[1]
# How the command of a block ends, by the block's mark: with success, with its output compared, but
# for its numbers, or not at all; as a refused input, or as wrong usage.
EXIT_CODES = {"": 0, "varies": 0, "unlike": 0, "refused": 1, "usage": 2}
NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?"
SIZE = rf"{NUMBER}(?: [KMG]?B\b)?"


def read_blocks(path):
    """Return the blocks of a document: language, mark and body of each."""
    text = path.read_text(encoding="utf-8")
    return re.findall(r"^```(console|python) ?(\w*)\n(.*?)^```", text, flags=re.M | re.S)


def run_blocks(blocks, folder, monkeypatch):
    """Run blocks one after the other in a folder that looks like a checkout, and check what they
    print.
    """
    monkeypatch.chdir(folder)
    monkeypatch.setattr("tolpack.commands.terminal.tqdm.tqdm", partial(tqdm.tqdm, disable=True))
    for name in ("tolpack", "examples"):
        (folder / name).symlink_to(ROOT / name)
    names = {}
    for kind, mark, body in blocks:
        if kind == "python":
            shown = re.findall(r"^ *print\(.*\)  # (.*)$", body, flags=re.M)
            printed = printed_by(lambda body=body: exec(body, names)).splitlines()
            assert len(shown) == len(printed), body
            for comment, line in zip(shown, printed):
                assert comment == line or comment.startswith(f"{line}: "), body
        else:
            command, _, shown = body.removeprefix("$ ").partition("\n")
            printed = run_command(command, monkeypatch, EXIT_CODES[mark])
            if mark != "unlike":
                check_output(shown, printed, numbers=mark != "varies")


def printed_by(run):
    """Run something and return what it printed."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()):
        run()
    return out.getvalue()


def run_command(line, monkeypatch, code=0):
    """Run a line of the console in this process; it exits with `code`. Return what it printed."""
    program, *arguments = shlex.split(line)
    if program == "tolpack":
        result = CliRunner().invoke(main, arguments, prog_name="tolpack")
        assert result.exit_code == code, result.output
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
