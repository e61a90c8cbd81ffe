"""The application: routes, layers and the lifespan around them."""

import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Callable

import anyio
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from app import config
from app.http import (
    batch_routes,
    browser_routes,
    client_route,
    fanout_routes,
    file_routes,
    handlers,
    openai_routes,
    openapi,
    ops_routes,
    stream_routes,
)
from app.http.context import Gateway
from app.http.idempotency import Idempotency
from app.http.middleware import Edge
from app.settings import GatewaySettings
from app.telemetry import configure_logging
from app.wiring import running_gateway

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
    app.include_router(file_routes.router(), prefix="/v1")
    app.include_router(batch_routes.router(), prefix="/v1")
    app.include_router(browser_routes.router(), prefix="/v1")
    app.include_router(stream_routes.router(), prefix="/v1")
    app.include_router(ops_routes.router())
    app.include_router(client_route.router())
    app.include_router(openai_routes.router(), include_in_schema=False)
    app.include_router(fanout_routes.router(), include_in_schema=False)
    app.include_router(file_routes.router(), include_in_schema=False)
    app.include_router(batch_routes.router(), include_in_schema=False)
    app.include_router(browser_routes.router(), include_in_schema=False)
    app.include_router(stream_routes.router(), include_in_schema=False)
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
