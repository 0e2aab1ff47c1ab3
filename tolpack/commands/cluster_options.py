"""Options of ``tolpack plan`` for the machines of a build."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from tolpack.commands.terminal import checked
from tolpack.runtime.pool import processor_count
from tolpack.runtime.sizes import parse_bytes, parse_rate

if TYPE_CHECKING:  # it loads torch, which help does not need
    from tolpack.compress.cluster_plan import ClusterBuild

_NAMES = ("cores", "disk", "network", "part_size", "price", "traffic_price")
_MOST = 100_000


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for the machines of a build."""
    options = (
        click.option(
            "--machines", type=click.IntRange(1, _MOST),
            help="Predict the phases of a build on so many equal machines; needs --disk and "
            "--network.",
        ),
        click.option(
            "--cores", type=click.IntRange(1, _MOST),
            help="Cores of each machine [default: as many as this one has].",
        ),
        click.option(
            "--disk", metavar="RATE", callback=checked(lambda value: parse_rate(value, "--disk")),
            help="What each machine's disk reads and writes, like 1GB/s.",
        ),
        click.option(
            "--network", metavar="RATE",
            callback=checked(lambda value: parse_rate(value, "--network")),
            help="What each machine's network carries, like 10Gbit/s.",
        ),
        click.option(
            "--part-size", callback=checked(lambda value: parse_bytes(value, "--part-size")),
            help="Size of a part file, as for build [default: 256MB, and one file on one machine].",
        ),
        click.option(
            "--price", type=click.FloatRange(0), help="Price of a machine for an hour.",
        ),
        click.option(
            "--traffic-price", type=click.FloatRange(0),
            help="Price of a GB (10⁹ bytes) over the network.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def take_cluster_options(settings: dict[str, Any]) -> ClusterBuild | None:
    """Take the settings of `cluster_options` out of `settings`; ``None`` without ``--machines``.

    Raises
    ------
    click.UsageError
        Options that belong together were not given together.
    """
    machines, given = settings.pop("machines"), {name: settings.pop(name) for name in _NAMES}
    if machines is None:
        for name, value in given.items():
            if value is not None and name != "part_size":  # build takes it without machines
                raise click.UsageError(f"--{name.replace('_', '-')} needs --machines")
        return None
    for name in ("disk", "network"):
        if given[name] is None:
            raise click.UsageError(f"--machines needs --{name}, like --{name} 1GB/s")
    from tolpack.compress.cluster_model import Cluster
    from tolpack.compress.cluster_plan import ClusterBuild

    part_bytes = None
    if given["part_size"] is not None:
        part_bytes = parse_bytes(given["part_size"], "--part-size")
    cluster = Cluster(
        machines, given["cores"] or processor_count(), parse_rate(given["disk"], "--disk"),
        parse_rate(given["network"], "--network"), price=given["price"],
        traffic_price=given["traffic_price"],
    )  # fmt: skip
    return ClusterBuild(cluster, part_bytes)
