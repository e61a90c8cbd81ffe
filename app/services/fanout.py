"""Many calls side by side: a bounded set of tasks, results in the order that was asked, one deadline for all."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import msgspec

from app.errors import DeadlineError, GatewayError, UpstreamCutError
from app.upstream.body import Events
from app.upstream.types import Call, Reply, Trace
from app.wire.assemble import Assembler
from app.wire.fanout import Item, Options, Unit
from app.wire.results import Result, Summary, Timing, new_id
from app.wire.sse import payloads

_AHEAD = 1024  # items that may wait for an earlier one's turn, or for a slow reader, beside those in flight


@dataclass(frozen=True, slots=True)
class Chunk:
    """A token of a streamed item."""

    data: bytes


Event = Result | Chunk


class Fanout:
    """One run. Iterate over it for results; `aclose` cancels what is left, upstream too.

    Args:
        send: The way to an upstream.
        items: Read only as fast as results are taken.
        check: Raises a `GatewayError` where the caller may not use a model.
        most: Calls in flight at once: the server's own limit.
    """

    def __init__(
        self,
        send: Callable[[Call], Awaitable[Reply]],
        items: AsyncIterator[Item],
        options: Options,
        check: Callable[[str | None], None],
        most: int,
    ) -> None:
        concurrency = min(options.concurrency or most, most)
        self.summary = Summary()
        self._began = time.monotonic()
        self._send = send
        self._items = items
        self._options = options
        self._check = check
        self._flying = asyncio.Semaphore(concurrency)
        self._window = asyncio.Semaphore(concurrency + _AHEAD)
        self._out: asyncio.Queue[Event | BaseException | None] = asyncio.Queue(concurrency + _AHEAD)
        self._turns: dict[int, Result] = {}
        self._turn = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._feeder = asyncio.create_task(self._feed(), name="fan-out feeder")

    @property
    def wall_ms(self) -> float:
        return (time.monotonic() - self._began) * 1000

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (event := await self._out.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, Result):
                self._window.release()
                self.summary.count(event)
            yield event

    async def aclose(self, failure: BaseException | None = None) -> None:  # noqa: ARG002 - a Source's signature
        """Cancels every call that still runs. May be called twice."""
        tasks = {self._feeder, *self._tasks}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _feed(self) -> None:
        try:
            turn = 0
            async for item in self._items:
                together = self._options.mode == "race" or not item.units
                for units in [item.units] if together else [(unit,) for unit in item.units]:
                    await self._window.acquire()
                    task = asyncio.create_task(self._run(item, units, turn), name=f"fan-out item {item.index}")
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                    turn += 1
            while self._tasks:
                await asyncio.wait(self._tasks)
        except Exception as error:  # noqa: BLE001 - it is raised again, where the results are read
            await self._out.put(error)
        else:
            await self._out.put(None)

    async def _run(self, item: Item, units: tuple[Unit, ...], turn: int) -> None:
        if item.flaw is not None:
            code = "invalid_request"
            result = Result(item, None, Timing(), code=code, message=_sentence(item.flaw))
        elif len(units) == 1:
            result = await self._unit(item, units[0])
        else:
            result = await self._race(item, units)
        if self._options.order == "completed":
            await self._out.put(result)
            return
        self._turns[turn] = result
        while (next_one := self._turns.pop(self._turn, None)) is not None:
            self._turn += 1
            await self._out.put(next_one)

    async def _race(self, item: Item, units: tuple[Unit, ...]) -> Result:
        """Returns: The first success, else the last failure. The losers are cancelled upstream."""
        runners = [asyncio.create_task(self._unit(item, unit), name="fan-out race") for unit in units]
        try:
            for next_done in asyncio.as_completed(runners):
                result = await next_done
                if result.ok:
                    break
        finally:
            for runner in runners:
                runner.cancel()
            await asyncio.gather(*runners, return_exceptions=True)
        return result

    async def _unit(self, item: Item, unit: Unit) -> Result:
        async with self._flying:
            trace = Trace()
            try:
                status, body = await self._exchange(item, unit, trace)
            except GatewayError as error:
                return self._failed(item, unit, trace, error)
            return Result(item, unit.model, _timing(trace), status, new_id("req_"), body)

    async def _exchange(self, item: Item, unit: Unit, trace: Trace) -> tuple[int, bytes]:
        self._check(unit.peek.model)
        timeout = None
        if self._options.timeout is not None:
            timeout = self._options.timeout - self.wall_ms / 1000
            if timeout <= 0:
                raise DeadlineError("the fan-out's timeout passed")
        call = Call(
            unit.endpoint,
            unit.endpoint.path,
            unit.body,
            model=unit.peek.model,
            stream=unit.peek.stream,
            timeout=timeout,
            patient=True,
            trace=trace,
        )
        reply = await self._send(call)
        if reply.events is None:
            return reply.status, reply.body
        failure: BaseException | None = None
        try:
            return reply.status, await self._streamed(item, unit, reply.events)
        except BaseException as error:
            failure = error
            raise
        finally:
            await reply.aclose(failure)

    async def _streamed(self, item: Item, unit: Unit, events: Events) -> bytes:
        """Hands every chunk out as it comes. Returns: The answer put together."""
        whole = Assembler()
        head = {"index": item.index, "custom_id": item.custom_id, "model": unit.model or unit.peek.model}
        async for block in events:
            for payload in payloads(block):
                await self._out.put(Chunk(msgspec.json.encode({**head, "chunk": msgspec.Raw(payload)})))
                whole.add(payload)
        if events.reader.error is not None:
            raise UpstreamCutError("the upstream ended its stream with an error event")
        return whole.body()

    def _failed(self, item: Item, unit: Unit, trace: Trace, error: GatewayError) -> Result:
        timing = _timing(trace)
        if isinstance(error, DeadlineError):
            return Result(item, unit.model, timing, code="timeout", message=error.message)
        if error.status >= 500:
            return Result(item, unit.model, timing, code=error.code or error.type, message=error.message)
        return Result(item, unit.model, timing, error.status, new_id("req_"), error.envelope())


def _timing(trace: Trace) -> Timing:
    return Timing(round(trace.queue_ms, 1), round(trace.upstream_ms, 1), trace.attempts)


def _sentence(flaw: GatewayError) -> str:
    return f"{flaw.param}: {flaw.message}" if flaw.param else flaw.message
