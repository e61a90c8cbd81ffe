"""Every endpoint through a real gateway, driven by the official Node SDK: `tests/node/*.test.mjs`."""

import asyncio
import os

import httpx

from tests.node_modules import NODE_FOLDER
from tests.support import Server, eventually


async def test_the_node_sdk_works_on_every_endpoint(node: str, gateway: Server, http: httpx.AsyncClient) -> None:
    async def models_are_known() -> bool:  # what an upstream lists is looked up in the background
        return "gpt-4o-mini" in (await http.get("/v1/models")).text

    await eventually(models_are_known)
    process = await asyncio.create_subprocess_exec(
        node,
        "--test",
        "--test-reporter=tap",
        cwd=NODE_FOLDER,
        env={**os.environ, "BASE_URL": gateway.base_url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = (await asyncio.wait_for(process.communicate(), timeout=120))[0].decode()
    assert process.returncode == 0, output
    assert "\n# fail 0" in output, output
    assert "\n# skipped 0" in output, output
    assert "\n# pass 0" not in output, "no test was found"
