"""A cluster and an object store on this machine, to try builds on several workers with.

    eval "$(python examples/local_cluster.py)"

starts a Dask cluster of two processes and an S3 server (of the package ``moto``) with an empty
bucket ``packs``, both on the loopback interface, and prints variables for the shell: ``SCHEDULER``,
the address that ``tolpack build --cluster`` takes; ``AWS_…``, by which ``s3://packs/…`` is found;
and ``LOCAL_CLUSTER``, the process that ``kill $LOCAL_CLUSTER`` ends. Objects are in memory, and
gone with it. With ``--foreground`` the servers run until Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path
from typing import Any

WORKERS = 2
BUCKET = "packs"
READY = "# ready"


def main() -> None:
    """Serve, or start a process that serves and return once it does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--foreground", action="store_true", help="run until Ctrl-C")
    if parser.parse_args().foreground:
        serve()
    else:
        start()


def start() -> None:
    """Start a process that serves, pass on what it prints until it is ready, and leave it."""
    log = Path(tempfile.gettempdir()) / f"local_cluster-{os.getpid()}.log"
    with open(log, "wb") as errors:
        server = subprocess.Popen(
            [sys.executable, __file__, "--foreground"], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=errors, start_new_session=True, text=True,
        )  # fmt: skip
    assert server.stdout is not None
    for line in server.stdout:
        if line.strip() == READY:
            print(f"# log: {log}")
            return
        print(line, end="")
    sys.exit(f"the servers did not start: see {log}")


def serve() -> None:
    """Run both servers until the process is told to end."""
    from distributed import LocalCluster
    from moto.server import ThreadedMotoServer

    store = ThreadedMotoServer("127.0.0.1", 0)
    with contextlib.redirect_stdout(sys.stderr):  # it says that it starts
        store.start()
    host, port = store.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local",
    }  # fmt: skip
    os.environ.update(variables)  # workers inherit them
    bucket = urllib.request.Request(f"{variables['AWS_ENDPOINT_URL']}/{BUCKET}", method="PUT")
    urllib.request.urlopen(bucket).close()
    start_cluster: Any = LocalCluster  # distributed has no types
    with start_cluster(
        n_workers=WORKERS, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
    ) as cluster:
        own = {"SCHEDULER": cluster.scheduler_address, "LOCAL_CLUSTER": str(os.getpid())}
        for name, value in (variables | own).items():
            print(f"export {name}={shlex.quote(value)}")
        print(READY, flush=True)
        _wait_for_end()
    store.stop()


def _wait_for_end() -> None:
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()


if __name__ == "__main__":
    main()
