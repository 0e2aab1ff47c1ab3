"""``tolpack plan --machines``: what a build takes on a cluster, from stated formulas."""

import heapq
import json
import math
from dataclasses import replace

import models
import numpy as np
import pytest
from click.testing import CliRunner

from tolpack.cli import main
from tolpack.compress.cluster_model import (
    BuildWork,
    Cluster,
    Rates,
    TableWork,
    plan_cluster,
)
from tolpack.compress.cluster_rates import RowSample, measure_table, start_seconds
from tolpack.compress.settings import BuildSettings
from tolpack.errors import ConfigError
from tolpack.report.cluster_table import format_time
from tolpack.runtime.progress import PhaseTimes, Reporter
from tolpack.runtime.sizes import parse_rate
from tolpack.sources.open_source import open_source
from tolpack.storage.locations import open_folder
from tolpack.workspace.resources import Resources

RATES = Rates(digest=1e9, flops=1e11, start_seconds=2.0)
TABLE = TableWork(rows=10**8, stored_bytes=50 * 10**9, row_seconds=1e-5)
WORK = BuildWork((TABLE,), pack_bytes=16 * 10**9, index_bytes=10**8)
MACHINES = ("--machines", "4", "--disk", "1GB/s", "--network", "10Gbit/s")


@pytest.fixture(autouse=True)
def no_processes(monkeypatch):
    """Starting a process that loads torch takes seconds: one test does it."""
    monkeypatch.setattr("tolpack.compress.cluster_rates.start_seconds", lambda: 1.0)


def phases(cluster, work=WORK, rates=RATES):
    """Return the phases of a plan by name."""
    return {phase.name: phase for phase in plan_cluster(cluster, work, rates).phases}


def plan_json(*arguments):
    """Return what ``tolpack plan --json`` prints."""
    result = CliRunner().invoke(main, ["plan", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# -- the formulas --------------------------------------------------------------------------------


def simulated_seconds(parts, machines, workers, encode, write):
    """Run a build step by step: a worker encodes a part, waits for its turn on the machine's
    network, sends the part, and takes the next. Return when all are done.
    """
    encoded = [(encode, worker) for worker in range(machines * workers)]
    network, left = [0.0] * machines, parts - len(encoded)
    while encoded:
        now, worker = heapq.heappop(encoded)
        machine = worker // workers
        network[machine] = max(now, network[machine]) + write
        if left:
            left -= 1
            heapq.heappush(encoded, (network[machine] + encode, worker))
    return max(network)


@pytest.mark.parametrize("workers", [1, 2, 4, 16])
@pytest.mark.parametrize("gigabits", [0.05, 0.4, 1, 10])
@pytest.mark.parametrize("machines", [1, 3])
def test_encoding_and_writing_are_those_of_a_simulation(machines, workers, gigabits):
    """Within a fifth of a simulation in which each worker encodes, waits for the network, and
    sends, whatever of them takes longer.
    """
    parts, part = 240 * machines, 50_000_000
    cluster = Cluster(machines, workers, disk=1e12, network=gigabits / 8 * 1e9)
    table = TableWork(rows=10**6, stored_bytes=0, row_seconds=1e-3)
    work = BuildWork((table,), pack_bytes=parts * part, part_bytes=part)
    rates = Rates(digest=1e18, flops=1e11, start_seconds=0)
    found = phases(cluster, work, rates)
    predicted = found["encode parts"].seconds + found["write parts"].seconds
    simulated = simulated_seconds(parts, machines, workers, 1e3 / parts, part / cluster.network)
    assert predicted == pytest.approx(simulated, rel=0.2)


def test_more_workers_than_cores_change_nothing_but_the_start():
    """Four workers on two cores encode as two do, and the plan says that cores are the bound."""
    two = phases(Cluster(1, 2, 1e9, 1e9, workers=2))
    four = phases(Cluster(1, 2, 1e9, 1e9, workers=4))
    assert four["encode parts"] == two["encode parts"]
    assert four["encode parts"].bound == "cores"
    assert four["start workers"].seconds == 2 * two["start workers"].seconds


@pytest.mark.parametrize(
    ("changes", "remote", "bound"),
    [({}, True, "cores"), ({"network": 1e7}, True, "network"), ({"disk": 1e7}, False, "disk"),
     ({"cores": 100, "network": 1e10}, True, "parts")],
)  # fmt: skip
def test_a_phase_says_what_it_waits_for(changes, remote, bound):
    """Encoding is bound by cores, by a slow network or disk with the input, or by too few parts."""
    cluster = Cluster(**{"machines": 2, "cores": 4, "disk": 1e9, "network": 1e9, **changes})
    found = phases(cluster, replace(WORK, remote=remote))["encode parts"]
    assert found.bound == bound
    waits = {
        "cores": math.ceil(63 / 8) * (1e-5 * 10**8 / 63 + 16e9 / 63 / 1e9),
        "network": 50e9 / 2 / 1e7, "disk": 50e9 / 2 / 1e7, "parts": 1e3 / 63 + 16 / 63,
    }  # fmt: skip
    assert found.seconds == pytest.approx(waits[bound])


@pytest.mark.parametrize(
    ("rates", "bound"), [((1e7, 1e9), "disk"), ((1e9, 1e7), "network"), ((1e9, 1e8), "network")]
)
def test_writing_waits_for_the_slower_of_disk_and_network(rates, bound):
    """What takes longest is named; the rest is hidden behind the encoding of other workers."""
    found = phases(Cluster(2, 4, *rates))
    assert found["write parts"].bound == bound
    each = [8e9 / rate for rate in rates]
    hidden = max(each) - found["encode parts"].seconds
    assert found["write parts"].seconds == pytest.approx(max(sum(each) / 4, hidden))


def test_a_disk_does_not_read_and_write_at_once():
    """On one machine whose disk is the bound, input and parts take what both take together."""
    found = phases(Cluster(1, 64, 1e9, 1e9), replace(WORK, remote=False))
    assert found["encode parts"].bound == "disk"
    both = found["encode parts"].seconds + found["write parts"].seconds
    assert both == pytest.approx((50e9 + 16e9) / 1e9)


def test_a_single_machine_reads_its_disk():
    """Without a second machine nothing passes the network, and a pack in one file is joined."""
    plan = plan_cluster(
        Cluster(1, 4, 1e9, 1e9), BuildWork((TABLE,), 10**9, part_bytes=None, remote=False), RATES
    )
    assert plan.network_bytes == 0
    assert [phase.name for phase in plan.phases][-1] == "join"
    assert {phase.bound for phase in plan.phases} <= {"cores", "disk", "one process"}


def test_ten_machines_send_the_input_twice_and_the_pack_once():
    """The caller reads the input for its digest, the workers for its rows; weights, from which rows
    are computed, are read by each machine.
    """
    cluster = Cluster(10, 16, 1e9, 1e9)
    stored = plan_cluster(cluster, WORK, RATES)
    assert stored.network_bytes == 2 * 50e9 + 16e9 + 2 * 1e8
    weights = TableWork(10**6, 10**9, 1e-5, computed=True)
    computed = plan_cluster(cluster, BuildWork((weights,), 10**9), RATES)
    assert computed.network_bytes == (1 + 10) * 10**9 + 10**9


def test_machines_never_make_a_build_longer():
    """Each doubling of the machines takes at most as long."""
    totals = [plan_cluster(Cluster(2**n, 8, 1e9, 1e9), WORK, RATES).seconds for n in range(1, 9)]
    assert totals == sorted(totals, reverse=True)


def test_costs_are_those_of_all_machines():
    """All machines are paid for from start to end, traffic by the byte; without prices none."""
    plan = plan_cluster(Cluster(10, 16, 1e9, 1e9, price=1.5, traffic_price=0.02), WORK, RATES)
    expected = 10 * 1.5 * plan.seconds / 3600 + 0.02 * plan.network_bytes / 1e9
    assert plan.total_cost() == pytest.approx(expected)
    assert sum(plan.cost(phase) for phase in plan.phases) == pytest.approx(expected)
    assert plan_cluster(Cluster(10, 16, 1e9, 1e9), WORK, RATES).total_cost() is None


def test_a_basis_needs_a_pass_of_the_caller():
    """Planning reads the table once more, and works out matrices on the caller's cores."""
    table = TableWork(10**6, 10**9, 1e-4, basis_flops=1e14)
    found = phases(Cluster(10, 4, 1e9, 1e9), BuildWork((table,), 10**9))["plan"]
    assert found.seconds == pytest.approx((1e6 * 1e-4 + 1e14 / 1e11) / 4)
    assert found.network_bytes == 10**9
    assert found.bound == "cores"


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"machines": 0}, "--machines is 0, expected 1"), ({"cores": 10**6}, "--cores is 1000000"),
     ({"disk": 0}, "--disk is 0"), ({"network": math.nan}, "--network is nan")],
)  # fmt: skip
def test_no_such_cluster(changes, message):
    """A cluster that cannot be is refused by the name of the option."""
    with pytest.raises(ConfigError, match=message):
        Cluster(**{"machines": 1, "cores": 1, "disk": 1, "network": 1, **changes})


# -- what is measured ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of 6,000 rows of 4 × 64 values in a file."""
    path = tmp_path_factory.mktemp("table") / "t.npy"
    np.save(path, np.random.default_rng(0).normal(size=(6000, 4, 64)).astype(np.float16))
    return path


@pytest.mark.parametrize(
    ("rank", "bits"), [("none", 4), ("none", "lossless"), ("25%", 8), ("1,2,3,4", 8)]
)
def test_a_sample_is_measured(table, rank, bits):
    """A rate is found under each kind of settings, for the rows of the whole table."""
    settings = BuildSettings.parse(rank, bits, "none", None, None)
    work, _ = measure_table(open_source(table), settings, Resources(), Reporter())
    assert (work.rows, work.stored_bytes) == (6000, 6000 * 512)
    assert 0 < work.row_seconds < 1
    assert (work.basis_flops > 0) == (rank != "none")
    assert not work.computed


def test_rows_that_are_computed_need_weights(tmp_path):
    """Of a MemoryLLM, every machine reads the weights."""
    settings = BuildSettings.parse("none", 4, "none", None, None)
    source = open_source(models.save_model(tmp_path, vocab_size=500))
    work, _ = measure_table(source, settings, Resources(), Reporter())
    assert work.computed
    assert work.row_seconds > 0


def test_a_sample_reads_no_more_than_it_needs(tmp_path):
    """A table of 100 GB is measured by a few thousand rows; its digest is not asked for."""
    shape = (10**8, 512)
    header = f"{{'descr': '<f2', 'fortran_order': False, 'shape': {shape}, }}"
    path, text = tmp_path / "t.npy", header.ljust(117) + "\n"
    with open(path, "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())
        file.truncate(10 + len(text) + 2 * math.prod(shape))
    found = plan_json(path, "--layers", 1, *MACHINES)
    assert found["cluster"]["work"]["tables"][0]["rows"] == 10**8
    assert found["cluster"]["hours"] > 0


def test_starting_a_worker_takes_time():
    """A new process loads what encodes."""
    assert 0.1 < start_seconds() < 120


def test_a_sample_has_the_rows_of_its_source(table):
    """Its row n is the source's row `token_ids[n]`, of the first fields."""
    source, ids = open_source(table), np.array([5, 17, 5999])
    sample = RowSample(source, ids, 2)
    assert (sample.rows, len(sample.fields)) == (3, 2)
    found = sample.field_rows(1)(np.array([2, 0]))
    assert np.array_equal(found, source.field_rows(1)(ids[[2, 0]]))
    stored = sample.stored_rows(0)(np.array([1]))
    assert np.array_equal(stored[1], source.stored_rows(0)(ids[[1]])[1])


def test_phase_times_are_kept():
    """In their order, also of one name, and progress is passed on."""
    times = PhaseTimes()
    for name in ("encoding", "encoding", "checking"):
        with times.phase(name, 1, "rows") as done:
            done(1)
    assert [name for name, _ in times.seconds] == ["encoding", "encoding", "checking"]
    assert all(seconds >= 0 for _, seconds in times.seconds)


# -- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rate"),
    [("500MB/s", 5e8), ("1 GB/s", 1e9), ("10Gbit/s", 1.25e9), ("1gib/s", 2**30), ("100", 100),
     ("2.5 Gbit/s", 3.125e8), ("8 bit/s", 1)],
)  # fmt: skip
def test_rates(text, rate):
    """Bytes and bits a second, with decimal and binary units."""
    assert parse_rate(text, "--disk") == rate


@pytest.mark.parametrize("text", ["fast", "1GB", "10Gb/s/s", "-1GB/s", "0GB/s", "1Gibit/s", ""])
def test_no_rates(text):
    """What is not a rate is refused by the name of its option."""
    with pytest.raises(ConfigError, match="--disk"):
        parse_rate(text, "--disk")


def test_plan_prints_phases(table):
    """The table has a line a phase and their sum, and costs only where there are prices."""
    run = CliRunner().invoke(main, ["plan", str(table), *MACHINES, "--cores", "8"])
    assert run.exit_code == 0, run.output
    assert "bytes on disk" in run.stdout
    for name in ("start workers", "check the input", "encode parts", "write parts", "all"):
        assert f"\n{name} " in run.stdout
    assert "32 workers on 32 cores" in run.stdout
    assert "measured here, on this machine (" in run.stdout
    assert "cost" not in run.stdout
    priced = CliRunner().invoke(main, ["plan", str(table), *MACHINES, "--price", "1.20"])
    assert "cost" in priced.stdout


def test_plan_json_has_the_model(table):
    """The plans stay what they were; phases, sums, and everything they follow from stand beside."""
    found = plan_json(table, *MACHINES, "--bits", "8", "--part-size", "1MB")
    (size,) = found["plans"]
    assert size == plan_json(table, "--bits", "8")["plans"][0]
    cluster = found["cluster"]
    assert cluster["parts"] == math.ceil(size["bytes"] / 1e6)
    assert cluster["seconds"] == pytest.approx(sum(one["seconds"] for one in cluster["phases"]))
    work = {**cluster["work"], "tables": [TableWork(**one) for one in cluster["work"]["tables"]]}
    again = plan_cluster(
        Cluster(**cluster["cluster"]), BuildWork(**work), Rates(**cluster["rates"])
    )  # fmt: skip
    assert again.seconds == pytest.approx(cluster["seconds"])


def test_an_input_by_url_passes_the_network(table):
    """A single machine reads it from object storage, and writes the pack there."""
    pytest.importorskip("obstore")
    open_folder("memory://planned").create("t.npy", table.read_bytes())
    found = plan_json("memory://planned/t.npy", *MACHINES, "--machines", "1")["cluster"]
    assert found["network_bytes"] >= 2 * 6000 * 512 + found["work"]["pack_bytes"]
    assert "join" not in [phase["name"] for phase in found["phases"]]


def test_a_measured_plan_has_phases_too(table, tmp_path):
    """With token counts, calibration and planning are measured as they are done."""
    np.save(tmp_path / "counts.npy", np.arange(6000)[::-1])
    found = plan_json(table, *MACHINES, "--frequencies", tmp_path / "counts.npy")
    assert found["plan"]["key"]
    assert found["cluster"]["work"]["plan_seconds"] > 0
    assert {"calibrate", "plan"} <= {phase["name"] for phase in found["cluster"]["phases"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--cores", "4"], "--cores needs --machines"),
     (["--machines", "2", "--disk", "1GB/s"], "--machines needs --network"),
     (["--machines", "2", "--network", "1GB/s"], "--machines needs --disk"),
     (["--machines", "0"], "0 is not in the range"),
     ([*MACHINES, "--disk", "fast"], "--disk 'fast' is not understood"),
     ([*MACHINES, "--price", "-1"], "-1"),
     ([*MACHINES, "--bits", "lossless", "--rank", "4"], "--bits lossless")],
)  # fmt: skip
def test_wrong_usage(table, arguments, message):
    """Options of a cluster come together, and wrong values are named."""
    result = CliRunner().invoke(main, ["plan", str(table), *arguments])
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.004, "0.00 s"), (9.87, "9.87 s"), (100, "100 s"), (600, "10.0 min"),
                          (9000, "2.5 h")],
)  # fmt: skip
def test_times_are_readable(seconds, text):
    """Seconds, minutes or hours."""
    assert format_time(seconds) == text
