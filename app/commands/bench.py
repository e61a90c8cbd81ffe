"""`sluicegate bench`: sync or async? The same calls one after another, side by side, and as one fan-out.

The caller's side is what is measured, so the official SDK is used here as a caller uses it.
"""

import asyncio
import contextlib
import csv
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from openai import AsyncOpenAI, OpenAI, OpenAIError
from openai.types.chat import ChatCompletionMessageParam
from rich.console import Console
from rich.table import Table

from app.commands.plot import Series, plot
from app.config import ConfigError

_SECONDS = 2  # what an answer of the simulator takes
_MODEL = f"sim-latency={_SECONDS}"
_STREAM_MODEL = "sim-latency=0.2-tokens=90-gap=0.02"  # 0.2 s to the first token, 2 s to the last
_MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]
_START_SECONDS = 30

SEQUENTIAL = "one after another (OpenAI)"
GATHERED = "side by side (AsyncOpenAI + gather)"
FANNED_OUT = "one request (/v1/fanout)"


@dataclass(frozen=True, slots=True)
class Row:
    """One measured line. `extrapolated`: only a sample was run; the rest is its mean times the number."""

    way: str
    calls: int
    seconds: float
    extrapolated: bool = False


@dataclass(frozen=True, slots=True)
class _Place:
    base_url: str
    api_key: str
    model: str
    stream_model: str


def run(base_url: str | None, api_key: str, model: str | None, sizes: list[int], sample: int, out: Path | None) -> None:
    """Measures and prints; see `sluicegate bench --help`."""
    console = Console()
    try:
        rows, first, whole = _measured(base_url, api_key, model, sizes, sample)
    except OpenAIError as error:
        raise ConfigError(f"{base_url}: {error}") from None
    console.print(_table(rows, sizes))
    console.print(f"One answer: first token after {first:.2f} s streamed; {whole:.2f} s when waiting for the whole.")
    if out is not None:
        _write(out, rows, first, whole)
        console.print(f"Written: {out / 'results.csv'}, {out / 'plot.svg'}")


def _measured(
    base_url: str | None, api_key: str, model: str | None, sizes: list[int], sample: int
) -> tuple[list[Row], float, float]:
    """Returns: The rows, and the seconds to a streamed answer's first token and to its last."""
    with contextlib.ExitStack() as cleanup:
        upstream = base_url or cleanup.enter_context(_server(["simulate"], {}))
        place = _Place(upstream, api_key, model or _MODEL, model or _STREAM_MODEL)
        slots = {"SLUICEGATE_UPSTREAMS__BENCH__MAX_IN_FLIGHT": str(max(*sizes, 256))}
        environment = {"OPENAI_BASE_URL": upstream, "OPENAI_API_KEY": api_key, **slots}
        gateway = cleanup.enter_context(_server(["serve"], environment))
        rows = [
            *_sequential(place, sizes, sample),
            *_gathered(place, sizes),
            *_fanned_out(gateway, place, sizes),
        ]
        return rows, *_streamed(place)


def _sequential(place: _Place, sizes: list[int], sample: int) -> list[Row]:
    client = OpenAI(base_url=place.base_url, api_key=place.api_key, max_retries=0)
    began = time.perf_counter()
    after: list[float] = []
    for _ in range(min(max(sizes), sample)):
        client.chat.completions.create(model=place.model, messages=_MESSAGES)
        after.append(time.perf_counter() - began)
    each = after[-1] / len(after)
    return [
        Row(
            SEQUENTIAL,
            size,
            after[size - 1] if size <= len(after) else each * size,
            extrapolated=size > len(after),
        )
        for size in sizes
    ]


def _gathered(place: _Place, sizes: list[int]) -> list[Row]:
    async def gather(size: int) -> float:
        async with AsyncOpenAI(base_url=place.base_url, api_key=place.api_key, max_retries=0) as client:
            began = time.perf_counter()
            await asyncio.gather(
                *(client.chat.completions.create(model=place.model, messages=_MESSAGES) for _ in range(size))
            )
            return time.perf_counter() - began

    return [Row(GATHERED, size, asyncio.run(gather(size))) for size in sizes]


def _fanned_out(gateway: str, place: _Place, sizes: list[int]) -> list[Row]:
    rows = []
    for size in sizes:
        request = {
            "defaults": {"model": place.model, "messages": _MESSAGES},
            "requests": [{"body": {}}] * size,
        }
        began = time.perf_counter()
        reply = httpx.post(f"{gateway}/fanout", json=request, timeout=None)  # noqa: S113 - the bench waits it out
        seconds = time.perf_counter() - began
        if reply.json()["counts"]["completed"] != size:
            raise RuntimeError(f"not every call of the fan-out succeeded: {reply.json()['counts']}")
        rows.append(Row(FANNED_OUT, size, seconds))
    return rows


def _streamed(place: _Place) -> tuple[float, float]:
    client = OpenAI(base_url=place.base_url, api_key=place.api_key, max_retries=0)
    began = time.perf_counter()
    first = None
    for chunk in client.chat.completions.create(model=place.stream_model, messages=_MESSAGES, stream=True):
        if first is None and chunk.choices and chunk.choices[0].delta.content:
            first = time.perf_counter() - began
    return first or float("nan"), time.perf_counter() - began


@contextlib.contextmanager
def _server(command: list[str], environment: dict[str, str]) -> Iterator[str]:
    """Starts one of our own servers in a process of its own. Yields: Its base URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    elsewhere = tempfile.TemporaryDirectory()  # where no sluicegate.toml and no .env can change what is measured
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLUICEGATE_", "AZURE_OPENAI_"))}
    process = subprocess.Popen(  # noqa: S603 - our own command line
        [sys.executable, "-m", "app.cli", *command, "--port", str(port)],
        env={**inherited, "SLUICEGATE_ACCESS_LOG": "false", **environment},
        cwd=elsewhere.name,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield _once_up(f"http://127.0.0.1:{port}/v1", process)
    finally:
        process.terminate()
        process.wait()
        elsewhere.cleanup()


def _once_up(base_url: str, process: "subprocess.Popen[bytes]") -> str:
    give_up = time.monotonic() + _START_SECONDS
    while time.monotonic() < give_up and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"{base_url}/models")
            return base_url
        time.sleep(0.05)
    raise RuntimeError("a server of the bench did not start")


def _table(rows: list[Row], sizes: list[int]) -> Table:
    table = Table(title="Seconds for N calls", caption="~ extrapolated from a sample")
    table.add_column("way")
    for size in sizes:
        table.add_column(f"{size:,}", justify="right")
    for way in (SEQUENTIAL, GATHERED, FANNED_OUT):
        cells = [f"{'~' if row.extrapolated else ''}{row.seconds:,.2f}" for row in rows if row.way == way]
        table.add_row(way, *cells)
    return table


def _write(out: Path, rows: list[Row], first: float, whole: float) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with (out / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["way", "calls", "seconds", "extrapolated"])
        writer.writeheader()
        writer.writerows({**asdict(row), "seconds": round(row.seconds, 3)} for row in rows)
        writer.writerow({"way": "first token, streamed", "calls": 1, "seconds": round(first, 3)})
        writer.writerow({"way": "whole answer", "calls": 1, "seconds": round(whole, 3)})
    series = [
        Series(way, [(row.calls, row.seconds, row.extrapolated) for row in rows if row.way == way])
        for way in (SEQUENTIAL, GATHERED, FANNED_OUT)
    ]
    (out / "plot.svg").write_text(plot(series, x="calls", y="seconds"))
