"""Real servers for tests: ours in processes of their own, and upstreams that misbehave byte by byte."""

import asyncio
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx

START_SECONDS = 30
_OURS = ("SLUICEGATE_", "OPENAI_", "AZURE_OPENAI_")


def _ports() -> Iterator[int]:
    """Ports below those that the system gives away by itself, every n-th for one of n processes that work off the tests."""
    of, number = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")), os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    mine = range(20_000 + int(number.removeprefix("gw")), 32_000, of)
    return islice(cycle(mine), random.randrange(len(mine)), None)


_PORTS = _ports()


@dataclass
class Server:
    """A running process of ours. `root` has no /v1; `log()` is what it printed so far."""

    root: str
    process: "subprocess.Popen[bytes]"
    folder: Path

    @property
    def base_url(self) -> str:
        return f"{self.root}/v1"

    def log(self) -> str:
        return (self.folder / "log").read_text()

    async def logs(self, text: str) -> None:
        """Waits for a line with this text: of a call, it comes after the reply."""
        await eventually(lambda: text in self.log())

    def ledger(self, *, reset: bool = False) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.root}/ledger{'?reset=1' if reset else ''}").json()
        return found

    def fault(self, **fields: object) -> dict[str, Any]:
        """Makes a simulator ill from now on: `status=503`, `hole=True`, `share=0.5`, `latency=2`. Returns: The fault."""
        found: dict[str, Any] = httpx.post(f"{self.root}/faults", json=fields).raise_for_status().json()
        return found

    def heal(self) -> None:
        httpx.delete(f"{self.root}/faults").raise_for_status()

    def status(self) -> dict[str, Any]:
        """The figures of the only upstream."""
        upstreams = httpx.get(f"{self.root}/status").json()["upstreams"]
        (only,) = upstreams.values()
        found: dict[str, Any] = only
        return found


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without anything that a gateway would read as a setting."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return {**kept, **more}


def free_port() -> int:
    """Returns: A port that nobody listens at, and that no call of this function gives again."""
    while True:
        port = next(_PORTS)
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def serving(
    *command: str,
    env: Mapping[str, str] | None = None,
    toml: str | None = None,
    ready: str = "/v1/models",
    group: bool = False,
    port: int | None = None,
) -> Iterator[Server]:
    """Runs `sluicegate COMMAND…`, in an empty folder; waits until it answers.

    Args:
        group: As the leader of a process group of its own.
        port: None: a free one.
    """
    port = port or free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if toml is not None:
            (folder / "sluicegate.toml").write_text(toml)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "app.cli", *command, "--port", str(port)],
                env=clean_environment(**(env or {})),
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=group,
            )
        server = Server(f"http://127.0.0.1:{port}", process, folder)
        try:
            _wait_until_up(server, ready)
            yield server
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(timeout=60)


def _wait_until_up(server: Server, path: str) -> None:
    give_up = time.monotonic() + START_SECONDS
    with httpx.Client(verify=False) as http:
        while time.monotonic() < give_up:
            if server.process.poll() is not None:
                raise AssertionError(f"the server ended with {server.process.returncode}:\n{server.log()}")
            with contextlib.suppress(httpx.TransportError):
                http.get(f"{server.root}{path}")
                return
            time.sleep(0.01)
    raise AssertionError(f"the server did not start:\n{server.log()}")


async def eventually(check: Callable[[], bool | Awaitable[bool]], seconds: float = 10.0) -> None:
    """Awaits a condition; fails after `seconds`."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        found = check()
        if isinstance(found, bool) and found:
            return
        if not isinstance(found, bool) and await found:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"did not come true within {seconds:g} seconds")


@dataclass
class Request:
    """What a scripted upstream was sent."""

    line: str
    headers: dict[str, str]
    body: bytes


Script = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Scripted:
    """An upstream in this process whose every byte is the test's; `requests` are those it has seen."""

    base_url: str
    requests: list[Request] = field(default_factory=list)


@contextlib.asynccontextmanager
async def scripted(script: Script, port: int = 0) -> AsyncIterator[Scripted]:
    """Serves `script` once per connection; the connection is closed when it returns."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            request = await _read_request(reader)
            if " /v1/models" not in request.line:
                upstream.requests.append(request)
                await script(request, writer)
                with contextlib.suppress(ConnectionError):
                    await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    upstream = Scripted(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
    try:
        yield upstream
    finally:
        server.close()


async def _read_request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    line, *fields = head.strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (one.partition(": ") for one in fields)}
    return Request(line, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


_CLOSES = {"connection": "close"}  # `scripted` does, and nobody is to send it another request meanwhile


def reply(
    body: bytes, *, status: int = 200, content_type: str = "application/json", headers: Mapping[str, str] | None = None
) -> bytes:
    """A whole HTTP reply."""
    more = "".join(f"{name}: {value}\r\n" for name, value in {**_CLOSES, **(headers or {})}.items())
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked HTTP body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def token(text: str) -> bytes:
    """One chat chunk as an event."""
    return (
        b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":'
        b'[{"index":0,"delta":{"content":"' + text.encode() + b'"},"finish_reason":null}]}\n\n'
    )


def streamed(*pieces: bytes, last: bytes = LAST_CHUNK) -> Script:
    """A script that answers with an event stream, a TCP write per piece."""

    async def script(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for piece in pieces:
            writer.write(chunk(piece))
            await writer.drain()
        writer.write(last)

    return script


def whole(answer: bytes) -> Script:
    """A script that answers with these bytes."""

    async def script(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    return script


def events_of(text: str) -> list[Any]:
    """The data of each event, JSON decoded; `[DONE]` and comments as they are."""
    assert text.endswith("\n\n")
    found: list[Any] = []
    for block in text[:-2].split("\n\n"):
        *_, data = block.partition("data: ")
        found.append(json.loads(data) if data.startswith("{") else block)
    return found
