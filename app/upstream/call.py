"""The one way to an upstream: the ordered policy stack, from the deadline down to the wire."""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from app.errors import CircuitOpenError, DeadlineError, GatewayError
from app.policies import outcome
from app.policies.breaker import Breaker
from app.policies.outcome import Outcome
from app.policies.retry import RetryPolicy, retry_after_of
from app.policies.routing import Router, Target
from app.upstream.attempt import Upstream
from app.upstream.hedge import Hedger
from app.upstream.types import Call, Reply, is_over

_BUDGET_SECONDS = 1.0
_PATIENCE_SECONDS = 60.0  # that a fan-out's item waits for an upstream to be well again
_GRACE_SECONDS = 0.02  # an attempt's own clock rings first: it knows whose time it was that ran out


class CallStack:
    """Args:
    upstreams: By name.
    router: Which of them may answer what.
    retry: When to try again.
    draw: A number in [0, 1): the jitter.
    """

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        router: Router,
        retry: RetryPolicy,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.upstreams = upstreams
        self.router = router
        self._retry = retry
        self._draw = draw
        self._hedger = Hedger(upstreams)

    @property
    def slots(self) -> int:
        """Calls that can be in flight at once, over all upstreams."""
        return sum(upstream.admission.most for upstream in self.upstreams.values())

    async def call(self, call: Call) -> Reply:
        """Carries one call through the stack.

        Returns:
            The upstream's reply, of any status. An open one must be closed by the caller.
        Raises:
            GatewayError: No target gave a usable reply in time.
        """
        targets = self.router.route(call.model)
        # 1. deadline: one for queue, attempts, backing off and body
        seconds = call.timeout or max(self.upstreams[t.upstream].settings.total_timeout for t in targets)
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(deadline + _GRACE_SECONDS):
                return await self._routed(call, targets, deadline)
        except TimeoutError:
            raise DeadlineError(f"no reply within {seconds:g} seconds") from None

    async def _routed(self, call: Call, targets: Sequence[Target], deadline: float) -> Reply:
        # 2. route: the next target on a failure that another one could cure
        if len(targets) == 1:
            reply, _ = await self._retried(call, targets[0], deadline, left=0, alone=True)
            return reply
        ordered = self._ordered(call, targets)
        if len(ordered) > 1 and self.router.strategy(call.model) == "hedge":

            def send(one: Call, some: Sequence[Target], more: int) -> Coroutine[Any, Any, tuple[Reply, Outcome]]:
                return self._in_turn(one, some, deadline, alone=False, more=more)

            return await self._hedger.send(call, ordered, deadline, send)
        reply, _ = await self._in_turn(call, ordered, deadline, alone=len(ordered) == 1)
        return reply

    def _ordered(self, call: Call, targets: Sequence[Target]) -> Sequence[Target]:
        """Returns: Who may be asked, in turn. If every breaker is open, the target that may be probed next."""
        if self.router.strategy(call.model) == "balance":
            by_room = {target: self._headroom(target) - self._draw() * 1e-3 for target in targets}
            targets = sorted(targets, key=by_room.__getitem__, reverse=True)
        now = asyncio.get_running_loop().time()
        well = [target for target in targets if self._breaker(target).lets_through(now)]
        return well or [min(targets, key=lambda target: self._breaker(target).open_until)]

    def _headroom(self, target: Target) -> float:
        return self.upstreams[target.upstream].admission.headroom(target.model)

    def _breaker(self, target: Target) -> Breaker:
        return self.upstreams[target.upstream].admission.family(target.model).breaker

    async def _in_turn(
        self, call: Call, targets: Sequence[Target], deadline: float, *, alone: bool, more: int = 0
    ) -> tuple[Reply, Outcome]:
        """Args:
        alone: There never was another target.
        more: Targets beside these that can still be asked.
        """
        for place, target in enumerate(targets[:-1]):
            left = len(targets) - 1 - place + more
            try:
                reply, judged = await self._retried(call, target, deadline, left=left, alone=alone)
            except GatewayError as error:
                if not outcome.of_error(error).reroute or is_over(deadline):
                    raise
            else:
                if not judged.reroute:
                    return reply, judged
        return await self._retried(call, targets[-1], deadline, left=more, alone=alone)

    async def _retried(
        self, call: Call, target: Target, deadline: float, *, left: int, alone: bool
    ) -> tuple[Reply, Outcome]:
        """Args:
        left: Targets that can still be asked after this one.
        alone: There never was another.
        """
        # 3. retry: only what can succeed, only within the budget, and only here, before anything went to the client
        upstream = self.upstreams[target.upstream]
        call.trace.upstream = upstream.name
        attempt = 0
        give_up = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
        while True:
            failure, retry_after, before = None, None, call.trace.attempts
            try:
                # 4. admission, 5. breaker, 6. client: a slot per attempt, never held while backing off
                reply = await upstream.attempt(call, target, deadline, alone=alone, last=left == 0)
                judged = outcome.of_status(reply.status, reply.error_code)
                if judged.retry:
                    retry_after = retry_after_of(reply.headers, time.time())
            except CircuitOpenError as error:
                if left or not call.patient or asyncio.get_running_loop().time() >= give_up:
                    raise
                await asyncio.sleep((error.retry_after or 0.0) * (1 + self._draw()))
                continue  # nothing was sent
            except GatewayError as error:
                failure, judged = error, outcome.of_error(error)
            if call.trace.attempts > before and not judged.ok:
                call.trace.refused()
            attempt += 1
            wait = self._wait(judged, attempt, retry_after, deadline, left)
            if wait is not None and await self._affords(upstream, give_up if call.patient and not left else 0.0):
                await asyncio.sleep(wait)
            elif failure is not None:
                raise failure
            else:
                if judged.ok:
                    upstream.budget.succeeded(retried=attempt > 1)
                return reply, judged

    def _wait(
        self, judged: Outcome, attempt: int, retry_after: float | None, deadline: float, left: int
    ) -> float | None:
        if not judged.retry:
            return None
        remaining = deadline - asyncio.get_running_loop().time()
        return self._retry.wait(
            attempt, retry_after=retry_after, remaining=remaining, draw=self._draw, alternative=left > 0
        )

    async def _affords(self, upstream: Upstream, give_up: float) -> bool:
        """Whether the upstream's budget pays for a retry; whoever is patient waits for that until `give_up`."""
        time = asyncio.get_running_loop().time
        while not upstream.budget.spend(time()):
            if time() >= give_up:
                return False
            await asyncio.sleep(_BUDGET_SECONDS * (1 + self._draw()))
        return True

    async def aclose(self) -> None:
        """Closes every upstream's connections."""
        for upstream in self.upstreams.values():
            upstream.admission.close()
            await upstream.client.aclose()
