"""Lookups in a pack in object storage: a loopback server that takes 20 ms more for each request.

512 random rows of 26 KB, other ones each time, against the time that the goal allows: four round
trips, and the same bytes by one request. Beside the whole lookup, the reading of its blocks alone:
the rest is decoding, which a local file costs as well. Then the same rows again: from the disk
cache, and from the file, warm. The server is a process of its own; round trip and bandwidth are
those of one request for one byte, and of one for all bytes, in the same minute.

    python benchmarks/remote_lookup.py FOLDER --json benchmarks/results/remote_lookup.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mmap
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from machine import described
from random_packs import make_pack

import tolpack

LAYERS, WIDTH, VOCAB = 24, 2048, 16384
MODIFIED = b"Fri, 27 Nov 2026 10:00:00 GMT"


def main() -> None:
    """Make the packs, serve them, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--delay-ms", type=float, default=20)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    os.environ["TOLPACK_CACHE"] = str(arguments.folder / "cache")
    found: dict[str, Any] = {
        **described("numpy", "zstandard", "obstore"),
        "rows": arguments.rows,
        "delay_ms": arguments.delay_ms,
    }
    for frame in ("raw", "zstd"):
        path = arguments.folder / f"{frame}.tolpack"
        if not path.exists():
            make_pack(path, LAYERS, WIDTH, VOCAB, frame)
        found[frame] = measured(path, arguments)
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def measured(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure lookups in one pack."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(path, arguments.delay_ms / 1e3, theirs))
    server.start()
    try:
        url = f"http://127.0.0.1:{ours.recv()}/{path.name}"
        rng = np.random.default_rng(0)
        ids = [rng.choice(VOCAB, arguments.rows, replace=False) for _ in range(arguments.repeats)]
        return {**remote(url, ids), **cached(url, path, ids)}
    finally:
        server.terminate()
        server.join()


def remote(url: str, ids: list[np.ndarray]) -> dict[str, Any]:
    """Times and bytes of lookups and of the requests that they are held against, in turns."""
    import obstore
    from obstore.store import HTTPStore

    base, _, name = url.rpartition("/")
    store = HTTPStore.from_url(base, client_options={"allow_http": True})
    start = time.perf_counter()
    with tolpack.open(url) as pack:
        opened = time.perf_counter() - start
        pack.rows(ids[0][:300])  # the token map, connections
        extents = [np.unique(pack.extents(some), axis=0) for some in ids]
        size = int(np.mean([one[:, 1].sum() for one in extents]))
        times: dict[str, list[float]] = {
            "round_trip": [], "whole": [], "lookup": [], "bytes": [], "ten": [],
        }  # fmt: skip
        before = pack.stats()
        for n, (some, one) in enumerate(zip(ids, extents)):
            times["round_trip"].append(seconds(partial(fetch, store, name, 1)))
            times["whole"].append(seconds(partial(fetch, store, name, size)))
            times["lookup"].append(seconds(partial(pack.rows, some)))
            places = list(map(tuple, one.tolist()))
            times["bytes"].append(seconds(partial(pack.container.source.read_many, places)))
            if n < 3:
                starts, lengths = one[:, 0].tolist(), one[:, 1].tolist()
                ten = partial(
                    obstore.get_ranges, store, name,
                    starts=starts, lengths=lengths, coalesce=16 << 10,
                )  # fmt: skip
                times["ten"].append(seconds(ten))
        after = pack.stats()
    round_trip, whole, lookup, blocks, ten_at_once = map(statistics.median, times.values())
    asked = int(after["file_bytes"]) - int(before["file_bytes"])
    return {
        "open_ms": ms(opened),
        "round_trip_ms": ms(round_trip),
        "bytes_of_the_rows": size,
        "bandwidth_MB_s": round(size / (whole - round_trip) / 1e6),
        "allowed_ms": ms(4 * round_trip + whole - round_trip),
        "blocks_alone_ms": ms(blocks),
        "lookup_ms": ms(lookup),
        "fastest_lookup_ms": ms(min(times["lookup"])),
        "get_ranges_of_10_ms": ms(ten_at_once),
        "requests": (int(after["fetched_requests"]) - int(before["fetched_requests"]))
        // (2 * len(ids)),
        "bytes_asked_over_needed": round(asked / (2 * size * len(ids)), 4),
    }


def fetch(store: Any, name: str, size: int) -> bytes:
    """Read the first bytes of an object by one request."""
    import obstore

    return bytes(obstore.get_range(store, name, start=0, length=size))


def cached(url: str, path: Path, ids: list[np.ndarray]) -> dict[str, Any]:
    """Times of the same lookups from the disk cache and from the file, in turns."""
    there, here, first = [], [], []
    with (
        tolpack.open(url, disk_cache="1GB", threads=1) as kept,
        tolpack.open(path, threads=1) as local,
    ):
        for some in ids:
            first.append(seconds(partial(kept.rows, some)))
            local.rows(some)
        before = kept.stats()["file_bytes"]
        for _ in range(3):
            for some in ids:
                there.append(seconds(partial(kept.rows, some)))
                here.append(seconds(partial(local.rows, some)))
        assert kept.stats()["file_bytes"] == before
        assert np.array_equal(kept.rows(ids[0]), local.rows(ids[0]))
    cache, file = statistics.median(there), statistics.median(here)
    return {
        "lookup_and_keep_ms": ms(statistics.median(first)),
        "from_disk_cache_ms": ms(cache),
        "from_file_ms": ms(file),
        "disk_cache_over_file": round(cache / file, 3),
    }


def seconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ms(value: float) -> float:
    """Return seconds as milliseconds, to be read."""
    return round(1e3 * value, 2)


def serve(path: Path, delay: float, address: Connection) -> None:
    """Serve ranges of one file for ever, each `delay` seconds after its request."""
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: RangeServer(data, delay), "127.0.0.1", 0, backlog=1024
        )
        address.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


class RangeServer(asyncio.Protocol):
    """One connection to a server of ranges."""

    def __init__(self, data: memoryview, delay: float) -> None:
        self._data, self._delay = data, delay
        self._received = b""

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`: a request without a body is whole at its empty line."""
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            asyncio.get_running_loop().call_later(self._delay, self._answer, head)

    def _answer(self, request: bytes) -> None:
        demand = re.search(rb"(?i)\r\nif-match: ([^\r]*)", request)
        if demand and demand[1] != b'"1"':
            self._transport.write(b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\n\r\n")
            return
        match = re.search(rb"(?i)\r\nrange: bytes=(\d+)-(\d+)", request)
        size = len(self._data)
        start, stop = (int(match[1]), min(int(match[2]) + 1, size)) if match else (0, size)
        head = (
            b'HTTP/1.1 206 Partial Content\r\nETag: "1"\r\nLast-Modified: %s\r\n'
            b"Content-Length: %d\r\nContent-Range: bytes %d-%d/%d\r\n\r\n"
            % (MODIFIED, stop - start, start, stop - 1, size)
        )
        if stop - start < 1 << 18:
            self._transport.write(b"".join([head, self._data[start:stop]]))  # one packet, one wake
        else:
            self._transport.write(head)
            self._transport.write(self._data[start:stop])


if __name__ == "__main__":
    main()
