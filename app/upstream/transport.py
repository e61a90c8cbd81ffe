"""The network under the SDK: an httpx2 transport on aiohttp.

The SDK ships one too (`DefaultAioHttpClient`). This one exists because that one
  * reports a connection that was lost *after* the request was sent as a connect timeout, so that a retry
    policy cannot tell the two apart;
  * hands a reply's bytes through three nested generators, which cost more than the relay itself;
  * keeps the upstream's cookies and hands them to the next caller.
Here the reply's body travels beside the SDK (`extensions["reply"]`): the SDK never reads it, whatever the status.
"""

import asyncio
import io
import ssl
import urllib.request
from typing import Any

import aiohttp
import httpx2
from multidict import CIMultiDict
from yarl import URL

from app.errors import UpstreamCutError, UpstreamMalformedError, UpstreamUnreachableError
from app.upstream.alarm import Alarm

_LARGE = 1024**2
_DRAIN_SECONDS = 0.25
_BROKEN = (aiohttp.ClientError, OSError, RuntimeError)  # "Connection closed." is a RuntimeError there
# aiohttp's own buffer for one reply: past twice this it stops reading from the upstream (back-pressure)
_READ_BUFFER = 64 * 1024
_LONGEST_HEADER = 64 * 1024
# what goes upstream of all that the SDK would send: not what the environment adds (OPENAI_CUSTOM_HEADERS)
_SENT = ("authorization", "api-key", "accept", "content-type", "host", "openai-", "trace", "user-agent", "x-stainless-")


class RawReply:
    """One upstream reply whose body has not been read. Whoever holds it must `close()` it."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self._response = response
        self._content = response.content
        self._alarm = Alarm()
        self._closed: asyncio.Future[None] | None = None
        if response.connection is not None and response.connection.protocol is not None:
            self._closed = response.connection.protocol.closed
            if self._closed is not None:
                self._closed.add_done_callback(self._lost)

    def _lost(self, closed: "asyncio.Future[None]") -> None:
        """Wakes the reader when the connection ends: after a framing error aiohttp itself does not."""
        closed.exception()
        if not self._content.is_eof() and self._content.exception() is None:
            self._content.set_exception(aiohttp.ClientPayloadError("the connection ended"))

    async def read(self, when: float) -> bytes:
        """Returns: The next bytes as they came, b"" at the end.

        Args: when: On the event loop's clock: how long to wait.
        Raises:
            TimeoutError: Nothing came by then.
            UpstreamCutError: The connection broke before the body's end.
        """
        self._alarm.arm(when)
        try:
            return await self._content.readany()
        except asyncio.CancelledError:
            self._alarm.raise_if_rang()
            raise
        except _BROKEN as error:
            raise UpstreamCutError(f"the upstream broke off its reply ({type(error).__name__})") from error
        finally:
            self._alarm.disarm()

    async def drain(self) -> None:
        """Waits a moment for the end of a body that is all but over, so that its connection can be used again."""
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not self._content.at_eof():
                    await self._content.readany()
        except (*_BROKEN, TimeoutError):
            self._response.close()

    def close(self) -> None:
        """Gives the connection back, or closes it where the body was not read to its end. May be called twice."""
        self._alarm.close()
        if self._closed is not None:
            self._closed.remove_done_callback(self._lost)
        if self._content.at_eof():
            self._response.release()
        else:
            self._response.close()

    @property
    def at_end(self) -> bool:
        return self._content.at_eof()


class Prepared:
    """A request's address and headers as aiohttp wants them, made once for many requests that differ in the body."""

    __slots__ = ("headers", "url")

    def __init__(self, request: httpx2.Request) -> None:
        self.url = URL(str(request.url), encoded=True)
        headers = request.headers.multi_items()
        self.headers = CIMultiDict((name, value) for name, value in headers if name.lower().startswith(_SENT))


class _Elsewhere(httpx2.AsyncByteStream):
    """What the SDK sees as the body: nothing. The body is in `extensions["reply"]`."""

    async def __aiter__(self) -> Any:
        return
        yield b""


class Transport(httpx2.AsyncBaseTransport):
    """Args:
    name: The upstream's, for error messages.
    limit: Pooled connections; never less than the semaphore above it, for nothing may queue here.
    connect_timeout: Seconds to look up, connect and shake hands.
    proxied: Whether the environment's proxies apply: not to this machine's own upstreams.
    verify: TLS context; made for https only, for it costs 30 ms.
    """

    def __init__(
        self, name: str, *, limit: int, connect_timeout: float, proxied: bool, verify: ssl.SSLContext | None = None
    ) -> None:
        self._name = name
        self._limit = limit
        self._proxied = proxied
        self._verify = verify
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect_timeout, sock_connect=connect_timeout)
        self._session: aiohttp.ClientSession | None = None

    async def send(self, method: str, prepared: Prepared, content: bytes) -> RawReply:
        """Sends one request.

        Raises:
            UpstreamUnreachableError: No connection: the upstream has not seen the request.
            UpstreamCutError: The connection was lost before a reply.
            UpstreamMalformedError: The reply is not HTTP.
        """
        session = self._session or self._open()
        try:
            response = await session.request(
                method,
                prepared.url,
                headers=prepared.headers,
                data=io.BytesIO(content) if len(content) > _LARGE else content or None,
                allow_redirects=False,
                timeout=self._timeout,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
            raise UpstreamUnreachableError(
                f"cannot connect to the upstream {self._name!r} ({_reason(error)})"
            ) from error
        except aiohttp.ClientResponseError as error:
            raise UpstreamMalformedError(
                f"the upstream {self._name!r} answered with something that is not HTTP"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamCutError(f"the upstream {self._name!r} closed the connection before a reply") from error
        return RawReply(response)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """The SDK's way here."""
        reply = await self.send(request.method, Prepared(request), request.read())
        return httpx2.Response(reply.status, stream=_Elsewhere(), request=request, extensions={"reply": reply})

    def _open(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=self._limit, ssl=self._verify or True, keepalive_timeout=60)
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            trust_env=self._proxied and bool(urllib.request.getproxies()),
            read_bufsize=_READ_BUFFER,
            max_line_size=_LONGEST_HEADER,
            max_field_size=_LONGEST_HEADER,
        )
        return self._session

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()


def _reason(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or type(error.os_error).__name__
    return type(error).__name__
