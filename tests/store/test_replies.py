"""Who runs a call, and what is kept of it: in one statement, fenced, and no more than there is room for."""

import pytest
from sqlalchemy import Connection, func, select, update

from app.store import replies
from app.store.database import Database
from app.store.owners import renew
from app.store.replies import Known, Reply
from app.store.tables import replies as table

REPLY = Reply(200, b"headers", b"body", 100)


@pytest.fixture(autouse=True)
async def living(database: Database) -> None:
    for owner in ("one", "other"):
        await database.run(renew, owner, 60)


async def claim(database: Database, key: bytes, owner: str) -> Known | None:
    return await database.run(replies.claim, key, b"request", owner)


async def keep(database: Database, key: bytes, owner: str, most: int | None = None) -> bool:
    return await database.run(replies.keep, key, owner, REPLY, 60.0, most)


def keys(connection: Connection) -> set[bytes]:
    return set(connection.execute(select(table.c.key)).scalars())


def is_over(connection: Connection, key: bytes) -> None:
    connection.execute(update(table).where(table.c.key == key).values(expires_at=0))


async def test_a_claim_is_its_owners_until_he_is_gone(database: Database) -> None:
    assert await claim(database, b"k", "one") is None
    assert await claim(database, b"k", "other") == Known(b"request", None)
    await database.run(renew, "one", -1)
    assert await claim(database, b"k", "other") is None
    assert await claim(database, b"k", "one") == Known(b"request", None)


async def test_what_stands_as_the_owners_own_is_left_over(database: Database) -> None:
    assert [await claim(database, b"k", "one") for _ in range(2)] == [None, None]


async def test_only_he_who_holds_the_claim_ends_it(database: Database) -> None:
    await claim(database, b"k", "one")
    assert not await keep(database, b"k", "other")
    await database.run(replies.release, (b"k",), "other")
    assert await claim(database, b"k", "other") == Known(b"request", None)
    assert await keep(database, b"k", "one")
    assert not await keep(database, b"k", "one")
    await database.run(replies.release, (b"k",), "one")
    assert await claim(database, b"k", "other") == Known(b"request", REPLY)


async def test_a_reply_that_is_too_old_is_none(database: Database) -> None:
    await claim(database, b"k", "one")
    await keep(database, b"k", "one")
    await database.run(is_over, b"k")
    assert await claim(database, b"k", "other") is None
    assert await claim(database, b"k", "one") == Known(b"request", None)


async def test_the_oldest_go_first_page_by_page_and_claims_stay(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "_PAGE", 3)
    every = [b"%02d" % place for place in range(20)]
    for key in every:
        await claim(database, key, "one")
        await keep(database, key, "one")
    await claim(database, b"running", "other")
    await claim(database, b"last", "one")
    await keep(database, b"last", "one", 550)
    assert await database.run(keys) == {*every[-4:], b"last", b"running"}


async def test_what_is_too_old_or_was_claimed_by_the_dead_goes_with_them(database: Database) -> None:
    for key, owner in ((b"old", "one"), (b"good", "one"), (b"dead", "other"), (b"last", "one")):
        await claim(database, key, owner)
    for key in (b"old", b"good"):
        await keep(database, key, "one")
    await database.run(is_over, b"old")
    await database.run(renew, "other", -1)
    await keep(database, b"last", "one", 1000)
    assert await database.run(keys) == {b"good", b"last"}


async def test_a_claim_over_an_old_reply_leaves_nothing_of_it(database: Database) -> None:
    await claim(database, b"k", "one")
    await keep(database, b"k", "one")
    await database.run(is_over, b"k")
    await claim(database, b"k", "one")
    held = select(func.sum(table.c.size), func.count(table.c.body), func.count(table.c.expires_at))
    assert await database.run(lambda connection: tuple(connection.execute(held).one())) == (0, 0, 0)
