"""A real nginx before a gateway: what a proxy makes of a stream, only a proxy can show."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import Server, _wait_until_up

_SCRATCH = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def program(name: str) -> str:
    """Returns: The path of a program that Python does not bring. Without it the test is skipped, in CI it fails."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not installed")
    return found


@contextlib.contextmanager
def nginx(http: str, port: int) -> Iterator[Server]:
    """Runs nginx in an empty folder.

    Args:
        http: What its `http { }` holds; all that this does not say is nginx's default.
        port: One that it listens on then.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scratch = "\n".join(f"{each}_temp_path {folder}/{each};" for each in _SCRATCH)
        (folder / "nginx.conf").write_text(
            f"""
            daemon off;
            {"user root;" if os.geteuid() == 0 else ""}
            pid {folder}/pid;
            error_log {folder}/log;
            events {{}}
            http {{
                access_log off;
                {scratch}
                {http}
            }}
            """
        )
        command = [program("nginx"), "-p", name, "-e", f"{folder}/log", "-c", f"{folder}/nginx.conf"]
        process = subprocess.Popen(command)
        server = Server(f"http://127.0.0.1:{port}", process, folder)
        try:
            _wait_until_up(server, "/livez")
            yield server
        finally:
            process.terminate()
            process.wait(timeout=20)
