"""The layer alone: whatever ends the application, the key is free again, once, and hang-ups still come through."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from app.http.context import CallRecord
from app.http.drain import Drain
from app.http.idempotency import Idempotency
from app.services.idempotency import MemoryStore
from app.services.keys import Keyring
from app.settings import GatewaySettings

START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}


class Trip:
    """One POST through the layer, to an application of the test's."""

    def __init__(self, store: MemoryStore) -> None:
        self.sent: list[Message] = []
        self.gone = asyncio.Event()
        self._bodies = [b"he", b"llo"]
        settings = GatewaySettings.model_validate({})
        gateway: Any = SimpleNamespace(settings=settings, keyring=Keyring({}), drain=Drain(1), idempotency=store)
        record = CallRecord("req", self._send)
        self.scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "query_string": b"",
            "headers": [(b"idempotency-key", b"k")],
            "state": {"gateway": gateway, "record": record},
        }

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    async def _receive(self) -> Message:
        if self._bodies:
            piece = self._bodies.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self._bodies)}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def __call__(self, app: Any) -> list[Message]:
        await Idempotency(app)(self.scope, self._receive, self._send)
        return self.sent


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(100_000, 60)


async def answers(_: Scope, receive: Receive, send: Send) -> None:
    message = await receive()
    await send(START)
    await send({"type": "http.response.body", "body": message["body"]})


async def raises(*_: object) -> None:
    raise ZeroDivisionError


async def breaks_off(_: Scope, _receive: Receive, send: Send) -> None:
    await send(START)
    await send({"type": "http.response.body", "body": b"half", "more_body": True})


async def waits_for_the_client_to_go(_: Scope, receive: Receive, _send: Send) -> None:
    assert (await receive())["body"] == b"hello"
    assert (await receive())["type"] == "http.disconnect"


async def test_an_application_that_raises_frees_the_key(store: MemoryStore) -> None:
    with pytest.raises(ZeroDivisionError):
        await Trip(store)(raises)
    assert store.running == 0
    assert (await Trip(store)(answers))[-1]["body"] == b"hello"


async def test_one_that_breaks_off_too(store: MemoryStore) -> None:
    await Trip(store)(breaks_off)
    assert store.running == 0
    assert (await Trip(store)(answers))[-1]["body"] == b"hello"


async def test_one_that_is_cancelled_too_and_a_hang_up_reaches_it(store: MemoryStore) -> None:
    trip = Trip(store)
    task = asyncio.create_task(trip(waits_for_the_client_to_go))
    await asyncio.sleep(0)
    assert store.running == 1
    task.cancel()
    await asyncio.wait({task})
    assert store.running == 0
    trip = Trip(store)
    trip.gone.set()
    await trip(waits_for_the_client_to_go)
    assert store.running == 0


async def test_a_reply_is_kept_before_its_last_byte_is_out(store: MemoryStore) -> None:
    first = Trip(store)
    running: list[int] = []

    async def answers_and_looks(scope: Scope, receive: Receive, send: Send) -> None:
        await answers(scope, receive, send)
        running.append(store.running)

    await first(answers_and_looks)
    assert running == [0]
    again = await Trip(store)(raises)
    assert again[0]["headers"] == [*START["headers"], (b"idempotent-replayed", b"true")]
    assert b"".join(message.get("body", b"") for message in again) == b"hello"
