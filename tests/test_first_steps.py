"""``docs/first-steps.md`` runs as it stands: what right and wrong first steps print."""

import re
from functools import partial
from pathlib import Path

import pytest
import tqdm
from console_blocks import check_output, printed_by, run_command

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "first-steps.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(console|python) ?(\w*)\n(.*?)^```", TEXT, flags=re.M | re.S)
# How the commands of a block end, by its mark: with success, a refused input, or wrong usage.
EXIT_CODES = {"": 0, "varies": 0, "refused": 1, "usage": 2}


def test_there_are_thirty_steps():
    """The page shows thirty commands at least, and half of them are mistakes or doubtful."""
    marks = [mark for kind, mark, _ in BLOCKS if kind == "console"]
    assert set(marks) <= EXIT_CODES.keys()
    assert len(marks) >= 30
    warned = sum("Warning: " in body for _, _, body in BLOCKS)
    assert warned + marks.count("refused") + marks.count("usage") >= 15


def test_the_page_shows_what_is_printed(tmp_path, monkeypatch):
    """Its blocks run one after the other in one folder, and print what they show."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tolpack.commands.terminal.tqdm.tqdm", partial(tqdm.tqdm, disable=True))
    for name in ("tolpack", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    names = {}
    for kind, mark, body in BLOCKS:
        if kind == "python":
            printed_by(lambda body=body: exec(body, names))
            continue
        command, _, shown = body.removeprefix("$ ").partition("\n")
        printed = run_command(command, monkeypatch, EXIT_CODES[mark])
        check_output(shown, printed, numbers=mark != "varies")


@pytest.mark.parametrize("mark", ["refused", "usage"])
def test_refusals_say_what_to_do(mark):
    """The last line of each refusal is the error, which names a remedy behind a colon or `;`."""
    for _, _, body in (block for block in BLOCKS if block[1] == mark):
        last = body.rstrip().splitlines()[-1]
        assert last.startswith("Error: ")
        assert re.search(r"[:;,?'] ?\S", last), last
