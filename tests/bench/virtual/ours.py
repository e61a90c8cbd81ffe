"""The gateway's own admission point as a contender: the real policy code, told of nothing beforehand."""

from collections.abc import Iterator

from app.policies.estimate import TokenEstimate
from app.policies.lanes import Ticket
from app.policies.limiter import Limiter
from app.policies.limits import Limits
from tests.bench.virtual.contenders import Contender
from tests.bench.virtual.upstreams import Reply, Upstream
from tests.bench.virtual.world import Call

_BYTES_A_TOKEN = 4
_PLENTY = 10**9  # places beyond the limiter: it alone decides here


class Ours(Contender):
    """All calls pass the limiter, the interactive ones too. People's are streamed, the jobs' answers come whole."""

    def __init__(self, upstream: Upstream) -> None:
        super().__init__(upstream)
        self.limiter = Limiter(Limits(), self.now)
        self._estimate = TokenEstimate()
        self._calls: dict[Ticket, Call] = {}
        self._tickets: dict[Call, Ticket] = {}
        self._at_once: list[Ticket] = []

    def offer(self, call: Call) -> None:
        tokens = self._estimate.of(call.prompt * _BYTES_A_TOKEN, None)
        lane = "batch" if call.batch else "interactive"
        ticket = Ticket(call.caller, lane, tokens, patient=call.batch)  # type: ignore[arg-type]
        self._calls[ticket], self._tickets[call] = call, ticket
        if self.limiter.enter(ticket, self.now):
            self._at_once.append(ticket)

    def pump(self) -> Iterator[Call]:
        let_go, self._at_once = self._at_once, []
        for ticket in let_go:
            yield self._calls.pop(ticket)
        for ticket in self.limiter.admit(self.now, _PLENTY):
            yield self._calls.pop(ticket)

    def opens_in(self) -> float | None:
        return self.limiter.opens_in(self.now)

    def first(self, call: Call, reply: Reply) -> None:
        if call.batch:  # its head comes with its last byte
            return
        ticket = self._tickets[call]
        self.limiter.first_byte(ticket, self.now, tokens=None, whole=False)
        self.limiter.told(ticket, reply.requests, reply.tokens, self.now)

    def ended(self, call: Call, reply: Reply) -> float | None:
        ticket, now = self._tickets.pop(call), self.now
        if not reply.ok:
            self.limiter.refused(
                ticket, now, retry_after=reply.retry_after, requests=reply.requests, tokens=reply.tokens
            )
            self.limiter.ended(ticket, now, used=None, answered=False)
            return super().ended(call, reply)
        if call.batch:
            self.limiter.first_byte(ticket, now, tokens=call.output, whole=True)
            self.limiter.told(ticket, reply.requests, reply.tokens, now)
        self._estimate.learn(call.prompt * _BYTES_A_TOKEN, call.prompt, call.output)
        self.limiter.ended(ticket, now, used=call.tokens, answered=True)
        return None
