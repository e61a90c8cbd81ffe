"""What tests share: one simulator, one gateway in front of it, and both databases."""

import functools
import os
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import settings
from openai import AsyncOpenAI, OpenAI

from app.store.database import Database
from tests.node_modules import installed
from tests.postgres import Postgres
from tests.support import Server, free_port, serving
from tests.turns import turn

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

# Hundreds of processes of ours start during a run: half of a start is compiling, where what was compiled is not kept.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A new HTTP client reads a bundle of certificates, for 20 ms: once is enough.
ssl.create_default_context = functools.cache(ssl.create_default_context)  # type: ignore[assignment]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes work off folders of tests, which wait more than they compute; this one works off single files."""
    return 2 if any(Path(argument).is_dir() for argument in config.args) else 0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test marked `alone` measures a pace: nothing runs beside it."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    with turn(Path(item.config.getoption("basetemp")).parent, alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.fixture(scope="session")
def simulator() -> Iterator[Server]:
    """An upstream that answers at once, five tokens, a millisecond apart, unless the model's name says otherwise."""
    with serving("simulate", "--latency", "0", "--tokens", "5", "--gap", "0.001") as server:
        yield server


@pytest.fixture(scope="session")
def gateway(simulator: Server) -> Iterator[Server]:
    """A gateway with default settings, in front of the simulator."""
    with serving("serve", env={"OPENAI_BASE_URL": simulator.base_url, "OPENAI_API_KEY": "sk-upstream"}) as server:
        yield server


@pytest.fixture
def client(gateway: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=gateway.base_url, api_key="any", max_retries=0) as sync_client:
        yield sync_client


@pytest.fixture
async def async_client(gateway: Server) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=gateway.base_url, api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
async def http(gateway: Server) -> AsyncIterator[httpx.AsyncClient]:
    """Plain HTTP to the gateway, for what an SDK would hide."""
    async with httpx.AsyncClient(base_url=gateway.root, timeout=30) as plain:
        yield plain


FRAGILE_PORT = free_port()
_FRAGILE = f"""
max_attempts = 1
ping_interval = 0.3
send_timeout = 1
body_timeout = 0.5
max_body_bytes = 100000
max_reply_bytes = 1000000
[upstreams.scripted]
base_url = "http://127.0.0.1:{FRAGILE_PORT}/v1"
connect_timeout = 1
first_token_timeout = 1
idle_timeout = 0.6
total_timeout = 5
"""


@pytest.fixture(scope="session")
def fragile() -> Iterator[Server]:
    """A gateway with short clocks whose upstream is whatever a test serves on `FRAGILE_PORT`."""
    with serving("serve", toml=_FRAGILE) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def postgres(postgres_server: Postgres) -> Callable[[], str]:
    """Makes an empty PostgreSQL database at every call, and returns its address (`SLUICEGATE_DATABASE_URL`)."""
    return postgres_server.fresh


@pytest.fixture
def lonely_postgres() -> Iterator[Postgres]:
    """One that a test may stop and start."""
    with Postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest) -> str | None:
    """What a `Database` is opened with: the address of an empty one; None: SQLite, in `tmp_path`."""
    if request.param == "sqlite":
        return None
    make: Callable[[], str] = request.getfixturevalue("postgres")
    return make()


@pytest.fixture
def database(storage: str | None, tmp_path: Path) -> Iterator[Database]:
    """Each of the two databases, empty, in the schema of today."""
    opened = Database(storage, tmp_path)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def node() -> str:
    """The path of `node`; what `package.json` names is installed beside the tests."""
    return installed()
