"""The layer alone: whatever ends the application, the key is free again, once, and hang-ups still come through."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from app.http.context import CallRecord
from app.http.drain import Drain
from app.http.idempotency import Idempotency
from app.services.idempotency import StoredReplies
from app.services.keys import Keyring
from app.settings import GatewaySettings
from app.store.database import Database
from app.store.owners import Owner
from tests.support import eventually

START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}


class Trip:
    """One POST through the layer, to an application of the test's."""

    def __init__(
        self, store: StoredReplies, path: str = "/v1/chat/completions", headers: dict[bytes, bytes] | None = None
    ) -> None:
        self.sent: list[Message] = []
        self.gone = asyncio.Event()
        self.bodies = [b"he", b"llo"]
        settings = GatewaySettings.model_validate({})
        gateway: Any = SimpleNamespace(settings=settings, keyring=Keyring({}), drain=Drain(1), idempotency=store)
        record = CallRecord("req", self._send)
        self.scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": b"",
            "headers": [(b"idempotency-key", b"k"), *(headers or {}).items()],
            "state": {"gateway": gateway, "record": record},
        }

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    async def _receive(self) -> Message:
        if self.bodies:
            piece = self.bodies.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self.bodies)}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def __call__(self, app: Any) -> list[Message]:
        await Idempotency(app)(self.scope, self._receive, self._send)
        return self.sent


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[StoredReplies]:
    database = Database(None, tmp_path)
    owner = Owner(database, 60)
    owner.start()
    replies = StoredReplies(database, owner, 100_000, 60)
    yield replies
    await replies.aclose()
    owner.stop()
    database.close()


async def answers(_: Scope, receive: Receive, send: Send) -> None:
    message = await receive()
    await send(START)
    await send({"type": "http.response.body", "body": message["body"]})


async def raises(*_: object) -> None:
    raise ZeroDivisionError


async def breaks_off(_: Scope, _receive: Receive, send: Send) -> None:
    await send(START)
    await send({"type": "http.response.body", "body": b"half", "more_body": True})


async def waits_for_the_client_to_go(scope: Scope, receive: Receive, _send: Send) -> None:
    scope["state"]["reached"] = True
    assert (await receive())["body"] == b"hello"
    assert (await receive())["type"] == "http.disconnect"


async def test_an_application_that_raises_frees_the_key(store: StoredReplies) -> None:
    with pytest.raises(ZeroDivisionError):
        await Trip(store)(raises)
    assert store.running == 0
    assert (await Trip(store)(answers))[-1]["body"] == b"hello"


async def test_one_that_breaks_off_too(store: StoredReplies) -> None:
    await Trip(store)(breaks_off)
    assert store.running == 0
    assert (await Trip(store)(answers))[-1]["body"] == b"hello"


async def test_one_that_is_cancelled_too_and_a_hang_up_reaches_it(store: StoredReplies) -> None:
    trip = Trip(store)
    task = asyncio.create_task(trip(waits_for_the_client_to_go))
    await eventually(lambda: "reached" in trip.scope["state"])
    assert store.running == 1
    task.cancel()
    await asyncio.wait({task})
    assert store.running == 0
    trip = Trip(store)
    trip.gone.set()
    await trip(waits_for_the_client_to_go)
    assert store.running == 0


async def test_a_reply_is_kept_before_its_last_byte_is_out(store: StoredReplies) -> None:
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


async def answers_piece_by_piece(_: Scope, receive: Receive, send: Send) -> None:
    """As an upload: each piece of the body as it comes."""
    pieces = [await receive(), await receive()]
    await send(START)
    await send({"type": "http.response.body", "body": b"|".join(piece["body"] for piece in pieces)})


def upload(store: StoredReplies, path: str = "/v1/files", length: bytes = b"5", boundary: bytes = b"a") -> Trip:
    kind = b"multipart/form-data; boundary=" + boundary
    return Trip(store, path, {b"content-type": kind, b"content-length": length})


async def test_an_upload_streams_through_and_its_repetition_is_answered_before_its_body(store: StoredReplies) -> None:
    first = await upload(store)(answers_piece_by_piece)
    assert first[-1]["body"] == b"he|llo"
    for again in (upload(store), upload(store, "/files", boundary=b"b")):
        sent = await again(raises)
        assert b"".join(message.get("body", b"") for message in sent) == b"he|llo"
        assert (b"idempotent-replayed", b"true") in sent[0]["headers"]


@pytest.mark.parametrize(
    "changed", [{"length": b"6"}, {"path": "/v1/chat/completions"}], ids=["another length", "another route"]
)
async def test_an_upload_of_another_length_is_another_request(store: StoredReplies, changed: dict[str, Any]) -> None:
    await upload(store)(answers_piece_by_piece)
    (start, _) = await upload(store, **changed)(raises)
    assert start["status"] == 400


async def test_without_storage_nothing_runs_and_the_client_may_try_again(store: StoredReplies) -> None:
    store._database.close()
    start, body = await Trip(store)(raises)
    assert start["status"] == 503
    assert b"storage_unavailable" in body["body"]
    assert dict(start["headers"])[b"x-should-retry"] == b"true"


async def test_a_reply_goes_out_whole_though_it_cannot_be_kept(store: StoredReplies) -> None:
    async def answers_without_storage(scope: Scope, receive: Receive, send: Send) -> None:
        store._database.close()
        await answers(scope, receive, send)

    sent = await Trip(store)(answers_without_storage)
    assert (sent[0]["status"], sent[-1]["body"]) == (200, b"hello")
