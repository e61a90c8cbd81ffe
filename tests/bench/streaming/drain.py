"""SIGTERM with hundreds of open streams: each is told how it ends."""

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.bench.real.figures import count
from tests.bench.streaming.gateway import client_of, gateway
from tests.bench.streaming.scene import StreamScene
from tests.bench.streaming.upstream import Upstream, upstream
from tests.bench.streaming.wire import Client, Reply, asked, request
from tests.bench.torture.replicas import Replica

_GAP = 0.05
_AGAIN_SECONDS = 1.5  # between two signals: sooner, the second counts as the first
_SOON = 0.25  # what "at once" may take, seconds
_GONE_AGAIN = 4.0  # from a second signal to the end: twice two seconds of last words
_DONE, _DRAINING, _SILENT = "done", "error: draining", "silent"


@dataclass
class _Open:
    """One stream and its reader. Attributes: id: Empty: a plain one; ends: Its upstream ends it in time."""

    name: str
    id: str
    reply: Reply
    ends: bool


@dataclass
class _Told:
    """What was seen after the signal. Attributes: refused: What two kinds of new work were told."""

    code: int | None = None
    seconds: float = 0.0
    unready: float = float("inf")
    refused: list[str] | None = None


async def drain(scene: StreamScene) -> None:
    streams = int(scene.seconds(500, 40))
    patience = scene.seconds(3, 1.5)
    await _drained(scene, streams, patience, "one SIGTERM", _once)
    await _drained(scene, streams, 30, "SIGTERM, and again", _twice)


_Signals = Callable[[Replica], Coroutine[Any, Any, float]]


async def _once(replica: Replica) -> float:
    replica.process.send_signal(signal.SIGTERM)
    return time.monotonic()


async def _twice(replica: Replica) -> float:
    await _once(replica)
    await asyncio.sleep(_AGAIN_SECONDS)
    return await _once(replica)


async def _drained(scene: StreamScene, streams: int, patience: float, name: str, signals: _Signals) -> None:
    async with (
        upstream(_GAP) as source,
        gateway(source.base_url, scene.core, drain_timeout=patience) as (replica, client),
    ):
        opened = await _opened(client, source, streams)
        told = await _ended(replica, client, source, opened, signals)
        ends = Counter(_end_of(one.reply, resumable=bool(one.id)) for one in opened)
        wrong = [one for one in opened if _end_of(one.reply, resumable=bool(one.id)) not in _allowed(one, signals)]
        after = await _after_restart(replica, opened) if signals is _once else None
    scene.told(f"{streams} open streams, {name} (drain_timeout = {patience:g}): ends", _listed(ends))
    scene.at_most("  ended in silence", ends[_SILENT], 0, count)
    scene.at_most("  ended otherwise than they should", len(wrong), 0, count)
    scene.at_most("  /readyz says 503 after, s", told.unready, _SOON)
    scene.at_most("  new work not refused as draining, with Retry-After", _not_draining(told), 0, count)
    scene.at_most("  exit code", told.code if told.code is not None else 99, 0, count)
    most = patience + _GONE_AGAIN if signals is _once else _GONE_AGAIN
    scene.at_most("  from the last signal to the process's end, s", told.seconds, most)
    if after is not None:
        scene.at_most("  after a restart: resumable ones that read otherwise", after, 0, count)


async def _opened(client: Client, source: Upstream, streams: int) -> list[_Open]:
    gate, draw = asyncio.Semaphore(32), Random(8)

    async def one(place: int) -> _Open:
        async with gate:
            name = f"d{place}"
            id_ = await client.begin(name) if place % 2 else ""
            reply = await (client.events(id_) if id_ else client.chat(name))
        await source.came(name, 2)
        return _Open(name, id_, reply, draw.random() < 0.5)

    return list(await asyncio.gather(*map(one, range(streams))))


async def _ended(replica: Replica, client: Client, source: Upstream, opened: list[_Open], signals: _Signals) -> _Told:
    told, began = _Told(), time.monotonic()
    sending = asyncio.create_task(signals(replica), name="signals")
    while told.unready == float("inf"):
        if (await client.ask("GET", "/readyz"))[0] == 503:
            told.unready = time.monotonic() - began
    told.refused = [await _refusal(client, *one) for one in _new_work()]
    for one in opened:  # within what is left of a second
        if one.ends:
            source.calls[one.name].finish()
            await asyncio.sleep(1 / len(opened))
    told.code = await asyncio.to_thread(replica.process.wait, 60)
    told.seconds = time.monotonic() - await sending
    await asyncio.wait([one.reply.over for one in opened], timeout=5)
    return told


def _new_work() -> list[tuple[str, dict[str, Any]]]:
    ask = asked("new")
    chat = "/v1/chat/completions"
    return [(chat, ask), (chat, {**ask, "stream": True}), ("/v1/streams", {"url": chat, "body": ask})]


async def _refusal(client: Client, path: str, body: object) -> str:
    reply = await client.send(request("POST", path, body))
    await reply.over
    return reply.text().decode()


def _not_draining(told: _Told) -> int:
    refused = told.refused or []
    good = [text.startswith("HTTP/1.1 503") and '"draining"' in text and "retry-after: " in text for text in refused]
    return good.count(False) + (0 if refused else 1)


def _end_of(reply: Reply, *, resumable: bool) -> str:
    """Returns: What the reader is left with."""
    events = reply.events()
    last = events[-1] if events else None
    if last is None or not reply.whole:
        return _SILENT
    if last.data == b"[DONE]" and (not resumable or last.name == b"done"):
        return _DONE
    if last.data.startswith(b'{"error"') and (not resumable or last.name == b"error"):
        return f"error: {json.loads(last.data)['error']['code']}"
    return _SILENT


def _allowed(one: _Open, signals: _Signals) -> set[str]:
    """Returns: Ends that it may have; whose upstream ends just before the second signal may be cut by it."""
    if not one.ends:
        return {_DRAINING}
    return {_DONE} if signals is _once else {_DONE, _DRAINING}


def _listed(ends: Counter[str]) -> str:
    return ", ".join(f"{number} {end}" for end, number in ends.most_common())


async def _after_restart(replica: Replica, opened: list[_Open]) -> int:
    """Returns: Resumable streams that do not end as their readers were told, or have another text."""
    await replica.start()
    client, wrong = client_of(replica), 0
    for one in opened:
        if one.id:
            again = await client.events(one.id)
            await again.over
            wrong += [event[:3] for event in again.events()] != [event[:3] for event in one.reply.events()]
    return wrong
