"""The outermost layer but for CORS: a request id, one access-log line, and an answer even to a bug. Pure ASGI."""

import logging
import re
import time
from typing import Any

from sse_starlette.sse import SendTimeoutError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import DrainingError, GatewayError, InternalError, NotFoundError
from app.http.context import CallRecord, Gateway
from app.http.live import ReplyCutError
from app.telemetry import access_log
from app.wire.results import new_id

log = logging.getLogger("sluicegate")
_SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_QUIET = frozenset({"/livez", "/readyz"})
_OPERATIONS = _QUIET | {"/", "/status", "/docs", "/openapi.json", "/client.js"}


class Edge:
    """Args: app: Everything else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        record = CallRecord(_request_id(scope), send)
        scope.setdefault("state", {})["record"] = record
        id_header = (b"x-request-id", record.request_id.encode())
        started = finished = False

        async def send_on(message: Message) -> None:
            nonlocal started, finished
            if message["type"] == "http.response.start":
                started = True
                record.status = record.status or message["status"]
                message["headers"] = [*message["headers"], id_header]
            else:
                record.bytes_out += len(message.get("body", b""))
                finished = not message.get("more_body", False)
            await send(message)

        try:
            await self._admitted(scope, receive, send_on)
        except ReplyCutError:
            log.warning("reply cut short", extra={"fields": {"request_id": record.request_id}})
        except SendTimeoutError:  # the server closes a connection whose reply stays unfinished
            record.status, record.error = 499, "slow_reader"
        except Exception:
            log.exception("bug while answering", extra={"fields": {"request_id": record.request_id}})
            record.error = "internal_error"
            if not started:
                await answer(InternalError("an internal error; the log has it under this x-request-id"), send_on)
            elif not finished:
                raise
        finally:
            if access_log.isEnabledFor(logging.INFO) and not access_log.disabled and scope["path"] not in _QUIET:
                access_log.info("call", extra={"fields": _line(scope, record, began)})

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway: Gateway | None = scope["state"].get("gateway")
        if gateway is None or scope["path"] in _OPERATIONS:
            await self._app(scope, receive, send)
        elif "\0" in scope["path"]:  # in no id, and PostgreSQL's texts cannot hold it
            await answer(NotFoundError("there is nothing under this path"), send)
        elif gateway.drain.started and not _is_reading(scope):
            scope["state"]["record"].error = DrainingError.code
            await answer(gateway.drain.error(), send)
        else:
            with gateway.drain.call():
                await self._app(scope, receive, send)


def _is_reading(scope: Scope) -> bool:
    """Whether it is about a stream that runs already: its reader may come back while the server drains."""
    path: str = scope["path"]
    return scope["method"] != "POST" and path.removeprefix("/v1").startswith("/streams/")


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SANE_ID.fullmatch(value):
            sane: bytes = value
            return sane.decode()
    return new_id("req_")


async def answer(error: GatewayError, send: Send) -> None:
    """Sends an error where no handler stands: outside the application."""
    told = {"content-type": "application/json", **error.headers()}
    headers = [(name.encode(), value.encode()) for name, value in told.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": error.envelope()})


def _line(scope: Scope, record: CallRecord, began: float) -> dict[str, Any]:
    trace = record.trace
    return {
        "request_id": record.request_id,
        "method": scope["method"],
        "path": scope["path"],
        "status": record.status,
        "error": record.error,
        "ms": round((time.perf_counter() - began) * 1000, 1),
        "caller": record.caller,
        "model": record.model[:128],
        "upstream": trace.upstream,
        "attempts": trace.attempts,
        "queue_ms": round(trace.queue_ms, 1),
        "cache": trace.cache,
        "bytes_out": record.bytes_out,
    }
