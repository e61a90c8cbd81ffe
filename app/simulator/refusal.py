"""How the simulator says no: one exception, raised where a call is refused and answered in one place."""

from app.errors import envelope

_KINDS = {
    404: ("invalid_request_error", "model_not_found"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}


class RefusedError(Exception):
    """Args:
    body: OpenAI's envelope.
    headers: What goes along, as Retry-After.
    """

    def __init__(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = headers or {}


def asked_for(status: int, code: str | None = None, headers: dict[str, str] | None = None) -> RefusedError:
    """Returns: The refusal that a knob or a fault asks for; `code` where it is not the status's usual one."""
    kind, usual = _KINDS.get(status, ("server_error" if status >= 500 else "invalid_request_error", None))
    body = envelope(f"The simulator was asked for a {status}.", code or kind, None, code or usual)
    return RefusedError(status, body, headers)
