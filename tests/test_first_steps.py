"""``docs/first-steps.md`` runs as it stands: what right and wrong first steps print."""

import re

import pytest
from console_blocks import ROOT, read_blocks, run_blocks

BLOCKS = read_blocks(ROOT / "docs" / "first-steps.md")


def test_there_are_thirty_steps():
    """The page shows thirty commands at least, and half of them are mistakes or doubtful."""
    marks = [mark for kind, mark, _ in BLOCKS if kind == "console"]
    assert set(marks) <= {"", "varies", "refused", "usage"}
    assert len(marks) >= 30
    warned = sum("Warning: " in body for _, _, body in BLOCKS)
    assert warned + marks.count("refused") + marks.count("usage") >= 15


def test_the_page_shows_what_is_printed(tmp_path, monkeypatch):
    """Its blocks run one after the other in one folder, and print what they show."""
    run_blocks(BLOCKS, tmp_path, monkeypatch)


@pytest.mark.parametrize("mark", ["refused", "usage"])
def test_refusals_say_what_to_do(mark):
    """The last line of each refusal is the error, which names a remedy behind a colon or `;`."""
    for _, _, body in (block for block in BLOCKS if block[1] == mark):
        last = body.rstrip().splitlines()[-1]
        assert last.startswith("Error: ")
        assert re.search(r"[:;,?'] ?\S", last), last
