"""``docs/tutorial.md`` runs as it stands, and prints what it shows."""

import pytest
from console_blocks import ROOT, check_output, read_blocks, run_blocks

BLOCKS = read_blocks(ROOT / "docs" / "tutorial.md")


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
    run_blocks(BLOCKS, tmp_path, monkeypatch)


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
