"""From SIGTERM to the end: no new work, what runs may finish, what does not is told so, then the server stops.

The signal is caught in the lifespan, so that it is the same with one process or several workers. uvicorn's own handler,
which closes the doors at once, is called last: until then `/readyz` can say 503.
"""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from app.errors import DrainingError

_LAST_WORDS_SECONDS = 2.0  # for error events to go out


class Drain:
    """Args: patience: Seconds that calls may go on.

    Attributes:
        started: No new work is taken.
        over: Set when patience is at its end: what still runs ends now.
    """

    def __init__(self, patience: float) -> None:
        self.started = False
        self.over = asyncio.Event()
        self._patience = patience
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._watches: set[asyncio.Task[Any]] = set()
        self._task: asyncio.Task[None] | None = None

    def error(self) -> DrainingError:
        return DrainingError("the server is shutting down", retry_after=self._patience)

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """A call that the drain waits for."""
        self._active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    @contextlib.contextmanager
    def ends(self, watch: "asyncio.Task[Any]") -> Iterator[None]:
        """Cancels `watch` when patience is at its end."""
        self._watches.add(watch)
        try:
            yield
        finally:
            self._watches.discard(watch)

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Begins the drain at SIGTERM or SIGINT; a second one ends it now."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def handle(number: int, frame: FrameType | None) -> None:
            stop = before[signal.Signals(number)]
            if not callable(stop):
                return
            if self.started:
                stop(number, frame)
            else:
                self.started = True
                loop.call_soon_threadsafe(self._begin, lambda: stop(number, None))

        for number in before:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _begin(self, stop: Callable[[], None]) -> None:
        self._task = asyncio.create_task(self._run(stop), name="drain")

    async def _run(self, stop: Callable[[], None]) -> None:
        try:
            await self._idle_within(self._patience)
            self.over.set()
            for watch in self._watches:
                watch.cancel()
            await self._idle_within(_LAST_WORDS_SECONDS)
        finally:
            stop()

    async def _idle_within(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
