"""A short run of the fuzzer of frame ``ans`` (``fuzz/ans_payloads.py``)."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")
sys.path.insert(0, str(Path(__file__).parents[1] / "fuzz"))

import ans_payloads


def test_payloads_are_judged_alike():
    """Noise and damaged payloads: numpy and the compiled loops give the same, or both refuse."""
    found = ans_payloads.run(1500, 0)
    assert set(found) >= {"good", "refused"}
    assert min(found["good"], found["refused"]) >= 100


def test_other_codes_would_be_noticed(monkeypatch):
    """The check is no formality: a decoder that gives other records breaks it."""
    source = np.random.default_rng(0)
    coder = None
    while coder is None:
        coder = ans_payloads.random_coder(source)
    values = iter([b"a", b"b"])
    monkeypatch.setattr(ans_payloads, "decoded", lambda *given: next(values))
    with pytest.raises(ans_payloads.Broken):
        ans_payloads.check(coder, b"", 1)
