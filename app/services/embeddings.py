"""Embedding calls whose input is longer than the upstream takes: run as several, side by side."""

import asyncio
from dataclasses import replace

from app.errors import UpstreamMalformedError
from app.upstream.call import CallStack
from app.upstream.types import Call, Reply, Trace
from app.wire import embeddings
from app.wire.endpoints import EMBEDDINGS


class Splitter:
    """The call stack, with long embedding inputs split on the way.

    Args:
        most: Inputs that one upstream call may hold.
    """

    def __init__(self, stack: CallStack, most: int) -> None:
        self._stack = stack
        self._most = most

    async def call(self, call: Call) -> Reply:
        """As `CallStack.call`. The first part that fails is the reply of the whole; the others are cancelled."""
        bodies = embeddings.split(call.body, self._most) if call.endpoint is EMBEDDINGS else [call.body]
        if len(bodies) == 1:
            return await self._stack.call(call)
        parts = [replace(call, body=body, patient=True, trace=call.trace.part()) for body in bodies]
        side_by_side = asyncio.Semaphore(self._stack.slots)

        async def send(part: Call) -> Reply:
            async with side_by_side:
                return await self._stack.call(part)

        tasks = [asyncio.create_task(send(part), name="embeddings part") for part in parts]
        try:
            for next_done in asyncio.as_completed(tasks):
                reply = await next_done
                if not reply.ok:
                    return reply
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            _sum_up(call.trace, [part.trace for part in parts])
        replies = [task.result() for task in tasks]
        try:
            return replace(replies[0], body=embeddings.join([reply.body for reply in replies], bodies))
        except (KeyError, ValueError, RecursionError):
            raise UpstreamMalformedError("the upstream's reply is not an embeddings list") from None


def _sum_up(whole: Trace, parts: list[Trace]) -> None:
    whole.upstream = parts[0].upstream
    whole.attempts = sum(part.attempts for part in parts)
    whole.queue_ms = max(part.queue_ms for part in parts)
    whole.upstream_ms = max(part.upstream_ms for part in parts)
