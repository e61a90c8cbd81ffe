"""One attempt in the air: the slot and the breaker's permit it gives back, and whom it tells how it went."""

import asyncio
import time
from collections.abc import Mapping

from app.errors import ClientHungUpError, DeadlineError, GatewayError, InternalError
from app.policies import outcome
from app.policies.breaker import Permit
from app.telemetry import ABANDONED, UpstreamFigures
from app.upstream.admission import Slot
from app.upstream.body import Events
from app.upstream.types import Reply
from app.wire.usage import counted

_ABANDONING = (ClientHungUpError, asyncio.CancelledError, GeneratorExit)


class Flight:
    """Args:
    slot: Released when the flight ends.
    permit: The breaker's; goes back when the verdict is known.
    whole: A whole reply was asked for, not a stream.
    alone: There is no other target for such calls.
    """

    __slots__ = (
        "_alone",
        "_ended",
        "_events",
        "_open",
        "_permit",
        "_struck",
        "began",
        "figures",
        "patience",
        "slot",
        "usage",
    )

    def __init__(self, slot: Slot, permit: Permit, figures: UpstreamFigures, *, whole: bool, alone: bool) -> None:
        self.slot = slot
        self.figures = figures
        self.patience = slot.family.patience[whole]
        self.began = time.monotonic()
        self.usage: tuple[int, int] | None = None
        self._events: Events | None = None
        self._permit: Permit | None = permit
        self._alone = alone
        self._open = self._ended = self._struck = False

    def opened(self, events: Events | None) -> None:
        """The reply stays open: the flight ends when it is closed. Args: events: If it is a stream of them."""
        self._open = True
        self._events = events

    def heard(self, reply: Reply, headers: Mapping[str, str]) -> None:
        """The reply is here, or its first event. Args: headers: All that the upstream sent."""
        if reply.status < 400:
            seconds = time.monotonic() - self.began
            self.figures.answered(seconds)
            self.patience.see(seconds)
            self.slot.answered(headers, self.usage, whole=not self._open)
            self._verdict(None)
        else:
            judged = outcome.of_status(reply.status, reply.error_code)
            if judged.too_much:
                self.slot.refused(reply.status, headers)
            else:
                self.slot.let_in()
            self._verdict(str(reply.status) if judged.sick else None)
        if not self._open:
            self.end(reply.status, None)

    def closed(self, status: int, failure: BaseException | None) -> None:
        """The reply's body has been given back."""
        if self._open:
            self.end(status, failure)

    def end(self, status: int | None, failure: BaseException | None) -> None:
        """Gives everything back, the first time it is called.

        Args:
            status: Of the upstream's reply; None: there was none.
            failure: What ended it, unless the reply is whole.
        """
        if self._ended:
            return
        self._ended = True
        seconds = time.monotonic() - self.began
        name = _name(status, failure)
        if isinstance(failure, GatewayError) and name != ABANDONED:
            self._failed(failure, name, seconds)
        if self._permit is not None:  # no verdict
            self.slot.family.breaker.abandoned(self._permit)
        if self._events is not None:
            self.usage = counted(self._events.tail)
        counts = name == ABANDONED or (status is not None and status < 400)
        self.slot.release(answered=counts, complete=failure is None, usage=self.usage)
        self.figures.ended(name, ok=name.startswith(("2", "3")), seconds=seconds)

    def overdue(self) -> None:
        """It has heard nothing for too long: that counts as a failure until something comes."""
        self._verdict("overdue")

    def _failed(self, failure: GatewayError, name: str, seconds: float) -> None:
        judged = outcome.of_error(failure)
        if judged.too_much:
            self.slot.refused(504, {})
        # whether a deadline was too short or the upstream too slow, only its usual times can tell
        usual = self.patience.overdue
        is_late = type(failure) is DeadlineError and not self._open and usual is not None and seconds > usual
        if judged.sick or is_late:
            self._verdict(name)

    def _verdict(self, sick: str | None) -> None:
        """Args: sick: The failure's name; None: the target is well."""
        family, permit = self.slot.family, self._permit or "call"
        self._permit = None
        if sick is None:
            family.is_well(permit)
        elif not self._struck:
            self._struck = True
            family.strike(permit, sick, alone=self._alone)


def _name(status: int | None, failure: BaseException | None) -> str:
    """Returns: How the figures call this end."""
    if isinstance(failure, _ABANDONING):
        return ABANDONED
    if isinstance(failure, GatewayError):
        return failure.code or failure.type
    return str(status) if failure is None else InternalError.type
