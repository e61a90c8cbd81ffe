"""The one way to an upstream: the ordered policy stack, from the deadline down to the wire."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping

import msgspec

from app.errors import DeadlineError, GatewayError
from app.policies import outcome
from app.policies.outcome import Outcome
from app.policies.retry import RetryPolicy, retry_after_of
from app.policies.routing import Router, Target
from app.upstream.attempt import Upstream
from app.upstream.types import Call, Reply


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

    @property
    def slots(self) -> int:
        """Calls that can be in flight at once, over all upstreams."""
        return sum(upstream.admission.limit for upstream in self.upstreams.values())

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
            async with asyncio.timeout_at(deadline):
                return await self._routed(call, targets, deadline)
        except TimeoutError:
            raise DeadlineError(f"no reply within {seconds:g} seconds") from None

    async def _routed(self, call: Call, targets: tuple[Target, ...], deadline: float) -> Reply:
        # 2. route: the next target on a failure that another one could cure
        for target in targets[:-1]:
            try:
                reply, judged = await self._retried(call, target, deadline, alternative=True)
            except GatewayError as error:
                if not outcome.of_error(error).reroute:
                    raise
            else:
                if not judged.reroute:
                    return reply
        reply, _ = await self._retried(call, targets[-1], deadline, alternative=False)
        return reply

    async def _retried(
        self, call: Call, target: Target, deadline: float, *, alternative: bool
    ) -> tuple[Reply, Outcome]:
        # 3. retry: only what can succeed, and only here, before anything went to the client
        upstream = self.upstreams[target.upstream]
        call.trace.upstream = upstream.name
        attempt = 0
        while True:
            attempt += 1
            call.trace.attempts += 1
            failure, retry_after = None, None
            try:
                # 4. admission, 5. breaker, 6. client: a slot per attempt, never held while backing off
                reply = await upstream.attempt(call, target, deadline)
                judged = outcome.of_status(reply.status, _error_code(reply))
                if judged.retry:
                    retry_after = retry_after_of(reply.headers, time.time())
            except GatewayError as error:
                failure, judged = error, outcome.of_error(error)
            wait = None
            if judged.retry:
                remaining = deadline - asyncio.get_running_loop().time()
                wait = self._retry.wait(
                    attempt, retry_after=retry_after, remaining=remaining, draw=self._draw, alternative=alternative
                )
            if wait is not None:
                await asyncio.sleep(wait)
            elif failure is not None:
                raise failure
            else:
                return reply, judged

    async def aclose(self) -> None:
        """Closes every upstream's connections."""
        for upstream in self.upstreams.values():
            await upstream.client.aclose()


class _Error(msgspec.Struct):
    code: str | int | None = None
    type: str | None = None


class _Envelope(msgspec.Struct):
    error: _Error | None = None


_ENVELOPE = msgspec.json.Decoder(_Envelope)


def _error_code(reply: Reply) -> str | None:
    if reply.status < 400:
        return None
    try:
        error = _ENVELOPE.decode(reply.body).error
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if error is None:
        return None
    return "insufficient_quota" if "insufficient_quota" in {error.code, error.type} else str(error.code)
