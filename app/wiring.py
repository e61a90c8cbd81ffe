"""The only place that wires things together: what carries calls, what stores things, what works in the background."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass

from app.config import ConfigError
from app.errors import DrainingError, StorageError
from app.http.context import Gateway
from app.http.drain import Drain
from app.http.incoming import until_the_drain_is_over
from app.policies.retry import RetryPolicy
from app.policies.routing import Router
from app.services.batches.jobs import Jobs
from app.services.batches.submission import Batches
from app.services.batches.worker import Worker
from app.services.browser_tokens import BrowserTokens
from app.services.cache import Cache
from app.services.embeddings import Splitter
from app.services.files import Files
from app.services.idempotency import StoredReplies
from app.services.keys import Keyring
from app.services.streams.service import Streams
from app.settings import GatewaySettings
from app.simulator import server as simulator
from app.store import browser_tokens
from app.store.blobs import Blobs, open_blobs
from app.store.database import Database, StorageInUseError
from app.store.owners import Owner
from app.telemetry import Uptime
from app.upstream.attempt import Upstream
from app.upstream.call import CallStack
from app.upstream.catalog import Catalog
from app.upstream.client import UpstreamClient

log = logging.getLogger("sluicegate")


@dataclass(frozen=True, slots=True)
class Calls:
    """What carries calls to upstreams."""

    stack: CallStack
    cache: Cache
    catalog: Catalog


@dataclass(frozen=True, slots=True)
class Storage:
    """What outlives the process, and this process's lease on its share of the work."""

    database: Database
    owner: Owner
    files: Files


@contextlib.asynccontextmanager
async def running_gateway(settings: GatewaySettings) -> AsyncIterator[Gateway]:
    """Everything but HTTP."""
    async with contextlib.AsyncExitStack() as cleanup:
        calls = await cleanup.enter_async_context(running_calls(settings))
        storage = await cleanup.enter_async_context(running_storage(settings))
        drain, worker = Drain(settings.drain_timeout), None
        if settings.batches.worker:
            worker = await cleanup.enter_async_context(_running_worker(settings, calls, storage, drain))
        most, ttl = settings.idempotency_max_bytes, settings.idempotency_ttl
        idempotency = StoredReplies(storage.database, storage.owner, most, ttl)
        cleanup.push_async_callback(idempotency.aclose)
        keyring = Keyring(settings.keys)
        signing = await storage.database.run(browser_tokens.secret, "browser_tokens", secrets.token_bytes(32))
        yield Gateway(
            settings=settings,
            stack=calls.stack,
            cache=calls.cache,
            idempotency=idempotency,
            catalog=calls.catalog,
            keyring=keyring,
            uptime=Uptime(),
            drain=drain,
            files=storage.files,
            batches=Batches(storage.database, storage.files, settings.batches, worker, ttl),
            worker=worker,
            browser_tokens=BrowserTokens(storage.database, signing, keyring),
            streams=await cleanup.enter_async_context(_running_streams(settings, storage, drain)),
        )


@contextlib.asynccontextmanager
async def running_calls(settings: GatewaySettings) -> AsyncIterator[Calls]:
    """The upstreams' clients and the call stack, without any storage."""
    async with contextlib.AsyncExitStack() as cleanup:
        router, retry = Router.from_settings(settings), RetryPolicy(settings.max_attempts)
        stack = CallStack(await _upstreams(settings, cleanup), router, retry)
        cleanup.push_async_callback(stack.aclose)
        cache = Cache(Splitter(stack, settings.max_embedding_inputs).call, settings.cache)
        cleanup.push_async_callback(cache.aclose)
        catalog = Catalog(stack, settings.models_ttl)
        await catalog.prime()
        await cleanup.enter_async_context(_until_the_end(asyncio.create_task(catalog.keep_fresh(), name="model lists")))
        yield Calls(stack, cache, catalog)


@contextlib.asynccontextmanager
async def running_storage(settings: GatewaySettings) -> AsyncIterator[Storage]:
    """The database, open, and the files."""
    async with contextlib.AsyncExitStack() as cleanup:
        database = await asyncio.to_thread(open_database, settings)
        cleanup.push_async_callback(asyncio.to_thread, database.close)
        owner = Owner(database, settings.lease)
        await asyncio.to_thread(owner.start)
        cleanup.push_async_callback(asyncio.to_thread, owner.stop)
        files = Files(database, open_files(settings))
        files.start()
        cleanup.push_async_callback(files.aclose)
        yield Storage(database, owner, files)


@contextlib.asynccontextmanager
async def _running_worker(
    settings: GatewaySettings, calls: Calls, storage: Storage, drain: Drain
) -> AsyncIterator[Worker]:
    """When the drain begins, it hands back what it has not begun, and what runs is waited for."""
    database, owner, files = storage.database, storage.owner, storage.files
    jobs = Jobs(database, owner, files, calls.catalog.exists, settings.max_line_bytes, settings.batches.max_lines)
    worker = Worker(database, owner, files, calls.cache.call, jobs, settings.batches)

    async def hand_back() -> None:
        await drain.began.wait()
        worker.hand_back()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        with drain.call(), drain.cancels(task):
            await worker.idle()

    worker.start()
    try:
        async with _until_the_end(asyncio.create_task(hand_back(), name="batch hand-back")):
            yield worker
    finally:
        await worker.aclose()


@contextlib.asynccontextmanager
async def _running_streams(settings: GatewaySettings, storage: Storage, drain: Drain) -> AsyncIterator[Streams]:
    """The drain waits for them; those that still run at its end are told so in their last event."""
    streams = Streams(storage.database, storage.owner, settings.streams)

    async def wait_for_them() -> None:
        await drain.began.wait()
        with drain.call():
            try:
                async with until_the_drain_is_over(drain):
                    await streams.idle()
            except DrainingError as error:
                await streams.stop_all(error)
                await streams.idle()

    await streams.start()
    try:
        async with _until_the_end(asyncio.create_task(wait_for_them(), name="stream drain")):
            yield streams
    finally:
        await streams.aclose()


@contextlib.asynccontextmanager
async def _until_the_end(task: "asyncio.Task[None]") -> AsyncIterator[None]:
    """Cancels the task when the block is left."""
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def check_storage(settings: GatewaySettings) -> None:
    """Opens what is there and closes it again, before a server, or its workers, could only end in a traceback.

    Raises: ConfigError: It cannot be used.
    """
    open_database(settings).close()
    open_files(settings).close()


def open_files(settings: GatewaySettings) -> Blobs:
    """Raises: ConfigError: They cannot be kept there."""
    url = settings.files_url
    try:
        return open_blobs(None if url is None else url.get_secret_value(), settings.data_dir)
    except StorageError as error:
        raise ConfigError(f"files_url: {error.message}") from None


def open_database(settings: GatewaySettings) -> Database:
    """Raises: ConfigError: It cannot be used; the line names the setting."""
    url = settings.database_url
    try:
        return Database(None if url is None else url.get_secret_value(), settings.data_dir)
    except StorageInUseError as error:
        raise ConfigError(f"data_dir: {error}") from None
    except StorageError as error:
        raise ConfigError(f"{'data_dir' if url is None else 'database_url'}: {error.message}") from None
    except OSError as error:
        raise ConfigError(f"data_dir = {str(settings.data_dir)!r}: {error.strerror}") from None


async def _upstreams(settings: GatewaySettings, cleanup: contextlib.AsyncExitStack) -> dict[str, Upstream]:
    upstreams = {}
    for name, chosen in settings.upstreams.items():
        base_url = None
        if chosen.kind == "simulator":
            base_url = await cleanup.enter_async_context(simulator.running(settings.simulator))
            log.warning("upstream %s is the built-in simulator: answers are made up", name)
        client = UpstreamClient(name, chosen, base_url)
        upstreams[name] = Upstream(name, chosen, client, settings.max_reply_bytes)
    return upstreams
