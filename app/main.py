"""The only place that wires things together."""

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import anyio
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from app import config
from app.config import ConfigError
from app.errors import StorageError
from app.http import fanout_routes, handlers, openai_routes, openapi, ops_routes
from app.http.context import Gateway
from app.http.drain import Drain
from app.http.idempotency import Idempotency
from app.http.middleware import Edge
from app.policies.retry import RetryPolicy
from app.policies.routing import Router
from app.services.cache import Cache
from app.services.embeddings import Splitter
from app.services.idempotency import MemoryStore
from app.services.keys import Keyring
from app.settings import GatewaySettings
from app.simulator import server as simulator
from app.store.database import Database, StorageInUseError
from app.store.owners import Owner
from app.telemetry import Uptime, configure_logging
from app.upstream.attempt import Upstream
from app.upstream.call import CallStack
from app.upstream.catalog import Catalog
from app.upstream.client import UpstreamClient

log = logging.getLogger("sluicegate")
_EXPOSED = [
    "*",  # what an upstream sends under these prefixes, too; the names below are for browsers that do not know `*`
    "x-request-id",
    "x-sluicegate-upstream",
    "x-sluicegate-attempts",
    "x-sluicegate-queue-ms",
    "x-sluicegate-cache",
    "idempotent-replayed",
    "x-should-retry",
    "retry-after",
    "retry-after-ms",
    "openai-model",
    "openai-organization",
    "openai-processing-ms",
    "openai-version",
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
]


def create_app(settings: GatewaySettings | None = None) -> FastAPI:
    """Args: settings: Default: read from the environment and files, as a worker process does."""
    chosen = settings or config.load()
    configure_logging(chosen.log_level, access=chosen.access_log)
    app = FastAPI(
        title="Sluicegate",
        version="0.1.0",
        description="The gateway between your applications and their language models.",
        lifespan=_lifespan(chosen),
        redirect_slashes=False,
    )
    handlers.install(app)
    openapi.install(app)
    app.include_router(openai_routes.router(), prefix="/v1")
    app.include_router(fanout_routes.router(), prefix="/v1")
    app.include_router(ops_routes.router())
    app.include_router(openai_routes.router(), include_in_schema=False)
    app.include_router(fanout_routes.router(), include_in_schema=False)
    app.add_middleware(Idempotency)
    app.add_middleware(Edge)
    if chosen.cors_origins:  # outermost, so that even the answer to a bug can be read by a page
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(chosen.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
            allow_credentials=False,  # keys travel in a header, never in a cookie
        )
    return app


def _lifespan(
    settings: GatewaySettings,
) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[dict[str, Gateway]]]:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Gateway]]:
        async with running_gateway(settings) as gateway:
            async with anyio.create_task_group():
                pass  # anyio loads its backend at first use, for 35 ms: better now than in front of the first stream
            gc.collect()
            gc.freeze()  # what start-up made stays: a full collection that walks it halts every stream for 80 ms
            gc.set_threshold(20_000, 20, 50)  # looking for cycles every 700 objects is 4 % of a call
            with gateway.drain.on_signals():
                yield {"gateway": gateway}

    return lifespan


@contextlib.asynccontextmanager
async def running_gateway(settings: GatewaySettings) -> AsyncIterator[Gateway]:
    """Everything but HTTP: what carries calls, the storage, and what submits calls and keeps what comes of them."""
    async with contextlib.AsyncExitStack() as cleanup:
        calls = await cleanup.enter_async_context(running_calls(settings))
        database = await asyncio.to_thread(open_database, settings)
        cleanup.push_async_callback(asyncio.to_thread, database.close)
        owner = Owner(database, settings.lease)
        await asyncio.to_thread(owner.start)
        cleanup.push_async_callback(asyncio.to_thread, owner.stop)
        yield Gateway(
            settings=settings,
            stack=calls.stack,
            cache=calls.cache,
            idempotency=MemoryStore(settings.idempotency_max_bytes, settings.idempotency_ttl),
            catalog=calls.catalog,
            keyring=Keyring(settings.keys),
            uptime=Uptime(),
            drain=Drain(settings.drain_timeout),
        )


@dataclass(frozen=True, slots=True)
class Calls:
    """What carries calls to upstreams."""

    stack: CallStack
    cache: Cache
    catalog: Catalog


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
        await _keep_fresh(catalog, cleanup)
        yield Calls(stack, cache, catalog)


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


async def _keep_fresh(catalog: Catalog, cleanup: contextlib.AsyncExitStack) -> None:
    await catalog.prime()
    task = asyncio.create_task(catalog.keep_fresh(), name="model lists")

    async def stop() -> None:
        task.cancel()
        await asyncio.wait({task})

    cleanup.push_async_callback(stop)
