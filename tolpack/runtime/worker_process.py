"""Libraries that may crash, hang or exhaust memory on untrusted files, in their own process.

A parser in C or Rust that aborts ends its process, and no Python code can catch that. So it runs in
a child that is started for one file and answers requests over its standard streams: a length, a
JSON object, raw bytes. Each request has a limit on CPU time (a timer of the kernel, which also ends
a loop in compiled code) and one on memory (``RLIMIT_AS``, where the system has it). A child that
dies costs an error, `WorkerError`; the next request starts another one.

The price is the start of an interpreter, about 0.15 s, and a copy of all that is sent to and fro.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tolpack.runtime.fork_safety import ForkSafe

if TYPE_CHECKING:
    from io import RawIOBase

Answer = tuple[dict[str, Any], bytes]
Handler = Callable[[dict[str, Any], bytes], Answer]

_LENGTHS = struct.Struct("<IQ")
_PIPE_BYTES = 1 << 20
_POLL_SECONDS, _POLLS_ASLEEP = 0.1, 50
# Seconds of waiting for each second of CPU time: a machine may be busy.
_PATIENCE = 20


class WorkerError(Exception):
    """The child refused a request, or died of it; the message says which."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to a child: the name of a handler, plain values, bytes, and the limits.

    ``seconds``: CPU time. ``memory_bytes``: beyond what the process holds as the request begins.
    """

    name: str
    values: Mapping[str, Any]
    body: bytes
    seconds: float
    memory_bytes: int


class WorkerProcess(ForkSafe):
    """A child process that runs a module's `serve`; it starts with the first request.

    Parameters
    ----------
    module : str
        Name of the module, run with ``python -m``.
    opening : Request, optional
        Sent to every child before its first other request.
    """

    def __init__(self, module: str, opening: Request | None = None) -> None:
        self._module, self._opening = module, opening
        super().__init__()

    def reset_after_fork(self) -> None:
        """See `tolpack.runtime.fork_safety.ForkReset`: the streams are the parent's."""
        super().reset_after_fork()
        self._child: _Child | None = None

    def ask(self, request: Request) -> Answer:
        """Return what the child's handler answers.

        Raises
        ------
        WorkerError
            The handler raised, the child died, or a limit was reached.
        """
        with self._lock:
            child = self._child
            if child is None:
                child = self._child = _Child(self._module)
                if self._opening is not None:
                    self._exchange(child, self._opening)
            return self._exchange(child, request)

    def close(self) -> None:
        """End the child; the next request starts another one."""
        with self._lock:
            if self._child is not None:
                self._child.stop()
                self._child = None

    def _exchange(self, child: _Child, request: Request) -> Answer:
        try:
            return child.exchange(request)
        except BaseException as error:
            if not isinstance(error, WorkerError) or not child.alive or child.answered == 0:
                self._child = None
                child.stop()
            raise


class _Child:
    """One process and its streams."""

    def __init__(self, module: str) -> None:
        root = str(Path(__file__).parents[1])
        path = os.pathsep.join([*filter(None, sys.path), root])
        # -P: the current folder is not to be trusted, and must not be searched for modules.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the parent
        )
        self._source = cast("RawIOBase", self._process.stdin)
        self._sink = cast("RawIOBase", self._process.stdout)
        for stream in (self._source, self._sink):
            _widen(stream.fileno())
        self.alive = True
        self.answered = 0
        self.stop = weakref.finalize(self, _stop, self._process, os.getpid())

    def exchange(self, request: Request) -> Answer:
        """Send a request and wait for its answer."""
        head = {"name": request.name, "values": dict(request.values), "seconds": request.seconds,
                "memory_bytes": request.memory_bytes}  # fmt: skip
        deadline = time.monotonic() + _PATIENCE * (1 + request.seconds)
        try:
            self._send(json.dumps(head).encode(), request.body)
            head_bytes, body_bytes = _LENGTHS.unpack(self._receive(_LENGTHS.size, deadline))
            answer = json.loads(self._receive(head_bytes, deadline))
            body = self._receive(body_bytes, deadline)
        except (OSError, EOFError) as error:
            self.alive = False
            raise WorkerError(self._cause_of_death(request)) from error
        if "error" in answer:
            raise WorkerError(answer["error"])
        self.answered += 1
        return answer, bytes(body)

    def _send(self, head: bytes, body: bytes) -> None:
        for part in (_LENGTHS.pack(len(head), len(body)), head, body):
            left = memoryview(part)
            while left:
                left = left[self._source.write(left) or 0 :]

    def _receive(self, count: int, deadline: float) -> bytearray:
        data = bytearray(count)
        left = memoryview(data)
        while left:
            self._wait(self._sink, deadline)
            size = self._sink.readinto(left)
            if not size:
                raise EOFError
            left = left[size:]
        return data

    def _wait(self, stream: RawIOBase, deadline: float) -> None:
        """Wait until there is something to read; raise `TimeoutError` if there will not be.

        A library that panics without memory for it may sleep on a lock for ever, which takes no
        computing time. A child that only waits for its turn on a busy machine does not sleep.
        """
        idle, before = 0, ""
        while not select.select([stream], [], [], _POLL_SECONDS)[0]:
            now = _activity(self._process.pid)
            idle = idle + 1 if now == before and now.startswith("S") else 0
            before = now
            if idle >= _POLLS_ASLEEP or time.monotonic() > deadline:
                raise TimeoutError

    def _cause_of_death(self, request: Request) -> str:
        try:
            code = self._process.wait(0.2)
        except subprocess.TimeoutExpired:
            return "its parser hangs"
        if code == -signal.SIGPROF:
            return f"it took more than {request.seconds:.1f} s of computing time"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
        return f"its parser crashed ({name}), or needed more than {request.memory_bytes:,} bytes"


def _widen(pipe: int) -> None:
    """Give a pipe room for more bytes, where the system can."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _activity(process: int) -> str:
    """State of a process and the computing time that it took; empty if the system does not say."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return ""
    return b" ".join((fields[0], *fields[11:13])).decode()


# One thread and one arena of memory, so that the limit on address space is one on memory.
_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1",
                "RUST_BACKTRACE": "0"}  # fmt: skip


def _stop(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:
        return
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    process.wait()


def serve(handlers: Mapping[str, Handler]) -> None:
    """Answer requests on the standard streams until they end: the child's main loop."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between the answers
    while head := source.read(_LENGTHS.size):
        head_bytes, body_bytes = _LENGTHS.unpack(head)
        request, body = json.loads(source.read(head_bytes)), source.read(body_bytes)
        answer, data = _answer(handlers, request, body)
        del body
        text = json.dumps(answer).encode()
        for part in (_LENGTHS.pack(len(text), len(data)), text, data):
            sink.write(part)
        sink.flush()


def _answer(handlers: Mapping[str, Handler], request: dict[str, Any], body: bytes) -> Answer:
    _limit(request["seconds"], request["memory_bytes"])
    try:
        return handlers[request["name"]](request["values"], body)
    except BaseException as error:  # noqa: BLE001 (a panic in Rust is a BaseException)
        return {"error": str(error)[:2000] or type(error).__name__}, b""
    finally:
        _limit(0, None)


def _limit(seconds: float, memory_bytes: int | None) -> None:
    """Limit CPU time (0: not at all) and memory (``None``: not at all) of this process."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
    held = _address_space()
    if held is None:
        return
    import resource

    soft, hard = _first_limits()
    if memory_bytes is not None:
        wanted = held + memory_bytes
        soft = wanted if soft == resource.RLIM_INFINITY else min(wanted, soft)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


@cache
def _first_limits() -> tuple[int, int]:
    """Limits on address space that this process began with."""
    import resource

    return resource.getrlimit(resource.RLIMIT_AS)


def _address_space() -> int | None:
    """Bytes of this process' address space; ``None`` where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
