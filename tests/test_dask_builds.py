"""Builds on a Dask cluster of processes, some of which are lost."""

import signal
import subprocess
import sys
import time

import lost_workers
import models
import pytest
from lost_workers import Through
from test_build import Log
from test_executors import Interrupted, join, made_by_the_next_build, parts_of

import tolpack
from tolpack.errors import ExecutorError, FileAccessError

distributed = pytest.importorskip("distributed")
# A cluster is closed while it works, and its processes are killed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Event loop is closed"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
PART = 60_000


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A MemoryLLM whose larger chunks are cut."""
    folder = tmp_path_factory.mktemp("model")
    return models.save_model(folder, vocab_size=12000, hidden_size=16, num_hidden_layers=3)


@pytest.fixture(scope="module")
def expected(model, tmp_path_factory):
    """The pack that threads build."""
    return tolpack.build(model, tmp_path_factory.mktemp("e") / "p.tolpack").path.read_bytes()


@pytest.fixture(scope="module")
def client():
    """A client of two worker processes."""
    with local_cluster(2) as cluster, distributed.Client(cluster) as client:
        yield client


def local_cluster(workers):
    """Return a cluster of processes, with its dashboard on a port that is free."""
    return distributed.LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0"
    )


def settings(model, tmp_path, **more):
    """Return what all builds of parts here have in common."""
    return {"checkpoint": model, "output": tmp_path / "parts", "part_size": PART, **more}


def test_a_cluster_writes_the_bytes_of_threads(model, expected, client, tmp_path):
    """One file and parts are those of threads; each task has a name in the dashboard."""
    executor = client.get_executor()
    tolpack.build(model, tmp_path / "p.tolpack", executor=executor)
    assert (tmp_path / "p.tolpack").read_bytes() == expected
    with distributed.get_task_stream(client) as stream:
        tolpack.build(**settings(model, tmp_path, executor=executor))
    assert {one["key"].rpartition("-")[0] for one in stream.data} == {"encode_part"}
    assert join(tmp_path / "parts", tmp_path / "joined") == expected
    tolpack.build(model, tmp_path / "here", part_size=PART)
    assert parts_of(tmp_path / "parts") == parts_of(tmp_path / "here")


def test_a_worker_that_is_killed_changes_no_byte(model, expected, client, tmp_path):
    """The tasks of a worker that dies in the middle are done by another one."""
    flag = tmp_path / "flag"
    executor = Through(client.get_executor(), lost_workers.killed_once, str(flag))
    tolpack.build(**settings(model, tmp_path, executor=executor))
    assert flag.exists()
    assert join(tmp_path / "parts", tmp_path / "p.tolpack") == expected


def test_a_task_that_kills_every_worker_is_given_up(model, tmp_path, client):
    """Where workers die of a task again and again, the error says so."""
    client.cluster.scheduler.allowed_failures = 0
    executor = Through(client.get_executor(), lost_workers.killed_always)
    with pytest.raises(ExecutorError, match="KilledWorker.*give the same command again"):
        tolpack.build(**settings(model, tmp_path, executor=executor))
    client.wait_for_workers(2)


def test_a_scheduler_that_closes_ends_in_an_error_and_its_parts_are_kept(model, expected, tmp_path):
    """Without a scheduler the build says so at once; the next one makes only what is missing."""
    given = settings(model, tmp_path)
    with local_cluster(1) as cluster, distributed.Client(cluster) as client:

        class Closing(Interrupted):
            def step(self, _):
                """Close the scheduler once two parts are made."""
                self.left -= 1
                if not self.left:
                    cluster.close()

        with pytest.raises(ExecutorError, match="scheduler was lost.*give the same command again"):
            tolpack.build(executor=client.get_executor(), reporter=Closing(2), **given)
    kept = parts_of(given["output"])
    assert len(kept) >= 2
    with pytest.raises(FileAccessError, match="not finished"):
        tolpack.open(given["output"])
    assert made_by_the_next_build(given) <= len(parts_of(given["output"])) - 2
    assert join(given["output"], tmp_path / "p.tolpack") == expected


def test_a_client_that_is_killed_leaves_parts_and_no_manifest(model, expected, client, tmp_path):
    """What a killed command's tasks made is used by the next one, which ends in the same bytes."""
    output = tmp_path / "parts"
    command = [
        sys.executable, "-m", "tolpack.cli", "build", str(model), "-o", str(output),
        "--part-size", str(PART), "--cluster", client.scheduler.address,
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (output.exists() and parts_of(output)):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    if process.wait() == 0:
        pytest.skip("the build was faster than the kill")
    assert not (output / "manifest.json").exists()
    log = Log()
    tolpack.build(**settings(model, tmp_path, executor=client.get_executor(), reporter=log))
    assert any("part files are there already" in line for line in log.said)
    assert join(output, tmp_path / "p.tolpack") == expected
