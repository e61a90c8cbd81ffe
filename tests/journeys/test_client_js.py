"""`/client.js`: what is served, and what it does against servers that do their worst (`tests/node/client.mjs`).

In a real browser: `tests/browser`.
"""

import os
import re
import subprocess
import threading
from pathlib import Path

import httpx

from app.http.client_route import served
from tests.nginx import program
from tests.node_modules import NODE_FOLDER
from tests.support import Server, eventually, serving

FILE = Path(__file__).parent.parent.parent / "app" / "http" / "client.js"
MOST_BYTES = 4096
# What a strict Content-Security-Policy forbids, and what needs a bundler.
FORBIDDEN = re.compile(rb"\beval\b|\bFunction\b|innerHTML|\bblob:|\bimport\b|\brequire\b")


async def test_the_client_is_one_small_module_that_any_page_may_import(http: httpx.AsyncClient) -> None:
    reply = await http.get("/client.js", headers={"origin": "https://any.example"})
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/javascript; charset=utf-8"
    assert reply.headers["access-control-allow-origin"] == "*"
    assert reply.headers["cross-origin-resource-policy"] == "cross-origin"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.text == served(FILE.read_text())
    assert "@param {string} url" in reply.text
    assert len(reply.content) <= MOST_BYTES
    assert not FORBIDDEN.search(reply.content)


async def test_the_client_is_sent_once_and_then_only_confirmed(http: httpx.AsyncClient) -> None:
    reply = await http.get("/client.js")
    assert reply.headers["cache-control"] == "public, max-age=3600"
    tag = reply.headers["etag"]
    for known in (tag, f"W/{tag}", f'"another", {tag}'):
        again = await http.get("/client.js", headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert (await http.get("/client.js", headers={"if-none-match": '"another"'})).status_code == 200
    assert (await http.head("/client.js")).headers["etag"] == tag


async def test_the_client_is_served_without_a_key_to_any_page_and_while_draining(simulator: Server) -> None:
    toml = f"""
    cors_origins = "https://app.example"
    [keys.frontend]
    key = "sk-frontend"
    [upstreams.sim]
    base_url = "{simulator.base_url}"
    """
    with serving("serve", toml=toml, ready="/livez") as server, httpx.Client(base_url=server.root) as http:
        for origin in ("https://app.example", "https://any.example"):
            reply = http.get("/client.js", headers={"origin": origin})
            assert reply.status_code == 200
            assert reply.headers["access-control-allow-origin"] in {origin, "*"}
        ask = {"model": "sim-tokens=40-gap=0.05", "messages": [], "stream": True}
        key = {"authorization": "Bearer sk-frontend"}
        with httpx.stream("POST", f"{server.base_url}/chat/completions", json=ask, headers=key) as running:
            server.process.terminate()
            await eventually(lambda: http.get("/readyz").status_code == 503)
            assert http.get("/client.js").status_code == 200
            running.read()


def test_the_client_holds_against_servers_that_do_their_worst(tmp_path: Path) -> None:
    module = tmp_path / "client.js"
    module.write_text(served(FILE.read_text()))
    process = subprocess.Popen(
        [program("node"), "client.mjs"],
        cwd=NODE_FOLDER,
        env={**os.environ, "CLIENT": str(module)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    clock = threading.Timer(90, process.kill)  # what it said until then is shown
    clock.start()
    output, _ = process.communicate()
    clock.cancel()
    assert process.returncode == 0, output
    assert "# fail 0" in output.splitlines(), output
    assert "# pass 0" not in output.splitlines(), "no test was found"
