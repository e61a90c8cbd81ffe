"""A second target for a call whose first one is slower than it nearly always is; the loser is cancelled.

Source: J. Dean, L. A. Barroso, "The Tail at Scale", CACM 2013.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from app.policies.budget import HedgeBudget
from app.policies.outcome import Outcome
from app.policies.routing import Target
from app.upstream.attempt import Upstream
from app.upstream.types import Call, Reply, Trace

Send = Callable[[Call, Sequence[Target]], Awaitable[tuple[Reply, Outcome]]]
_Task = asyncio.Task[tuple[Reply, Outcome]]


class Hedger:
    """Args: upstreams: By name."""

    def __init__(self, upstreams: Mapping[str, Upstream]) -> None:
        self._upstreams = upstreams
        self._budgets: dict[str, HedgeBudget] = {}  # by public name: only names of the settings come here

    async def send(self, call: Call, targets: Sequence[Target], send: Send) -> Reply:
        """Args:
            targets: Two at least.
            send: Asks some targets in turn.
        Returns:
            The first usable reply, else the last one.
        Raises:
            GatewayError: There was no reply.
        """
        traces = [Trace(), Trace()]
        tasks: list[_Task] = []

        def start(some: Sequence[Target]) -> None:
            work = send(replace(call, trace=traces[len(tasks)]), some)
            tasks.append(asyncio.create_task(_awaited(work), name="hedged call"))

        winner: _Task | None = None
        try:
            start(targets)
            await asyncio.wait(tasks, timeout=self._patience(call, targets[0]))
            if not tasks[0].done() and self._may(call, targets[1]):
                start(targets[1:])
            winner = await _first_usable(tasks)
            reply, _ = winner.result()
            return reply
        finally:
            for task in tasks:
                if task is not winner:
                    await _dismiss(task)
            _sum_up(call.trace, traces, tasks.index(winner) if winner else 0)

    def _patience(self, call: Call, target: Target) -> float | None:
        """Returns: Seconds that the first target has; None: too little is known of it."""
        family = self._upstreams[target.upstream].admission.family(target.model)
        self._budget(call).called()
        return family.patience[not call.stream].hedge

    def _budget(self, call: Call) -> HedgeBudget:
        return self._budgets.setdefault(call.model or "", HedgeBudget())

    def _may(self, call: Call, second: Target) -> bool:
        return self._budget(call).spend() and self._upstreams[second.upstream].budget.spend()


async def _awaited(work: Awaitable[tuple[Reply, Outcome]]) -> tuple[Reply, Outcome]:
    return await work


async def _first_usable(tasks: list[_Task]) -> _Task:
    """Returns: The first that succeeded, else the last to fail."""
    running = set(tasks)
    while True:
        done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        usable = [task for task in done if task.exception() is None and not task.result()[1].reroute]
        if usable or not running:
            return (usable or list(done))[0]


async def _dismiss(task: _Task) -> None:
    """Cancels a loser, upstream too; a reply that it has already is given back."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and task.exception() is None:
        await task.result()[0].aclose()


def _sum_up(whole: Trace, parts: list[Trace], winner: int) -> None:
    whole.upstream = parts[winner].upstream
    whole.attempts = sum(part.attempts for part in parts)
    whole.queue_ms, whole.upstream_ms = parts[winner].queue_ms, parts[winner].upstream_ms
