"""A page in headless Chromium, for tests and benchmarks of reports.

Chromium speaks its DevTools protocol over two pipes (``--remote-debugging-pipe``): JSON messages
that end in a zero byte. That needs no driver program and no package (selenium brings 15 of them,
playwright 52 MB), only Debian's ``chromium``.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NO_BROWSER = "no browser: apt-get install chromium"
_TIMEOUT_S = 60.0
_FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--mute-audio",
)  # fmt: skip


def find_browser() -> str | None:
    """Return the path of an installed Chromium, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


class Browser:
    """One tab of a fresh Chromium; use as a context manager.

    Attributes
    ----------
    events : list of dict
        What the browser reported so far: console messages, exceptions, requests.
    """

    def __init__(self) -> None:
        program = find_browser()
        if program is None:
            raise FileNotFoundError(NO_BROWSER)
        self.events: list[dict[str, Any]] = []
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._count, self._buffer = 0, b""
        self._session: str | None = None
        self._pid, self._to, self._from = _spawn(
            [program, *_FLAGS, f"--user-data-dir={self._profile.name}"]
        )
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._to)
        os.close(self._from)
        os.kill(self._pid, signal.SIGTERM)
        os.waitpid(self._pid, 0)
        self._profile.cleanup()

    def call(self, method: str, **parameters: Any) -> Any:
        """Send a command of the protocol and return its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            answer = self._receive(deadline)
            if answer.get("id") != self._count:
                self.events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']}")
            else:
                return answer["result"]

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._from], [], [], left)[0]:
                raise TimeoutError(f"the browser did not answer within {_TIMEOUT_S:.0f} s")
            data = os.read(self._from, 1 << 20)
            if not data:
                raise ConnectionError("the browser ended")
            self._buffer += data
        message, self._buffer = self._buffer.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(message)
        return answer

    def open(self, path: Path) -> None:
        """Load a file, and wait until it is there."""
        self.events.clear()
        self.call("Page.navigate", url=path.absolute().as_uri())
        deadline = time.monotonic() + _TIMEOUT_S
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive(deadline))

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression, or of what it promises, in the page."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def resize(self, width: int, height: int, *, scheme: str = "light") -> None:
        """Set the window's size in CSS pixels and the system's theme, "light" or "dark"."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """Send a mouse event: "mouseMoved", "mousePressed", "mouseReleased", "mouseWheel"."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def press(self, key: str) -> None:
        """Press and release a key, named as in the DOM: "Tab", "ArrowRight", "Enter"."""
        code = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40}[key]
        more = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more,
            )  # fmt: skip

    def screenshot(self, path: Path, *, full: bool = True) -> None:
        """Save the whole page, or what the window shows, as PNG."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=full, **_clip(self, full))
        path.write_bytes(base64.b64decode(data["data"]))

    def complaints(self) -> list[dict[str, Any]]:
        """Return the errors and warnings of the console so far."""
        self.evaluate("0")  # what was reported before this answer has been read then
        bad = {"error", "warning", "assert"}
        return [
            event
            for event in self.events
            if event["method"] == "Runtime.exceptionThrown"
            or (event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] in bad)
            or (event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] in bad)
        ]

    def requests(self) -> list[str]:
        """Return the addresses that the page asked for, its own included."""
        self.evaluate("0")
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]


def _clip(browser: Browser, full: bool) -> dict[str, Any]:
    if not full:
        return {}
    size = browser.call("Page.getLayoutMetrics")["cssContentSize"]
    return {"clip": {**size, "scale": 1}}


def _spawn(command: list[str]) -> tuple[int, int, int]:
    """Start a program that reads from descriptor 3 and writes to 4; returns (pid, to, from)."""
    pairs = [os.pipe(), os.pipe()]
    # Above what the child gets, so that giving it one end does not close another.
    theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (pairs[0][0], pairs[1][1])]
    pid = os.posix_spawn(
        command[0],
        command,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, theirs[0], 3),
            (os.POSIX_SPAWN_DUP2, theirs[1], 4),
        ],
    )
    for fd in (*theirs, pairs[0][0], pairs[1][1]):
        os.close(fd)
    return pid, pairs[0][1], pairs[1][0]
