"""Whatever is put in and asked for: never more bytes than allowed, never a value beyond its time."""

from hypothesis import given
from hypothesis import strategies as st

from app.policies.lru import ENTRY_BYTES, LruStore

MOST = 64 * ENTRY_BYTES
TTL = 10.0
steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "get", "drop"]),
        st.sampled_from([b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h"]),
        st.integers(0, MOST // 3),
        st.floats(0, 4),
    ),
    max_size=80,
)


@given(steps)
def test_it_never_holds_more_than_it_may_nor_gives_what_is_too_old(taken: list[tuple[str, bytes, int, float]]) -> None:
    store: LruStore[tuple[int, float]] = LruStore(MOST, TTL)
    last: dict[bytes, tuple[int, float]] = {}
    now = 0.0
    for place, (step, key, size, later) in enumerate(taken):
        now += later
        if step == "put":
            kept = store.put(key, (place, now), size, now)
            assert kept == (size + ENTRY_BYTES <= MOST // 4)
            last[key] = (place, now)
            if kept:
                assert store.get(key, now) == (place, now)
            else:
                assert store.get(key, now) is None
        elif step == "drop":
            store.drop(key)
            assert store.get(key, now) is None
        elif (found := store.get(key, now)) is not None:
            assert found == last[key]
            assert now - found[1] < TTL
        assert 0 <= store.held <= MOST
        assert len(store) * ENTRY_BYTES <= store.held


def test_the_least_recently_used_goes_first() -> None:
    store: LruStore[str] = LruStore(4 * ENTRY_BYTES, TTL)
    for name in ("a", "b", "c", "d"):
        assert store.put(name.encode(), name, 0, 0.0)
    assert store.get(b"a", 1.0) == "a"
    store.put(b"e", "e", 0, 1.0)
    assert store.get(b"b", 1.0) is None
    assert [store.get(name, 1.0) for name in (b"a", b"c", b"d", b"e")] == ["a", "c", "d", "e"]


def test_a_value_lives_for_its_time_however_often_it_is_asked_for() -> None:
    store: LruStore[str] = LruStore(MOST, TTL)
    store.put(b"a", "a", 0, 0.0)
    assert [store.get(b"a", now) for now in (5.0, 9.9, TTL, 5.0)] == ["a", "a", None, None]
    assert (store.held, len(store)) == (0, 0)
