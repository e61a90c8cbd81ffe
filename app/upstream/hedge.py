"""A second target for a call whose first one is slower than it nearly always is; the loser is cancelled.

Source: J. Dean, L. A. Barroso, "The Tail at Scale", CACM 2013.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

from app.errors import GatewayError
from app.policies import outcome
from app.policies.budget import HedgeBudget
from app.policies.outcome import Outcome
from app.policies.routing import Target
from app.upstream.attempt import Upstream
from app.upstream.types import Call, Reply, Trace, is_over

Send = Callable[[Call, Sequence[Target], int], Coroutine[Any, Any, tuple[Reply, Outcome]]]
_Task = asyncio.Task[tuple[Reply, Outcome]]


class Hedger:
    """Args: upstreams: By name."""

    def __init__(self, upstreams: Mapping[str, Upstream]) -> None:
        self._upstreams = upstreams
        self._budgets: dict[str, HedgeBudget] = {}  # by public name: only names of the settings come here

    async def send(self, call: Call, targets: Sequence[Target], deadline: float, send: Send) -> Reply:
        """Args:
            targets: Two at least.
            deadline: On the event loop's clock.
            send: Asks some targets in turn; told how many more there are.
        Returns:
            The first usable reply, else the last one.
        Raises:
            GatewayError: There was no reply.
        """
        traces = [call.trace.part(), call.trace.part()]
        tasks: list[_Task] = []

        def start(some: Sequence[Target], more: int) -> None:
            work = send(replace(call, trace=traces[len(tasks)]), some, more)
            tasks.append(asyncio.create_task(work, name="hedged call"))

        winner: _Task | None = None
        is_clean = False
        try:
            start(targets[:1], len(targets) - 1)
            await asyncio.wait(tasks, timeout=self._patience(call, targets[0]))
            if not tasks[0].done() and self._may(call, targets[0]):
                start(targets[1:], 0)
            winner = await _first_usable(tasks)
            # it failed before anybody else was asked: as in fallback
            if len(tasks) == 1 and _can_be_cured(winner) and not is_over(deadline):
                start(targets[1:], 0)
                winner = await _first_usable(tasks)
            await _dismiss([task for task in tasks if task is not winner])
            is_clean = True
            return winner.result()[0]
        finally:
            if not is_clean:  # cancelled, perhaps with a winner in hand, and perhaps once more while it is given back
                await asyncio.shield(_dismiss(tasks))
            _sum_up(call.trace, traces, tasks.index(winner) if winner else 0)

    def _patience(self, call: Call, target: Target) -> float | None:
        """Returns: Seconds that the first target has; None: too little is known of it."""
        family = self._upstreams[target.upstream].admission.family(target.model)
        self._budget(call).called()
        return family.patience[not call.stream].hedge

    def _budget(self, call: Call) -> HedgeBudget:
        return self._budgets.setdefault(call.model or "", HedgeBudget())

    def _may(self, call: Call, first: Target) -> bool:
        """Whether a second target may be asked: the first one's calls that go well pay for it, as for a retry."""
        now = asyncio.get_running_loop().time()
        return self._budget(call).spend() and self._upstreams[first.upstream].budget.spend(now)


async def _first_usable(tasks: list[_Task]) -> _Task:
    """Returns: The first that succeeded, else the last to fail."""
    running = set(tasks)
    while True:
        done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        usable = [task for task in done if not _can_be_cured(task)]
        if usable or not running:
            return (usable or list(done))[0]


def _can_be_cured(task: _Task) -> bool:
    """Whether it failed where another target may not."""
    error = task.exception()
    if error is None:
        return task.result()[1].reroute
    return isinstance(error, GatewayError) and outcome.of_error(error).reroute


async def _dismiss(tasks: list[_Task]) -> None:
    """Cancels losers, upstream too; a reply that one has already is given back."""
    for task in tasks:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled() and task.exception() is None:
            await task.result()[0].aclose()


def _sum_up(whole: Trace, parts: list[Trace], winner: int) -> None:
    whole.upstream = parts[winner].upstream
    whole.attempts = sum(part.attempts for part in parts)
    whole.queue_ms, whole.upstream_ms = parts[winner].queue_ms, parts[winner].upstream_ms
