"""A timeout for something that is awaited again and again: one timer for a whole stream, not one for every token."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Alarm:
    """As `asyncio.timeout_at` around each wait, at a twentieth of its cost.

    The timer is left running when a wait ends in time; when it fires, it looks whether the wait of that moment is due,
    and sets itself anew if not.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Any] | None = None
        self._when = 0.0
        self._rang = False

    async def guard(self, work: Coroutine[Any, Any, T], when: float) -> T:
        """Args: when: On the event loop's clock.

        Raises: TimeoutError: It came first; the work is cancelled.
        """
        self._task = asyncio.current_task()
        self._when = when
        if self._timer is None or when < self._timer.when():
            self._set()
        try:
            return await work
        except asyncio.CancelledError:
            if self._rang:
                self._rang = False
                if self._task is not None and self._task.uncancel() == 0:
                    raise TimeoutError from None
            raise
        finally:
            self._task = None

    def _set(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._when, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._task is None:
            return  # nobody waits; the next wait sets it again
        if self._loop.time() >= self._when:
            self._rang = True
            self._task.cancel()
        else:
            self._set()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
