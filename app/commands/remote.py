"""A running gateway as a command sees it: its address, its key, and its errors as one sentence."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from app.commands.progress import plain
from app.config import ConfigError
from app.wire.jsonl import LineReader

LONGEST_LINE = 64 * 1024**2
_SHOWN = 300  # characters of a reply that is no error of ours
_TIMES = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=120)
_LATER = frozenset({408, 409, 429})  # as every status from 500: the same request can succeed later


class AwayError(ConfigError):
    """The gateway cannot be reached, or has no answer right now; later it may."""


class _Fault(msgspec.Struct):
    message: str
    param: str | None = None


class _Envelope(msgspec.Struct):
    error: _Fault


def home(url: str) -> str:
    """Returns: The address that every path is put behind.

    Raises:
        ConfigError: It is no address.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"url = {url!r}: must be an http:// or https:// address")
    return f"{url.rstrip('/').removesuffix('/v1')}/v1"


def authorized(api_key: str | None) -> dict[str, str]:
    """Returns: The headers that show the key."""
    if api_key and not (api_key.isascii() and api_key.isprintable()):
        raise ConfigError("api_key = (secret): a key holds ASCII characters only")
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


class Remote:
    """A session with the gateway.

    Args:
        url: Its address, with or without `/v1`.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        self._home = home(url)
        self._headers = authorized(api_key)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=_TIMES, headers=self._headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def ask(self, method: str, path: str, **more: Any) -> bytes:
        """Args: more: What aiohttp takes. Returns: The reply's body."""
        async with self._asked(method, path, **more) as reply:
            return await reply.read()

    async def lines(self, path: str, **more: Any) -> AsyncGenerator[bytes, None]:
        """Yields: The reply's lines as they come; those that are cut off are not among them."""
        reader = LineReader(LONGEST_LINE)
        async with self._asked("GET", path, **more) as reply:
            async for piece in reply.content.iter_any():
                for line in reader.feed(piece):
                    if line is None:
                        raise ConfigError(f"a line is longer than {LONGEST_LINE} bytes")
                    yield line

    @contextlib.asynccontextmanager
    async def _asked(self, method: str, path: str, **more: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        address = f"{self._home}{path}"
        try:
            async with self._session.request(method, address, **more) as reply:
                if reply.status >= 300:
                    raise _refused(address, reply.status, await reply.read())
                yield reply
        except (aiohttp.ClientError, TimeoutError) as error:
            raise AwayError(f"{address}: {plain(str(error)) or type(error).__name__}") from None


def _refused(address: str, status: int, body: bytes) -> ConfigError:
    kind = AwayError if status >= 500 or status in _LATER else ConfigError
    try:
        fault = msgspec.json.decode(body, type=_Envelope).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return kind(f"{address} answered {status}: {plain(body.decode(errors='replace'))[:_SHOWN]}")
    return kind(plain(fault.message) + (f" ({fault.param})" if fault.param else ""))
