"""Files kept between runs: a damaged one is as good as none, and never another one."""

import numpy as np
import pytest

from tolpack.calibration import metrics_cache
from tolpack.calibration.loss_metrics import LossMetrics
from tolpack.evaluation.result_cache import _read
from tolpack.runtime.disk_cache import keep_file, kept_file
from tolpack.runtime.scratch import Scratch

KEY, OTHER = bytes(16), bytes(15) + b"\1"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder for caches that holds the metrics of three layers."""
    monkeypatch.setenv("TOLPACK_CACHE", str(tmp_path))
    scratch = Scratch(tmp_path, 1 << 20)
    layers = [[scratch.spill(np.full((4, 4), 10.0 * n + k)) for k in range(count)]
              for n, count in enumerate((2, 2, 1))]  # fmt: skip
    metrics, crossed = (row[0] for row in layers), (tuple(row[1:]) for row in layers)
    assert metrics_cache.keep(KEY, LossMetrics(tuple(metrics), tuple(crossed)))
    return tmp_path


def load(folder, key=KEY):
    """Return the numbers in what is kept, or ``None``."""
    found = metrics_cache.load(key, Scratch(folder, 1 << 20))
    if found is None:
        return None
    layers = zip(found.metrics, found.crossed)
    return [[kept.load()[0, 0] for kept in (own, *above)] for own, above in layers]


def test_a_calibration_comes_back_whole(cache):
    """Layers, and how many metrics each has, are as they were kept."""
    assert load(cache) == [[0, 1], [10, 11], [20]]
    assert load(cache, OTHER) is None


def test_no_damage_to_a_calibration_goes_unnoticed(cache):
    """Any cut, any flipped bit, appended bytes, another's name: as good as none, without a word."""
    (path,) = cache.glob("calibration-*")
    whole = path.read_bytes()
    cases = [whole[:n] for n in range(len(whole))]
    cases += [whole + b"\0", whole + whole, bytes(len(whole))]
    for bit in range(0, 8 * len(whole), 5):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        cases.append(bytes(damaged))
    for case in cases:
        path.write_bytes(case)
        assert load(cache) is None
    path.write_bytes(whole)
    assert load(cache) is not None
    path.rename(path.with_name(path.name.replace("00000000.", "00000001.")))
    assert load(cache, OTHER) is None


def test_a_calibration_that_says_more_than_it_holds_is_none(cache):
    """Sizes are held against the file even where the checksum is right."""
    (path,) = cache.glob("calibration-*")
    for head in ([4, 0], [0, 1, 1], [4, 2**60], [2**31, 1, 1], [-4, 1, 1], [4, 1, 0], [4, 1, 2**40],
                 [4, -1], [4]):  # fmt: skip
        assert keep_file(path, lambda file, head=head: file.write(np.array(head, "<i8").tobytes()))
        assert load(cache) is None


def test_measurements_are_kept_with_a_checksum(tmp_path):
    """A digit that changes by a flipped bit is not taken for what was measured."""
    path = tmp_path / "measured-1.json"
    assert keep_file(path, lambda file: file.write(b'{"ppl": 12.25}'))
    assert _read(path) == {"ppl": 12.25}
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert _read(path) is None
    for number in range(len(whole)):
        path.write_bytes(whole[:number])
        assert _read(path) is None


def test_a_file_is_kept_whole_or_not_at_all(tmp_path):
    """A writer that fails leaves nothing behind."""

    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep_file(tmp_path / "a", fail)
    assert list(tmp_path.iterdir()) == []
    with kept_file(tmp_path / "a") as kept:
        assert kept is None
