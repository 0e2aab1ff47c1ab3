"""An object store on the loopback interface, slow and faulty on demand.

It holds objects itself, and answers GET and HEAD as S3 does: ranges, ETags, If-Match. Or it stands
before another server, and passes on whatever comes. A fault spoils one answer to a GET of a range,
or to a request of ``spoiled_method``; those in ``faults`` are used up one by one, ``always`` spoils
every one. ``instead`` is the answer to whatever is asked, which is not obeyed either.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

REASONS = {200: "OK", 206: "Partial Content", 404: "Not Found", 412: "Precondition Failed",
           416: "Range Not Satisfiable", 503: "Slow Down"}  # fmt: skip
MODIFIED = "Fri, 27 Nov 2026 10:00:00 GMT"


@dataclass(frozen=True)
class Request:
    """What a client asked for."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def range(self) -> tuple[int, int] | None:
        """First byte, and the one after the last."""
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        return None if match is None else (int(match[1]), int(match[2]) + 1)


@dataclass(frozen=True)
class Answer:
    """What it gets; ``sent``: so many bytes of the body, then the connection breaks or stalls."""

    status: int
    headers: dict[str, str]
    body: bytes | memoryview = b""
    sent: int | None = None
    stalls: bool = False

    def to_bytes(self, *, body: bool = True) -> bytes:
        """The answer as it goes over the network."""
        headers = {"Content-Length": str(len(self.body)), **self.headers}
        lines = [f"HTTP/1.1 {self.status} {REASONS.get(self.status, 'Other')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        return head + bytes(self.body[: self.sent]) if body else head


Fault = Callable[[Answer], "Answer | None"]


def drop(_: Answer) -> None:
    """Close the connection without an answer."""


def drop_inside(answer: Answer) -> Answer:
    """Close the connection in the middle of the body."""
    return replace(answer, sent=len(answer.body) // 2)


def unavailable(_: Answer) -> Answer:
    """Say that there are too many requests."""
    return Answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")


def stall(answer: Answer) -> Answer:
    """Send half of the body, and then nothing more."""
    return replace(answer, sent=len(answer.body) // 2, stalls=True)


def stall_before(answer: Answer) -> Answer:
    """Send the head of the answer, and then nothing."""
    return replace(answer, sent=0, stalls=True)


def shorten(answer: Answer) -> Answer:
    """Send half of the body, with the length of that half."""
    return replace(answer, body=answer.body[: len(answer.body) // 2])


def lengthen(answer: Answer) -> Answer:
    """Send more bytes than were asked for."""
    return replace(answer, body=bytes(answer.body) * 2)


def flip(answer: Answer) -> Answer:
    """Send a body with a bit changed in its middle."""
    body = bytearray(answer.body)
    body[len(body) // 2] ^= 1
    return replace(answer, body=bytes(body))


def misplace(answer: Answer) -> Answer:
    """Send the bytes of another range, and say so."""
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers["Content-Range"])
    assert match is not None
    first, last, size = (int(one) for one in match.groups())
    headers = {**answer.headers, "Content-Range": f"bytes {first + 1}-{last + 1}/{size}"}
    return replace(answer, headers=headers)


def ignore_range(answer: Answer) -> Answer:
    """Send bytes as if they were the whole object."""
    headers = {k: v for k, v in answer.headers.items() if k != "Content-Range"}
    return replace(answer, status=200, headers=headers)


@dataclass
class ObjectServer:
    """A server, running until `close`, or within a ``with`` block.

    Parameters
    ----------
    upstream : str, optional
        Host and port of the server to pass requests on to.
    delay : float
        Seconds before each answer.
    etags, demands : bool
        Whether objects have ETags, and whether ``If-Match`` is obeyed.
    """

    upstream: str | None = None
    delay: float = 0.0
    objects: dict[str, bytes | memoryview] = field(default_factory=dict)
    faults: deque[Fault] = field(default_factory=deque)
    always: Fault | None = None
    instead: Answer | None = None
    requests: list[Request] = field(default_factory=list)
    spoiled_method: str = "GET"
    etags: bool = True
    demands: bool = True
    most_at_once: int = 0
    connections: set[_Connection] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._at_once = 0
        self._known: dict[str, tuple[object, str]] = {}
        started = self._loop.create_server(
            lambda: _Connection(self, self._loop), "127.0.0.1", 0, backlog=1024
        )
        self._server = self._loop.run_until_complete(started)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self.url = f"http://{self.address}"
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def ranges(self) -> list[tuple[int, int]]:
        """Return the ranges that were asked for, in order."""
        return [one.range for one in self.requests if one.method == "GET" and one.range]

    def close(self) -> None:
        """End the server and its connections."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __enter__(self) -> ObjectServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _end(self) -> None:
        # A server that is closed leaks what it is still accepting: so nothing more is accepted.
        self._loop.remove_reader(self._server.sockets[0].fileno())
        while self.connections or len(asyncio.all_tasks()) > 1:
            for connection in list(self.connections):
                connection.transport.abort()
            await asyncio.sleep(0.001)
        self._server.close()
        await self._loop.shutdown_default_executor()

    async def respond(self, request: Request) -> Answer | None:
        """Return the answer to a request, spoiled if it is its turn."""
        self.requests.append(request)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if self.delay:
                await asyncio.sleep(self.delay)
            if self.instead is not None:
                return self.instead
            if self.upstream is None:
                answer = self._own(request)
            else:
                answer = await self._loop.run_in_executor(None, _forward, self.upstream, request)
        finally:
            self._at_once -= 1
        if request.method != self.spoiled_method:
            return answer
        if request.method == "GET" and request.range is None:
            return answer
        fault = self.always or (self.faults.popleft() if self.faults else None)
        return answer if fault is None else fault(answer)

    def _own(self, request: Request) -> Answer:
        found = self.objects.get(request.target.partition("?")[0].lstrip("/"))
        if found is None:
            return Answer(404, {}, b"<Error><Code>NoSuchKey</Code></Error>")
        headers = {"Last-Modified": MODIFIED}
        if self.etags:
            headers["ETag"] = etag = self._etag(request.target, found)
            if self.demands and request.headers.get("if-match", etag) != etag:
                return Answer(412, {}, b"<Error><Code>PreconditionFailed</Code></Error>")
        if request.range is None or request.method == "HEAD":
            return Answer(200, headers, found)
        start, stop = request.range
        if start >= len(found):
            return Answer(416, {}, b"<Error><Code>InvalidRange</Code></Error>")
        body = found[start : min(stop, len(found))]
        headers["Content-Range"] = f"bytes {start}-{start + len(body) - 1}/{len(found)}"
        return Answer(206, headers, body)

    def _etag(self, target: str, found: bytes | memoryview) -> str:
        known = self._known.get(target)
        if known is None or known[0] is not found:
            known = self._known[target] = found, f'"{hashlib.md5(found).hexdigest()}"'
        return known[1]


@contextmanager
def moto_server(bucket: str = "bucket") -> Iterator[ObjectServer]:
    """Run moto's S3 server with an empty bucket, and yield a server that stands before it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        address = "{}:{}".format(*moto.get_host_and_port())
        assert _forward(address, Request("PUT", f"/{bucket}", {})).status == 200
        with ObjectServer(address) as server:
            yield server
    finally:
        moto.stop()


def s3_environment(server: ObjectServer) -> dict[str, str]:
    """Return the variables with which obstore finds a server under ``s3://``."""
    return {
        "AWS_ENDPOINT": server.url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }


class _Connection(asyncio.Protocol):
    """Answers requests one after the other; a protocol of its own is twice as fast as streams."""

    def __init__(self, server: ObjectServer, loop: asyncio.AbstractEventLoop) -> None:
        self.server, self._loop = server, loop
        self._data = b""
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)
        for task in self._tasks:
            task.cancel()

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, rest = self._data.partition(b"\r\n\r\n")
        if not found:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return
        self._data = rest[length:]
        method, target, _ = first.split(" ")
        task = self._loop.create_task(self._answer(Request(method, target, headers, rest[:length])))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, request: Request) -> None:
        answer = await self.server.respond(request)
        if answer is None:
            self.transport.abort()
            return
        self.transport.write(answer.to_bytes(body=request.method != "HEAD"))
        if answer.sent is not None and not answer.stalls:
            self.transport.close()


def _forward(upstream: str, request: Request) -> Answer:
    connection = http.client.HTTPConnection(upstream, timeout=30)
    try:
        connection.request(request.method, request.target, request.body, request.headers)
        found = connection.getresponse()
        body = found.read()
        headers = dict(found.getheaders())
        for name in ("Connection", "Transfer-Encoding", "Content-Length", "content-length"):
            if request.method != "HEAD" or name.lower() != "content-length":
                headers.pop(name, None)
        return Answer(found.status, headers, body)
    finally:
        connection.close()
