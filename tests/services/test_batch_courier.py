"""What a parcel's reply, or the lack of one, means for its lines."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from app.errors import CircuitOpenError, GatewayError, UpstreamUnreachableError
from app.services.batches.courier import Courier, Delivered, Later, Outcome, Paused
from app.services.batches.holding import HeldSlice
from app.store.commits import Stored
from app.upstream.types import Call, Reply
from tests.services.batch_scene import EMBEDDINGS, batch, lines, taken

Send = Callable[[Call], Awaitable[Reply]]


def answering(status: int, body: Any = None, *, code: str | None = None) -> Send:
    async def send(call: Call) -> Reply:
        call.trace.attempts += 1
        call.trace.upstream = "up"
        return Reply(status, {}, json.dumps(body or {"ok": True}).encode(), error_code=code)

    return send


def failing(error: GatewayError) -> Send:
    async def send(_: Call) -> Reply:
        raise error

    return send


async def embed(call: Call) -> Reply:
    """Answers as an upstream does; the input `bad` spoils a whole call."""
    call.trace.attempts += 1
    given = json.loads(call.body)["input"]
    texts = [given] if isinstance(given, str) else given
    if "bad" in texts:
        return Reply(400, {}, b'{"error":{"message":"bad input","type":"invalid_request_error"}}')
    data = [{"object": "embedding", "index": i, "embedding": [len(text)]} for i, text in enumerate(texts)]
    usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    return Reply(200, {}, json.dumps({"object": "list", "data": data, "model": "m", "usage": usage}).encode())


def fields(stored: Stored) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(b"{" + stored.fields)
    return found


async def carried(send: Send, held: HeldSlice, max_tries: int = 4) -> Outcome:
    return await Courier(send, max_tries).carry(held.queue.popleft())


async def test_a_good_reply_is_the_lines_result_and_its_usage_counts() -> None:
    held, _ = taken(batch(), lines(1))
    reply = {"usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}}
    outcome = await carried(answering(200, reply), held)
    assert isinstance(outcome, Delivered)
    (stored,) = outcome.stored
    assert stored.ok
    assert fields(stored)["custom_id"] == "r0"
    assert fields(stored)["response"]["body"] == reply
    assert stored.usage is not None
    assert stored.usage.total_tokens == 5
    assert held.change().finished


async def test_calls_go_in_the_batch_lane_as_their_owner_and_wait_patiently() -> None:
    seen: list[Call] = []

    async def send(call: Call) -> Reply:
        seen.append(call)
        return Reply(200, {}, b"{}")

    await carried(send, taken(batch(dedupe=True), lines(1, max_tokens=7))[0])
    (call,) = seen
    assert (call.lane, call.caller, call.patient, call.model, call.most_output) == ("batch", "anna", True, "m", 7)
    assert call.cache is True


@pytest.mark.parametrize("status", [400, 401, 404, 422])
async def test_an_upstreams_error_is_a_result_with_its_reply(status: int) -> None:
    outcome = await carried(answering(status, {"error": {"message": "no"}}), taken(batch(), lines(1))[0])
    assert isinstance(outcome, Delivered)
    assert not outcome.stored[0].ok
    assert fields(outcome.stored[0])["response"]["status_code"] == status
    assert fields(outcome.stored[0])["error"] is None


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_what_may_pass_is_sent_again_later(status: int) -> None:
    held, _ = taken(batch(), lines(1))
    parcel = held.queue[0]
    outcome = await carried(answering(status), held)
    assert isinstance(outcome, Later)
    assert outcome.parcels == [parcel]


async def test_a_line_that_always_fails_is_given_up_with_its_last_reply() -> None:
    held, _ = taken(batch(), lines(1))
    parcel, courier = held.queue[0], Courier(answering(500, {"error": {"message": "down"}}), 3)
    outcomes = [await courier.carry(parcel) for _ in range(3)]
    assert [type(outcome) for outcome in outcomes] == [Later, Later, Delivered]
    last = outcomes[-1]
    assert isinstance(last, Delivered)
    assert fields(last.stored[0])["response"]["status_code"] == 500


async def test_an_outage_costs_a_line_no_tries() -> None:
    held, _ = taken(batch(), lines(1))
    parcel, courier = held.queue[0], Courier(failing(UpstreamUnreachableError("nobody there")), 2)
    for _ in range(20):
        outcome = await courier.carry(parcel)
        assert isinstance(outcome, Later)
        assert outcome.excused


async def test_while_others_succeed_an_unreachable_upstream_is_the_lines_own_trouble() -> None:
    async def send(call: Call) -> Reply:
        call.trace.upstream = "up"
        if b"poison" in call.body:
            raise UpstreamUnreachableError("connection lost")
        return Reply(200, {}, b"{}")

    good, _ = taken(batch(), lines(9))
    bad, _ = taken(batch(), lines(1, user="poison"), number=1)
    courier, parcel = Courier(send, 3), bad.queue[0]
    outcome: Outcome | None = None
    for _ in range(3):
        parcel.launched_at = asyncio.get_running_loop().time()
        await asyncio.sleep(0.002)  # so that the success is later than the launch, on uvloop's clock of milliseconds
        await courier.carry(good.queue.popleft())
        outcome = await courier.carry(parcel)
    assert isinstance(outcome, Delivered)
    assert fields(outcome.stored[0])["response"] is None
    assert fields(outcome.stored[0])["error"]["code"] == "upstream_unreachable"


async def test_a_spent_quota_pauses_and_is_no_try() -> None:
    held, _ = taken(batch(), lines(1))
    parcel, courier = held.queue[0], Courier(answering(429, code="insufficient_quota"), 1)
    for _ in range(5):
        outcome = await courier.carry(parcel)
        assert isinstance(outcome, Paused)
        assert (outcome.code, outcome.parcels) == ("insufficient_quota", [parcel])


async def test_a_bug_is_a_result_that_says_so() -> None:
    async def send(_: Call) -> Reply:
        raise RuntimeError("secret detail")

    outcome = await carried(send, taken(batch(), lines(1))[0])
    assert isinstance(outcome, Delivered)
    assert fields(outcome.stored[0])["error"]["code"] == "internal_error"
    assert b"secret" not in outcome.stored[0].fields


async def test_an_open_circuit_is_waited_out() -> None:
    outcome = await carried(failing(CircuitOpenError("left alone")), taken(batch(), lines(1))[0], max_tries=1)
    assert isinstance(outcome, Later)
    assert outcome.excused


async def test_embedding_lines_share_a_call_and_get_a_result_each() -> None:
    held, _ = taken(batch(endpoint=EMBEDDINGS), lines(5, EMBEDDINGS))
    assert len(held.queue) == 1
    outcome = await carried(embed, held)
    assert isinstance(outcome, Delivered)
    assert [fields(one)["custom_id"] for one in outcome.stored] == [f"r{i}" for i in range(5)]
    assert all(fields(one)["response"]["body"]["data"][0]["index"] == 0 for one in outcome.stored)
    assert sum(one.usage.total_tokens for one in outcome.stored if one.usage) == 5


async def test_one_bad_line_in_a_pack_harms_no_other() -> None:
    text = lines(3, EMBEDDINGS) + lines(1, EMBEDDINGS, input="bad").replace(b'"r0"', b'"bad"')
    held, _ = taken(batch(endpoint=EMBEDDINGS), text)
    courier = Courier(embed, 4)
    outcome = await courier.carry(held.queue.popleft())
    assert isinstance(outcome, Later)
    assert outcome.seconds == 0
    alone = [await courier.carry(parcel) for parcel in outcome.parcels]
    stored = [one for outcome in alone if isinstance(outcome, Delivered) for one in outcome.stored]
    assert {fields(one)["custom_id"]: one.ok for one in stored} == {"r0": True, "r1": True, "r2": True, "bad": False}


async def test_a_pack_whose_reply_is_short_goes_alone() -> None:
    held, _ = taken(batch(endpoint=EMBEDDINGS), lines(3, EMBEDDINGS))
    short = answering(200, {"object": "list", "data": [{"index": 0, "embedding": [1]}]})
    outcome = await carried(short, held)
    assert isinstance(outcome, Later)
    assert len(outcome.parcels) == 3


async def test_a_pack_waits_out_an_outage_as_a_pack() -> None:
    held, _ = taken(batch(endpoint=EMBEDDINGS), lines(3, EMBEDDINGS))
    parcel, courier = held.queue[0], Courier(failing(UpstreamUnreachableError("nobody there")), 2)
    for _ in range(5):
        outcome = await courier.carry(parcel)
        assert isinstance(outcome, Later)
        assert outcome.parcels == [parcel]


def test_packs_hold_no_more_inputs_than_they_may_and_only_what_agrees() -> None:
    row = batch(endpoint=EMBEDDINGS)
    assert [len(p.entries) for p in taken(row, lines(10, EMBEDDINGS), pack_inputs=4)[0].queue] == [4, 4, 2]
    mixed = lines(2, EMBEDDINGS) + lines(2, EMBEDDINGS, dimensions=8)
    assert sorted(len(p.entries) for p in taken(row, mixed)[0].queue) == [2, 2]
    assert len(taken(batch(endpoint=EMBEDDINGS, pack_embeddings=False), lines(4, EMBEDDINGS))[0].queue) == 4


def test_lines_that_are_done_are_not_sent_again() -> None:
    held, stored = taken(batch(), lines(4), done=(0, 2))
    assert [parcel.entries[0].custom_id for parcel in held.queue] == ["r1", "r3"]
    assert stored == []


def test_lines_in_doubt_are_sent_again_or_fail_as_asked() -> None:
    held, stored = taken(batch(), lines(2), doubtful=(0,))
    assert len(held.queue) == 2
    assert stored == []
    held, stored = taken(batch(on_doubt="fail"), lines(2), doubtful=(0,))
    assert [parcel.entries[0].custom_id for parcel in held.queue] == ["r1"]
    (lost,) = stored
    assert (fields(lost)["custom_id"], fields(lost)["error"]["code"], lost.ok) == ("r0", "in_doubt", False)
