"""How the process serves: uvicorn, set up for long streams and an orderly end."""

import contextlib
import os
import resource
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.supervisors import Multiprocess

from app.config import PREFIX, ConfigError, Settings
from app.settings import GatewaySettings

# longer than a load balancer's idle timeout (60), so that it is never the server that hangs up
_KEEP_ALIVE_SECONDS = 75
_BACKLOG = 4096  # connections that may wait to be accepted
# In the kernel, for one connection. Else it takes in up to 4 MB for a reader who does not read, before anybody notices.
_MOST_UNSENT_BYTES = 64 * 1024
_END_SECONDS = 2  # after the drain, for what is left


class _Server(uvicorn.Server):
    """Ends with exit code 0 after SIGTERM, where uvicorn raises the signal again when all is done."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            yield
            self._captured_signals.clear()


def listener(host: str, port: int) -> socket.socket:
    """Takes the address before anything else is begun.

    Raises: ConfigError: It cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # Linux; its connections inherit it
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MOST_UNSENT_BYTES)
    return bound


def raise_open_files() -> None:
    """A call is two sockets, and a shell's usual 1,024 open files would be the first limit that is met."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # where the system says no, it stays as it is
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def serve(app: ASGIApp, bound: socket.socket) -> None:
    """Serves `app` in this process until SIGTERM or SIGINT."""
    _Server(uvicorn.Config(app, **_options())).run([bound])


def serve_workers(settings: Settings, bound: socket.socket) -> None:
    """Serves with several processes; each reads its settings anew, from an environment that holds the overrides."""
    os.environ[f"{PREFIX}HOST"] = settings.host
    os.environ[f"{PREFIX}PORT"] = str(settings.port)
    if settings.config_file is not None:
        os.environ[f"{PREFIX}CONFIG"] = str(settings.config_file)
    config = uvicorn.Config("app.main:create_app", factory=True, workers=settings.workers, **_options())
    with contextlib.suppress(KeyboardInterrupt):
        Multiprocess(config, sockets=[bound]).run()


def _options() -> dict[str, Any]:
    return {
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "ws": "none",
        "backlog": _BACKLOG,
        "timeout_keep_alive": _KEEP_ALIVE_SECONDS,
        "timeout_graceful_shutdown": _END_SECONDS,
    }


def banner(settings: GatewaySettings, port: int) -> str:
    """Returns: What a person reads first: where it is, and what is behind it."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    where = f"http://{host}:{port}"
    behind = ", ".join(f"{name} ({upstream.kind})" for name, upstream in settings.upstreams.items())
    lines = [f"Sluicegate: base_url {where}/v1, docs {where}/docs, upstreams: {behind}"]
    if settings.is_simulated:
        lines.append("No upstream is configured (OPENAI_API_KEY or sluicegate.toml): the built-in simulator answers.")
    return "\n".join(lines)
