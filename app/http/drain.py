"""From SIGTERM to the end: no new work, what runs may finish, what does not is told so, then the server stops.

The signal is caught in the lifespan, so that it is the same with one process or several workers. uvicorn's own handler,
which closes the doors at once, is called last: until then `/readyz` can say 503.
"""

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

from app.errors import DrainingError

_LAST_WORDS_SECONDS = 2.0  # for error events to go out
_SAME_SIGNAL_SECONDS = 1.0  # a process group's signal comes once from outside and once from the parent


class Drain:
    """Args: patience: Seconds that calls may go on.

    Attributes:
        started: No new work is taken.
        began: Set just behind it.
        over: Set when patience is at its end: what still runs ends now.
    """

    def __init__(self, patience: float) -> None:
        self.started = False
        self.began = asyncio.Event()
        self.over = asyncio.Event()
        self._patience = patience
        self._since = 0.0
        self._hurry = asyncio.Event()
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
    def cancels(self, watch: "asyncio.Task[Any]") -> Iterator[None]:
        """Cancels `watch`, should patience come to its end inside the block."""
        self._watches.add(watch)
        try:
            yield
        finally:
            self._watches.discard(watch)

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Begins the drain at SIGTERM or SIGINT; a second one ends the patience, not the last words."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def handle(number: int, _: FrameType | None) -> None:
            if self.started:
                if time.monotonic() - self._since > _SAME_SIGNAL_SECONDS:
                    loop.call_soon_threadsafe(self._hurry.set)
                return
            self.started = True
            self._since = time.monotonic()
            stop = before[signal.Signals(number)]
            loop.call_soon_threadsafe(self._begin, partial(stop, number, None) if callable(stop) else loop.stop)

        for number in before:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _begin(self, stop: Callable[[], object]) -> None:
        self.began.set()
        self._task = asyncio.create_task(self._run(stop), name="drain")

    async def _run(self, stop: Callable[[], object]) -> None:
        try:
            await self._idle_within(self._patience)
            self.over.set()
            for watch in list(self._watches):
                watch.cancel()
            await self._idle_within(_LAST_WORDS_SECONDS)
        finally:
            stop()

    async def _idle_within(self, seconds: float) -> None:
        """Waits for the last call to end; not after a second signal, and for `seconds` at most."""
        waits = {asyncio.create_task(self._idle.wait()), asyncio.create_task(self._hurry.wait())}
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)
        self._hurry = asyncio.Event()
