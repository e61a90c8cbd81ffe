"""A client that only keeps what comes, and when: 20,000 tokens a second are not parsed while they run, but afterwards."""

import asyncio
import json
import re
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

_SEGMENT = 1460
_LAST = b"0\r\n\r\n"
_EVENT = re.compile(rb"(?:id: ([0-9]+)\n)?(?:event: ([a-z]+)\n)?data: ([^\n]*)\n\n")
_TOKEN = re.compile(rb'"content":"(\S+) ([0-9]+) ([0-9]+) ')


class Event(NamedTuple):
    """One event, and when its last byte came. Attributes: number: 0: it has no `id`."""

    number: int
    name: bytes
    data: bytes
    at: float


class Token(NamedTuple):
    """What the bench's upstream wrote. Attributes: written: When; seconds on this machine's clock."""

    stream: str
    number: int
    written: float


def token_of(data: bytes) -> Token | None:
    """Returns: None: it is none of the bench's."""
    found = _TOKEN.search(data)
    return found and Token(found[1].decode(), int(found[2]), int(found[3]) / 1e6)


class Reply(asyncio.Protocol):
    """One request on a connection of its own.

    Attributes:
        asked: When it was sent.
        over: Resolved when the connection is gone: the server ends it behind the reply.
    """

    def __init__(self, request: bytes) -> None:
        self.asked = 0.0
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._times: list[float] = []
        self._pieces: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.asked = time.monotonic()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._times.append(time.monotonic())
        self._pieces.append(data)

    def connection_lost(self, _: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def cut(self, *, reset: bool = False) -> None:
        """Drops the connection. Args: reset: With RST instead of FIN."""
        if reset:
            linger = struct.pack("ii", 1, 0)
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._transport.abort()

    @property
    def begun(self) -> bool:
        """Whether headers have come."""
        return bool(self._pieces)

    @property
    def status(self) -> int:
        """0: there is no reply."""
        return int(self._pieces[0][9:12]) if self._pieces else 0

    @property
    def whole(self) -> bool:
        """Whether a chunked reply came to its end."""
        return self.text().endswith(_LAST)

    @property
    def last_at(self) -> float:
        """When the last byte came."""
        return self._times[-1] if self._times else self.asked

    def text(self) -> bytes:
        """Returns: All that came, headers too."""
        return b"".join(self._pieces)

    def events(self) -> list[Event]:
        """Returns: Those that came whole."""
        return list(self._events())

    def _events(self) -> Iterator[Event]:
        text, place = self.text(), 0
        came = len(self._pieces[0]) if self._pieces else 0
        for start, stop in _chunks(text):
            for found in _EVENT.finditer(text, start, stop):
                while came < found.end():
                    place += 1
                    came += len(self._pieces[place])
                yield Event(int(found[1] or 0), found[2] or b"", found[3], self._times[place])


def _chunks(text: bytes) -> Iterator[tuple[int, int]]:
    """Yields: Where the data of each chunk stands; the last one may be cut short."""
    place = text.find(b"\r\n\r\n") + 4
    while (line := text.find(b"\r\n", place)) > 0 and (size := int(text[place:line], 16)):
        yield line + 2, line + 2 + size
        place = line + 2 + size + 2


def request(method: str, path: str, body: object = None, **headers: str) -> bytes:
    """Returns: An HTTP request; a header's name is written with `_` for `-`."""
    data = b"" if body is None else json.dumps(body).encode()
    fields = {"host": "bench", "connection": "close", "content-length": str(len(data)), **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + data


class Sink(Reply):
    """A reply that is read, as long as it is, and not kept."""

    def data_received(self, data: bytes) -> None:
        self._pieces = self._pieces or [data]

    def stop_reading(self) -> None:
        self._transport.pause_reading()

    @property
    def port(self) -> int:
        port: int = self._transport.get_extra_info("sockname")[1]
        return port


@dataclass(frozen=True, slots=True)
class Client:
    """Args: port: The gateway's, on loopback."""

    port: int

    async def send(self, request: bytes) -> Reply:
        """Returns: The reply, as soon as there is a connection."""
        loop = asyncio.get_running_loop()
        _, sent = await loop.create_connection(lambda: Reply(request), "127.0.0.1", self.port)
        return sent

    async def sink(self, request: bytes, buffer: int) -> Sink:
        """As `send`, with packets as over a network: loopback's own would make the gateway's kernel take megabytes.

        Args: buffer: Bytes that the client's kernel takes for one who does not read.
        """
        loop, made = asyncio.get_running_loop(), socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT)
        made.setblocking(False)
        await loop.sock_connect(made, ("127.0.0.1", self.port))
        _, sent = await loop.create_connection(lambda: Sink(request), sock=made)
        return sent

    async def ask(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
        """Returns: A short reply: its status and its JSON."""
        sent = await self.send(request(method, path, body))
        await sent.over
        text = sent.text().partition(b"\r\n\r\n")[2]
        return sent.status, json.loads(text) if text else {}

    async def chat(self, name: str, model: str = "m") -> Reply:
        """Returns: A plain relayed stream."""
        return await self.send(request("POST", "/v1/chat/completions", {**asked(name, model), "stream": True}))

    async def begin(self, name: str, model: str = "m") -> str:
        """Returns: The id of a new resumable stream."""
        body = {"url": "/v1/chat/completions", "body": asked(name, model)}
        status, made = await self.ask("POST", "/v1/streams", body)
        assert status == 201, made
        return str(made["id"])

    async def events(self, stream: str, after: int = 0) -> Reply:
        """Returns: A resumable stream's events."""
        return await self.send(request("GET", f"/v1/streams/{stream}/events", last_event_id=str(after)))

    async def status(self) -> dict[str, Any]:
        """Returns: The gateway's figures."""
        return (await self.ask("GET", "/status"))[1]


class Figures:
    """The gateway's `/status`, again and again over one connection: asking must not take longer than what is measured.

    Args: port: The gateway's, on loopback.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._ends: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def now(self) -> dict[str, Any]:
        if self._ends is None:
            self._ends = await asyncio.open_connection("127.0.0.1", self._port, limit=1024**2)
        reader, writer = self._ends
        writer.write(request("GET", "/status", connection="keep-alive"))
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        found: dict[str, Any] = json.loads(await reader.readexactly(size))
        return found

    def close(self) -> None:
        if self._ends is not None:
            self._ends[1].close()


def asked(name: str, model: str = "m") -> dict[str, Any]:
    """Returns: A call's body. Args: name: By which the bench's upstream knows it."""
    return {"model": model, "user": name, "messages": [{"role": "user", "content": "How does a sluice gate work?"}]}
