"""A round trip is over when half a window of calls was sent and answered in it; what it has shown is told to the limit."""

import pytest

from app.policies.concurrency import FixedLimit, Round
from app.policies.rounds import Rounds


class Listening(FixedLimit):
    """Remembers what it was told."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.seen: list[Round] = []
        self.refusals: list[tuple[float, int]] = []
        self.mistaken = False  # what it is told of waiting has turned out to be the work

    def ended(self, seen: Round, now: float) -> bool:
        self.seen.append(seen)
        return self.mistaken and bool(seen.queued)

    def refused(self, sent_at: float, company: int, now: float) -> None:
        self.refusals.append((sent_at, company))


def answer(rounds: Rounds, count: int, sent_at: float, now: float, *, metered: bool = False) -> None:
    for _ in range(count):
        rounds.answered(sent_at, now, tokens=None, whole=False, metered=metered)


def streams(
    waits: list[float], *, metered: bool = False, refused: int | None = None, mistaken: bool = False
) -> Listening:
    """One round after the other of ten streams, each begun after the other's end; the first token comes so late."""
    limit, now = Listening(20), 0.0
    limit.mistaken = mistaken
    rounds = Rounds(limit, now)
    if refused is not None:
        rounds.refused(0.0, refused, 0.0)
    for wait in waits:
        rounds.moved(0, now)
        rounds.moved(10, now + wait)
        answer(rounds, 10, now, now + wait, metered=metered)
        now += wait
    return limit


def test_a_round_trip_is_half_a_window_there_and_back() -> None:
    limit = Listening(10)
    rounds = Rounds(limit, 0.0)
    answer(rounds, 4, 0.0, 1.0)
    assert limit.seen == []
    answer(rounds, 1, 0.0, 1.0)
    assert len(limit.seen) == 1
    answer(rounds, 9, 0.5, 1.5)  # sent before this round began
    assert len(limit.seen) == 1
    answer(rounds, 5, 1.0, 2.0)
    assert len(limit.seen) == 2


def test_it_tells_how_many_were_in_flight_on_average() -> None:
    limit = Listening(2)
    rounds = Rounds(limit, 10.0)
    rounds.moved(0, 11.0)
    rounds.moved(4, 13.0)
    rounds.moved(2, 14.0)
    answer(rounds, 1, 10.0, 14.0)
    assert limit.seen[0].in_flight == pytest.approx(10 / 4)


def test_a_clock_that_jumps_back_takes_nothing_away() -> None:
    limit = Listening(2)
    rounds = Rounds(limit, 10.0)
    rounds.moved(4, 12.0)
    rounds.moved(4, 0.0)
    answer(rounds, 1, 10.0, 12.0)
    assert limit.seen[0].in_flight == pytest.approx(4.0)


def test_it_tells_whether_the_limit_or_only_the_reserve_was_in_the_way_and_then_begins_anew() -> None:
    limit = Listening(2)
    rounds = Rounds(limit, 0.0)
    for blocked in ([], [False], [True, False]):
        for at_limit in blocked:
            rounds.blocked(at_limit=at_limit)
        answer(rounds, 1, 100.0, 100.0)
    answer(rounds, 1, 100.0, 100.0)
    assert [(one.pressed, one.wanted) for one in limit.seen] == [
        (False, False), (False, True), (True, True), (False, False)
    ]  # fmt: skip


def test_calls_that_wait_inside_are_found_by_littles_law() -> None:
    limit = streams([0.2] * 20 + [0.5])
    assert limit.seen[0].queued is None
    assert limit.seen[19].queued == 0.0
    assert limit.seen[20].queued == pytest.approx(0.3 * 10 / 0.5)
    assert [limit.seen[n].waited for n in (0, 19, 20)] == [0.0, 0.0, pytest.approx(0.3)]


def test_what_was_no_waiting_after_all_is_the_base_from_then_on() -> None:
    believed = streams([0.2] * 20 + [0.5] * 3)
    assert [one.waited for one in believed.seen[20:]] == [pytest.approx(0.3)] * 3
    rebased = streams([0.2] * 20 + [0.5] * 3 + [0.9], mistaken=True)
    assert [one.waited for one in rebased.seen[20:]] == [pytest.approx(wait) for wait in (0.3, 0.0, 0.0, 0.4)]


def test_an_upstream_that_says_when_it_has_too_many_is_believed_and_its_delay_is_not_asked() -> None:
    waits = [0.2] * 20 + [0.5]
    assert {one.queued for one in streams(waits, metered=True).seen} == {None}
    refused = streams(waits, refused=5)
    assert refused.refusals == [(0.0, 5)]
    assert {one.queued for one in refused.seen} == {None}


def test_who_is_just_not_able_has_counted_nothing_and_its_delay_goes_on_telling() -> None:
    unable = streams([0.2] * 20 + [0.5], refused=0)
    assert unable.refusals == [(0.0, 0)]
    assert unable.seen[20].queued == pytest.approx(0.3 * 10 / 0.5)


def test_two_minutes_after_a_refusal_delay_is_asked_again() -> None:
    waits = [0.2] * 620 + [0.5]
    assert streams(waits, refused=5).seen[620].queued == pytest.approx(0.3 * 10 / 0.5)


def test_a_whole_reply_of_unknown_length_tells_nothing_of_delay() -> None:
    limit = Listening(20)
    rounds = Rounds(limit, 0.0)
    for _ in range(200):
        rounds.answered(0.0, 0.0, tokens=None, whole=True, metered=False)
    assert {one.queued for one in limit.seen} == {None}
