"""Plans: plain data from which the same pack is encoded again, chunk by chunk, anywhere."""

import json
import pickle
import threading
from dataclasses import replace

import models
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_build import Killed, Killer, Log, interrupted

import tolpack
from tolpack.calibration.calibrate import CalibrationInputs, calibrate
from tolpack.cli import main
from tolpack.compress.encode import encode, encode_chunk
from tolpack.compress.fixed import principal_components
from tolpack.compress.make_plan import TableInputs, make_plan
from tolpack.compress.settings import BuildSettings
from tolpack.compress.write import PackFile, write
from tolpack.container.local_sink import LocalSink
from tolpack.errors import ConfigError, FileAccessError
from tolpack.runtime.progress import Reporter
from tolpack.sources.open_source import open_source
from tolpack.workspace.resources import Resources
from tolpack.workspace.workspace import open_workspace

MODEL = {"vocab_size": 2500, "hidden_size": 16, "num_hidden_layers": 3}
SETTINGS = {
    "plain": ("none", 4, "none", None),
    "fixed rank": ("9", 8, "1", None),
    "rank by loss": ("auto", 4, "none", "40%"),
    "direct": ("none", "auto", "none", "60%"),
    "entropy-coded": ("auto", "auto", "1", "60%"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of three chunks, and a calibration text."""
    folder = tmp_path_factory.mktemp("plans")
    path = models.save_model(folder, **MODEL)
    np.save(folder / "ids.npy", models.zipf_ids(2000, 2500))
    return path, folder / "ids.npy"


@pytest.fixture
def table(model):
    """The table."""
    return open_source(model[0])


@pytest.fixture
def workspace(table, tmp_path):
    """Where plans are made."""
    with open_workspace([table], tmp_path, Resources(threads=1), Reporter()) as opened:
        yield opened


def planned(model, table, workspace, name):
    """Return the plan of one of `SETTINGS`."""
    rank, bits, drop, size = SETTINGS[name]
    settings = BuildSettings.parse(rank, bits, drop, size, None)
    stats = calibrate(table, CalibrationInputs(model[1]), settings.loss_reach, workspace)
    return make_plan([TableInputs(table, stats)], settings, workspace)


def blocks(plan, table, workspace, number):
    """Return all blocks of a chunk, joined."""
    return b"".join(encode_chunk(plan.tables[0], table, workspace.limits, number))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_pickled_plan_gives_the_same_pack(model, table, workspace, tmp_path, name):
    """A plan that was saved and loaded is encoded to the bytes that a build writes."""
    plan = planned(model, table, workspace, name)
    saved = pickle.dumps(plan)
    path = tmp_path / "p.tolpack"
    with open_workspace([table], tmp_path, Resources(threads=2), Reporter()) as other:
        loaded = pickle.loads(saved)
        file = PackFile(path, table.check_unchanged)
        with file.open(loaded.key) as sink:
            blocks = encode(loaded, [table], other)
            assert write(loaded, blocks, sink, file.check_inputs, Reporter()) == 0
    rank, bits, drop, size = SETTINGS[name]
    built = tolpack.build(
        model[0], tmp_path / "b.tolpack", rank=rank, bits=bits, drop=drop, size=size,
        calibrate=model[1],
    )  # fmt: skip
    assert path.read_bytes() == built.path.read_bytes()


@pytest.mark.parametrize("name", SETTINGS)
def test_chunks_are_independent(model, table, workspace, name):
    """A chunk's blocks do not depend on which chunks were encoded before it."""
    plan = planned(model, table, workspace, name)
    numbers = range(len(plan.tables[0].chunks))
    forwards = [blocks(plan, table, workspace, number) for number in numbers]
    backwards = [blocks(plan, table, workspace, number) for number in reversed(numbers)]
    assert forwards == backwards[::-1]


def test_a_plan_is_frozen(model, table, workspace):
    """What was decided cannot be changed."""
    plan = planned(model, table, workspace, "plain")
    with pytest.raises(AttributeError):
        plan.tables = ()


@pytest.mark.parametrize("name", ["rank by loss", "entropy-coded"])
def test_the_command_shows_what_the_build_makes(model, tmp_path, name):
    """`plan --json` has the ranks, encodings, chunks and about the bytes of the pack then built."""
    rank, bits, drop, size = SETTINGS[name]
    options = ["--rank", rank, "--bits", str(bits), "--drop", drop, "--size", size]
    arguments = ["plan", str(model[0]), *options, "--calibrate", str(model[1]), "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)["plan"]
    built = tolpack.build(
        model[0], tmp_path / "b.tolpack", rank=rank, bits=bits, drop=drop, size=size,
        calibrate=model[1],
    )  # fmt: skip
    with tolpack.open(built.path) as pack:
        header = pack.container.header
        assert [field["rank"] for field in plan["fields"]] == [
            field.rank for field in header.tables[0].fields
        ]
        assert [one["rows_per_block"] for one in plan["encodings"]] == [
            one.rows_per_block for one in header.encodings
        ]
        assert [(one["rows"], one["encoding"]) for one in plan["chunks"]] == [
            (chunk.rows, chunk.encoding) for chunk in header.tables[0].chunks
        ]
    assert plan["predicted_bytes"] == pytest.approx(built.bytes, rel=0.05)


def test_the_command_shows_a_measured_plan_in_lines(model):
    """Without --json there is a line for each layer, and the predicted size."""
    arguments = ["plan", str(model[0]), "--bits", "auto", "--size", "50%", "--drop", "1"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["0", "1", "2"]
    assert "dropped" in lines[3]
    assert "smaller than FP16" in lines[-1]


@pytest.mark.parametrize("compute", ["other weights", "bfloat16"])
def test_a_plan_is_encoded_from_its_own_table_only(model, table, workspace, tmp_path, compute):
    """Another checkpoint, or the same one multiplied in another dtype, is refused."""
    plan = planned(model, table, workspace, "fixed rank")
    if compute == "bfloat16":
        other = table.computed_in(torch.bfloat16)
    else:
        other = open_source(models.save_model(tmp_path, seed=9, **MODEL))
    with pytest.raises(ConfigError, match="made for another table"):
        encode(plan, [other], workspace)


def test_sections_of_another_plan_are_not_continued(model, tmp_path, monkeypatch):
    """Where libraries measure otherwise on resuming, the pack is made of one plan alone."""
    settings = {"checkpoint": model[0], "rank": "9", "calibrate": model[1]}
    out = tmp_path / "p.tolpack"
    total = interrupted({**settings, "output": tmp_path / "reference.tolpack"})
    with pytest.raises(Killed):
        tolpack.build(output=out, reporter=Killer(total - 1), **settings)
    truly = principal_components.spectrum

    def other_signs(second_moment, mean):
        found = truly(second_moment, mean)
        return replace(found, vectors=-found.vectors)

    monkeypatch.setattr(principal_components, "spectrum", other_signs)
    resumed = tolpack.build(output=out, resume=True, **settings)
    expected = tolpack.build(output=tmp_path / "b.tolpack", **settings)
    assert resumed.path.read_bytes() == expected.path.read_bytes()
    assert [one.relative_error for one in resumed.layers] == [
        one.relative_error for one in expected.layers
    ]


def test_threads_are_as_before_after_a_write_that_fails(model, tmp_path, monkeypatch):
    """A disk that fills up in a chunk leaves torch's threads, and no worker, behind."""
    before, names = torch.get_num_threads(), {one.name for one in threading.enumerate()}

    def full(self, offset, parts):
        for number, _ in enumerate(parts):
            if number:  # behind the padding: the encoder has begun
                raise FileAccessError("cannot write: no space left on device")
        return 0

    monkeypatch.setattr(LocalSink, "write", full)
    with pytest.raises(FileAccessError) as raised:
        tolpack.build(model[0], tmp_path / "p.tolpack", threads=2)
    assert torch.get_num_threads() == before
    assert {one.name for one in threading.enumerate()} == names
    assert raised.value is not None


def test_a_build_that_cannot_be_planned_leaves_nothing(model, tmp_path):
    """An error of planning removes the unfinished file that was taken over for it."""
    with pytest.raises(ConfigError, match="--size"):
        tolpack.build(model[0], tmp_path / "p.tolpack", bits="auto", size="1kB")
    assert list(tmp_path.iterdir()) == []


def test_a_header_too_large_is_refused_before_the_work(tmp_path):
    """More layers than a header can name end a build at once, and leave nothing."""
    np.save(tmp_path / "t.npy", np.zeros((3000, 4000, 2), np.float32))
    log, out = Log(), tmp_path / "out"
    out.mkdir()
    with pytest.raises(ConfigError, match="too many layers or chunks"):
        tolpack.build(tmp_path / "t.npy", out / "p.tolpack", rank="1", reporter=log)
    assert [name for name, _, _ in log.phases] == ["checking the input"]
    assert list(out.iterdir()) == []
