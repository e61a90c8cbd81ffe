"""Claims: one runs, the others wait for its reply; whatever happens, bounded and never another caller's."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, delete, event, func, insert, select, text, update

from app.errors import IdempotencyInProgressError, InvalidRequestError, StorageError
from app.services.idempotency import StoredReplies, StoredReply, key_of
from app.store.database import Database
from app.store.owners import Owner, renew
from app.store.tables import replies
from tests.postgres import Postgres
from tests.support import eventually

MOST = 16_000
TTL = 100.0


def reply(body: bytes = b"{}") -> StoredReply:
    return StoredReply(200, ((b"content-type", b"application/json"),), body)


async def process(database: Database, lease: float = 60) -> StoredReplies:
    """A store as another process has it, alive for as long as its lease."""
    owner = Owner(database, lease)
    await database.run(renew, owner.id, lease)
    return StoredReplies(database, owner, MOST, TTL)


@pytest.fixture
async def kept(database: Database) -> AsyncIterator[StoredReplies]:
    store = await process(database)
    yield store
    await store.aclose()


@pytest.fixture
async def other(database: Database) -> AsyncIterator[StoredReplies]:
    store = await process(database)
    yield store
    await store.aclose()


def pass_by(connection: Connection, seconds: float) -> None:
    """As if the time had gone by for all replies."""
    connection.execute(update(replies).values(expires_at=replies.c.expires_at - seconds))


def held(connection: Connection) -> int:
    return int(connection.execute(select(func.coalesce(func.sum(replies.c.size), 0))).scalar_one())


async def test_the_first_runs_the_next_is_told_to_wait_and_then_gets_the_reply(
    kept: StoredReplies, other: StoredReplies
) -> None:
    assert await kept.claim(b"k", b"r") is None
    for asked in (kept, other):
        with pytest.raises(IdempotencyInProgressError) as caught:
            await asked.claim(b"k", b"r")
        assert (caught.value.status, caught.value.code) == (409, "idempotency_in_progress")
        told = caught.value.headers()
        assert told["x-should-retry"] == "true"
        assert 0 < int(told["retry-after-ms"]) <= 1000
    await kept.keep(b"k", reply())
    for asked in (kept, other):
        assert await asked.claim(b"k", b"r") == reply()
        assert asked.running == 0


async def test_another_request_under_the_same_key_is_refused_during_and_after_the_first(
    kept: StoredReplies, other: StoredReplies
) -> None:
    await kept.claim(b"k", b"r")
    for _ in range(2):
        for asked in (kept, other):
            with pytest.raises(InvalidRequestError) as caught:
                await asked.claim(b"k", b"other")
            assert caught.value.param == "Idempotency-Key"
        if kept.running:
            await kept.keep(b"k", reply())
    assert kept.running == other.running == 0


async def test_a_released_key_is_free_for_any_request(kept: StoredReplies, other: StoredReplies) -> None:
    await kept.claim(b"k", b"r")
    await kept.release(b"k")
    assert await other.claim(b"k", b"other") is None


async def test_a_reply_comes_back_byte_for_byte(kept: StoredReplies, other: StoredReplies) -> None:
    whole = StoredReply(207, ((b"x-one", b"\xff"), (b"x-one", b""), (b"a", b"b")), bytes(range(256)))
    await kept.claim(b"k", b"r")
    await kept.keep(b"k", whole)
    assert await other.claim(b"k", b"r") == whole


async def test_a_reply_is_forgotten_after_its_time_and_one_that_is_too_large_at_once(
    database: Database, kept: StoredReplies
) -> None:
    await kept.claim(b"k", b"r")
    await kept.keep(b"k", reply())
    await database.run(pass_by, TTL - 10)
    assert await kept.claim(b"k", b"r") == reply()
    await database.run(pass_by, 10)
    assert await kept.claim(b"k", b"r") is None
    await kept.keep(b"k", reply(b"x" * kept.largest))
    assert await kept.claim(b"k", b"r") is None


async def test_the_oldest_replies_make_room_without_a_look_at_all_of_them_each_time(
    database: Database, kept: StoredReplies
) -> None:
    looks: list[str] = []

    def executed(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "sum(" in statement and "WHERE" in statement:
            looks.append(statement)

    event.listen(database._engine, "before_cursor_execute", executed)
    one = reply(b"x" * 100)
    for place in range(300):
        await kept.claim(b"%d" % place, b"r")
        await kept.keep(b"%d" % place, one)
        assert place % 10 or await database.run(held) <= MOST
    a_sixteenth_each = 300 * one.size / (MOST // 16)
    assert 0 < len(looks) <= a_sixteenth_each + 1
    assert await kept.claim(b"299", b"r") == reply(b"x" * 100)
    assert await kept.claim(b"0", b"r") is None


async def test_of_many_who_come_at_once_one_runs(kept: StoredReplies, other: StoredReplies) -> None:
    for place in range(20):
        key = b"%d" % place
        asked = [(kept, other)[count % 2].claim(key, b"r") for count in range(10)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert found.count(None) == 1
        assert sum(isinstance(one, IdempotencyInProgressError) for one in found) == 9


async def test_of_many_who_come_at_once_later_all_get_the_reply(kept: StoredReplies, other: StoredReplies) -> None:
    await kept.claim(b"k", b"r")
    await kept.keep(b"k", reply())
    asked = [(kept, other)[count % 2].claim(b"k", b"r") for count in range(10)]
    assert await asyncio.gather(*asked) == [reply()] * 10


async def test_the_claim_of_one_who_is_gone_is_free_and_his_late_reply_is_not_kept(
    database: Database, other: StoredReplies, caplog: pytest.LogCaptureFixture
) -> None:
    gone = await process(database, lease=-1)
    assert await gone.claim(b"k", b"r") is None
    assert await other.claim(b"k", b"r") is None
    await gone.keep(b"k", reply(b"late"))
    assert "not kept" in caplog.text
    await other.keep(b"k", reply(b"good"))
    assert await gone.claim(b"k", b"r") == reply(b"good")
    assert gone.running == 0


async def test_the_late_release_of_one_who_is_gone_frees_nothing(database: Database, other: StoredReplies) -> None:
    gone = await process(database, lease=-1)
    await gone.claim(b"k", b"r")
    await other.claim(b"k", b"r")
    await gone.release(b"k")
    with pytest.raises(IdempotencyInProgressError):
        await (await process(database)).claim(b"k", b"r")


async def test_who_came_back_late_to_what_nobody_took_has_it_still(database: Database, other: StoredReplies) -> None:
    late = await process(database, lease=-1)
    await late.claim(b"k", b"r")
    await late.keep(b"k", reply())
    assert await other.claim(b"k", b"r") == reply()


async def test_who_is_cancelled_while_he_asks_leaves_the_key_free(kept: StoredReplies, other: StoredReplies) -> None:
    for turns in range(4):
        key = b"%d" % turns
        task = asyncio.create_task(kept.claim(key, b"r"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        for store in (kept, other):

            async def is_free(store: StoredReplies = store, key: bytes = key) -> bool:
                try:
                    return await store.claim(key, b"r") is None
                except IdempotencyInProgressError:
                    return False

            await eventually(is_free)
            await store.release(key)
    assert kept.running == other.running == 0


async def test_a_cancelled_claim_is_freed_however_late_it_is_written(
    postgres: Callable[[], str], tmp_path: Path
) -> None:
    database = Database(postgres(), tmp_path)
    kept, other = await process(database), await process(database)
    began, go_on = threading.Event(), threading.Event()

    def in_the_way(connection: Connection) -> None:
        connection.execute(insert(replies).values(key=b"k", request=b"r", owner="nobody"))
        began.set()
        go_on.wait(20)
        raise ZeroDivisionError  # undone: now the claim that waits can be written

    holding = asyncio.create_task(database.run(in_the_way))
    await eventually(began.is_set)

    async def is_waiting() -> bool:
        locks = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return bool(await database.run(lambda connection: connection.execute(locks).scalar_one()))

    task = asyncio.create_task(kept.claim(b"k", b"r"))
    await eventually(is_waiting)
    task.cancel()
    await asyncio.wait({task})
    for _ in range(5):  # time for a release that comes too early
        assert await is_waiting()
    go_on.set()
    await asyncio.wait({holding})
    assert isinstance(holding.exception(), ZeroDivisionError)
    await eventually(lambda: kept.running == 0)

    async def is_free() -> bool:
        try:
            return await other.claim(b"k", b"another") is None
        except (IdempotencyInProgressError, InvalidRequestError):
            return False

    await eventually(is_free)
    for store in (kept, other):
        await store.aclose()
    database.close()


async def test_who_is_cancelled_while_he_gives_back_gives_back(kept: StoredReplies, other: StoredReplies) -> None:
    for key, found in ((b"kept", reply()), (b"released", None)):
        await kept.claim(key, b"r")
        task = asyncio.create_task(kept.keep(key, reply()) if found else kept.release(key))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})

        async def is_given_back(key: bytes = key, found: StoredReply | None = found) -> bool:
            try:
                return await other.claim(key, b"r") == found
            except IdempotencyInProgressError:
                return False

        await eventually(is_given_back)
    assert kept.running == 0


async def test_no_call_is_run_that_nobody_can_tell_of(database: Database, kept: StoredReplies) -> None:
    database.close()
    with pytest.raises(StorageError):
        await kept.claim(b"k", b"r")
    await eventually(lambda: kept.running == 0)


async def test_an_outage_at_the_end_costs_the_reply_but_not_the_key(
    lonely_postgres: Postgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(lonely_postgres.fresh(), tmp_path)
    kept, other = await process(database), await process(database)
    for key in (b"k", b"l"):
        await kept.claim(key, b"r")
    await asyncio.to_thread(lonely_postgres.stop)
    with pytest.raises(StorageError):
        await kept.claim(b"m", b"r")
    await kept.keep(b"k", reply())
    await kept.release(b"l")
    assert "a reply under an Idempotency-Key is not kept" in caplog.text
    assert kept.running == 0
    await asyncio.to_thread(lonely_postgres.start)
    for key in (b"k", b"l", b"m"):

        async def is_free(key: bytes = key) -> bool:
            try:
                return await other.claim(key, b"another") is None
            except (IdempotencyInProgressError, InvalidRequestError, StorageError):
                return False

        await eventually(is_free)
    for store in (kept, other):
        await store.aclose()
    database.close()


async def test_a_key_that_is_claimed_again_is_not_freed_by_an_old_debt(
    lonely_postgres: Postgres, tmp_path: Path
) -> None:
    database = Database(lonely_postgres.fresh(), tmp_path)
    kept, other = await process(database), await process(database)
    await kept.claim(b"k", b"r")
    await asyncio.to_thread(lonely_postgres.stop)
    await kept.release(b"k")
    await asyncio.to_thread(lonely_postgres.start)
    assert await kept.claim(b"k", b"r") is None
    await eventually(lambda: kept._payer is not None and kept._payer.done())
    with pytest.raises(IdempotencyInProgressError):
        await other.claim(b"k", b"r")
    for store in (kept, other):
        await store.aclose()
    database.close()


def test_a_key_is_its_callers_own_and_holds_no_secret() -> None:
    keys = {key_of(secret, key) for secret in (b"", b"Bearer a", b"Bearer b") for key in (b"1", b"2")}
    assert len(keys) == 6
    assert all(len(key) == 32 for key in keys)


steps = st.lists(
    st.tuples(
        st.sampled_from(["claim", "keep", "release"]),
        st.sampled_from([b"k1", b"k2", b"k3", b"k4", b"k5"]),
        st.sampled_from([b"r1", b"r2"]),
        st.sampled_from([0, 1]),
        st.integers(0, MOST // 3),
        st.sampled_from([0, 0, 0, 10, 30]),
    ),
    max_size=60,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(taken=steps)
async def test_whatever_happens_each_key_runs_once_at_a_time_and_the_bytes_stay_bounded(
    database: Database, taken: list[tuple[str, bytes, bytes, int, int, float]]
) -> None:
    await database.run(lambda connection: connection.execute(delete(replies)))
    processes = [await process(database), await process(database)]
    clock = 0.0
    running: dict[bytes, tuple[bytes, StoredReplies]] = {}
    done: dict[bytes, tuple[bytes, Any, float]] = {}
    for step, key, request, at, size, later in taken:
        clock += later
        if later:
            await database.run(pass_by, later)
        store = processes[at]
        if step == "claim":
            if key in running:
                expected = IdempotencyInProgressError if running[key][0] == request else InvalidRequestError
                with pytest.raises(expected):
                    await store.claim(key, request)
                continue
            try:
                found = await store.claim(key, request)
            except InvalidRequestError:
                assert done[key][0] != request
                assert clock - done[key][2] < TTL
                continue
            if found is None:
                running[key] = request, store
            else:
                assert (request, found) == done[key][:2]
                assert clock - done[key][2] < TTL
        elif key in running:
            was, holder = running.pop(key)
            done.pop(key, None)
            if step == "release":
                await holder.release(key)
            else:
                done[key] = (was, reply(b"x" * size), clock)
                await holder.keep(key, done[key][1])
        for one in processes:
            assert one.running == sum(holder is one for _, holder in running.values())
        assert await database.run(held) <= MOST + MOST // 16
