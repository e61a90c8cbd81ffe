"""The only user of the SDK: one shared `AsyncOpenAI` (or `AsyncAzureOpenAI`) per upstream, bytes in, raw reply out."""

from collections.abc import Mapping
from typing import cast
from urllib.parse import quote

import httpx2
from openai import APIConnectionError, APIStatusError, AsyncAzureOpenAI, AsyncOpenAI, AsyncStream
from openai._models import FinalRequestOptions  # the type of the one method that is overridden

from app.errors import UpstreamCutError, UpstreamUnreachableError
from app.settings import UpstreamSettings
from app.upstream.transport import Prepared, RawReply, Transport
from app.wire.endpoints import BY_PATH

_SPARE_CONNECTIONS = 8  # for calls beside the semaphore: the model list
_NO_KEY = "none"  # the SDK wants one, or looks for one in the environment; an upstream without keys does not care
_FORM = "multipart/form-data"
_PLAIN = {"accept": "*/*", "accept-encoding": "identity", "content-type": "application/json"}

# Azure wants the deployment in the path of these; its own client rewrites only bodies that are dicts.
_AZURE_DEPLOYMENT_PATHS = frozenset(
    {
        "/completions",
        "/chat/completions",
        "/embeddings",
        "/audio/transcriptions",
        "/audio/translations",
        "/audio/speech",
        "/images/generations",
        "/images/edits",
    }
)


class _BuildsOnce:
    """Lets the SDK build each kind of request once; the next ones differ in their body only.

    Building is a third of what a call costs in the SDK, and comes out the same every time: the address, the key,
    the SDK's own headers.
    """

    def _build_request(self, options: FinalRequestOptions, *, retries_taken: int = 0) -> httpx2.Request:
        key = None
        if options.method == "post" and options.url in BY_PATH and options.headers == _PLAIN:
            key = options.url
            known = self.__dict__.setdefault("_prepared", {}).get(key)
            if known is not None:
                stream = httpx2.ByteStream(cast("bytes", options.content))
                return httpx2.Request("POST", known[0], stream=stream, extensions={"prepared": known[1]})
        request: httpx2.Request = super()._build_request(options, retries_taken=retries_taken)  # type: ignore[misc]
        if key is not None:
            prepared = Prepared(request)
            prepared.headers.popall("content-length", None)
            self.__dict__["_prepared"][key] = (request.url, prepared)
        return request


class _OpenAI(_BuildsOnce, AsyncOpenAI):
    pass


class _AzureOpenAI(_BuildsOnce, AsyncAzureOpenAI):
    pass


class UpstreamClient:
    """Sends one call and returns its reply unread; no retries, no queue, no redirects.

    Args:
        name: For error messages.
        settings: Its address, key and timeouts.
        base_url: Overrides the settings' (the in-process simulator's address).
    """

    def __init__(self, name: str, settings: UpstreamSettings, base_url: str | None = None) -> None:
        self.name = name
        self._deployments = settings.kind == "azure" and bool(settings.api_version)
        self._sdk = _sdk(settings, base_url or settings.base_url)

    async def send(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        content_type: str = "application/json",
        model: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> RawReply:
        """Sends one request.

        Args:
            path: Under the base URL, with a leading slash; a query goes with it.
            model: The deployment, for Azure's paths.
            headers: More request headers.
        Raises:
            UpstreamUnreachableError: No connection: the upstream has not seen the request.
            UpstreamCutError: The connection was lost before a reply.
        """
        if self._deployments and model and path in _AZURE_DEPLOYMENT_PATHS:
            path = f"/deployments/{quote(model, safe='')}{path}"
        sent = {**_PLAIN, **(headers or {})} if headers or content_type != _PLAIN["content-type"] else _PLAIN
        if sent is not _PLAIN:
            # The SDK takes a multipart header for an order to build the form itself, unless it is spelt otherwise;
            # media types are case-insensitive (RFC 9110 section 8.3.1).
            form = content_type.startswith(_FORM)
            sent["content-type"] = content_type.replace(_FORM, "Multipart/form-data", 1) if form else content_type
        try:
            return _reply(await self._request(method, path, body, sent))
        except APIStatusError as error:
            return _reply(error.response)
        except APIConnectionError as error:
            raise self._explained(error.__cause__) from error

    async def _request(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> httpx2.Response:
        unread: dict[str, object] = {"cast_to": httpx2.Response, "options": {"headers": headers}}
        if method == "POST":
            unread.update(content=body, stream=True, stream_cls=AsyncStream)
            return await self._sdk.post(path, **unread)  # type: ignore[call-overload,no-any-return]
        if method == "GET":
            return await self._sdk.get(path, stream=True, stream_cls=AsyncStream, **unread)  # type: ignore[call-overload,no-any-return]
        return await self._sdk.delete(path, **unread)  # type: ignore[arg-type]

    def _explained(self, cause: BaseException | None) -> UpstreamUnreachableError | UpstreamCutError:
        if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout):
            return UpstreamUnreachableError(f"cannot connect to the upstream {self.name!r} ({cause})")
        return UpstreamCutError(f"the upstream {self.name!r} closed the connection before a reply")

    async def aclose(self) -> None:
        await self._sdk.close()


def _reply(response: httpx2.Response) -> RawReply:
    reply = response.extensions["reply"]
    assert isinstance(reply, RawReply)  # noqa: S101 - narrows for mypy; transport.py puts it there
    return reply


def _sdk(settings: UpstreamSettings, base_url: str) -> AsyncOpenAI:
    verify = httpx2.create_ssl_context() if base_url.startswith("https") else None
    transport = Transport(
        limit=settings.max_in_flight + _SPARE_CONNECTIONS,
        connect_timeout=settings.connect_timeout,
        verify=verify,
    )
    http = httpx2.AsyncClient(transport=transport, timeout=None, follow_redirects=False)  # the clocks are in body.py
    key = settings.api_key.get_secret_value() if settings.api_key else _NO_KEY
    if settings.kind != "azure":
        return _OpenAI(api_key=key, base_url=base_url, max_retries=0, http_client=http)
    endpoint = base_url.removesuffix("/v1").removesuffix("/openai")
    if settings.api_version:
        return _AzureOpenAI(
            api_key=key,
            azure_endpoint=endpoint,
            api_version=settings.api_version,
            max_retries=0,
            http_client=http,
        )
    return _OpenAI(api_key=key, base_url=f"{endpoint}/openai/v1", max_retries=0, http_client=http)
