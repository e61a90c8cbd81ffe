"""The only user of the SDK: one shared `AsyncOpenAI` (or `AsyncAzureOpenAI`) per upstream, bytes in, raw reply out."""

from collections.abc import Mapping
from urllib.parse import quote, urlsplit

import httpx2
from openai import APIStatusError, AsyncAzureOpenAI, AsyncOpenAI, AsyncStream

from app.settings import UpstreamSettings, is_loopback
from app.upstream.transport import Prepared, RawReply, Transport
from app.wire.endpoints import BY_PATH

_SPARE_CONNECTIONS = 8  # for calls beside the semaphore: the model list
_NO_KEY = "none"  # the SDK wants one, or looks for one in the environment; an upstream without keys does not care
_FORM = "multipart/form-data"
_JSON = "application/json"
_MOST_KINDS = 256  # one a path, and with Azure one a deployment

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

    The SDK builds each kind of request, and sends the first of it. Building is two thirds of what a call costs in the
    SDK and comes out the same every time (the address, the key, its own headers), so the next ones are copies that
    differ in the body, sent over the same connections.

    Args:
        name: For error messages.
        settings: Its address, key and timeouts.
        base_url: Overrides the settings' (the in-process simulator's address).
    """

    def __init__(self, name: str, settings: UpstreamSettings, base_url: str | None = None) -> None:
        self.name = name
        self._deployments = settings.kind == "azure" and bool(settings.api_version)
        address = base_url or settings.base_url
        self._transport = Transport(
            name,
            limit=settings.most_in_flight + _SPARE_CONNECTIONS,
            connect_timeout=settings.connect_timeout,
            proxied=not is_loopback(urlsplit(address).hostname or ""),
            verify=httpx2.create_ssl_context() if address.startswith("https") else None,
        )
        self._sdk = _sdk(settings, address, self._transport)
        # as the settings say, not as the SDK finds them in the environment, whatever upstream it is for
        self._sdk.organization, self._sdk.project = settings.organization, settings.project
        self._prepared: dict[str, Prepared] = {}

    async def send(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        content_type: str = _JSON,
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
            UpstreamMalformedError: The reply is not HTTP.
        """
        deployment = ""
        if self._deployments and model and path in _AZURE_DEPLOYMENT_PATHS:
            deployment = f"/deployments/{quote(model, safe='')}"
            path = deployment + path
        is_plain = content_type == _JSON and not headers and path.removeprefix(deployment) in BY_PATH
        if is_plain and path in self._prepared:
            return await self._transport.send(method, self._prepared[path], body)
        try:
            response = await self._ask_sdk(method, path, body, content_type, headers or {})
        except APIStatusError as error:
            response = error.response
        if is_plain:
            self._prepared[path] = Prepared(response.request)
            if len(self._prepared) > _MOST_KINDS:
                del self._prepared[next(iter(self._prepared))]  # the oldest
        reply: RawReply = response.extensions["reply"]
        return reply

    async def _ask_sdk(
        self, method: str, path: str, body: bytes, content_type: str, headers: Mapping[str, str]
    ) -> httpx2.Response:
        # The SDK takes a multipart header for an order to build the form itself, unless it is spelt otherwise;
        # media types are case-insensitive (RFC 9110 section 8.3.1).
        spelt = (
            content_type.replace(_FORM, "Multipart/form-data", 1) if content_type.startswith(_FORM) else content_type
        )
        sent = {"accept": "*/*", "accept-encoding": "identity", "content-type": spelt, **headers}
        unread: dict[str, object] = {"cast_to": httpx2.Response, "options": {"headers": sent}}
        if method == "POST":
            unread.update(content=body, stream=True, stream_cls=AsyncStream)
            return await self._sdk.post(path, **unread)  # type: ignore[call-overload,no-any-return]
        if method == "GET":
            return await self._sdk.get(path, stream=True, stream_cls=AsyncStream, **unread)  # type: ignore[call-overload,no-any-return]
        return await self._sdk.delete(path, **unread)  # type: ignore[arg-type]

    async def aclose(self) -> None:
        await self._sdk.close()


def _sdk(settings: UpstreamSettings, base_url: str, transport: Transport) -> AsyncOpenAI:
    # the clocks are in body.py
    http = httpx2.AsyncClient(transport=transport, timeout=None, follow_redirects=False)
    key = settings.api_key.get_secret_value() if settings.api_key else _NO_KEY
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
