"""Builds on executors: the bytes of threaded builds, whoever encodes and whatever is lost."""

import json
import multiprocessing
import os
import pickle
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import lost_workers
import models
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from lost_workers import Through
from safetensors.torch import save_file
from test_build import Killed, Log

import tolpack
from tolpack.cli import main
from tolpack.compress import build_job, build_parts, dask_cluster, outputs
from tolpack.compress.build_job import open_job
from tolpack.compress.part_tasks import encode_part
from tolpack.errors import CheckpointError, ConfigError, ExecutorError, FileAccessError
from tolpack.runtime.progress import Reporter
from tolpack.storage.locations import open_folder
from tolpack.workspace import jobs, run_tasks
from tolpack.workspace.workers import SharedTorchSettings

ROWS = 12000
SETTINGS = {
    "fixed": {"bits": 4, "rank": "9"},
    "entropy": {"bits": "auto", "size": "20%", "drop": "1"},
    "lossless": {"bits": "lossless"},
}
PART = 60_000  # bytes: some ten part files


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A MemoryLLM whose larger chunks are cut."""
    folder = tmp_path_factory.mktemp("model")
    return models.save_model(folder, vocab_size=ROWS, hidden_size=16, num_hidden_layers=3)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A plain table."""
    path, source = tmp_path_factory.mktemp("table") / "t.npy", np.random.default_rng(0)
    np.save(path, source.normal(size=(ROWS, 3, 16)).astype(np.float16))
    return path


@pytest.fixture(scope="module")
def ngrams(tmp_path_factory):
    """Two tables of n-grams."""
    folder, source = tmp_path_factory.mktemp("ngrams"), torch.Generator().manual_seed(0)
    config = {
        "model_type": "qwen4_exp_text", "vocab_size": 50, "eos_token_id": 3, "hidden_size": 1024,
        "ngram_vocab_size_base": 300, "ple_layer_ids": [1, 3], "ple_embed_dim": 1024,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {
        f"model.layers.{layer}.ple.ple_embedding.ngram_embedding.weight":
        torch.randn(rows, 64, generator=source).bfloat16()
        for layer, rows in {0: 5632, 2: 7168}.items()
    }  # fmt: skip
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def pool():
    """Two processes."""
    with new_pool() as executor:
        yield executor


@pytest.fixture(scope="module", params=SETTINGS)
def threaded(request, model, table, tmp_path_factory):
    """Settings, and the pack that threads build with them."""
    path = tmp_path_factory.mktemp("threaded") / "p.tolpack"
    checkpoint = model if request.param == "fixed" else table
    settings = {"checkpoint": checkpoint, **SETTINGS[request.param]}
    tolpack.build(output=path, **settings)
    return settings, path.read_bytes()


@pytest.fixture
def small_parts(monkeypatch):
    """Have also small packs made of several part files."""
    monkeypatch.setattr(outputs, "_LEAST_PART_BYTES", PART)


def new_pool():
    """Return an executor of two processes."""
    return ProcessPoolExecutor(2, multiprocessing.get_context("spawn"))


def parts_of(folder):
    """Return the names of the part files in a folder."""
    return sorted(one.name for one in Path(folder).iterdir() if one.suffix == ".part")


def join(folder, path):
    """Return the bytes of the pack whose parts are in `folder`."""
    tolpack.join(folder, path)
    return path.read_bytes()


# -- the same bytes ------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["threads", "pool"])
def test_one_file_has_the_bytes_of_a_threaded_build(threaded, engine, pool, small_parts, tmp_path):
    """Rows that were encoded by an executor's workers make the file that threads write, and nothing
    but the file is left.
    """
    settings, expected = threaded
    with ThreadPoolExecutor(3) as threads:
        executor = Through(threads if engine == "threads" else pool)
        tolpack.build(output=tmp_path / "p.tolpack", executor=executor, **settings)
    assert executor.names.count("encode_part") >= 3
    assert (tmp_path / "p.tolpack").read_bytes() == expected
    assert os.listdir(tmp_path) == ["p.tolpack"]


def test_parts_do_not_depend_on_who_makes_them(threaded, pool, tmp_path):
    """Threads, processes and the build's own process write the same part files, which join to the
    one file.
    """
    settings, expected = threaded
    with ThreadPoolExecutor(3) as threads:
        for name, executor in {"here": None, "threads": threads, "pool": pool}.items():
            result = tolpack.build(
                output=tmp_path / name, executor=executor, part_size=PART, **settings
            )
            assert result.path == tmp_path / name
    assert len(parts_of(tmp_path / "here")) >= 4
    for name in ("threads", "pool"):
        assert sorted(os.listdir(tmp_path / name)) == sorted(os.listdir(tmp_path / "here"))
    assert join(tmp_path / "pool", tmp_path / "p.tolpack") == expected
    with tolpack.open(tmp_path / "pool") as pack:
        assert pack.verify() == []


@pytest.mark.parametrize(
    "settings", [{"bits": "lossless"}, {"bits": 8}, {"bits": "auto", "max_relative_error": "5%"}]
)
def test_several_tables(ngrams, settings, pool, small_parts, tmp_path):
    """Parts hold rows of several tables of n-grams."""
    tolpack.build(ngrams, tmp_path / "a.tolpack", **settings)
    expected = (tmp_path / "a.tolpack").read_bytes()
    tolpack.build(ngrams, tmp_path / "b.tolpack", executor=pool, **settings)
    assert (tmp_path / "b.tolpack").read_bytes() == expected
    tolpack.build(ngrams, tmp_path / "parts", executor=pool, part_size=PART, **settings)
    assert join(tmp_path / "parts", tmp_path / "c.tolpack") == expected


def test_processes_of_its_own(model, small_parts, tmp_path):
    """``--processes`` writes the same bytes; a worker that is killed is replaced, and told of."""
    settings = {"checkpoint": model, "bits": 4}
    others, log = set(multiprocessing.active_children()), Log()
    tolpack.build(output=tmp_path / "a.tolpack", **settings)
    run = CliRunner().invoke(
        main, ["build", str(model), "-o", str(tmp_path / "b.tolpack"), "--processes", "2"]
    )
    assert run.exit_code == 0, run.output
    with killed_while_encoding(tmp_path / "c.tolpack"):
        tolpack.build(
            output=tmp_path / "c.tolpack", processes=2, threads=1, reporter=log, **settings
        )
    assert any("a worker was lost" in line for line in log.said)
    expected = (tmp_path / "a.tolpack").read_bytes()
    assert (tmp_path / "b.tolpack").read_bytes() == expected
    assert (tmp_path / "c.tolpack").read_bytes() == expected
    assert sorted(os.listdir(tmp_path)) == ["a.tolpack", "b.tolpack", "c.tolpack"]
    assert set(multiprocessing.active_children()) <= others


@contextmanager
def killed_while_encoding(path):
    """Kill a process of this one once a job for `path` is there."""
    known, over = set(multiprocessing.active_children()), threading.Event()

    def kill():
        folder = outputs.parts_folder(path)
        while not over.wait(0.001):
            if folder.exists() and any(one.suffix == ".job" for one in folder.iterdir()):
                ours = [one for one in multiprocessing.active_children() if one not in known]
                if ours:
                    ours[0].kill()
                    return

    thread = threading.Thread(target=kill)
    thread.start()
    yield
    over.set()
    thread.join()


def test_paths_need_not_be_absolute(model, pool, small_parts, tmp_path, monkeypatch):
    """Workers with another working folder open the input, and store parts where they belong."""
    monkeypatch.chdir(model.parent)
    folder = os.path.relpath(tmp_path / "parts")
    tolpack.build(model.name, folder, executor=pool, part_size=PART, bits=4)
    with tolpack.open(tmp_path / "parts") as pack:
        assert pack.verify() == []


def test_a_pack_over_its_size_is_planned_anew(table, pool, small_parts, tmp_path, monkeypatch):
    """Where parts come out too large, those of the next plan are made, and nothing else is left."""
    written = outputs.write
    excess = iter([5000, 0] * 3)

    def too_large(plan, blocks, sink, check, reporter, stored=None):
        size = next(excess)
        found = written(plan, blocks, sink, check, reporter, stored) if not size else 0
        if size:
            sink.discard()
        return size or found

    monkeypatch.setattr(outputs, "write", too_large)
    settings = {"checkpoint": table, "bits": "auto", "size": "20%"}
    tolpack.build(output=tmp_path / "a.tolpack", **settings)
    tolpack.build(output=tmp_path / "b.tolpack", executor=pool, **settings)
    tolpack.build(output=tmp_path / "parts", executor=pool, part_size=PART, **settings)
    expected = (tmp_path / "a.tolpack").read_bytes()
    assert (tmp_path / "b.tolpack").read_bytes() == expected
    assert join(tmp_path / "parts", tmp_path / "c.tolpack") == expected
    files = json.loads((tmp_path / "parts" / "manifest.json").read_text())["files"]
    assert parts_of(tmp_path / "parts") == sorted(f"{one['sha256']}.part" for one in files)


# -- what is lost --------------------------------------------------------------------------------


def test_a_broken_pool_says_what_to_do_and_its_parts_are_kept(model, tmp_path):
    """An executor that breaks ends in an error that says what to do; the next build makes only what
    is missing.
    """
    settings = {"checkpoint": model, "bits": 4, "output": tmp_path / "parts", "part_size": PART}
    with new_pool() as executor:
        dying = Through(executor, lost_workers.killed_once, str(tmp_path / "flag"))
        with pytest.raises(ExecutorError, match="ended abruptly.*give the same command again"):
            tolpack.build(executor=dying, **settings)
    assert not (tmp_path / "parts" / "manifest.json").exists()
    kept = parts_of(tmp_path / "parts")
    assert len(kept) >= 2
    assert made_by_the_next_build(settings) == len(parts_of(tmp_path / "parts")) - len(kept)
    assert join(tmp_path / "parts", tmp_path / "p.tolpack") == threaded_bytes(model, tmp_path)


def made_by_the_next_build(settings):
    """Build again, and return how many part files with rows were made."""
    with ThreadPoolExecutor(1) as threads:
        executor = Through(threads)
        tolpack.build(executor=executor, **settings)
    return executor.names.count("encode_part")


def threaded_bytes(model, folder):
    """Return the pack that threads build at 4 bits."""
    tolpack.build(model, folder / "threaded.tolpack", bits=4, force=True)
    return (folder / "threaded.tolpack").read_bytes()


def test_a_pool_whose_workers_all_die_is_given_up(monkeypatch):
    """A pool of its own is started again a few times, and not for ever."""
    starts = []

    def restart(_):
        starts.append(None)
        return Broken()

    class Broken:
        def submit(self, function, *arguments):
            raise run_tasks.BrokenExecutor("broken")

    workers = run_tasks.Workers(Broken(), 4, restart)
    with pytest.raises(ExecutorError, match="3 of 3 tasks are left"):
        run_tasks.run_tasks(workers, len, [("a",)] * 3, lambda *_: None, Reporter())
    assert len(starts) == 3


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda executor: Through(executor, lost_workers.failing), "ZeroDivisionError: a bug"),
        (lambda executor: executor.shutdown() or executor, "cannot schedule new futures"),
    ],
)
def test_an_executor_that_fails_is_an_error_with_a_remedy(model, tmp_path, spoil, message):
    """A bug in a worker, and an executor that was shut down, end in one line that says so."""
    with (
        ThreadPoolExecutor(1) as executor,
        pytest.raises(ExecutorError, match=f"{message}.*give the same command again"),
    ):
        tolpack.build(model, tmp_path / "p.tolpack", executor=spoil(executor), bits=4)
    assert not (tmp_path / "p.tolpack").exists()


def test_the_first_error_of_a_task_ends_the_build(model, tmp_path, monkeypatch):
    """An error that says what is wrong comes as it is, and tasks that were not begun are
    cancelled.
    """
    begun = []

    def encode(location, digest, number, attempt):
        begun.append(number)
        if len(begun) > 1:  # long enough for the first error to be seen
            time.sleep(1)
        raise FileAccessError("the disk is full")

    monkeypatch.setattr(build_parts, "encode_part", encode)
    with (
        ThreadPoolExecutor(1) as executor,
        pytest.raises(FileAccessError, match="the disk is full"),
    ):
        tolpack.build(model, tmp_path / "parts", executor=executor, part_size=PART, bits=4)
    assert len(begun) < 5


class Interrupted(Reporter):
    """Raises `Killed` at the n-th report of rows that were encoded."""

    def __init__(self, after):
        self.left = after

    @contextmanager
    def phase(self, name, total, unit):
        """Count the reports."""
        yield self.step if name == "encoding" else lambda _: None

    def step(self, _):
        """Count one report."""
        self.left -= 1
        if not self.left:
            raise Killed


@pytest.mark.parametrize("output", ["parts", "p.tolpack"])
def test_an_interrupted_build_makes_only_what_is_missing(model, tmp_path, small_parts, output):
    """What was made before an interrupt is there for the next build, of parts and of one file."""
    path = tmp_path / output
    settings = {"checkpoint": model, "bits": 4, "output": path, "part_size": PART}
    folder = path
    if output == "p.tolpack":
        del settings["part_size"]
        folder = outputs.parts_folder(path)
    with ThreadPoolExecutor(1) as executor, pytest.raises(Killed):
        tolpack.build(executor=executor, reporter=Interrupted(2), **settings)
    with pytest.raises(FileAccessError):
        tolpack.open(path)
    kept, log = parts_of(folder), Log()
    assert len(kept) >= 2
    with ThreadPoolExecutor(1) as threads:
        executor = Through(threads)
        tolpack.build(executor=executor, reporter=log, **settings)
    (line,) = [line for line in log.said if "part files are there already" in line]
    assert int(line.split()[0]) == len(kept) == executor.names.count("check_part")
    assert int(line.split()[2]) == len(kept) + executor.names.count("encode_part") >= 4
    made = join(path, tmp_path / "joined") if output == "parts" else path.read_bytes()
    assert made == threaded_bytes(model, tmp_path)


@pytest.mark.parametrize("here", [True, False])
def test_damaged_and_foreign_parts_are_made_again(model, tmp_path, here):
    """A part file is taken again only if its digest is its name and it is of this plan."""
    settings = {"checkpoint": model, "bits": 4, "output": tmp_path / "parts", "part_size": PART}
    tolpack.build(**settings)
    names = parts_of(tmp_path / "parts")
    (tmp_path / "parts" / "manifest.json").unlink()
    tolpack.build(**{**settings, "bits": 8})  # its parts are no use
    (tmp_path / "parts" / "manifest.json").unlink()
    damaged = tmp_path / "parts" / names[0]
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    if here:
        log = Log()
        tolpack.build(**settings, reporter=log)
        assert any("part files are there already" in line for line in log.said)
    else:
        assert made_by_the_next_build(settings) <= 1
    assert join(tmp_path / "parts", tmp_path / "p.tolpack") == threaded_bytes(model, tmp_path)


@pytest.mark.parametrize("engine", [None, 2])
def test_no_reader_sees_a_half_made_set(model, tmp_path, engine):
    """Until the end there is no manifest, and the folder is refused as unfinished."""
    folder, seen = tmp_path / "parts", []

    def look():
        if folder.exists():
            assert not (folder / "manifest.json").exists()
            with pytest.raises(FileAccessError, match="not finished"):
                tolpack.open(folder)
            seen.append(len(parts_of(folder)))

    class Looking(Reporter):
        @contextmanager
        def phase(self, name, total, unit):
            yield (lambda _: None) if name == "checking" else lambda _: look()

    with ThreadPoolExecutor(2) as threads:
        executor = None if engine is None else Through(threads, before=look)
        tolpack.build(model, folder, executor=executor, part_size=PART, bits=4, reporter=Looking())
    assert max(seen) >= 2


def test_two_builders_both_end_right(model, tmp_path):
    """Of two builds into one folder, the second finds an equal manifest, and is done."""
    settings = {"checkpoint": model, "bits": 4, "output": tmp_path / "parts", "part_size": PART}

    class Overtaken(Reporter):
        """Has another build done once the parts are made."""

        left = 1

        def say(self, text):
            if "token order" in text and self.left:
                self.left = 0
                tolpack.build(**settings)

    tolpack.build(reporter=Overtaken(), **settings)
    assert join(tmp_path / "parts", tmp_path / "p.tolpack") == threaded_bytes(model, tmp_path)


def test_another_pack_in_the_folder_is_not_replaced(model, tmp_path):
    """A manifest that appeared meanwhile stays, and --force is named."""
    settings = {"checkpoint": model, "output": tmp_path / "parts", "part_size": PART}

    class Overtaken(Reporter):
        left = 1

        def say(self, text):
            if "token order" in text and self.left:
                self.left = 0
                tolpack.build(bits=8, **settings)

    with pytest.raises(FileAccessError, match="another pack.*--force"):
        tolpack.build(bits=4, reporter=Overtaken(), **settings)
    with pytest.raises(ConfigError, match="exists: use --force"):
        tolpack.build(bits=4, **settings)
    tolpack.build(bits=4, force=True, **settings)
    assert join(tmp_path / "parts", tmp_path / "p.tolpack") == threaded_bytes(model, tmp_path)


# -- jobs and inputs -----------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path):
    """A copy of a model, and the job of a build of it: its folder and its digest."""
    path = models.save_model(tmp_path, vocab_size=3000, hidden_size=16, num_hidden_layers=2)
    jobs = []

    def remember(workers, function, calls, take, reporter):
        jobs.extend(calls)
        raise Killed

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as executor:
        patch.setattr(build_parts, "run_tasks", lambda *given: given[2] and remember(*given))
        with pytest.raises(Killed):
            tolpack.build(path, tmp_path / "parts", executor=executor, part_size=PART, bits=4)
    return path, *jobs[0][:2]


def test_a_worker_whose_input_is_another_one_refuses(stored):
    """A file that differs in its size or in a sampled byte is noticed before a row is encoded."""
    path, folder, digest = stored
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="another input on this worker"):
        encode_part(folder, digest, 0, "")
    assert parts_of(folder) == []


def test_an_input_that_changes_while_a_part_is_made_stores_no_part(stored, monkeypatch):
    """A part file of which some rows may be of other weights is not stored."""
    path, folder, digest = stored
    opened = open_job(folder, digest)
    monkeypatch.setattr("tolpack.compress.part_tasks.open_job", lambda *_: opened)
    os.utime(path, ns=(1, 1))
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        encode_part(folder, digest, 0, "")
    assert parts_of(folder) == []


def test_a_touched_input_is_opened_again(stored):
    """A file with another time, but the same bytes, is the same input for a worker."""
    path, folder, digest = stored
    first = open_job(folder, digest)
    assert open_job(folder, digest) is first
    os.utime(path, ns=(1, 1))
    assert open_job(folder, digest) is not first
    assert encode_part(folder, digest, 0, "").name in parts_of(folder)


def test_a_job_with_another_digest_is_not_unpickled(stored, tmp_path):
    """Bytes that are not those that were named are refused before anything of them runs."""
    _, folder, digest = stored

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    Path(folder, f"{digest}.job").write_bytes(jobs._PRODUCER_LINE + pickle.dumps(Evil()))
    with pytest.raises(FileAccessError, match="was changed"):
        encode_part(folder, digest, 0, "other")
    assert not (tmp_path / "owned").exists()


def test_a_worker_of_another_version_refuses(stored, monkeypatch):
    """A job of another version of tolpack is not taken for one of this."""
    _, folder, digest = stored
    monkeypatch.setattr(jobs, "_PRODUCER_LINE", b"tolpack 0.0.1\n")
    with pytest.raises(ConfigError, match="install the same version"):
        jobs.load_job(open_folder(folder), digest)


def test_what_goes_through_a_scheduler_is_small(stored):
    """A task and its result take a few hundred bytes, whatever the part file holds."""
    _, folder, digest = stored
    call = pickle.dumps((encode_part, (folder, digest, 0, "0" * 32)))
    result = pickle.dumps(encode_part(folder, digest, 0, ""))
    assert len(call) + len(result) < 1000 + len(folder)


def test_a_process_keeps_few_jobs(stored, monkeypatch):
    """A worker that serves many builds does not keep what is over."""
    _, folder, digest = stored
    build_job._open_jobs._opened.clear()
    for copy in ("", "/.", "/./.", "/././."):
        open_job(folder + copy, digest)
    assert len(build_job._open_jobs._opened) == 2


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["", "127.0.0.1", "tcp://127.0.0.1", "htp//x:1", "tcp://a:b"])
def test_what_is_no_address_is_refused_at_once(address, table, tmp_path):
    """A cluster's address has a kind, a host and a port."""
    arguments = ["build", str(table), "-o", str(tmp_path / "p.tolpack"), "--cluster", address]
    run = CliRunner().invoke(main, arguments)
    assert run.exit_code == 1 and "like tcp://host:8786" in run.output


@pytest.mark.parametrize("command", ["build", "split"])
def test_outputs_in_memory_are_refused(command, table, tmp_path):
    """A command does not write what is gone with it."""
    output = ["-o", "memory:///x"] if command == "build" else ["memory:///x"]
    run = CliRunner().invoke(main, [command, str(table), *output])
    assert run.exit_code == 2 and "would be gone" in run.output


def test_two_engines_at_once_are_refused(model, tmp_path):
    """Who encodes is said once."""
    with (
        ThreadPoolExecutor(1) as executor,
        pytest.raises(ConfigError, match="give one of them"),
    ):
        tolpack.build(model, tmp_path / "p", executor=executor, processes=2)
    arguments = ["build", str(model), "--processes", "2", "--cluster", "tcp://127.0.0.1:1"]
    assert "give one of them" in CliRunner().invoke(main, arguments).output


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"executor": object()}, "expected a concurrent.futures.Executor"),
        ({"processes": 0}, "--processes is 0"),
        ({"processes": "2"}, "--processes is '2'"),
        ({"part_size": 0}, "--part-size"),
    ],
)
def test_wrong_settings_are_refused(model, tmp_path, settings, message):
    """A setting that is none is named."""
    with pytest.raises(ConfigError, match=message):
        tolpack.build(model, tmp_path / "p", **settings)
    assert list(tmp_path.iterdir()) == []


def test_parts_go_to_a_folder_of_their_own(model, tmp_path):
    """A file, the checkpoint's folder and a folder that cannot be made are no place for parts."""
    (tmp_path / "file").touch()
    folder = models.save_folder(
        tmp_path / "model", models.make_state(models.make_config()), models.make_config()
    )
    with pytest.raises(ConfigError, match="is a file"):
        tolpack.build(model, tmp_path / "file", part_size=PART)
    with pytest.raises(ConfigError, match="holds the checkpoint"):
        tolpack.build(folder, folder, part_size=PART)
    with pytest.raises(FileAccessError, match="there is no folder"):
        tolpack.build(model, tmp_path / "none" / "parts", part_size=PART)
    assert tolpack.build(folder, part_size=PART).path == tmp_path / "model.parts"


def test_no_scheduler_is_said(model, tmp_path, monkeypatch):
    """An address where nothing answers ends in one line that says how to start a scheduler."""
    pytest.importorskip("distributed")
    monkeypatch.setattr(dask_cluster, "_CONNECT_SECONDS", 0.5)
    run = CliRunner().invoke(
        main, ["build", str(model), "-o", str(tmp_path / "p"), "--cluster", "tcp://127.0.0.1:1"]
    )
    assert run.exit_code == 1
    assert "no Dask scheduler answers at tcp://127.0.0.1:1" in run.output


def test_settings_of_torch_are_shared_by_tasks_of_one_dtype_alone():
    """Tasks of one dtype run together; one of another dtype waits, and what was set before comes
    back.
    """
    shared, events = SharedTorchSettings(), []
    before = torch.get_float32_matmul_precision(), torch.get_num_threads()

    def task(compute):
        with shared.using(compute):
            wanted = "medium" if compute is torch.bfloat16 else "highest"
            events.append(compute)
            for _ in range(20):
                time.sleep(0.001)
                assert torch.get_float32_matmul_precision() == wanted
            events.append(compute)

    kinds = [torch.float32, torch.bfloat16] * 4
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(task, kinds))
    assert len(events) == 16
    assert (torch.get_float32_matmul_precision(), torch.get_num_threads()) == before
