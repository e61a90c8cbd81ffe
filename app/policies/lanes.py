"""Who is next: interactive before batch, and within a lane a fair share of tokens for every caller.

Source: M. Shreedhar, G. Varghese, "Efficient Fair Queueing Using Deficit Round-Robin", SIGCOMM 1995.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from app.policies.bucket import Mark

_QUANTUM = 500.0  # tokens: a usual call's

Lane = Literal["interactive", "batch"]


@dataclass(slots=True, eq=False)
class Ticket:
    """One attempt that asks to be sent.

    Attributes:
        caller: Whose share it counts against.
        tokens: What it will probably cost: prompt and answer.
        deadline: When it must be over, on the clock of those who ask.
        patient: Its queueing is bounded elsewhere: it is never refused.
        sent_at: When it was let go; None while it waits.
        charged: Its caller's share has paid for it: others were waiting, too.
    """

    caller: str = ""
    lane: Lane = "interactive"
    tokens: float = 1.0
    deadline: float = float("inf")
    patient: bool = False
    sent_at: float | None = None
    charged: bool = False
    requests_mark: Mark | None = None
    tokens_mark: Mark | None = None


@dataclass(slots=True)
class _Line:
    """One caller's tickets in one lane."""

    tickets: OrderedDict[Ticket, None] = field(default_factory=OrderedDict)
    deficit: float = 0.0

    @property
    def head(self) -> Ticket:
        return next(iter(self.tickets))


class FairQueue:
    """Deficit round robin: at each visit a caller may send one quantum of tokens more; what it leaves, it keeps."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._round: deque[str] = deque()
        self._visited = False  # the caller in front has had its quantum
        self.tokens = 0.0
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Ticket]:
        for line in self._lines.values():
            yield from line.tickets

    def put(self, ticket: Ticket) -> None:
        line = self._lines.get(ticket.caller)
        if line is None:
            line = self._lines[ticket.caller] = _Line()
            self._round.append(ticket.caller)
        line.tickets[ticket] = None
        self.tokens += ticket.tokens
        self.count += 1

    def peek(self) -> Ticket:
        """Returns: Whose turn it is. The queue must not be empty."""
        if len(self._round) == 1:
            return self._lines[self._round[0]].head
        passed_over = 0
        while True:
            line = self._lines[self._round[0]]
            if not self._visited:
                line.deficit += _QUANTUM
                self._visited = True
            if line.deficit >= line.head.tokens:
                return line.head
            self._next()
            passed_over += 1
            if passed_over == len(self._round):
                self._skip_rounds()

    def _next(self) -> None:
        self._round.rotate(-1)
        self._visited = False

    def _skip_rounds(self) -> None:
        """All heads cost more than a quantum: as many rounds as nobody is served in are gone through at once."""
        missing = min(line.head.tokens - line.deficit for line in self._lines.values())
        rounds = max(0, math.ceil(missing / _QUANTUM) - 1)
        for line in self._lines.values():
            line.deficit += rounds * _QUANTUM

    def pop(self) -> Ticket:
        ticket = self.peek()
        if len(self._round) > 1:  # alone, nobody is owed anything
            self._lines[ticket.caller].deficit -= ticket.tokens
            ticket.charged = True
        self.remove(ticket)
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """Takes out a ticket wherever it stands."""
        line = self._lines[ticket.caller]
        del line.tickets[ticket]
        self.count -= 1
        self.tokens = self.tokens - ticket.tokens if self.count else 0.0
        if not line.tickets:  # who has nothing to send saves nothing up
            if self._round[0] == ticket.caller:
                self._visited = False
            del self._lines[ticket.caller]
            self._round.remove(ticket.caller)

    def settle(self, ticket: Ticket, difference: float) -> None:
        """A call cost less (more, if negative) than its ticket said: its caller's share is made good."""
        if ticket.charged and (line := self._lines.get(ticket.caller)) is not None:
            line.deficit += difference
