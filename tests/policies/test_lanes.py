"""Within a lane every caller gets a fair share of tokens, in the order it asked; nothing is lost or doubled."""

import itertools
from collections import Counter, deque

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.policies.lanes import FairQueue, Ticket

_SIZE = st.floats(1, 1000)
_QUANTUM = 500.0


def filled(*tickets: Ticket) -> FairQueue:
    queue = FairQueue()
    for ticket in tickets:
        queue.put(ticket)
    return queue


def many(caller: str, tokens: float, count: int) -> list[Ticket]:
    return [Ticket(caller=caller, tokens=tokens) for _ in range(count)]


def callers(queue: FairQueue, count: int) -> list[str]:
    return [queue.pop().caller for _ in range(count)]


def test_one_caller_is_served_in_the_order_it_asked() -> None:
    tickets = [Ticket(caller="a", tokens=float(size)) for size in (5, 1, 9, 2, 7)]
    queue = filled(*tickets)
    assert [queue.pop() for _ in tickets] == tickets


@given(st.lists(st.tuples(st.sampled_from("abc"), _SIZE), max_size=60))
def test_each_callers_tickets_keep_their_order_beside_others(asks: list[tuple[str, float]]) -> None:
    tickets = [Ticket(caller=caller, tokens=tokens) for caller, tokens in asks]
    queue = filled(*tickets)
    served = [queue.pop() for _ in tickets]
    for caller in "abc":
        mine = [ticket for ticket in tickets if ticket.caller == caller]
        assert [ticket for ticket in served if ticket.caller == caller] == mine


def test_callers_with_equal_tickets_take_turns() -> None:
    queue = filled(*many("a", 500, 50), *many("b", 500, 50), *many("c", 500, 50))
    assert callers(queue, 30) == list("abc") * 10


def test_a_turn_is_five_hundred_tokens_however_many_tickets_these_are() -> None:
    queue = filled(*many("a", 100, 50), *many("b", 250, 50), *many("c", 1000, 50))
    assert "".join(callers(queue, 15)) == "aaaaabb" + "aaaaabb" + "c"


def test_heads_dearer_than_a_turn_are_served_in_the_order_in_which_their_turns_add_up() -> None:
    """Rounds in which nobody can be served are gone through at once, and come out as if one by one."""
    dear = many("a", 1e9, 1) + many("b", 1e9 - 600, 1) + many("c", 1e9 + 600, 1)
    assert callers(filled(*dear), 3) == list("bac")
    equal = filled(*(Ticket(caller=caller, tokens=1e6) for caller in "abc"))
    assert callers(equal, 3) == list("abc")


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(1, 20_000)), min_size=1, max_size=30))
def test_going_through_empty_rounds_at_once_changes_nothing(asks: list[tuple[str, float]]) -> None:
    tickets = [Ticket(caller=caller, tokens=tokens) for caller, tokens in asks]
    queue = filled(*tickets)
    assert [queue.pop() for _ in tickets] == by_the_book(tickets)


def by_the_book(tickets: list[Ticket]) -> list[Ticket]:
    """Deficit round robin as the paper has it, one round after the other; the last caller is served as it comes."""
    lines: dict[str, deque[Ticket]] = {}
    for ticket in tickets:
        lines.setdefault(ticket.caller, deque()).append(ticket)
    deficit, served, turns = dict.fromkeys(lines, 0.0), [], deque(lines)
    while turns:
        caller = turns[0]
        line = lines[caller]
        deficit[caller] += _QUANTUM
        while line and (len(turns) == 1 or line[0].tokens <= deficit[caller]):
            deficit[caller] -= line[0].tokens
            served.append(line.popleft())
        if line:
            turns.rotate(-1)
        else:
            turns.popleft()
    return served


def test_a_caller_with_dear_tickets_gets_as_many_tokens_as_one_with_cheap_ones() -> None:
    queue = filled(*many("dear", 1000, 50), *many("cheap", 10, 5000))
    served: Counter[str] = Counter()
    for _ in range(1010):
        ticket = queue.pop()
        served[ticket.caller] += int(ticket.tokens)
    assert abs(served["dear"] - served["cheap"]) <= 2000


def spread(sizes: list[list[float]], turns: int) -> float:
    """Returns: By how much callers that always wait have differed at most, in tokens served."""
    queue = FairQueue()
    endless = {str(n): itertools.cycle(one) for n, one in enumerate(sizes)}
    for caller, each in endless.items():
        for _ in range(3):
            queue.put(Ticket(caller=caller, tokens=next(each)))
    served = dict.fromkeys(endless, 0.0)
    widest = 0.0
    for _ in range(turns):
        ticket = queue.pop()
        served[ticket.caller] += ticket.tokens
        queue.put(Ticket(caller=ticket.caller, tokens=next(endless[ticket.caller])))
        widest = max(widest, max(served.values()) - min(served.values()))
    return widest


@settings(max_examples=60)
@given(st.lists(_SIZE, min_size=2, max_size=5), st.integers(50, 600))
def test_backlogged_callers_never_differ_by_more_than_a_turn_and_two_tickets(sizes: list[float], turns: int) -> None:
    assert spread([[size] for size in sizes], turns) <= _QUANTUM + 2 * max(sizes) + 1e-6


@settings(max_examples=60)
@given(st.lists(st.lists(_SIZE, min_size=1, max_size=8), min_size=2, max_size=4), st.integers(50, 400))
@example([[92, 773], [99, 715, 723]], 2000)
def test_nor_do_those_whose_tickets_are_of_many_sizes(sizes: list[list[float]], turns: int) -> None:
    assert spread(sizes, turns) <= _QUANTUM + 2 * max(max(one) for one in sizes) + 1e-6


def test_who_comes_late_is_neither_owed_what_it_missed_nor_charged_for_it() -> None:
    queue = filled(*many("early", 500, 200))
    assert set(callers(queue, 100)) == {"early"}
    for ticket in many("late", 500, 100):
        queue.put(ticket)
    counts = Counter(callers(queue, 40))
    assert abs(counts["early"] - counts["late"]) <= 2


def test_who_has_nothing_to_send_saves_nothing_up() -> None:
    queue = filled(*many("busy", 500, 500), *many("idle", 500, 1))
    callers(queue, 101)
    for ticket in many("idle", 500, 100):
        queue.put(ticket)
    counts = Counter(callers(queue, 40))
    assert abs(counts["busy"] - counts["idle"]) <= 2


def test_a_waiting_caller_is_served_although_another_comes_back_again_and_again() -> None:
    queue = filled(Ticket(caller="waits"))
    served = []
    for _ in range(20):
        queue.put(Ticket(caller="comes back"))
        served.append(queue.pop().caller)
    assert "waits" in served[:3]


def test_callers_with_one_ticket_each_are_served_in_the_order_they_came() -> None:
    queue = filled(*(Ticket(caller=caller) for caller in "abcde"))
    assert callers(queue, 5) == list("abcde")


@settings(max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=200), _SIZE)
@example([0] * 9, 1.0)
def test_nobody_starves_whoever_comes_and_goes(arrivals: list[int], size: float) -> None:
    queue = filled(Ticket(caller="0", tokens=size), Ticket(caller="waits", tokens=size))
    overtaken = Counter[str]()
    for who in arrivals:
        queue.put(Ticket(caller=str(who), tokens=size))
        served = queue.pop().caller
        if served == "waits":
            break
        overtaken[served] += 1
        assert max(overtaken.values()) * size <= _QUANTUM + 2 * size


# settling


def cost(queue: FairQueue, costs: dict[str, float], turns: int) -> Counter[str]:
    """Tickets of 500 tokens each that cost something else; who gets one settles at once. Returns: What each one got."""
    served: Counter[str] = Counter()
    for _ in range(turns):
        ticket = queue.pop()
        served[ticket.caller] += int(costs[ticket.caller])
        queue.settle(ticket, ticket.tokens - costs[ticket.caller])
    return served


@pytest.mark.parametrize("really", [50, 250, 500, 1500])
def test_what_a_call_really_cost_counts_not_what_its_ticket_said(really: int) -> None:
    queue = filled(*many("a", 500, 1000), *many("b", 500, 1000))
    served = cost(queue, {"a": really, "b": 500}, 200)
    assert abs(served["a"] - served["b"]) <= 500 + 2 * max(500, really)


def test_settling_for_a_caller_that_has_left_changes_nothing() -> None:
    queue = filled(*many("gone", 500, 1), *many("a", 500, 100), *many("b", 500, 100))
    gone = queue.pop()
    assert (gone.caller, gone.charged) == ("gone", True)
    queue.settle(gone, 1e9)
    counts = Counter(callers(queue, 40))
    assert counts["a"] == counts["b"]


def test_who_was_alone_was_not_charged_and_is_not_made_good() -> None:
    queue = filled(*many("a", 500, 200))
    alone = [queue.pop() for _ in range(50)]
    assert not any(ticket.charged for ticket in alone)
    for ticket in many("b", 500, 100):
        queue.put(ticket)
    for ticket in alone:
        queue.settle(ticket, 450)
    counts = Counter(callers(queue, 40))
    assert counts["a"] == counts["b"]


def test_who_never_waited_or_hung_up_is_not_made_good() -> None:
    hung_up = Ticket(caller="a", tokens=500)
    queue = filled(hung_up, *many("a", 500, 100), *many("b", 500, 100))
    queue.remove(hung_up)
    queue.settle(hung_up, 1e9)
    queue.settle(Ticket(caller="a", tokens=500), 1e9)
    counts = Counter(callers(queue, 40))
    assert counts["a"] == counts["b"]
