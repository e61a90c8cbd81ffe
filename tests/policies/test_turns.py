"""Whose slice comes next: priority first, owners in turn, batches by what is left of their windows."""

from collections import Counter, defaultdict
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from app.policies.turns import Candidate, choose

_CANDIDATES = st.lists(
    st.builds(
        Candidate,
        batch=st.integers(1, 1000),
        owner=st.sampled_from("abc"),
        priority=st.integers(-1, 1),
        remaining=st.floats(-10, 1e6),
        leased=st.integers(0, 5),
        free=st.none() | st.integers(0, 4),
    ),
    max_size=8,
    unique_by=lambda each: each.batch,
)


def batch(number: int, owner: str = "a", **more: int) -> Candidate:
    fields = {"priority": 0, "remaining": 3600, "leased": 0, **more}
    return Candidate(number, owner, **fields)


def plainly(candidates: list[Candidate], count: int) -> list[int]:
    """The three rules again, as they are written down: one choice after the other, over everything."""
    left, leased, chosen = {each.batch: each for each in candidates}, Counter[str](), list[int]()
    for each in candidates:
        leased[each.owner] += each.leased
    while len(chosen) < count and any(each.free != 0 for each in left.values()):
        scores = {each.batch: (each.leased + 1) * max(each.remaining, 1.0) for each in left.values()}
        possible = [each for each in left.values() if each.free != 0]
        top = max(each.priority for each in possible)
        equals = [each for each in possible if each.priority == top]
        best: dict[str, tuple[float, int]] = defaultdict(lambda: (float("inf"), 0))
        for each in equals:
            best[each.owner] = min(best[each.owner], (scores[each.batch], each.batch))
        owner = min(best, key=lambda owner: (leased[owner], best[owner]))
        taken = left[best[owner][1]]
        chosen.append(taken.batch)
        leased[owner] += 1
        left[taken.batch] = replace(taken, leased=taken.leased + 1, free=None if taken.free is None else taken.free - 1)
    return chosen


@given(_CANDIDATES, st.integers(0, 12))
def test_the_choice_is_that_of_the_three_rules(candidates: list[Candidate], count: int) -> None:
    assert choose(candidates, count) == plainly(candidates, count)


@given(_CANDIDATES, st.integers(0, 12))
def test_a_lower_priority_is_never_served_while_a_higher_one_has_slices(
    candidates: list[Candidate], count: int
) -> None:
    by_number = {each.batch: each for each in candidates}
    chosen = [by_number[number] for number in choose(candidates, count)]
    assert [each.priority for each in chosen] == sorted((each.priority for each in chosen), reverse=True)
    taken = Counter(each.batch for each in chosen)
    for each in candidates:
        assert each.free is None or taken[each.batch] <= each.free
        if chosen and each.priority > chosen[-1].priority:
            assert taken[each.batch] == each.free


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 40))
def test_owners_get_equal_shares_however_many_batches_they_have(ones: int, others: int, count: int) -> None:
    candidates = [batch(number) for number in range(ones)] + [batch(100 + number, "b") for number in range(others)]
    of_a = sum(number < 100 for number in choose(candidates, count))
    assert abs(of_a - (count - of_a)) <= 1


def test_an_owner_who_holds_more_waits_until_the_other_has_as_much() -> None:
    candidates = [batch(1, "a", leased=3), batch(2, "b", leased=1)]
    assert choose(candidates, 4) == [2, 2, 1, 2]


def test_what_an_owner_holds_in_other_batches_counts_too() -> None:
    candidates = [batch(1, "a", leased=3, free=0), batch(2, "a"), batch(3, "b", leased=1)]
    assert choose(candidates, 2) == [3, 3]


def test_an_owners_batches_share_in_inverse_proportion_to_what_is_left_of_their_windows() -> None:
    shares = Counter(choose([batch(1, remaining=3600), batch(2, remaining=3 * 3600)], 400))
    assert abs(shares[1] - 300) <= 1


def test_a_small_new_batch_is_served_at_once_beside_a_huge_one() -> None:
    assert choose([batch(1, leased=40), batch(2)], 1) == [2]


def test_a_batch_whose_window_is_over_is_as_urgent_as_one_with_a_second_left() -> None:
    assert choose([batch(1, remaining=-100), batch(2, remaining=1)], 4) == [1, 2, 1, 2]


def test_of_equals_the_older_batch_goes_first() -> None:
    assert choose([batch(2, "b"), batch(1, "a")], 2) == [1, 2]


def test_when_the_first_has_no_more_slices_the_next_is_served() -> None:
    candidates = [batch(1, priority=5, free=2), batch(2, priority=1, free=1), batch(3)]
    assert choose(candidates, 5) == [1, 1, 2, 3, 3]


def test_without_candidates_nothing_is_chosen() -> None:
    assert choose([], 5) == []
    assert choose([batch(1, free=0)], 5) == []
    assert choose([batch(1)], 0) == []
