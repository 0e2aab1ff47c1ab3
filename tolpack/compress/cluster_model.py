"""How long a build takes on several machines: a model in a few formulas, one for each phase.

The machines are equal. One of them, the *caller*, runs ``tolpack build``: it checks the input,
calibrates, plans, and writes indexes and manifest. The workers, one a core, encode the parts. With
several machines the input and the parts lie in object storage, so every byte of them passes the
network of the machine that reads or writes it; on a single machine they lie on its disk. Phases
follow one another. A phase takes as long as the resource that it occupies longest:
``max(bytes / rate)``.

What the model leaves out: stragglers and lost workers, limits of the object storage itself, and the
comparison of a few rows at the end of a build. docs/scale.md has the formulas in one table, and how
far they are from builds that were measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tolpack.container.parts.layout import DEFAULT_PART_SIZE
from tolpack.errors import ConfigError
from tolpack.runtime.sizes import parse_bytes

DEFAULT_PART_BYTES = parse_bytes(DEFAULT_PART_SIZE, "--part-size")
MAX_MACHINES = 100_000
# Parts of a pack in one file, which are removed at the end, and their bytes at least and at most.
_PARTS_OF_FILE, _LEAST_PART_BYTES, _MOST_PART_BYTES = 64, 1 << 20, 256 << 20
# Rows of a part at least.
_PART_ROWS = 2048
# From a request to an object store to its first byte, and requests that the caller has at once.
_REQUEST_SECONDS, _REQUESTS_AT_ONCE = 0.03, 16


@dataclass(frozen=True, slots=True)
class Cluster:
    """Equal machines.

    ``machines``; ``cores`` of each; ``disk`` and ``network``: bytes a second of each;
    ``disk_write``: those that the disk writes, ``None`` for as many as it reads; ``workers``:
    processes on each, ``None`` for one a core; ``price`` of a machine for an hour, and
    ``traffic_price`` of 10⁹ bytes over the network, in any currency.
    """

    machines: int
    cores: int
    disk: float
    network: float
    disk_write: float | None = None
    workers: int | None = None
    price: float | None = None
    traffic_price: float | None = None

    def __post_init__(self) -> None:
        """Raise `ConfigError` for what no cluster has."""
        for name in ("machines", "cores", "workers"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MAX_MACHINES:
                raise ConfigError(f"--{name} is {value}, expected 1 … {MAX_MACHINES}")
        for name in ("disk", "network"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"--{name} is {getattr(self, name)}, expected bytes a second > 0")

    @property
    def written(self) -> float:
        """Bytes that a disk writes a second."""
        return self.disk_write or self.disk

    @property
    def processes(self) -> int:
        """Workers on each machine."""
        return self.workers or self.cores

    @property
    def busy_cores(self) -> int:
        """Cores of all machines that have a worker."""
        return self.machines * min(self.processes, self.cores)


@dataclass(frozen=True, slots=True)
class TableWork:
    """What encoding and planning one table costs.

    ``stored_bytes`` of its input; ``rows``; ``row_seconds``: of one core for a row of all fields;
    ``load_seconds``: of one core for a part, before its first row; ``computed``: whether rows are
    computed from weights, which each machine reads, instead of read; ``basis_flops``: operations of
    planning that grow with the width, of Gram matrices and their eigenvectors, 0 without a basis.
    """

    rows: int
    stored_bytes: int
    row_seconds: float
    load_seconds: float = 0.0
    computed: bool = False
    basis_flops: float = 0.0


@dataclass(frozen=True, slots=True)
class BuildWork:
    """What a build has to do.

    ``pack_bytes``: predicted, of the whole pack; ``index_bytes``: those of arrays and indexes,
    which the caller writes; ``part_bytes``: of a part file, ``None`` for a pack in one file;
    ``calibration_seconds`` and ``plan_seconds`` of the caller, besides what follows from the
    tables; ``remote``: whether input and parts lie in object storage.
    """

    tables: tuple[TableWork, ...]
    pack_bytes: int
    index_bytes: int = 0
    part_bytes: int | None = DEFAULT_PART_BYTES
    calibration_seconds: float = 0.0
    plan_seconds: float = 0.0
    remote: bool = True

    @property
    def stored_bytes(self) -> int:
        """Bytes of the input."""
        return sum(table.stored_bytes for table in self.tables)

    @property
    def parts(self) -> int:
        """Number of part files, without that of arrays and indexes."""
        size = self.part_bytes
        if size is None:
            size = self.pack_bytes // _PARTS_OF_FILE
            size = min(max(size, _LEAST_PART_BYTES), _MOST_PART_BYTES)
        most = sum(math.ceil(table.rows / _PART_ROWS) for table in self.tables)
        return max(1, min(math.ceil(self.pack_bytes / size), most))


@dataclass(frozen=True, slots=True)
class Rates:
    """What one core does: ``digest`` bytes of SHA-256 a second, ``flops`` operations of matrix
    products a second; ``start_seconds`` until a new process has loaded tolpack, and ends.
    """

    digest: float
    flops: float
    start_seconds: float


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase: ``machines`` that are busy in it, ``read_bytes`` of the input or of parts,
    ``network_bytes`` that pass a network, and ``bound``, what it waits for: ``"cores"``,
    ``"disk"``, ``"network"``, ``"parts"`` (fewer than workers), or ``"one process"``.
    """

    name: str
    seconds: float
    machines: int
    read_bytes: int = 0
    network_bytes: int = 0
    bound: str = "one process"


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """The phases of a build on a cluster, in their order."""

    cluster: Cluster
    work: BuildWork
    rates: Rates
    phases: tuple[Phase, ...]

    @property
    def seconds(self) -> float:
        """Of the whole build."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def network_bytes(self) -> int:
        """That pass the network of any machine."""
        return sum(phase.network_bytes for phase in self.phases)

    def cost(self, phase: Phase) -> float | None:
        """Return what a phase costs, ``None`` without prices: all machines are paid for, also while
        the caller works alone.
        """
        cluster = self.cluster
        if cluster.price is None and cluster.traffic_price is None:
            return None
        hours = cluster.machines * phase.seconds / 3600
        return hours * (cluster.price or 0) + phase.network_bytes / 1e9 * (
            cluster.traffic_price or 0
        )

    def total_cost(self) -> float | None:
        """Return what all phases cost; ``None`` without prices."""
        costs = [self.cost(phase) for phase in self.phases]
        return None if costs[0] is None else sum(cost or 0.0 for cost in costs)

    def to_json(self) -> dict[str, Any]:
        """Return inputs, phases and sums as plain values for JSON."""
        phases = [{**asdict(phase), "cost": self.cost(phase)} for phase in self.phases]
        return {
            **{name: asdict(getattr(self, name)) for name in ("cluster", "work", "rates")},
            "parts": self.work.parts,
            "phases": phases,
            "seconds": self.seconds,
            "hours": self.seconds / 3600,
            "network_bytes": self.network_bytes,
            "cost": self.total_cost(),
        }


def plan_cluster(cluster: Cluster, work: BuildWork, rates: Rates) -> ClusterPlan:
    """Predict the phases of a build; each has its formula in its function's docstring.

    Parameters
    ----------
    cluster : Cluster
        The machines.
    work : BuildWork
        What is to be done.
    rates : Rates
        What one of their cores does.

    Returns
    -------
    ClusterPlan
        The phases, those that take no time left out.
    """
    encoding = _encode(cluster, work, rates)
    phases = (
        _start(cluster, rates),
        _check(cluster, work, rates),
        Phase("calibrate", work.calibration_seconds, 1, bound="cores"),
        _plan(cluster, work, rates),
        encoding,
        _write(cluster, work, encoding),
        _index(cluster, work),
        _join(cluster, work),
    )
    return ClusterPlan(cluster, work, rates, tuple(one for one in phases if one.seconds > 0))


def _slowest(seconds: Mapping[str, float]) -> tuple[float, str]:
    """Return the longest time and what takes it."""
    bound = max(seconds, key=lambda name: seconds[name])
    return seconds[bound], bound


def _input_rate(cluster: Cluster, work: BuildWork) -> tuple[str, float]:
    """Return where a machine's input comes from, and how fast."""
    return ("network", cluster.network) if work.remote else ("disk", cluster.disk)


def _start(cluster: Cluster, rates: Rates) -> Phase:
    """``start_seconds · max(1, workers / cores)``: all workers start at once, each on a core; the
    time also counts their end.
    """
    seconds = rates.start_seconds * max(1.0, cluster.processes / cluster.cores)
    return Phase("start workers", seconds, cluster.machines, bound="cores")


def _check(cluster: Cluster, work: BuildWork, rates: Rates) -> Phase:
    """``max(stored / input rate, stored / (digest · cores))``: the caller reads every byte once,
    for the SHA-256 by which packs are told apart.
    """
    place, rate = _input_rate(cluster, work)
    size = work.stored_bytes
    seconds, bound = _slowest({place: size / rate, "cores": size / (rates.digest * cluster.cores)})
    return Phase("check the input", seconds, 1, size, size if work.remote else 0, bound)


def _plan(cluster: Cluster, work: BuildWork, rates: Rates) -> Phase:
    """``plan_seconds + Σ tables with a basis (rows · row_seconds + basis_flops / flops) / cores``:
    a basis needs one pass over the table, on the cores of the caller.
    """
    based = [table for table in work.tables if table.basis_flops]
    core_seconds = sum(
        table.rows * table.row_seconds + table.basis_flops / rates.flops for table in based
    )
    size = sum(table.stored_bytes for table in based)
    place, rate = _input_rate(cluster, work)
    seconds, bound = _slowest({"cores": core_seconds / cluster.cores, place: size / rate})
    total = work.plan_seconds + seconds
    return Phase("plan", total, 1, size, size if work.remote else 0, bound)


def _encode(cluster: Cluster, work: BuildWork, rates: Rates) -> Phase:
    """``max(⌈parts / busy cores⌉ · core seconds of a part, input of a machine / input rate)``; a
    core takes for a part ``Σ rows · row_seconds / parts + load_seconds + its bytes / digest``.

    Parts are of one size, and a core that has finished one takes the next. Rows that are stored are
    read by one machine each; weights from which rows are computed, by all.
    """
    parts, slots, machines = work.parts, cluster.busy_cores, cluster.machines
    row_seconds = sum(table.rows * table.row_seconds for table in work.tables)
    load = max(table.load_seconds for table in work.tables)
    each = row_seconds / parts + load + work.pack_bytes / parts / rates.digest
    size = sum(table.stored_bytes * (machines if table.computed else 1) for table in work.tables)
    place, rate = _input_rate(cluster, work)
    waits = {
        "cores" if parts >= slots else "parts": math.ceil(parts / slots) * each,
        place: size / machines / rate,
    }
    seconds, bound = _slowest(waits)
    return Phase("encode parts", seconds, machines, size, size if work.remote else 0, bound)


def _write(cluster: Cluster, work: BuildWork, encoding: Phase) -> Phase:
    """``max((on disk + sent) / workers, sent - encode, on disk + read from disk - encode)``, where
    ``on disk``, ``sent`` and ``read from disk`` are how long the bytes of all parts, and those of
    the input, take at the full rates of all machines, and ``encode`` the phase before.

    A worker writes a part to its disk when it has encoded it, and sends it to object storage, while
    others of its machine still encode. Those are the asymptotic bounds of a closed queueing network
    (Denning and Buzen, 1978): a single worker does one after the other, and of many the longest
    hides the rest. A network carries as much in both directions at once, and a disk does not.
    """
    size, machines = work.pack_bytes, cluster.machines
    moved = {"disk": size / machines / cluster.written}
    read = 0.0 if work.remote else encoding.read_bytes / machines / cluster.disk
    if work.remote:
        moved["network"] = size / machines / cluster.network
    workers = min(cluster.processes, cluster.cores)
    seconds = max(
        sum(moved.values()) / workers, moved["disk"] + read - encoding.seconds,
        moved.get("network", 0.0) - encoding.seconds,
    )  # fmt: skip
    bound = _slowest(moved)[1]
    return Phase("write parts", seconds, machines, 0, size if work.remote else 0, bound)


def _index(cluster: Cluster, work: BuildWork) -> Phase:
    """``⌈parts / 16⌉ · 0.03 s + 2 · index / rate``: the caller reads how long the blocks of each
    part are, 16 requests at once, and writes indexes, arrays and the manifest.
    """
    requests = math.ceil(work.parts / _REQUESTS_AT_ONCE) if work.remote else 0
    seconds = requests * _REQUEST_SECONDS + 2 * work.index_bytes / _input_rate(cluster, work)[1]
    sent = 2 * work.index_bytes if work.remote else 0
    return Phase("index and manifest", seconds, 1, work.index_bytes, sent)


def _join(cluster: Cluster, work: BuildWork) -> Phase:
    """``pack / disk + pack / disk_write``: for a pack in one file, the caller reads the parts and
    writes them again.
    """
    size = work.pack_bytes if work.part_bytes is None else 0
    return Phase("join", size / cluster.disk + size / cluster.written, 1, size, 0, "disk")
