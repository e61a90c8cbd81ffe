"""How a simulated reply behaves: by settings, and by knobs in the model's name, so that they pass any gateway.

`any-name-latency=0.5-tokens=20-gap=0.05` and so on; see `KNOBS`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from app.settings import SimulatorSettings

KNOBS: Mapping[str, str] = {
    "latency": "seconds before the reply (also: delay)",
    "tokens": "tokens in the answer",
    "gap": "seconds between two tokens",
    "first": "seconds before the first token, the headers being out already",
    "status": "answers with this error status",
    "after": "the Retry-After of `status` or `busy`, seconds",
    "quota": "1: its code is insufficient_quota",
    "fail": "share of calls that answer 500, 0 to 1",
    "cut": "breaks the connection after so many tokens",
    "stall": "falls silent after so many tokens",
    "garbage": "sends a malformed chunk after so many tokens",
    "html": "1: answers 200 with an HTML page",
    "slots": "calls served at once; the others wait in order and are never refused",
    "busy": "calls in flight; above it 429 at once, with `after` as its Retry-After",
    "rpm": "requests a minute, a token bucket; above it 429",
    "tpm": "tokens a minute, prompt and answer, a token bucket; above it 429",
}
_MOST_TOKENS = 1_000_000
_KNOB = re.compile(r"-(" + "|".join([*KNOBS, "delay"]) + r")=(\d{1,9}(?:\.\d{1,9})?)")


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One call's knobs, read; None: not asked for."""

    latency: float
    tokens: int
    gap: float
    first: float
    fail: float
    rpm: int | None = None
    tpm: int | None = None
    slots: int | None = None
    busy: int | None = None
    status: int | None = None
    after: float | None = None
    quota: bool = False
    cut: int | None = None
    stall: int | None = None
    garbage: int | None = None
    html: bool = False


def behaviour(settings: SimulatorSettings, model: str, max_tokens: int | None = None) -> Behaviour:
    """Args:
    model: The model's name; its knobs win over the settings.
    max_tokens: The request's own bound.
    """
    base = Behaviour(
        settings.latency,
        settings.tokens,
        settings.gap,
        settings.first,
        settings.fail,
        settings.requests_per_minute,
    )
    wholes = {field.name for field in fields(Behaviour) if "int" in str(field.type)}
    flags = {"quota", "html"}
    changes: dict[str, object] = {}
    for name, text in _KNOB.findall(model):
        key = "latency" if name == "delay" else name
        changes[key] = float(text) > 0 if key in flags else int(float(text)) if key in wholes else float(text)
    found = replace(base, **changes)  # type: ignore[arg-type]
    status = found.status if found.status is None or 400 <= found.status < 600 else 400
    return replace(found, status=status, tokens=min(found.tokens, max_tokens or _MOST_TOKENS, _MOST_TOKENS))
