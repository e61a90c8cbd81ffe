"""`Idempotency-Key`: a call that is sent twice runs once, and its second sender gets the first one's reply. Pure ASGI.

Between `Edge` and the application, so that it sees replies as they are sent, whole or live, and every route has it. A
reply is kept only if it is a good one: an error, a refusal and whatever did not reach its end free the key: the
next try with it is a new call.
"""

import re
from typing import Any

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ClientHungUpError, GatewayError, InvalidRequestError
from app.http.context import CallRecord, Gateway, caller
from app.http.incoming import read_body
from app.http.live import LiveResponse, Pieces
from app.http.middleware import answer
from app.services.idempotency import HEADER, IdempotencyStore, StoredReply, key_of
from app.wire.digest import digest_of

_NAME = HEADER.lower().encode()
_KEY = re.compile(rb"[!-~]{1,255}")
_BOUNDARY = re.compile(rb'boundary="?([^";,\s]+)')
_UPLOADS = {b"/files"}
_REPLAYED = (b"idempotent-replayed", b"true")


class Idempotency:
    """Args: app: The application, its error handlers included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = _header(scope, _NAME) if scope["type"] == "http" and scope["method"] == "POST" else None
        if key is None or not await _is_known(scope):
            await self._app(scope, receive, send)
            return
        record: CallRecord = scope["state"]["record"]
        try:
            await self._once(key, scope, receive, send)
        except GatewayError as error:  # of this layer: the application answers its own
            record.error = error.code or error.type
            if isinstance(error, ClientHungUpError):
                record.status = error.status
            await answer(error, send)

    async def _once(self, key: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        if not _KEY.fullmatch(key):
            raise InvalidRequestError("must be 1 to 255 visible ASCII characters", param=HEADER)
        running: Gateway = scope["state"]["gateway"]
        record: CallRecord = scope["state"]["record"]
        claimed = key_of(_header(scope, b"authorization") or b"", key)
        if _path(scope) in _UPLOADS:
            asked = _digest_of_upload(scope)
        else:
            body = await read_body(Request(scope, receive), running)
            asked, receive = _digest(scope, body), _Replaying(body, receive).receive
        stored = await running.idempotency.claim(claimed, asked)
        if stored is not None:
            await _replay(stored, running, record)(scope, receive, send)
            return
        run = _Run(claimed, running.idempotency, record)
        try:
            record.send = run.listening(record.send)  # the pieces of live replies go past this layer
            await self._app(scope, receive, run.listening(send))
        finally:
            await run.settle()


async def _is_known(scope: Scope) -> bool:
    """Whether the caller may call at all: to a stranger the application itself says so, before anything is replayed."""
    try:
        await caller(Request(scope))
    except GatewayError:
        return False
    return True


class _Replaying:
    """A `receive` that gives the body once more, then whatever really comes: the client's hang-up."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    @property
    def transport(self) -> Any:
        """The server's, for whoever must drop the connection (`live.py`)."""
        return getattr(getattr(self._receive, "__self__", None), "transport", None)

    async def receive(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


class _Run:
    """A claimed call: overhears its reply, and gives the claim back exactly once."""

    def __init__(self, claimed: bytes, store: IdempotencyStore, record: CallRecord) -> None:
        self._claimed = claimed
        self._store = store
        self._record = record
        self._most = store.largest
        self._is_settled = False
        self._status = 0
        self._headers: tuple[tuple[bytes, bytes], ...] = ()
        self._pieces: list[bytes] = []
        self._size = 0
        self._is_whole = False

    def listening(self, send: Send) -> Send:
        """Returns: `send`, overheard."""

        async def send_on(message: Message) -> None:
            self._hear(message)  # first: the layers outside add headers of this request's own
            if self._is_whole:  # before the client can know it, and ask again
                await self.settle()
            await send(message)

        return send_on

    def _hear(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], tuple(message["headers"])
            return
        piece = message.get("body", b"")
        self._size += len(piece)
        if self._size > self._most:
            self._pieces.clear()
        elif piece:
            self._pieces.append(piece)
        self._is_whole = not message.get("more_body", False)

    async def settle(self) -> None:
        """Keeps the reply if it is one, else frees the key."""
        if self._is_settled:
            return
        self._is_settled = True
        reply = self._reply()
        if reply is None:
            await self._store.release(self._claimed)
        else:
            await self._store.keep(self._claimed, reply)

    def _reply(self) -> StoredReply | None:
        seen = self._record
        # `error` under a good status: the stream's last event; `status`: the client went before the end
        is_good = self._status < 400 and not seen.error and seen.status in {0, self._status}
        if not (self._is_whole and is_good and self._size <= self._most):
            return None
        return StoredReply(self._status, self._headers, b"".join(self._pieces))


def _replay(stored: StoredReply, running: Gateway, record: CallRecord) -> ASGIApp:
    response = LiveResponse(
        Pieces(stored.body),
        gateway=running,
        record=record,
        status=stored.status,
        media_type="application/octet-stream",  # as it was sent, so without pings of its own
    )
    response.raw_headers = [*stored.headers, _REPLAYED]
    return response


def _digest(scope: Scope, body: bytes) -> bytes:
    """Returns: What makes two requests the same, as a digest: route, query, form of the reply, body."""
    kind = _header(scope, b"content-type") or b""
    if found := _BOUNDARY.search(kind):  # clients draw a new one for every try
        body = body.replace(found[1], b"")
    path = _path(scope)
    form = _header(scope, b"accept") or b"" if path == b"/fanout" else b""  # only there the reply depends on it
    return digest_of(path, scope["query_string"], kind.partition(b";")[0], form, body)


def once(request: Request, body: bytes) -> bytes | None:
    """Returns: A digest of a request that carries a key, for what must not be made twice even if its reply was lost."""
    key = _header(request.scope, _NAME)
    if key is None:
        return None
    return digest_of(key_of(_header(request.scope, b"authorization") or b"", key), _digest(request.scope, body))


def _digest_of_upload(scope: Scope) -> bytes:
    """Returns: The same for a body that may be many GiB, and is not read for it: its length stands for it."""
    kind, length = _header(scope, b"content-type") or b"", _header(scope, b"content-length") or b""
    return digest_of(_path(scope), scope["query_string"], kind.partition(b";")[0], length)


def _path(scope: Scope) -> bytes:
    path: str = scope["path"]
    return path.removeprefix("/v1").encode()


def _header(scope: Scope, name: bytes) -> bytes | None:
    for known, value in scope["headers"]:
        if known == name:
            found: bytes = value
            return found
    return None
