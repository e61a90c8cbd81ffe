"""Many calls side by side: a bounded set of tasks, results in the order that was asked, one deadline for all."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace

import msgspec

from app.errors import DeadlineError, GatewayError, InternalError, UpstreamError
from app.services.window import Window
from app.upstream.body import Events
from app.upstream.types import Call, Reply, Trace
from app.wire.assemble import Assembler
from app.wire.fanout import Item, Options, Unit
from app.wire.jsonl import one_line
from app.wire.results import Result, Summary, Timing, new_id
from app.wire.sse import payloads

log = logging.getLogger("sluicegate")
_STALLED_SECONDS = 1.0


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
        make: Makes a call of an item's own fields; adds what all items have in common.
    """

    def __init__(
        self,
        send: Callable[[Call], Awaitable[Reply]],
        items: AsyncGenerator[Item, None],
        options: Options,
        check: Callable[[str | None], None],
        most: int,
        make: Callable[..., Call] = Call,
    ) -> None:
        concurrency = min(options.concurrency or most, most)
        self.summary = Summary()
        self._began = time.monotonic()
        self._send = send
        self._make = make
        self._items = items
        self._options = options
        self._check = check
        self._flying = asyncio.Semaphore(concurrency)
        self._window = Window(concurrency)
        self._out: asyncio.Queue[Event | BaseException | None] = asyncio.Queue(self._window.places)
        self._turns: dict[int, Result] = {}
        self._turn = 0
        self._taking_turns = asyncio.Lock()
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
                self._window.leave(len(event.body))
                self.summary.count(event)
            yield event

    async def aclose(self, failure: BaseException | None = None) -> None:  # noqa: ARG002 - a Source's signature
        """Cancels every call that still runs. May be called twice."""
        tasks = {self._feeder, *self._tasks}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._items.aclose()

    async def _feed(self) -> None:
        try:
            await self._start_all()
            while self._tasks:
                await asyncio.wait(self._tasks)
        except Exception as error:  # noqa: BLE001 - it is raised again, where the results are read
            await self._out.put(error)
        else:
            await self._out.put(None)

    async def _start_all(self) -> None:
        turn = 0
        while (item := await self._next()) is not None:
            together = self._options.mode == "race" or not item.units
            for units in [item.units] if together else [(unit,) for unit in item.units]:
                await self._window.enter(item.size)
                task = asyncio.create_task(self._run(item, units, turn), name=f"fan-out item {item.index}")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                turn += 1

    async def _next(self) -> Item | None:
        """Returns: The next item; None: that was all, or the deadline has passed and the input stalls.

        An input that goes on after the deadline is read to its end: each of its items is told of its timeout.
        """
        remaining = self._remaining()
        try:
            async with asyncio.timeout(None if remaining is None else max(remaining, _STALLED_SECONDS)):
                return await anext(self._items, None)
        except TimeoutError:
            self.summary.truncated = True
            return None

    def _remaining(self) -> float | None:
        return None if self._options.timeout is None else self._options.timeout - self.wall_ms / 1000

    async def _run(self, item: Item, units: tuple[Unit, ...], turn: int) -> None:
        if item.flaw is not None:
            message = f"{item.flaw.param}: {item.flaw.message}" if item.flaw.param else item.flaw.message
            result = _without_reply(item, None, Timing(), "invalid_request", message)
        elif len(units) == 1:
            result = await self._unit(item, units[0])
        else:
            result = await self._race(item, units)
        self._window.swap(item.size, len(result.body))
        if self._options.order == "completed":
            await self._out.put(result)
            return
        self._turns[turn] = result
        async with self._taking_turns:  # else a result could overtake one that waits for a place in the queue
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
        trace = Trace()
        asked = time.monotonic()
        async with self._flying:
            trace.queue_ms = (time.monotonic() - asked) * 1000
            try:
                reply = await self._exchange(item, unit, trace)
            except GatewayError as error:
                return _failed(item, unit, trace, error)
            except Exception:
                log.exception("bug in a fan-out item", extra={"fields": {"index": item.index}})
                return _failed(item, unit, trace, InternalError("an internal error; the service's log has it"))
            request_id = reply.request_id or new_id("req_")
            return Result(item.index, item.custom_id, unit.model, _timing(trace), reply.status, request_id, reply.body)

    async def _exchange(self, item: Item, unit: Unit, trace: Trace) -> Reply:
        """Returns: The reply, whole, whether it was streamed or not."""
        self._check(unit.peek.model)
        timeout = self._remaining()
        if timeout is not None and timeout <= 0:
            raise DeadlineError("the fan-out's timeout passed")
        call = self._make(
            unit.endpoint,
            unit.endpoint.path,
            unit.body(),
            model=unit.peek.model,
            stream=unit.peek.stream,
            most_output=unit.peek.most_output,
            timeout=timeout,
            patient=True,
            trace=trace,
        )
        reply = await self._send(call)
        if reply.events is None:
            return reply
        failure: BaseException | None = None
        began = time.monotonic()
        try:
            return replace(reply, body=await self._streamed(item, unit, reply.events), events=None)
        except BaseException as error:
            failure = error
            raise
        finally:
            trace.upstream_ms += (time.monotonic() - began) * 1000
            await reply.aclose(failure)

    async def _streamed(self, item: Item, unit: Unit, events: Events) -> bytes:
        """Hands every chunk out as it comes. Returns: The answer put together."""
        whole = Assembler()
        head = {"index": item.index, "custom_id": item.custom_id, "model": unit.model or unit.peek.model}
        async for block in events:
            for payload in map(one_line, payloads(block)):
                await self._out.put(Chunk(msgspec.json.encode({**head, "chunk": msgspec.Raw(payload)})))
                whole.add(payload)
        if events.reader.error is not None:
            raise UpstreamError(f"the upstream ended its stream with an error: {events.reader.error.decode()}")
        return whole.body()


def _failed(item: Item, unit: Unit, trace: Trace, error: GatewayError) -> Result:
    timing = _timing(trace)
    if error.status >= 500:
        return _without_reply(item, unit.model, timing, error.cause, error.message)
    return Result(item.index, item.custom_id, unit.model, timing, error.status, new_id("req_"), error.envelope())


def _without_reply(item: Item, model: str | None, timing: Timing, code: str, message: str) -> Result:
    return Result(item.index, item.custom_id, model, timing, code=code, message=message)


def _timing(trace: Trace) -> Timing:
    return Timing(round(trace.queue_ms, 1), round(trace.upstream_ms, 1), trace.attempts)
