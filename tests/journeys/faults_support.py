"""An upstream that breaks as its call's model says, and both official SDKs that look at what comes out of the gateway.

Every call names its own fault (`STANDS-FOR/reset-middle-chat`), so that all cases of the matrix run side by side
through one gateway, and the Node SDK sees the very same bytes as the Python SDK.
"""

import asyncio
import contextlib
import json
import socket
import struct
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from openai import APIError, APIStatusError, AsyncOpenAI

from tests.node_modules import NODE_FOLDER
from tests.support import (
    LAST_CHUNK,
    Request,
    Server,
    chunk,
    clean_environment,
    free_port,
    reply,
    scripted,
    serving,
)

DONE = b"data: [DONE]\n\n"
WORDS = ("one ", "two ", "three ", "four")
BEFORE = {"first": 0, "middle": 2, "done": 4}  # words that are out when the fault comes
PAGE = b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>nginx</body>\r\n</html>\r\n"


@dataclass(frozen=True)
class Case:
    """One cell of the matrix, for one endpoint."""

    fault: str
    point: str
    endpoint: str

    @property
    def name(self) -> str:
        return f"{self.fault}-{self.point}-{self.endpoint}"

    @property
    def model(self) -> str:
        """Behind which of the gateway's upstreams the fault waits."""
        if self.point == "connect":
            return f"{self.fault}/{self.name}"
        if self.fault == "stalled":  # only these have short clocks: a busy machine harms no other case
            return f"{'dumb' if self.point in {'reply', 'first'} else 'fading'}/{self.name}"
        return f"switched/{self.name}"


# --- the upstream ---

Act = Callable[["Wire"], Awaitable[None]]


@dataclass
class Wire:
    """One connection of the upstream's. `over`: the test is."""

    writer: asyncio.StreamWriter
    over: asyncio.Event
    packer: "zlib._Compress | None" = None
    in_bytes: bool = False
    framed: bool = True

    async def head(self) -> None:
        coding = b"content-encoding: gzip\r\n" if self.packer else b""
        framing = b"transfer-encoding: chunked\r\n" if self.framed else b""
        kind = b"content-type: text/event-stream\r\n"
        await self.raw(b"HTTP/1.1 200 OK\r\nconnection: close\r\n" + kind + framing + coding + b"\r\n")

    async def send(self, data: bytes) -> None:
        """Sends a part of the body, so that it can be read at once."""
        if self.packer:
            data = self.packer.compress(data) + self.packer.flush(zlib.Z_SYNC_FLUSH)
        await self.raw(b"".join(chunk(piece) for piece in self._sliced(data)) if self.framed else data)

    async def end(self) -> None:
        """Ends the body as it should be; without framing, the connection's end is its end."""
        if self.framed:
            await self.raw((chunk(self.packer.flush()) if self.packer else b"") + LAST_CHUNK)

    async def raw(self, data: bytes) -> None:
        for piece in self._sliced(data):
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)

    def _sliced(self, data: bytes) -> list[bytes]:
        return [data[at : at + 1] for at in range(len(data))] if self.in_bytes else [data]

    async def reset(self) -> None:
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def stall(self) -> None:
        await self.over.wait()

    async def cut(self) -> None:
        self.writer.close()


def _raw(data: bytes) -> Act:
    return lambda wire: wire.raw(data)


def _body(data: bytes) -> Act:
    async def send(wire: Wire) -> None:
        await wire.send(data)
        await wire.end()

    return send


BEFORE_THE_HEADERS: dict[str, Act] = {
    "reset": Wire.reset,
    "stalled": Wire.stall,
    "cut": Wire.cut,
    "garbage": _raw(b"\x16\x03\x01\x02\x00 not HTTP at all\r\n\r\n"),
    "html_page": _raw(reply(PAGE, status=502, content_type="text/html")),
    "html_as_200": _raw(reply(PAGE, content_type="text/html")),
}
IN_THE_BODY: dict[str, Act] = {
    "reset": Wire.reset,
    "stalled": Wire.stall,
    "cut": Wire.cut,
    "ended": _raw(LAST_CHUNK),
    "garbage": _body(b'data: {"id": "c", "cho\n\n' + DONE),  # and goes on as if nothing had happened
    "bad_framing": _raw(b"xyz\r\n" + DONE + b"\r\n" + LAST_CHUNK),
    "html_page": _body(PAGE),
    "bad_gzip": _raw(chunk(b"\xff not deflate \xff" * 20) + LAST_CHUNK),
}
WHOLE = ("sliced", "unframed", "gzip")


@dataclass
class Switch:
    """The upstream that reads its fault in the model's name. `seen`: a release for each word that a client has seen."""

    url: str
    over: asyncio.Event = field(default_factory=asyncio.Event)
    seen: defaultdict[str, asyncio.Semaphore] = field(default_factory=lambda: defaultdict(lambda: asyncio.Semaphore(0)))
    running: set["asyncio.Task[Any]"] = field(default_factory=set)

    async def script(self, request: Request, writer: asyncio.StreamWriter) -> None:
        method, path, _ = request.line.split(" ")
        if method == "GET":
            self.seen[path.removeprefix("/seen/")].release()
            writer.write(reply(b"{}", headers={"connection": "close"}))
        else:
            task = asyncio.current_task()
            assert task is not None
            self.running.add(task)
            await self._answer(json.loads(request.body)["model"], writer)

    async def _answer(self, name: str, writer: asyncio.StreamWriter) -> None:
        fault, point, endpoint = name.split("-")
        wire = Wire(
            writer,
            self.over,
            packer=zlib.compressobj(wbits=31) if fault.startswith("gzip") else None,
            in_bytes=fault == "sliced",
            framed=not fault.startswith("unframed"),
        )
        if point == "reply" and fault in BEFORE_THE_HEADERS:
            await BEFORE_THE_HEADERS[fault](wire)
            return
        await wire.head()
        events, words = EVENTS[endpoint], BEFORE.get(point, 2)
        if words:
            await wire.send(b"".join(events[: words + (words == 4)]))  # with the last word, what says that it is it
        for _ in range(words):  # nothing breaks before the client has all that it is to have
            await self.seen[name].acquire()
        if fault in WHOLE:
            await _body(b"".join(events[words:]) + DONE)(wire)
        else:
            await IN_THE_BODY[fault.removeprefix("gzip_").removeprefix("unframed_")](wire)

    async def aclose(self) -> None:
        self.over.set()
        for each in list(self.seen.values()):
            for _ in WORDS:
                each.release()
        await asyncio.gather(*self.running)


def _data(fields: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(fields)}\n\n".encode()


def _chat(**choice: object) -> bytes:
    said = {"index": 0, "delta": {}, "finish_reason": None, **choice}
    return _data({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [said]})


def _completion(**choice: object) -> bytes:
    said = {"index": 0, "text": "", "finish_reason": None, "logprobs": None, **choice}
    return _data({"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": [said]})


def _response(kind: str, number: int, **more: object) -> bytes:
    return f"event: {kind}\n".encode() + _data({"type": kind, "sequence_number": number, **more})


def _delta(word: str, number: int) -> bytes:
    place = {"item_id": "i", "output_index": 0, "content_index": 0, "logprobs": []}
    return _response("response.output_text.delta", number, delta=word, **place)


EVENTS: dict[str, list[bytes]] = {  # one for each word, then the one that says it was the last
    "chat": [*(_chat(delta={"content": word}) for word in WORDS), _chat(finish_reason="stop")],
    "completions": [*(_completion(text=word) for word in WORDS), _completion(finish_reason="stop")],
    "responses": [
        *(_delta(word, number) for number, word in enumerate(WORDS)),
        _response("response.completed", len(WORDS), response={"id": "r", "object": "response", "output": []}),
    ],
}


# --- the gateway in front of it ---

_ADDRESSES = ("refused", "stalled", "reset", "cut", "garbage", "switched")
PORTS = {name: free_port() for name in _ADDRESSES}
_CLOCKS = {"stalled": "connect_timeout = 0.5", "dumb": "first_token_timeout = 0.5", "fading": "idle_timeout = 0.5"}


@contextlib.contextmanager
def gateway_before_faults() -> Iterator[Server]:
    """A gateway with one upstream for each fault at connecting, and three for all others: they differ in their clocks."""
    lines = ["max_attempts = 1"]
    for name in (*_ADDRESSES, "dumb", "fading"):
        port = PORTS.get(name, PORTS["switched"])
        lines += [f"[upstreams.{name}]", f'base_url = "http://127.0.0.1:{port}/v1"', _CLOCKS.get(name, "")]
    with serving("serve", toml="\n".join(lines), ready="/livez") as server:
        yield server


@contextlib.contextmanager
def full_backlog(port: int) -> Iterator[None]:
    """An upstream whose machine is there, but which accepts nobody: a SYN is not even answered."""
    with socket.create_server(("127.0.0.1", port), backlog=0), socket.create_connection(("127.0.0.1", port)):
        yield


@contextlib.asynccontextmanager
async def faults() -> AsyncIterator[Switch]:
    """All the upstreams; at `refused` there is none."""
    switch = Switch(f"http://127.0.0.1:{PORTS['switched']}")

    def at_once(name: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await BEFORE_THE_HEADERS[name](Wire(writer, switch.over))
            writer.close()

        return serve

    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(full_backlog(PORTS["stalled"]))
        for name in ("reset", "cut", "garbage"):
            await stack.enter_async_context(await asyncio.start_server(at_once(name), "127.0.0.1", PORTS[name]))
        await stack.enter_async_context(scripted(switch.script, PORTS["switched"]))
        stack.push_async_callback(switch.aclose)
        yield switch


# --- what the SDKs see ---


async def python_sees(server: Server, cases: Collection[Case]) -> dict[str, str]:
    """Returns: By a case's name, what its caller was left with: see `_told`."""
    async with faults() as switch, AsyncOpenAI(base_url=server.base_url, api_key="any", max_retries=0) as client:
        told = await asyncio.gather(*(_python_sees(client, switch, case) for case in cases))
    return {case.name: one for case, one in zip(cases, told, strict=True)}


async def _python_sees(client: AsyncOpenAI, switch: Switch, case: Case) -> str:
    words: list[str] = []
    try:
        async with asyncio.timeout(30):
            async for word in _words(client, case):
                words.append(word)
                switch.seen[case.name].release()
    except APIError as error:
        status = error.status_code if isinstance(error, APIStatusError) else None
        return _told(words, type(error).__name__, status, error.type, error.code)
    except TimeoutError:
        return f"{''.join(words)}, then nothing for ever"
    return "".join(words)


async def _words(client: AsyncOpenAI, case: Case) -> AsyncIterator[str]:
    if case.endpoint == "chat":
        async for part in await client.chat.completions.create(model=case.model, messages=[], stream=True):
            if word := part.choices[0].delta.content:
                yield word
    elif case.endpoint == "completions":
        async for piece in await client.completions.create(model=case.model, prompt="x", stream=True):
            if word := piece.choices[0].text:
                yield word
    else:
        async for event in await client.responses.create(model=case.model, input="x", stream=True):
            if event.type == "response.output_text.delta":
                yield event.delta


def _told(words: list[str], kind: str, status: int | None, error_type: str | None, code: str | None) -> str:
    """Returns: `502 TYPE/CODE` for an error reply; the words, then the error, for one in the middle of a stream."""
    error = f"{error_type}/{code}"
    if status is not None:
        return f"{status} {error}"
    return f"{''.join(words)}, then {error}" if kind == "APIError" else f"{''.join(words)}, then a {kind}: {error}"


async def node_sees(node: str, server: Server, cases: Collection[Case]) -> dict[str, str]:
    """Returns: As `python_sees`."""
    asked = [{"name": case.name, "model": case.model, "endpoint": case.endpoint} for case in cases]
    async with faults() as switch:
        process = await asyncio.create_subprocess_exec(
            node,
            "faults.mjs",
            cwd=NODE_FOLDER,
            env=clean_environment(BASE_URL=server.base_url, SEEN_URL=f"{switch.url}/seen"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await asyncio.wait_for(process.communicate(json.dumps(asked).encode()), 60)
    assert process.returncode == 0
    found = [json.loads(line) for line in output.splitlines()]
    return {
        one["name"]: _told(one["words"], one["kind"], one["status"], one["type"], one["code"])
        if one["kind"]
        else "".join(one["words"])
        for one in found
    }
