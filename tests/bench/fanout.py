"""Figures of the fan-out, and of the process: run it, read it, quote it.

    uv run python -m tests.bench.fanout                      # against the simulator
    uv run python -m tests.bench.fanout --base-url URL --model mock-delay=1 --fast-model mock

Rows: one `/v1/fanout` of 1,000 and of 5,000 one-second calls with `max_in_flight` set to match; the memory that a
200,000-line NDJSON fan-out takes; idle memory; the time from start to the first answer.
"""

import argparse
import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import httpx

from tests.support import Server, serving

LINES = 200_000


def memory_mb(server: Server) -> float:
    """Resident memory of the gateway's process."""
    fields = dict(
        line.split(":", 1)
        for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
        if ":" in line
    )
    return int(fields["VmRSS"].split()[0]) / 1024


@contextlib.contextmanager
def gateway(base_url: str, slots: int) -> Iterator[tuple[Server, float]]:
    """A gateway on core 0. Yields: it, and the seconds from its start to its first answer."""
    os.sched_setaffinity(0, {0})
    env = {
        "OPENAI_BASE_URL": base_url,
        "SLUICEGATE_UPSTREAMS__UP__MAX_IN_FLIGHT": str(slots),
        "SLUICEGATE_ACCESS_LOG": "false",
    }
    began = time.perf_counter()
    with serving("serve", env=env, ready="/livez") as server:
        seconds = time.perf_counter() - began
        os.sched_setaffinity(0, {1} if (os.cpu_count() or 1) > 1 else {0})
        yield server, seconds


def fan_out(base_url: str, model: str, calls: int) -> None:
    body = {"defaults": {"model": model, "messages": []}, "requests": [{"body": {}}] * calls}
    with gateway(base_url, calls) as (server, _):
        httpx.post(f"{server.base_url}/fanout", json={**body, "requests": [{"body": {}}]}, timeout=60)
        began = time.perf_counter()
        answer = httpx.post(f"{server.base_url}/fanout", json=body, timeout=120).json()
        seconds = time.perf_counter() - began
        print(f"fan-out of {calls:,}: {seconds:.2f} s  {answer['counts']}  {memory_mb(server):.0f} MB", flush=True)


async def endless(base_url: str, model: str) -> None:
    """200,000 lines in, 200,000 results out, over one connection, read while it is written."""
    line = json.dumps({"body": {"model": model, "messages": [{"role": "user", "content": "x" * 200}]}}).encode() + b"\n"

    async def lines() -> AsyncIterator[bytes]:
        for _ in range(LINES // 100):
            yield line * 100

    with gateway(base_url, 256) as (server, started):
        idle = memory_mb(server)
        print(f"start to first answer: {started:.2f} s   idle memory: {idle:.0f} MB", flush=True)
        headers = {"content-type": "application/x-ndjson", "accept": "application/x-ndjson"}
        peak, seen, began, last = idle, 0, time.perf_counter(), b""
        timeout = aiohttp.ClientTimeout(total=None)
        async with (
            aiohttp.ClientSession(timeout=timeout, read_bufsize=1024**2) as session,
            session.post(f"{server.base_url}/fanout?order=completed", data=lines(), headers=headers) as reply,
        ):
            async for one in reply.content:
                last = one
                seen += 1
                if seen % 2000 == 0:
                    peak = max(peak, memory_mb(server))
        seconds = time.perf_counter() - began
        counts = json.loads(last)["counts"]
        print(f"NDJSON fan-out of {LINES:,} lines: {seconds:.0f} s  {counts}  peak {peak - idle:+.0f} MB over idle")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--base-url")
    arguments.add_argument("--model", default="sim-latency=1")
    arguments.add_argument("--fast-model", default="sim-latency=0-tokens=5")
    given = arguments.parse_args()
    with contextlib.ExitStack() as cleanup:
        base_url = given.base_url or cleanup.enter_context(serving("simulate")).base_url
        for calls in (1000, 5000):
            fan_out(base_url, given.model, calls)
        asyncio.run(endless(base_url, given.fast_model))


if __name__ == "__main__":
    main()
