"""A short run of the fuzzer, and everything that it ever found (``fuzz/``)."""

import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz"
sys.path.insert(0, str(FUZZ))

from check import Broken, Subject  # noqa: E402 (found by the line above)
from mutate import mutate  # noqa: E402
from plain import run, seeds  # noqa: E402

import tolpack  # noqa: E402

CASES = sorted((FUZZ / "cases").glob("*"))


def test_mutated_packs_keep_the_promises(tmp_path):
    """Refused, damaged or good, but never another error, and good rows are those of decode.py."""
    found = run(2000, 0, tmp_path)
    assert set(found) == {"refused", "damaged", "good"}
    assert min(found.values()) >= 20  # mutations get behind every kind of check


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_findings_stay_mended(path, tmp_path):
    """Inputs that once broke a promise keep it."""
    assert Subject(tmp_path / "pack").check(path.read_bytes()) in ("refused", "damaged", "good")


def test_mutations_repeat():
    """The same seed gives the same input, so that a finding can be made again."""
    data = seeds()[0]
    assert [mutate(data, n) for n in range(50)] == [mutate(data, n) for n in range(50)]
    assert len({mutate(data, n) for n in range(50)}) > 40


def test_wrong_rows_would_be_noticed(tmp_path, monkeypatch):
    """The check is no formality: a reader that gives other rows breaks it."""
    plain = tolpack.Pack.rows
    monkeypatch.setattr(
        tolpack.Pack, "rows", lambda pack, *asked, **of: plain(pack, *asked, **of) + 1
    )
    with pytest.raises(Broken):
        Subject(tmp_path / "pack").check(seeds()[-1])


def test_a_lenient_verify_would_be_noticed(tmp_path, monkeypatch):
    """A `verify` that finds nothing in a damaged pack breaks it."""
    data = bytearray((FUZZ.parent / "formats" / "v1" / "golden" / "int8.tolpack").read_bytes())
    data[-1] ^= 1
    monkeypatch.setattr(tolpack.Pack, "verify", lambda pack: [])
    with pytest.raises(Broken):
        Subject(tmp_path / "pack").check(bytes(data))
