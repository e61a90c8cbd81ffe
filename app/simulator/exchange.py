"""One request to the simulator and what can be done to it: waiting, writing, noticing that the client went."""

import asyncio

from starlette.types import Receive, Send


class HungUpError(Exception):
    pass


class Exchange:
    """One request and what can be done to it."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._gone = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    async def body(self) -> bytes:
        pieces, more = [], True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise HungUpError
            pieces.append(message.get("body", b""))
            more = message.get("more_body", False)
        self._watch = asyncio.create_task(self._until_gone(), name="simulator watch")
        return b"".join(pieces)

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone.set()

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait({self._watch})

    async def pause(self, seconds: float | None) -> None:
        """Waits; None: for ever. Raises: HungUpError: the client went meanwhile."""
        if seconds == 0:
            await asyncio.sleep(0)
        else:
            try:
                async with asyncio.timeout(seconds):
                    await self._gone.wait()
            except TimeoutError:
                pass
        if self._gone.is_set():
            raise HungUpError

    async def until(self, event: asyncio.Future[None]) -> None:
        """Waits for something inside the simulator. Raises: HungUpError: the client went before it, or with it."""
        if self._watch is not None and not event.done():
            await asyncio.wait({self._watch, event}, return_when=asyncio.FIRST_COMPLETED)
        if self._gone.is_set():
            raise HungUpError

    async def start(self, status: int, content_type: str, headers: dict[str, str] | None = None) -> None:
        sent = {"content-type": content_type, **(headers or {})}
        raw = [(name.encode(), value.encode()) for name, value in sent.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, data: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def whole(self, status: int, body: bytes, content_type: str, headers: dict[str, str]) -> None:
        await self.start(status, content_type, {**headers, "content-length": str(len(body))})
        await self.write(body, more=False)
