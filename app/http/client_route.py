"""`/client.js`: the browser client of resumable streams, one file for pages of any origin to import."""

import re
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.wire.digest import digest_of

_FILE = Path(__file__).with_name("client.js")
_COMMENTS = re.compile(r"^[ \t]*(?://.*|/\*\*(?:(?!\*/)[\s\S])*\*/)\n(?!export)", re.MULTILINE)
_INDENTATION = re.compile(r"^[ \t]+(?:\* )?|^\n", re.MULTILINE)


def router() -> APIRouter:
    code = served(_FILE.read_text()).encode()
    headers = {
        "etag": f'"{digest_of(code).hex()[:32]}"',
        "cache-control": "public, max-age=3600",
        "access-control-allow-origin": "*",  # a module is fetched as by a page, wherever `cors_origins` lets in
        "cross-origin-resource-policy": "cross-origin",
        "x-content-type-options": "nosniff",
    }

    async def client(request: Request) -> Response:
        """No key: a page imports it before it has one."""
        known = (tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(","))
        if headers["etag"] in known:
            return Response(status_code=304, headers=headers)
        return Response(code, headers=headers, media_type="text/javascript")

    routes = APIRouter()
    routes.add_api_route("/client.js", client, methods=["GET", "HEAD"], include_in_schema=False, response_model=None)
    return routes


def served(source: str) -> str:
    """Returns: The module without indentation and without comments but the one that tells its users of the export."""
    return _INDENTATION.sub("", _COMMENTS.sub("", source))
