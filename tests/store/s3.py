"""A bucket on loopback: as much of S3 as is asked for, and sick on demand."""

import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from aiohttp import web

_UPLOAD = "<InitiateMultipartUploadResult><UploadId>{}</UploadId></InitiateMultipartUploadResult>"
_DONE = '<CompleteMultipartUploadResult><ETag>"e"</ETag></CompleteMultipartUploadResult>'


@dataclass
class S3:
    """What is stored, by path; `uploads` are those that are neither complete nor aborted.

    Attributes:
        refuse: The status with which a step is refused: "put", or of a large upload "begin", "part", "complete".
    """

    endpoint: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    refuse: dict[str, int] = field(default_factory=dict)
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    async def answer(self, request: web.Request) -> web.Response:
        upload = request.query.get("uploadId")
        if (step := _step(request)) in self.refuse:
            await request.read()
            return web.Response(status=self.refuse[step])
        if upload is not None or "uploads" in request.query:
            return await self._multipart(request, upload)
        if request.method == "PUT":
            self.objects[request.path] = await request.read()
            return web.Response(headers={"etag": '"e"'})
        if request.method == "DELETE":
            self.objects.pop(request.path, None)
            return web.Response(status=204)
        return self._found(request)

    async def _multipart(self, request: web.Request, upload: str | None) -> web.Response:
        if upload is None:
            upload = f"u{next(self._numbers)}"
            self.uploads[upload] = {}
            return web.Response(text=_UPLOAD.format(upload))
        if request.method == "DELETE":
            self.uploads.pop(upload, None)
            return web.Response(status=204)
        if request.method == "PUT":
            self.uploads[upload][int(request.query["partNumber"])] = await request.read()
            return web.Response(headers={"etag": '"e"'})
        parts = self.uploads.pop(upload)
        self.objects[request.path] = b"".join(parts[number] for number in sorted(parts))
        return web.Response(text=_DONE)

    def _found(self, request: web.Request) -> web.Response:
        if request.path not in self.objects:
            return web.Response(status=404)
        body = self.objects[request.path]
        headers = {"etag": '"e"', "last-modified": "Wed, 21 Oct 2026 07:28:00 GMT"}
        if (span := request.http_range) and span.start is not None and request.method == "GET":
            if span.start >= len(body):
                return web.Response(status=416)
            stop = min(span.stop or len(body), len(body))
            headers["content-range"] = f"bytes {span.start}-{stop - 1}/{len(body)}"
            return web.Response(status=206, body=body[span.start : stop], headers=headers)
        return web.Response(body=body, headers={**headers, "content-length": str(len(body))})


def _step(request: web.Request) -> str:
    if request.method == "POST":
        return "begin" if "uploads" in request.query else "complete"
    if request.method == "PUT":
        return "part" if "uploadId" in request.query else "put"
    return request.method


@contextlib.asynccontextmanager
async def s3() -> AsyncIterator[S3]:
    """Serves an empty bucket."""
    served = S3()
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", served.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    served.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield served
    finally:
        await runner.cleanup()
