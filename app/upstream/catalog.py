"""Which models there are: the aliases, and what the upstreams list. A reader never waits for an upstream."""

import asyncio
import logging
import time
from collections.abc import Iterable
from urllib.parse import quote

import msgspec
from msgspec import Raw

from app.errors import GatewayError, UpstreamMalformedError
from app.upstream.attempt import Upstream
from app.upstream.body import Body
from app.upstream.call import CallStack

log = logging.getLogger("sluicegate")
_PATIENCE_SECONDS = 10.0
_MAX_LIST_BYTES = 8 * 1024**2
_RETRY_SECONDS = 15.0

Model = dict[str, Raw]


class _List(msgspec.Struct):
    data: list[Model]


_LIST = msgspec.json.Decoder(_List)


class Catalog:
    """Args:
    stack: The upstreams and the aliases.
    ttl: Seconds between two looks at an upstream's list.
    """

    def __init__(self, stack: CallStack, ttl: float) -> None:
        self._stack = stack
        self._ttl = ttl
        self._lists: dict[str, list[Model]] = {}
        now = int(time.time())
        self._aliases = {name: _alias(name, now) for name in stack.router.aliases}

    def models(self, allowed: Iterable[str] | None = None) -> dict[str, Model]:
        """Returns: OpenAI model objects by public name; `allowed` limits them to a key's models."""
        found = dict(self._aliases)
        first = self._stack.router.upstreams[0]
        for upstream, models in self._lists.items():
            for model in models:
                name = msgspec.json.decode(model["id"], type=str)
                public = name if upstream == first else f"{upstream}/{name}"
                found.setdefault(public, {**model, "id": Raw(msgspec.json.encode(public))})
        if allowed is None:
            return found
        return {name: found.get(name) or _alias(name, 0) for name in allowed}

    async def exists(self, model: str) -> bool:
        """Asks whoever would have to answer for a model whether there is such a one.

        Returns: False only if every target's upstream has a list without it and says `model_not_found` when asked.
        """
        if model in self._aliases:
            return True
        for target in self._stack.router.route(model):
            upstream = self._stack.upstreams[target.upstream]
            listed = {msgspec.json.decode(one["id"], type=str) for one in self._lists.get(upstream.name, ())}
            if not listed or target.model in listed or not await _is_unknown(upstream, target.model or ""):
                return True
        return False

    async def prime(self) -> None:
        """Looks at the simulators' lists, which are here and at once: the first question finds an answer."""
        for upstream in self._stack.upstreams.values():
            if upstream.settings.kind == "simulator":
                await self.refresh(upstream)

    async def keep_fresh(self) -> None:
        """Looks at every upstream's list again and again; run it as a task."""
        async with asyncio.TaskGroup() as group:
            for name, upstream in self._stack.upstreams.items():
                group.create_task(self._keep_one_fresh(upstream), name=f"model list of {name}")

    async def _keep_one_fresh(self, upstream: Upstream) -> None:
        while True:
            listed = await self.refresh(upstream)
            await asyncio.sleep(self._ttl if listed else min(self._ttl, _RETRY_SECONDS))

    async def refresh(self, upstream: Upstream) -> bool:
        """Looks once. Returns: Whether the upstream gave a list; if not, the old one stays."""
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                self._lists[upstream.name] = await _fetch(upstream)
        except (GatewayError, TimeoutError, msgspec.MsgspecError, ValueError) as error:
            log.info("no model list from %s: %s", upstream.name, type(error).__name__)
            return False
        return True


async def _is_unknown(upstream: Upstream, model: str) -> bool:
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            status, text = await _get(upstream, f"/models/{quote(model, safe='/')}")
    except (GatewayError, TimeoutError):
        return False
    return status == 404 and b"model_not_found" in text


async def _fetch(upstream: Upstream) -> list[Model]:
    status, text = await _get(upstream, "/models")
    if status != 200:
        raise UpstreamMalformedError(f"the model list came with status {status}")
    models = _LIST.decode(text).data
    return [model for model in models if bytes(model.get("id", b""))[:1] == b'"']


async def _get(upstream: Upstream, path: str) -> tuple[int, bytes]:
    raw = await upstream.client.send("GET", path)
    deadline = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
    try:
        body = Body(raw, deadline=deadline, idle_timeout=_PATIENCE_SECONDS, on_end=lambda _: None)
        return raw.status, await body.whole(_MAX_LIST_BYTES)
    finally:
        raw.close()


def _alias(name: str, created: int) -> Model:
    fields = {"id": name, "object": "model", "created": created, "owned_by": "sluicegate"}
    return {key: Raw(msgspec.json.encode(value)) for key, value in fields.items()}
