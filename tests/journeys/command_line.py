"""`sluicegate …` as its user runs it, and a gateway whose every answer is the test's."""

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import Request, Script, clean_environment, eventually, reply, scripted

_PROGRAM = (sys.executable, "-m", "app.cli")
_STEERING = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Done:
    """How a run ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


async def run(*arguments: str | Path, **env: str) -> Done:
    """Runs `sluicegate ARGUMENTS…` without a terminal."""
    process = await asyncio.create_subprocess_exec(
        *_PROGRAM, *map(str, arguments), stdout=-1, stderr=-1, env=clean_environment(**env)
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return Done(process.returncode or 0, out.decode(), err.decode())


class Terminal:
    """A run on a terminal of its own."""

    def __init__(self, process: asyncio.subprocess.Process, master: int) -> None:
        self._process = process
        self._master = master
        self._seen = b""
        asyncio.get_running_loop().add_reader(master, self._read)

    @property
    def text(self) -> str:
        """What it has shown so far, without colours and moves of the cursor."""
        return _STEERING.sub("", self._seen.decode(errors="replace"))

    async def shows(self, text: str) -> None:
        try:
            await eventually(lambda: text in self.text)
        except AssertionError:
            raise AssertionError(f"{text!r} is not in {self.text!r}") from None

    def press(self, key: bytes) -> None:
        os.write(self._master, key)

    async def ended(self) -> int:
        """Returns: The exit code; all that was shown is in `text`."""
        return await asyncio.wait_for(self._process.wait(), 30)

    def _read(self) -> None:
        try:
            self._seen += os.read(self._master, 65536)
        except OSError:  # the other side is closed
            asyncio.get_running_loop().remove_reader(self._master)

    async def close(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._master)


@contextlib.asynccontextmanager
async def on_a_terminal(*arguments: str | Path, columns: int = 120, **env: str) -> AsyncIterator[Terminal]:
    """Runs `sluicegate ARGUMENTS…` on a pseudo-terminal that Ctrl-C reaches it through."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

    def own_terminal() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the tests themselves run in the background
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = await asyncio.create_subprocess_exec(
        *_PROGRAM,
        *map(str, arguments),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=clean_environment(TERM="xterm", **env),
        preexec_fn=own_terminal,
    )
    os.close(slave)
    terminal = Terminal(process, master)
    try:
        yield terminal
    finally:
        await terminal.close()


def batch(status: str = "in_progress", done: int = 0, failed: int = 0, total: int = 10, **more: Any) -> dict[str, Any]:
    """A batch object."""
    counts = {"total": total, "completed": done - failed, "failed": failed}
    fixed = {"id": "batch_1", "object": "batch", "endpoint": "/v1/chat/completions", "created_at": 1_700_000_000}
    return {**fixed, "status": status, "request_counts": counts, "errors": None, **more}


def line(index: int, status: int = 200, code: str | None = None) -> dict[str, Any]:
    """A result line."""
    response = None if code else {"status_code": status, "request_id": "r", "body": {}}
    error = {"code": code, "message": "…"} if code else None
    return {"id": f"batch_req_{index}", "custom_id": str(index), "response": response, "error": error}


def refusal(status: int, message: str, param: str | None = None) -> bytes:
    """The reply of an error."""
    fault = {"message": message, "type": "x", "param": param, "code": None}
    return answer({"error": fault}, status)


def answer(body: Any, status: int = 200) -> bytes:
    return reply(json.dumps(body).encode(), status=status, headers={"connection": "close"})


@dataclass
class Fake:
    """A gateway that answers as it is told to.

    Attributes:
        states: What `GET /v1/batches/batch_1` answers, one after the other; the last one stays.
        results: The result lines there are.
        replies: Whole replies that go before all this, by `METHOD /path`, each given once.
    """

    states: list[dict[str, Any]] = field(default_factory=lambda: [batch("completed", 10)])
    results: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    replies: dict[str, list[bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    def script(self) -> Script:
        async def answered(request: Request, writer: asyncio.StreamWriter) -> None:
            self.requests.append(request)
            method, target, _ = request.line.split(" ")
            self.asked.append(f"{method} {target}")
            path, _, query = target.partition("?")
            given = self.replies.get(f"{method} {path}")
            writer.write(given.pop(0) if given else self._answer(f"{method} {path}", query))

        return answered

    def _answer(self, asked: str, query: str) -> bytes:
        if asked == "GET /v1/batches/batch_1":
            return answer(self.states.pop(0) if len(self.states) > 1 else self.states[0])
        if asked == "GET /v1/batches/batch_1/results":
            return _lines(self.results[int(query.removeprefix("after=").removesuffix("&follow=false")) :])
        if asked == "GET /v1/files/file-e/content":
            return _lines(self.errors)
        made = batch("validating", total=0)
        known = {
            "POST /v1/files": {"id": "file-1", "object": "file"},
            "POST /v1/batches": made,
            "POST /v1/batches/batch_1/cancel": batch("cancelling", 3),
            "POST /v1/batches/batch_1/retry": made,
        }
        return answer(known[asked]) if asked in known else refusal(404, "No such batch: 'batch_9'", "id")

    def sent(self, asked: str) -> list[Request]:
        return [request for request, name in zip(self.requests, self.asked, strict=True) if name == asked]


def _lines(found: list[dict[str, Any]]) -> bytes:
    text = "".join(json.dumps(one) + "\n" for one in found).encode()
    return reply(text, content_type="application/x-ndjson", headers={"connection": "close"})


@contextlib.asynccontextmanager
async def faked(fake: Fake, port: int = 0) -> AsyncIterator[str]:
    """Serves a fake gateway. Yields: Its address."""
    async with scripted(fake.script(), port) as upstream:
        yield upstream.base_url.removesuffix("/v1")
