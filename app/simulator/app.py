"""The built-in upstream: an OpenAI-shaped ASGI app, for demos, tests and benches.

It is deterministic by seed, misbehaves on demand (`knobs.py`, and `faults.py` at run time), has an upstream's limits
(`limits.py`, `service.py`) and keeps a ledger of what it saw (`GET /ledger`).
"""

import random
from urllib.parse import parse_qs, unquote

import msgspec
from starlette.types import Receive, Scope, Send

from app.errors import GatewayError, InvalidRequestError, ModelNotFoundError
from app.settings import SimulatorSettings
from app.simulator import replies
from app.simulator.answers import Answers, Call
from app.simulator.exchange import Exchange, HungUpError
from app.simulator.faults import Faults
from app.simulator.knobs import Behaviour, behaviour
from app.simulator.ledger import Ledger
from app.simulator.limits import Limits
from app.simulator.refusal import RefusedError, asked_for
from app.simulator.replies import Body
from app.simulator.requests import parse
from app.simulator.service import Service

_UNKNOWN = "no-such-"


class Simulator:
    """Args: settings: How replies behave where the model's name does not say."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self._service = Service()
        self.ledger = Ledger(self._service)
        self._settings = settings
        self._answers = Answers(settings, self.ledger)
        self._luck = random.Random(settings.seed)  # noqa: S311 - chance, not secrets
        self._limits = Limits()
        self._faults = Faults(settings.seed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        exchange = Exchange(receive, send)
        path = scope["path"].removeprefix("/v1")
        try:
            if path == "/ledger":
                await self._show_ledger(exchange, scope)
            elif path == "/faults":
                await self._control_faults(exchange, scope["method"])
            elif path == "/models":
                await exchange.whole(200, msgspec.json.encode(replies.model_list()), "application/json", {})
            elif path.startswith("/models/"):
                await self._show_model(exchange, unquote(path.removeprefix("/models/")))
            else:
                await self._counted(exchange, scope["method"], path, scope)
        except HungUpError:
            pass
        finally:
            await exchange.close()

    async def _show_ledger(self, exchange: Exchange, scope: Scope) -> None:
        seen = msgspec.json.encode(self.ledger.snapshot())
        if b"reset" in scope["query_string"]:
            self.ledger.reset()
        await exchange.whole(200, seen, "application/json", {})

    async def _show_model(self, exchange: Exchange, name: str) -> None:
        """Any name is a model's here, for knobs stand in it, but those that begin with `no-such-`."""
        if name.startswith(_UNKNOWN):
            error = ModelNotFoundError(f"the model {name!r} does not exist", param="model")
            await exchange.whole(error.status, error.envelope(), "application/json", {})
        else:
            await exchange.whole(200, msgspec.json.encode(replies.model(name)), "application/json", {})

    async def _control_faults(self, exchange: Exchange, method: str) -> None:
        try:
            shown = self._faults.control(method, await exchange.body())
            await exchange.whole(200, shown, "application/json", {})
        except GatewayError as error:
            await exchange.whole(error.status, error.envelope(), "application/json", {})

    async def _counted(self, exchange: Exchange, method: str, path: str, scope: Scope) -> None:
        body = await exchange.body()
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        aborted = True
        try:
            request = parse(path, body, headers.get("content-type", ""))
            self.ledger.begin(str(request.get("model") or ""), body)
            query = parse_qs(scope["query_string"].decode())
            await self._answer(exchange, method, path, request, body, stream=query.get("stream") == ["true"])
            aborted = False
        except RefusedError as no:
            self.ledger.statuses[no.status] += 1
            await exchange.whole(no.status, no.body, "application/json", no.headers)
            aborted = False
        except InvalidRequestError as error:
            self.ledger.begin("", body)
            await exchange.whole(error.status, error.envelope(), "application/json", {})
            aborted = False
        finally:
            self.ledger.end(aborted=aborted)

    async def _answer(
        self, exchange: Exchange, method: str, path: str, request: Body, body: bytes, *, stream: bool
    ) -> None:
        """The way of a call: the fault of the hour, what is refused at once, the model's slots, the reply."""
        model = str(request.get("model") or "gpt-4o-mini")
        request.setdefault("model", model)
        max_tokens = request.get("max_completion_tokens") or request.get("max_tokens")
        how = behaviour(self._settings, model, max_tokens if isinstance(max_tokens, int) else None)
        fault = self._faults.strike()
        if fault.hole:
            await exchange.pause(None)
        if fault.status is not None:
            await exchange.pause(fault.latency)
            raise asked_for(fault.status, fault.code)
        if how.busy is not None and self._service.in_flight(model) >= how.busy:
            raise asked_for(429, headers=_after(how))
        limits = self._charged(model, how, path, request)
        turn = self._service.enter(model, how.slots)
        try:
            await exchange.until(turn.served)
            await exchange.pause(how.latency + fault.latency)
            self._fail(how, limits)
            await self._answers.give(exchange, Call(method, path, request, body, stream, how, limits))
        finally:
            turn.leave()

    def _charged(self, model: str, how: Behaviour, path: str, request: Body) -> dict[str, str]:
        found = {"requests": how.rpm, "tokens": how.tpm}
        per_minute = {name: limit for name, limit in found.items() if limit is not None}
        tokens = 0 if how.tpm is None else replies.cost(path, request, how.tokens)
        return self._limits.charge(model, per_minute, {"requests": 1, "tokens": tokens})

    def _fail(self, how: Behaviour, limits: dict[str, str]) -> None:
        if how.status is not None or how.quota:
            code = "insufficient_quota" if how.quota else None
            raise asked_for(how.status or 429, code, {**limits, **_after(how)})
        if how.fail and self._luck.random() < how.fail:
            raise asked_for(500, None, limits)


def _after(how: Behaviour) -> dict[str, str]:
    return {} if how.after is None else {"retry-after": f"{how.after:g}"}
