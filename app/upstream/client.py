"""The only user of the SDK: one shared `AsyncOpenAI` (or `AsyncAzureOpenAI`) per upstream, bytes in, raw reply out."""

from collections.abc import Mapping
from urllib.parse import quote

import httpx2
from openai import APIConnectionError, APIStatusError, AsyncAzureOpenAI, AsyncOpenAI, AsyncStream

from app.errors import UpstreamCutError, UpstreamUnreachableError
from app.settings import UpstreamSettings
from app.upstream.transport import RawReply, Transport

_SPARE_CONNECTIONS = 8  # for calls beside the semaphore: the model list
_FORM = "multipart/form-data"

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
        sent = {"accept": "*/*", "accept-encoding": "identity", **(headers or {})}
        if body:
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
        limit=settings.max_in_flight + _SPARE_CONNECTIONS, connect_timeout=settings.connect_timeout, verify=verify
    )
    http = httpx2.AsyncClient(transport=transport, timeout=None, follow_redirects=False)  # noqa: S113 - clocks: body.py
    key = settings.api_key.get_secret_value() if settings.api_key else ""
    if settings.kind != "azure":
        return AsyncOpenAI(api_key=key, base_url=base_url, max_retries=0, http_client=http)
    endpoint = base_url.removesuffix("/v1").removesuffix("/openai")
    if settings.api_version:
        return AsyncAzureOpenAI(
            api_key=key,
            azure_endpoint=endpoint,
            api_version=settings.api_version,
            max_retries=0,
            http_client=http,
        )
    return AsyncOpenAI(api_key=key, base_url=f"{endpoint}/openai/v1", max_retries=0, http_client=http)
