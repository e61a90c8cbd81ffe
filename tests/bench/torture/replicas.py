"""Gateways that die, freeze and come back: one process at a time, on one port and in one folder."""

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

import httpx

from tests.support import Server, clean_environment, eventually, free_port

_UP_SECONDS = 60.0


class Replica:
    """Args:
    folder: Where it runs; made if it is not there.
    env: Settings.
    command: `serve`, or `worker`: one without a port.
    core: The processor to run on; None: any.
    """

    def __init__(self, folder: Path, env: dict[str, str], command: str = "serve", core: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.root = f"http://127.0.0.1:{free_port()}"
        self._env = clean_environment(**env)
        self._command = command
        self._pin = [] if core is None else ["taskset", "-c", str(core)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        """Returns: What it has printed so far, over all its lives."""
        return (self.folder / "log").read_text()

    async def start(self) -> None:
        """Returns when it is ready."""
        port = ["--port", self.root.rsplit(":", 1)[1]] if self._command == "serve" else []
        with (self.folder / "log").open("ab") as log:
            command = [*self._pin, sys.executable, "-m", "app.cli", self._command, *port]
            self._process = subprocess.Popen(command, env=self._env, cwd=self.folder, stdout=log, stderr=log)
        await eventually(self._is_up, _UP_SECONDS)

    async def _is_up(self) -> bool:
        assert self.process.poll() is None, self.log()
        if self._command != "serve":
            return "works batches off" in self.log()
        with contextlib.suppress(httpx.TransportError):
            async with httpx.AsyncClient(verify=False) as http:
                return (await http.get(f"{self.root}/readyz")).status_code == 200
        return False

    def halt(self) -> None:
        """It does not notice."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        """Without a word, in the middle of whatever it does."""
        self.process.kill()
        await asyncio.to_thread(self.process.wait)

    async def end(self) -> int:
        """Asks it to end. Returns: Its exit code."""
        self.process.terminate()
        return await asyncio.to_thread(self.process.wait, 120)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.go_on()
            await self.kill()


def settings(simulator: Server, **more: object) -> dict[str, str]:
    """Returns: The environment of a gateway in front of the simulator; `max_in_flight=64` is its upstream's.

    Args: more: Settings by their environment names, without SLUICEGATE_.
    """
    slots = more.pop("max_in_flight", 64)
    env = {
        "OPENAI_BASE_URL": simulator.base_url,
        "OPENAI_API_KEY": "sk-upstream",
        "SLUICEGATE_UPSTREAMS__OPENAI__MAX_IN_FLIGHT": str(slots),
        "SLUICEGATE_ACCESS_LOG": "false",
    }
    return env | {f"SLUICEGATE_{name.upper()}": str(value) for name, value in more.items()}


@contextlib.asynccontextmanager
async def two(folder: Path, env: dict[str, str]) -> AsyncIterator[tuple[Replica, Replica]]:
    """Two replicas on one database, with one folder for files."""
    env = {**env, "SLUICEGATE_FILES_URL": str(folder / "shared")}
    async with Replica(folder / "a", env) as first, Replica(folder / "b", env) as second:
        yield first, second
