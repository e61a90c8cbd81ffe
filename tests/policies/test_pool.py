"""One bound over all model families of an upstream, and a reserve for people within it."""

from hypothesis import given
from hypothesis import strategies as st

from app.policies.lanes import Lane
from app.policies.pool import Pool


def busy_minute(pool: Pool, peak: int) -> float:
    """A minute in each of whose seconds `peak` interactive calls are in flight at once. Returns: Its end."""
    for second in range(60):
        for change in (pool.went, pool.came_back):
            for _ in range(peak):
                change("interactive", second + 0.5)
    pool.went("interactive", 60.5)
    pool.came_back("interactive", 60.5)
    return 60.5


def test_all_places_are_for_everybody_while_nobody_is_expected() -> None:
    pool = Pool(8, 0.0)
    assert pool.room("interactive") == pool.room("batch") == pool.free == 8
    pool.went("batch", 0.0)
    assert pool.room("interactive") == pool.room("batch") == 7


def test_batch_leaves_as_many_free_as_people_have_taken_of_late() -> None:
    pool = Pool(16, 0.0)
    now = busy_minute(pool, 3)
    assert (pool.room("interactive"), pool.room("batch")) == (16, 13)
    pool.went("interactive", now)  # one of those who were expected is here
    assert (pool.room("interactive"), pool.room("batch")) == (15, 13)


def test_no_more_than_half_is_kept_free() -> None:
    pool = Pool(8, 0.0)
    busy_minute(pool, 8)
    assert pool.room("batch") == 4


def test_of_a_single_place_none_is_kept_free() -> None:
    pool = Pool(1, 0.0)
    busy_minute(pool, 1)
    assert pool.room("batch") == 1


def test_what_is_kept_free_is_forgotten_when_nobody_comes() -> None:
    pool = Pool(16, 0.0)
    now = busy_minute(pool, 3)
    pool.went("batch", now + 120.0)
    pool.came_back("batch", now + 120.0)
    assert pool.room("batch") == 16


def test_the_peak_is_remembered_and_those_who_wait_are_expected_too() -> None:
    pool = Pool(4, 0.0)
    for _ in range(3):
        pool.went("batch", 0.0)
    pool.came_back("batch", 0.0)
    assert (pool.in_flight, pool.peak) == (2, 3)
    for second in range(61):
        pool.waits("interactive", 1, float(second))
        pool.waits("interactive", -1, float(second))
    assert pool.waiting == {"interactive": 0, "batch": 0}
    assert pool.room("batch") == 1


def test_a_place_is_waited_for_as_long_as_those_ahead_take() -> None:
    pool = Pool(4, 0.0)
    assert pool.wait_for("batch", 2.0) == 0.0
    for _ in range(4):
        pool.went("batch", 0.0)
    assert pool.wait_for("interactive", 2.0) == 0.5
    for lane in ("interactive", "batch", "batch"):
        pool.waits(lane, 1, 0.0)
    assert pool.wait_for("interactive", 2.0) == 1.0  # batch is not ahead of people
    assert pool.wait_for("batch", 2.0) == 2.0
    assert pool.wait_for("batch", 0.0) == 0.0  # nothing is known yet


_LANES: list[Lane] = ["interactive", "batch"]


@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.sampled_from(_LANES), st.booleans(), st.floats(0, 3)), max_size=200),
)
def test_whoever_goes_only_where_there_is_room_keeps_the_bound(
    most: int, events: list[tuple[Lane, bool, float]]
) -> None:
    pool, now, flying = Pool(most, 0.0), 0.0, {"interactive": 0, "batch": 0}
    for lane, goes, passed in events:
        now += passed
        if goes and pool.room(lane) > 0:
            pool.went(lane, now)
            flying[lane] += 1
        elif not goes and flying[lane]:
            pool.came_back(lane, now)
            flying[lane] -= 1
        assert pool.in_flight == sum(flying.values()) <= pool.peak <= most
        assert pool.free - most // 2 <= pool.room("batch") <= pool.room("interactive") == pool.free
