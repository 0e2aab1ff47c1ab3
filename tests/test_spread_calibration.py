"""Calibration on the workers of a build: the metrics that one process measures."""

import os
from concurrent.futures import ThreadPoolExecutor

import models
import numpy as np
import pytest

import tolpack
from tolpack.calibration import spread_metrics
from tolpack.calibration.metric_sums import groups
from tolpack.calibration.spread_metrics import measure_group
from tolpack.errors import FileAccessError

SETTINGS = {"bits": "auto", "rank": "auto", "max_kld": 0.01}


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """A MemoryLLM and a text of some windows; nothing is kept between builds."""
    monkeypatch.setenv("TOLPACK_CACHE", "off")
    path = models.save_model(tmp_path, num_hidden_layers=3)
    np.save(tmp_path / "ids.npy", models.zipf_ids(3000, 97))
    return {"checkpoint": path, "calibrate": tmp_path / "ids.npy", **SETTINGS}


def stop_at_group_1(location, digest, number, attempt):
    """Measure a group, unless it is the second."""
    if number == 1:
        raise FileAccessError("no space")
    return measure_group(location, digest, number, attempt)


def counting(monkeypatch):
    """Return the numbers of the groups that are measured from now on."""
    measured, original = [], spread_metrics.sum_group

    def sum_group(sums, model, group, progress=None):
        measured.append(len(group))
        original(sums, model, group, progress)

    monkeypatch.setattr(spread_metrics, "sum_group", sum_group)
    return measured


def test_workers_measure_what_one_process_does(inputs, tmp_path, monkeypatch):
    """The same bytes, whether losses are measured here, by threads or by processes; and nothing is
    left of it.
    """
    tolpack.build(output=tmp_path / "a.tolpack", **inputs)
    measured = counting(monkeypatch)
    with ThreadPoolExecutor(2) as executor:
        tolpack.build(output=tmp_path / "b.tolpack", executor=executor, **inputs)
    assert len(measured) > 1
    tolpack.build(output=tmp_path / "c.tolpack", processes=2, **inputs)
    expected = (tmp_path / "a.tolpack").read_bytes()
    assert (tmp_path / "b.tolpack").read_bytes() == expected
    assert (tmp_path / "c.tolpack").read_bytes() == expected
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".parts")]


def test_groups_that_are_measured_are_not_measured_again(inputs, tmp_path, monkeypatch):
    """A build that was interrupted in its calibration goes on with what is missing."""
    tolpack.build(output=tmp_path / "a.tolpack", **inputs)
    with ThreadPoolExecutor(1) as executor:
        monkeypatch.setattr(spread_metrics, "measure_group", stop_at_group_1)
        with pytest.raises(FileAccessError, match="no space"):
            tolpack.build(output=tmp_path / "b.tolpack", executor=executor, **inputs)
        monkeypatch.setattr(spread_metrics, "measure_group", measure_group)
        kept = [one for one in os.listdir(tmp_path / "b.tolpack.parts") if one.endswith(".sums")]
        assert kept
        measured = counting(monkeypatch)
        tolpack.build(output=tmp_path / "b.tolpack", executor=executor, **inputs)
        first = len(measured)
        tolpack.build(output=tmp_path / "c.tolpack", executor=executor, **inputs)
    assert first + len(kept) == len(measured) - first
    assert (tmp_path / "b.tolpack").read_bytes() == (tmp_path / "a.tolpack").read_bytes()


def test_sums_measured_otherwise_are_not_taken(inputs, tmp_path, monkeypatch):
    """What an interrupted build left is measured again by one that measures in another way."""
    with ThreadPoolExecutor(1) as executor:
        monkeypatch.setattr(spread_metrics, "measure_group", stop_at_group_1)
        with pytest.raises(FileAccessError, match="no space"):
            tolpack.build(output=tmp_path / "b.tolpack", executor=executor, **inputs)
        monkeypatch.setattr(spread_metrics, "measure_group", measure_group)
        monkeypatch.setattr(spread_metrics, "REVISION", -1)
        measured = counting(monkeypatch)
        tolpack.build(output=tmp_path / "b.tolpack", executor=executor, **inputs)
        first = len(measured)
        tolpack.build(output=tmp_path / "c.tolpack", executor=executor, **inputs)
    assert first and first == len(measured) - first


def test_damaged_sums_are_refused_once(inputs, tmp_path, monkeypatch):
    """Sums that are cut off end the build with what to do, and the same command then works."""
    original = spread_metrics.measure_group

    def damaging(location, digest, number, attempt):
        name = original(location, digest, number, attempt)
        with open(os.path.join(location, name), "r+b") as file:
            file.seek(-9, os.SEEK_END)
            file.truncate() if number else file.write(b"x")
        return name

    with ThreadPoolExecutor(1) as executor:
        monkeypatch.setattr(spread_metrics, "measure_group", damaging)
        with pytest.raises(FileAccessError, match="was damaged: give the same command again"):
            tolpack.build(output=tmp_path / "b.tolpack", executor=executor, **inputs)
        monkeypatch.setattr(spread_metrics, "measure_group", original)
        for _ in range(8):  # one file is found damaged at a time
            try:
                tolpack.build(output=tmp_path / "b.tolpack", executor=executor, **inputs)
                break
            except FileAccessError:
                continue
    tolpack.build(output=tmp_path / "a.tolpack", **inputs)
    assert (tmp_path / "b.tolpack").read_bytes() == (tmp_path / "a.tolpack").read_bytes()


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 30])
def test_groups_hold_every_batch_once(count):
    """Batches are cut into runs in their order, some in each."""
    cut = groups(list(range(count)))
    assert [batch for group in cut for batch in group] == list(range(count))
    assert all(len(group) for group in cut) and len(cut) == min(count, 8)
