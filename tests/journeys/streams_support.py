"""Resumable streams over HTTP: an upstream that says a word when it is told to, and readers who come and go."""

import asyncio
import contextlib
import json
import re
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

from tests.support import LAST_CHUNK, STREAM_HEAD, chunk, eventually, reply, token
from tests.wire.event_source import Event, parsed

CHAT, COMPLETIONS, RESPONSES, FANOUT = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/fanout",
)
DONE = b"data: [DONE]\n\n"
ERROR = b'{"error": {"message": "too busy", "type": "server_error", "param": null, "code": "overloaded"}}'
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
PATIENCE = 20.0
_KNOBS = re.compile(r"-(\w+)=(\w+)")


# --- upstream ---


def said(path: str, word: str) -> bytes:
    """One event of this endpoint's that says a word."""
    if path == CHAT:
        return token(word)
    if path == RESPONSES:
        told: dict[str, Any] = {"type": "response.output_text.delta", "output_index": 0, "delta": word}
    else:
        told = {"object": "text_completion", "choices": [{"index": 0, "text": word}]}
    return b"data: " + json.dumps(told).encode() + b"\n\n"


def last(path: str) -> bytes:
    """What ends a good stream of this endpoint's: with its usage."""
    if path == RESPONSES:
        told = {"type": "response.completed", "response": {"id": "r", "usage": USAGE}}
        return b"event: response.completed\ndata: " + json.dumps(told).encode() + b"\n\n"
    return b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n\n" + DONE


def words(first: int, final: int) -> str:
    return "".join(f"{n} " for n in range(first, final + 1))


@dataclass
class Upstream:
    """Says `1 2 3…`, as many words as the model's name wants: `NAME-words=5`. Further knobs there:

    `held=1`: each word waits for `allow`; `end=cut`, `end=garbage`, `end=error`, `end=never`: instead of the end;
    `status=429`: refuses.

    Attributes:
        bodies: What it was asked, by model.
        gone: Set when the gateway has closed its connection, by model.
    """

    bodies: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    gone: dict[str, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))
    _allowed: dict[str, asyncio.Semaphore] = field(default_factory=lambda: defaultdict(lambda: asyncio.Semaphore(0)))
    _tasks: set["asyncio.Task[Any]"] = field(default_factory=set)

    def allow(self, model: str, count: int = 1) -> None:
        """Lets it say so many words more."""
        for _ in range(count):
            self._allowed[model].release()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._serve(reader, writer)
        self._tasks.discard(task)
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = re.search(r"content-length: (\d+)", head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        if not body:  # the list of its models
            writer.write(reply(b"{}", status=404, headers={"connection": "close"}))
            return
        asked = json.loads(body)
        model, path = asked["model"], head.split(" ")[1]
        self.bodies[model].append(asked)
        saying = asyncio.create_task(self._say(model, path, writer))
        going = asyncio.create_task(reader.read())
        try:
            await asyncio.wait({saying, going}, return_when=asyncio.FIRST_COMPLETED)
            if not saying.done() or saying.exception() is not None:  # it wrote to nobody
                self.gone[model].set()
        finally:
            for one in (saying, going):
                one.cancel()
            await asyncio.gather(saying, going, return_exceptions=True)

    async def _say(self, model: str, path: str, writer: asyncio.StreamWriter) -> None:
        knobs = dict(_KNOBS.findall(model))
        if "status" in knobs:
            more = {"retry-after": "3", "connection": "close"}
            writer.write(reply(ERROR, status=int(knobs["status"]), headers=more))
            return
        writer.write(STREAM_HEAD)
        for n in range(1, int(knobs["words"]) + 1):
            if "held" in knobs:
                await self._allowed[model].acquire()
            writer.write(chunk(said(path, f"{n} ")))
            await writer.drain()
        ending = knobs.get("end")
        if ending == "never":
            await asyncio.get_running_loop().create_future()
        if ending == "garbage":
            writer.write(chunk(b"data: {{{\n\n"))
        if ending == "error":
            writer.write(chunk(b"data: " + ERROR + b"\n\n"))
        if ending is None:
            if "held" in knobs:
                await self._allowed[model].acquire()
            writer.write(chunk(last(path)) + LAST_CHUNK)
        await writer.drain()

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def upstream(port: int) -> AsyncIterator[Upstream]:
    """One at this port, as long as the block."""
    made = Upstream()
    server = await asyncio.start_server(made.serve, "127.0.0.1", port)
    try:
        yield made
    finally:
        server.close()
        await made.aclose()


# --- clients ---


class Client:
    """Who makes streams and reads them, with a key."""

    def __init__(self, root: str, key: str | None = None) -> None:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self.http = httpx.AsyncClient(base_url=root, headers=headers, timeout=PATIENCE)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def create(self, model: str, url: str = CHAT, headers: dict[str, str] | None = None, **body: Any) -> Any:
        """Returns: The stream's object."""
        given: dict[str, Any] = (
            {"input": "x"} if url == RESPONSES else {"prompt": "x"} if url == COMPLETIONS else {"messages": []}
        )
        asked = {"url": url, "body": {"model": model, **given, **body}}
        made = await self.http.post("/v1/streams", json=asked, headers=headers)
        assert made.status_code == 201, made.text
        return made.json()

    async def fan_out(self, **body: Any) -> Any:
        made = await self.http.post("/v1/streams", json={"url": FANOUT, "body": body})
        assert made.status_code == 201, made.text
        return made.json()

    async def read(self, stream: Any, after: int = 0, **query: Any) -> list[Event]:
        """Returns: What follows, when the reply is over."""
        answer = await self.http.get(stream["events_url"], params={"after": after, **query})
        assert answer.status_code in {200, 204}, answer.text
        return parsed(answer.content)

    async def told(self, stream: Any) -> Any:
        """Returns: The snapshot."""
        answer = await self.http.get(f"/v1/streams/{stream['id']}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def ended(self, stream: Any) -> Any:
        """Returns: The snapshot, once it is over."""
        found: Any = None

        async def is_over() -> bool:
            nonlocal found
            found = await self.told(stream)
            return found["status"] not in {"in_progress", "cancelling"}

        await eventually(is_over, PATIENCE)
        return found

    async def delete(self, stream: Any) -> Any:
        answer = await self.http.delete(f"/v1/streams/{stream['id']}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def status(self) -> dict[str, Any]:
        """Returns: The figures of the server's streams."""
        found: dict[str, Any] = (await self.http.get("/status")).json()["streams"]
        return found

    async def all_written(self) -> None:
        """Waits until the log has all that has been said so far."""

        async def is_so() -> bool:
            return bool((await self.status())["unlogged_bytes"] == 0)

        await eventually(is_so)

    @contextlib.asynccontextmanager
    async def reading(self, stream: Any, after: int = 0, **query: Any) -> AsyncIterator["Reading"]:
        """A reader who is there until the end of the block, and then hangs up."""
        async with self.http.stream("GET", stream["events_url"], params={"after": after, **query}) as answer:
            assert answer.status_code == 200
            one = Reading(answer)
            try:
                yield one
            finally:
                await one.aclose()


class Reading:
    """A reply that is being read."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._got = b""
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for piece in self.answer.aiter_bytes():
            self._got += piece

    @property
    def events(self) -> list[Event]:
        """Those that have come."""
        return parsed(self._got)

    @property
    def number(self) -> int:
        """Of the last one."""
        events = self.events
        return int(events[-1].id) if events else 0

    async def reaches(self, number: int) -> None:
        """Waits for the event with this number."""
        await eventually(lambda: self.number >= number, PATIENCE)

    async def whole(self) -> list[Event]:
        """Returns: All of it, when the reply is over."""
        async with asyncio.timeout(PATIENCE):
            await self._task
        return self.events

    async def aclose(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


# --- what was read ---


def numbers(events: list[Event]) -> list[int]:
    return [int(one.id) for one in events]


def text_of(events: list[Event]) -> str:
    """What the events of a chat, completion or response say."""
    return "".join(_word(json.loads(one.data)) for one in events if one.name == "message")


def _word(told: dict[str, Any]) -> str:
    if told.get("type") == "response.output_text.delta":
        return str(told["delta"])
    return "".join(one.get("text") or one.get("delta", {}).get("content") or "" for one in told.get("choices", []))


def code_of(events: list[Event]) -> str:
    """The code of the error that they end in, which is told once."""
    *before, end = events
    assert end.name == "error", end
    assert {one.name for one in before} <= {"message"}
    error = json.loads(end.data)["error"]
    assert error["message"]
    found: str = error["code"]
    return found


def is_rest(events: list[Event], whole: list[Event], seen: int) -> bool:
    """Whether they are those behind the event `seen`."""
    return events == whole[seen:] and numbers(events) == list(range(seen + 1, len(whole) + 1))
