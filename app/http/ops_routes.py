"""For those who run it: is it alive, can it serve, how is it doing."""

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from app.errors import StorageError
from app.http.context import CallerDep, Gateway, gateway

_SIMULATED = "no upstream is configured: the built-in simulator answers"


def router() -> APIRouter:
    routes = APIRouter(tags=["operations"])
    routes.add_api_route("/livez", livez, summary="The process lives")
    routes.add_api_route("/readyz", readyz, summary="The service can take calls", response_model=None)
    routes.add_api_route("/status", status, summary="Figures per upstream", response_model=None)
    routes.add_api_route("/", front_page, include_in_schema=False, response_model=None)
    return routes


async def livez() -> dict[str, str]:
    return {"status": "ok"}


async def readyz(request: Request) -> JSONResponse:
    running = gateway(request)
    ready = {"status": "draining" if running.drain.started else "ready", **_notice(running)}
    return JSONResponse(ready, 503 if running.drain.started else 200)


async def front_page(request: Request) -> JSONResponse:
    """What a browser sees until the console is there."""
    links = {"docs": "/docs", "status": "/status", "ready": "/readyz", "base_url": "/v1"}
    return JSONResponse({"service": "sluicegate", **_notice(gateway(request)), **links})


async def status(request: Request, _: CallerDep) -> JSONResponse:
    """In flight, waiting, totals, success rate and latency percentiles of each upstream, for this process."""
    running = gateway(request)
    upstreams = {
        name: {
            "kind": upstream.settings.kind,
            "in_flight": upstream.admission.in_flight,
            "peak_in_flight": upstream.admission.peak,
            "max_in_flight": upstream.admission.most,
            "queued": upstream.admission.waiting,
            **upstream.snapshot(),
            **upstream.figures.snapshot(),
        }
        for name, upstream in running.stack.upstreams.items()
    }
    process = {"uptime_seconds": running.uptime.seconds(), "tasks": len(asyncio.all_tasks())}
    parts = {
        "upstreams": upstreams,
        "cache": running.cache.snapshot(),
        "batches": await _batches(running),
        "streams": running.streams.snapshot_all(),
    }
    return JSONResponse({**process, **_notice(running), **parts})


async def _batches(running: Gateway) -> dict[str, object]:
    """All batches that run, by status, and what this process's worker has in hand."""
    worker = None if running.worker is None else running.worker.snapshot()
    try:
        return {**await running.batches.snapshot(), "worker": worker}
    except StorageError as error:
        return {"error": error.code, "worker": worker}


def _notice(running: Gateway) -> dict[str, object]:
    simulated = running.settings.is_simulated
    return {"simulator": simulated, **({"notice": _SIMULATED} if simulated else {})}
