"""Which models there are: the aliases, and what the upstreams list. A reader never waits for an upstream."""

import asyncio
import logging
import time
from collections.abc import Iterable

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


async def _fetch(upstream: Upstream) -> list[Model]:
    raw = await upstream.client.send("GET", "/models")
    deadline = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
    try:
        body = Body(raw, deadline=deadline, idle_timeout=_PATIENCE_SECONDS, on_end=lambda _: None)
        text = await body.whole(_MAX_LIST_BYTES)
    finally:
        raw.close()
    if raw.status != 200:
        raise UpstreamMalformedError(f"the model list came with status {raw.status}")
    models = _LIST.decode(text).data
    return [model for model in models if bytes(model.get("id", b""))[:1] == b'"']


def _alias(name: str, created: int) -> Model:
    fields = {"id": name, "object": "model", "created": created, "owned_by": "sluicegate"}
    return {key: Raw(msgspec.json.encode(value)) for key, value in fields.items()}
