"""A timeout for something that is awaited again and again: one timer for a whole stream, not one for every token."""

import asyncio
from typing import Any


class Alarm:
    """As `asyncio.timeout_at` around each wait, at a twentieth of its cost:

        alarm.arm(when)
        try:
            await something()
        except asyncio.CancelledError:
            alarm.raise_if_rang()
            raise
        finally:
            alarm.disarm()

    The timer is left running when a wait ends in time; when it fires, it looks whether the wait of that moment is due,
    and sets itself anew if not.
    """

    __slots__ = ("_before", "_loop", "_rang", "_task", "_timer", "_timer_when", "_when")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Any] | None = None
        self._when = self._timer_when = 0.0
        self._before = 0
        self._rang: asyncio.Task[Any] | None = None

    def arm(self, when: float) -> None:
        """Args: when: On the event loop's clock: the moment at which the running task is to be interrupted."""
        self._task = task = asyncio.current_task()
        self._before = task.cancelling() if task else 0
        self._when = when
        if self._timer is None or when < self._timer_when:  # uvloop's handles do not all know their time
            self._set()

    def disarm(self) -> None:
        self._task = None

    def raise_if_rang(self) -> None:
        """Raises: TimeoutError: The interruption was this alarm's, and nobody else's beside it."""
        task, self._rang = self._rang, None
        if task is not None and task.uncancel() <= self._before:
            raise TimeoutError

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_when = self._when
        self._timer = self._loop.call_at(self._when, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._task is None:
            return  # nobody waits; the next wait sets it again
        if self._loop.time() >= self._when:
            self._rang = self._task
            self._task.cancel()
        else:
            self._set()
