"""`tolpack bench`: times of lookups, and what to choose."""

import json

import pytest
from click.testing import CliRunner
from packs import RECIPES, write

from tolpack.cli import main
from tolpack.container.io_modes import IO_MODES
from tolpack.evaluation import lookup_benchmark


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(tmp_path_factory.mktemp("pack") / "p.tolpack", RECIPES["long-index"]).path


def run(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def test_every_mode_is_timed(path):
    """Warm in all modes, cold where pages can be dropped, for one row and for many."""
    done = run(path, "--rows", 20, "--seconds", 0.01, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["bytes"] == path.stat().st_size
    assert {(one["io"], one["rows"]) for one in found["timings"]} == {
        (io, rows) for io in IO_MODES for rows in (1, 20)
    }
    for one in found["timings"]:
        assert 0 < one["warm_p50_ms"] <= one["warm_p99_ms"]
        assert (one["cold_p50_ms"] is None) == (one["cold_p99_ms"] is None)
        assert one["io"] != "memory" or one["cold_p50_ms"] is None
    assert found["advice"]


def test_the_table_is_readable(path):
    """A line for each measurement, and sentences."""
    done = run(path, "--rows", 20, "--seconds", 0.01)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert " ".join(lines[0].split()) == "io rows warm p50 ms p99 cold p50 ms p99"
    assert [line.split()[0] for line in lines[2:12]] == [io for io in IO_MODES for _ in (1, 20)]
    assert "auto (the default): one row in" in done.stdout


@pytest.mark.parametrize(
    "wrong", [["--rows", 0], ["--rows", 10**6], ["--seconds", 0], ["--seconds", 1e9]]
)
def test_settings_that_cannot_be_are_refused(path, wrong):
    """With the range that is allowed."""
    done = run(path, *wrong)
    assert done.exit_code == 1
    assert "expected" in done.stderr


def test_modes_that_the_system_lacks_are_left_out(path, monkeypatch):
    """And it is said."""
    truly = lookup_benchmark.Pack

    def opened(path, io="auto", **settings):
        if io == "direct":
            raise lookup_benchmark.FileAccessError("cannot use io='direct'")
        return truly(path, io, **settings)

    monkeypatch.setattr(lookup_benchmark, "Pack", opened)
    done = run(path, "--rows", 20, "--seconds", 0.01)
    assert done.exit_code == 0
    assert "io=direct is left out" in done.stderr
    assert "direct " not in done.stdout


def test_a_file_that_stays_in_memory_has_no_cold_lookups(path, monkeypatch):
    """Rather none than wrong ones."""
    monkeypatch.setattr(lookup_benchmark, "_evict", lambda path, offset: False)
    found = json.loads(run(path, "--rows", 20, "--seconds", 0.01, "--json").stdout)
    assert all(one["cold_p50_ms"] is None for one in found["timings"])
