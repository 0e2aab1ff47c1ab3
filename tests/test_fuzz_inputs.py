"""A short run of the fuzzer of each parser of what is not a pack, and what it found (``fuzz/``)."""

import os
import random
import signal
import sys
import warnings
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz"
sys.path.insert(0, str(FUZZ))

import input_edits  # noqa: E402 (found by the line above)
import inputs  # noqa: E402
import parsers  # noqa: E402

# Verdicts that a short run must come to, so that it tests something.
EXPECTED = {"good", "refused"}
CASES = sorted((FUZZ / "input-cases").glob("*"))


@pytest.fixture(autouse=True)
def _cache_of_before(monkeypatch):
    """Seeds of calibrations choose a cache: it ends with the test."""
    monkeypatch.setenv("TOLPACK_CACHE", "off")


@pytest.mark.parametrize("name", parsers.PARSERS)
def test_mutated_inputs_keep_the_promises(tmp_path, monkeypatch, name):
    """Right, refused, or contained in a process of its own; soon, and in little memory."""
    monkeypatch.setattr(inputs, "FINDINGS", tmp_path / "findings")
    (tmp_path / "work").mkdir()
    counts, findings = inputs.run(name, 300, 0, tmp_path / "work")
    assert findings == []
    assert sum(counts.values()) == 300
    assert all(counts[verdict] >= 10 for verdict in EXPECTED)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_findings_stay_mended(tmp_path, path):
    """Inputs that once broke a promise keep it; their names begin with their parser's."""
    parser = parsers.PARSERS[path.name.rpartition("_")[0]]
    parser.seeds(tmp_path)
    (tmp_path / parser.name).write_bytes(path.read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of what it then refuses
        assert parser.check(tmp_path / parser.name) in ("good", "refused", "contained")


def test_inputs_repeat(tmp_path):
    """The same seed and number give the same input, so that a finding can be made again."""
    for parser in parsers.PARSERS.values():
        seeds = parser.seeds(tmp_path)
        first, second = ([inputs.make_input(parser, seeds, 3, n) for n in range(40)]
                         for _ in range(2))  # fmt: skip
        assert first == second
        assert len(set(first)) > 25


def test_a_broken_promise_is_found(tmp_path, monkeypatch):
    """A parser that raises another exception, dies, hangs or takes memory is a finding each."""
    held = []
    acts = {
        b"0": lambda: {}["a"], b"1": lambda: os.kill(os.getpid(), signal.SIGKILL),
        b"2": lambda: held.append("x"),
        b"3": lambda: held.append(b"x" * (200 << 20)), b"4": lambda: _spin(),
    }  # fmt: skip

    def check(path):
        acts[path.read_bytes()]()
        return "good"

    def change(data, source, seeds):
        return source.choice(sorted(acts))

    parser = parsers.Parser("x", lambda _: [b"2"], check, (change,))
    monkeypatch.setitem(parsers.PARSERS, "broken", parser)
    monkeypatch.setattr(inputs, "FINDINGS", tmp_path / "findings")
    counts, findings = inputs.run("broken", 16, 0, tmp_path)
    assert counts["good"] + len(findings) == 16
    found = " ".join(finding.what for finding in findings)
    assert all(word in found for word in ("KeyError", "died (-9)", "bytes for", "1.1 s"))


def _spin():
    begin = inputs.time.process_time()
    while inputs.time.process_time() - begin < 1.1:
        pass


def test_changes_change(tmp_path):
    """Every kind of change gives other bytes most of the time."""
    for parser in parsers.PARSERS.values():
        seeds = parser.seeds(tmp_path)
        for change in {input_edits.change_bytes, *parser.changes}:
            source = random.Random(0)
            changed = [change(seeds[0], source, seeds) for _ in range(40)]
            assert sum(one != seeds[0] for one in changed) > 20
