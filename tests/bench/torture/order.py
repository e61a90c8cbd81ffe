"""A batch as its owner sees it, across whatever happens to the gateways: ordered, watched, and gone over at the end."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.bench.torture.replicas import Replica
from tests.support import eventually

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
ENDED = ("completed", "failed", "expired", "cancelled")
Line = dict[str, Any]


def chats(count: int, model: str = "m", **fields: object) -> list[bytes]:
    """Returns: Input lines; no two are equal. Args: fields: Of each body."""
    url = CHAT
    asked = {"method": "POST", "url": url}
    return [
        json.dumps(
            {
                "custom_id": f"r{place}",
                **asked,
                "body": {"model": model, "messages": [{"role": "user", "content": f"hi {place}"}], **fields},
            }
        ).encode()
        for place in range(count)
    ]


def embeddings(count: int, model: str = "m", dimensions: int = 8) -> list[bytes]:
    asked = {"method": "POST", "url": EMBEDDINGS}
    return [
        json.dumps(
            {
                "custom_id": f"r{place}",
                **asked,
                "body": {"model": model, "input": f"hi {place}", "dimensions": dimensions},
            }
        ).encode()
        for place in range(count)
    ]


@dataclass
class Order:
    """Attributes:
    id: The batch's.
    at: The gateway that is asked.
    seen: Results that were seen: custom id by id.
    """

    id: str
    total: int
    at: Replica
    seen: dict[str, str] = field(default_factory=dict)

    async def ask(self, path: str, *, method: str = "GET", **more: Any) -> httpx.Response:
        async with httpx.AsyncClient(base_url=f"{self.at.root}/v1", timeout=60, verify=False) as http:
            return await http.request(method, path, **more)

    async def state(self) -> dict[str, Any]:
        """Returns: The batch object."""
        found: dict[str, Any] = (await self.ask(f"/batches/{self.id}")).raise_for_status().json()
        return found

    async def stored(self) -> int:
        """Returns: Lines that have a result."""
        counts = (await self.state())["request_counts"]
        done: int = counts["completed"] + counts["failed"]
        return done

    async def has(self, count: int) -> bool:
        return await self.stored() >= count

    async def look(self) -> None:
        """Reads the results that are there."""
        reply = await self.ask(f"/batches/{self.id}/results", params={"follow": "false"})
        for line in map(json.loads, reply.raise_for_status().text.splitlines()):
            assert self.seen.setdefault(line["id"], line["custom_id"]) == line["custom_id"]

    async def is_over(self) -> bool:
        return (await self.state())["status"] in ENDED

    async def becomes(self, status: str) -> None:
        async def is_so() -> bool:
            return bool((await self.state())["status"] == status)

        await eventually(is_so, 60)

    async def is_paused(self, code: str) -> None:
        """Waits until it is, with a reason."""

        async def is_so() -> bool:
            found = (await self.state())["progress"]["paused"]
            return bool(found and found["code"] == code and found["reason"])

        await eventually(is_so, 20)

    async def ended(self, seconds: float = 60) -> dict[str, Any]:
        """Waits for its end. Returns: The batch object."""
        try:
            await eventually(self.is_over, seconds)
        except AssertionError:
            raise AssertionError(f"still {await self.state()}\n{self.at.log()[-4000:]}") from None
        return await self.state()

    async def lines(self) -> tuple[list[Line], list[Line]]:
        """Returns: Those of the output file and those of the error file."""
        state = await self.state()
        return await self._file(state["output_file_id"]), await self._file(state["error_file_id"])

    async def _file(self, id_: str | None) -> list[Line]:
        if id_ is None:
            return []
        told = (await self.ask(f"/files/{id_}")).raise_for_status().json()
        content = (await self.ask(f"/files/{id_}/content")).raise_for_status().content
        assert len(content) == told["bytes"]
        return [json.loads(line) for line in content.splitlines()]

    async def verified(self) -> tuple[list[Line], list[Line]]:
        """Goes over everything once more. Returns: As `lines`.

        Each line has one result, the counts say so, what was seen before is there as it was, and every file is a
        batch's.
        """
        state = await self.state()
        good, bad = await self.lines()
        found = {line["id"]: line["custom_id"] for line in good + bad}
        assert len(found) == len(good) + len(bad)
        names = Counter(found.values())
        assert names == Counter(f"r{place}" for place in range(self.total)), names.most_common(3)
        counts = state["request_counts"]
        assert counts == {"total": self.total, "completed": len(good), "failed": len(bad)}
        assert self.seen.items() <= found.items(), "a result that was seen is gone"
        places = sorted(int(id_.removeprefix("batch_req_")[:10], 16) for id_ in found)
        assert places == list(range(1, self.total + 1))
        await self._no_orphans()
        return good, bad

    async def _no_orphans(self) -> None:
        files = {file["id"] for file in (await self.ask("/files")).raise_for_status().json()["data"]}
        known: set[str | None] = set()
        for batch in (await self.ask("/batches", params={"limit": 100})).json()["data"]:
            known |= {batch["input_file_id"], batch["output_file_id"], batch["error_file_id"]}
        assert files <= known


async def upload(at: Replica, lines: list[bytes]) -> httpx.Response:
    async with httpx.AsyncClient(timeout=120, verify=False) as http:
        form = {"files": {"file": ("in.jsonl", b"\n".join(lines))}, "data": {"purpose": "batch"}}
        return await http.post(f"{at.root}/v1/files", **form)  # type: ignore[arg-type]


async def order(at: Replica, lines: list[bytes], **more: object) -> Order:
    """Uploads the lines and makes a batch of them. Args: more: Fields of the request."""
    file = (await upload(at, lines)).raise_for_status().json()["id"]
    asked = {"input_file_id": file, "endpoint": json.loads(lines[0])["url"], "completion_window": "24h", **more}
    async with httpx.AsyncClient(timeout=60, verify=False) as http:
        made = (await http.post(f"{at.root}/v1/batches", json=asked)).raise_for_status().json()
    return Order(made["id"], len(lines), at)


async def started(at: Replica, lines: list[bytes], done: int = 50, **more: object) -> Order:
    """Returns: A batch of which so many lines are done."""
    made = await order(at, lines, **more)
    await eventually(lambda: made.has(done), 30)
    return made
