"""What the simulator reads of a request."""

from typing import Any

import msgspec

from app.simulator.replies import Body
from app.wire.endpoints import ENDPOINTS
from app.wire.request import peek

POSTS = {endpoint.path: endpoint for endpoint in ENDPOINTS if endpoint.method == "POST"}


def parse(path: str, body: bytes, content_type: str) -> Body:
    if not body:
        return {}
    endpoint = POSTS.get(path)
    if endpoint is None:
        return {}
    wanted = peek(endpoint, body, content_type)
    if endpoint.body == "multipart":
        return {"model": wanted.model, "stream": wanted.stream, **_plain_fields(body)}
    parsed: Body = msgspec.json.decode(body, type=dict[str, Any])
    return parsed


def _plain_fields(body: bytes) -> Body:
    found = {}
    for name in ("response_format", "prompt", "n", "partial_images"):
        _, mark, rest = body.partition(f'name="{name}"\r\n\r\n'.encode())
        if mark:
            found[name] = rest.split(b"\r\n", 1)[0].decode(errors="replace")
    return found
