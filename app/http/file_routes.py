"""OpenAI's Files, kept here: up and down as streams, so that their size is only a matter of storage."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Literal
from urllib.parse import quote

import msgspec
from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from app.http.context import CallerDep, gateway, record
from app.http.incoming import pieces_of, until_the_drain_is_over
from app.http.live import LiveResponse
from app.http.openapi import UPLOAD_FORM
from app.http.upload import Form, receive, too_large, too_long


def router() -> APIRouter:
    routes = APIRouter(tags=["files"])
    for path, handler, method, summary, extra in (
        ("/files", create_file, "POST", "Upload a file", UPLOAD_FORM),
        ("/files", list_files, "GET", "All files", None),
        ("/files/{id}", get_file, "GET", "One file", None),
        ("/files/{id}", delete_file, "DELETE", "Delete a file", None),
        ("/files/{id}/content", get_content, "GET", "A file's content", None),
    ):
        routes.add_api_route(path, handler, methods=[method], response_model=None, summary=summary, openapi_extra=extra)
    return routes


async def create_file(request: Request, caller: CallerDep) -> Response:
    """The file goes to storage as it comes in; `purpose` may come after it, and the length may be unknown."""
    running = gateway(request)
    settings = running.settings
    if too_long(request.headers.get("content-length", ""), settings.max_file_bytes):
        raise too_large(settings.max_file_bytes)
    form = Form(request.headers.get("content-type", ""))
    async with until_the_drain_is_over(running.drain), running.files.making(caller.name) as making:
        await receive(pieces_of(request, settings.body_timeout), form, making, settings.max_file_bytes)
    return _json(making.file.fields())


async def list_files(
    request: Request,
    caller: CallerDep,
    after: Annotated[str | None, Query(pattern="^[A-Za-z0-9_-]{1,64}$")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: Annotated[str | None, Query(pattern="^[a-z_-]{1,32}$")] = None,
) -> Response:
    """Page by page: `after` is the last file of the page before."""
    found = await gateway(request).files.page(
        caller.name, after=after, limit=limit, descending=order == "desc", purpose=purpose
    )
    data = [file.fields() for file in found.files]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return _json({"object": "list", "data": data, **ends, "has_more": found.has_more})


FileId = Annotated[str, Path(alias="id")]


async def get_file(request: Request, caller: CallerDep, file_id: FileId) -> Response:
    """What it is; its bytes are behind `/content`."""
    return _json((await gateway(request).files.get(caller.name, file_id)).fields())


async def delete_file(request: Request, caller: CallerDep, file_id: FileId) -> Response:
    """A batch that reads it goes on reading it."""
    await gateway(request).files.delete(caller.name, file_id)
    return _json({"id": file_id, "object": "file", "deleted": True})


async def get_content(request: Request, caller: CallerDep, file_id: FileId) -> Response:
    """Its bytes, as they are."""
    running = gateway(request)
    file = await running.files.get(caller.name, file_id)
    headers = {
        "content-length": str(file.bytes),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
    }
    return LiveResponse(
        _Content(await running.files.content(file)),
        gateway=running,
        record=record(request),
        headers=headers,
        media_type="application/octet-stream",
    )


class _Content:
    """A file's pieces as a live reply's source."""

    def __init__(self, pieces: AsyncGenerator[bytes, None]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces

    async def aclose(self, _failure: BaseException | None = None) -> None:
        await self._pieces.aclose()


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
