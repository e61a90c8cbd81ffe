"""The one error tree. Status, type and code stand on the class; `http/handlers.py` renders them at the edge.

Source: OpenAI's error envelope, https://platform.openai.com/docs/guides/error-codes
"""

import math
from typing import ClassVar

import msgspec


class GatewayError(Exception):
    """A failure of this gateway's own making, ready to be shown to a client.

    Args:
        message: One sentence for the client. Never holds a secret or a prompt.
        param: The request field at fault, as `requests[3].body`.
        retry_after: Seconds after which another try can succeed.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal_error"
    code: ClassVar[str | None] = None
    should_retry: ClassVar[bool | None] = None

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after

    @property
    def cause(self) -> str:
        """What a result line calls it, where it stands in place of a reply."""
        return self.code or self.type

    def envelope(self) -> bytes:
        """Returns: The JSON body `{"error": {"message", "type", "param", "code"}}`."""
        return envelope(self.message, self.type, self.param, self.code)

    def headers(self) -> dict[str, str]:
        """Returns: What the official SDKs read to decide on a retry; `retry-after` is in whole seconds."""
        headers = {}
        if self.should_retry is not None:
            headers["x-should-retry"] = "true" if self.should_retry else "false"
        if self.retry_after is not None:
            headers["retry-after-ms"] = str(math.ceil(self.retry_after * 1000))
            headers["retry-after"] = str(math.ceil(self.retry_after))
        return headers


def envelope(message: str, kind: str, param: str | None = None, code: str | None = None) -> bytes:
    """Returns: OpenAI's error body as JSON."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


class InternalError(GatewayError):
    """A bug. The log has the trace, the client has the request id."""


class InvalidRequestError(GatewayError):
    status, type, should_retry = 400, "invalid_request_error", False


class AuthenticationError(GatewayError):
    status, type, code, should_retry = 401, "authentication_error", "invalid_api_key", False


class TokenExpiredError(AuthenticationError):
    """A browser token whose time is over."""

    code = "token_expired"


class PermissionDeniedError(GatewayError):
    status, type, should_retry = 403, "permission_error", False


class NotFoundError(GatewayError):
    status, type, should_retry = 404, "not_found_error", False


class ModelNotFoundError(NotFoundError):
    code = "model_not_found"


class MethodNotAllowedError(GatewayError):
    status, type, should_retry = 405, "invalid_request_error", False


class SlowRequestError(GatewayError):
    """The client was too slow to send its body."""

    status, type, code = 408, "timeout_error", "request_timeout"


class IdempotencyInProgressError(GatewayError):
    """A call with the same Idempotency-Key still runs."""

    status, type, code, should_retry = 409, "conflict_error", "idempotency_in_progress", True


class ConflictError(GatewayError):
    """What is asked for does not go with the state that the thing is in."""

    status, type, should_retry = 409, "conflict_error", False


class StreamCancelledError(GatewayError):
    """Its maker ended the stream."""

    status, type, code, should_retry = 409, "conflict_error", "cancelled", False


class StreamTooLargeError(GatewayError):
    """More events than may be kept."""

    status, type, code, should_retry = 502, "upstream_error", "stream_too_large", False


class ServerLostError(GatewayError):
    """The process that ran the stream is gone, and its upstream call with it."""

    status, type, code, should_retry = 502, "internal_error", "server_lost", True


class BodyTooLargeError(GatewayError):
    status, type, code, should_retry = 413, "invalid_request_error", "body_too_large", False


class QueueFullError(GatewayError):
    status, type, code, should_retry = 429, "rate_limit_error", "queue_full", True


class RateLimitError(GatewayError):
    """The upstream's limits leave no place for the call before its deadline."""

    status, type, code, should_retry = 429, "rate_limit_error", "rate_limit_exceeded", True


class QuotaSpentError(GatewayError):
    """A browser token's number of requests is used up. OpenAI's own word for it, which no client tries again."""

    status, type, code, should_retry = 429, "insufficient_quota", "insufficient_quota", False


class ClientHungUpError(GatewayError):
    """Logged only: nobody is left to read it."""

    status, type, code = 499, "client_hung_up", "client_hung_up"


class UpstreamError(GatewayError):
    """The upstream gave no usable reply."""

    status, type = 502, "upstream_error"


class UpstreamUnreachableError(UpstreamError):
    code = "upstream_unreachable"


class UpstreamMalformedError(UpstreamError):
    code = "upstream_malformed"


class UpstreamCutError(UpstreamError):
    code = "upstream_cut"


class CircuitOpenError(GatewayError):
    """Every target that could answer has failed of late and is left alone for a moment."""

    status, type, code, should_retry = 503, "overloaded_error", "circuit_open", True


class DrainingError(GatewayError):
    status, type, code, should_retry = 503, "overloaded_error", "draining", True


class StorageError(GatewayError):
    """The database or the files cannot be reached; what was asked for is undone, or was never begun."""

    status, type, code, should_retry = 503, "overloaded_error", "storage_unavailable", True


class FileContentMissingError(StorageError):
    """A file is known, but its bytes are gone."""

    code, should_retry = "file_content_missing", False


class StorageFullError(StorageError):
    """No room is left. A retry helps only after somebody has made some."""

    status, code, should_retry = 507, "storage_full", False


class DeadlineError(GatewayError):
    """Any of the three clocks of a call ran out."""

    status, type, code = 504, "timeout_error", "deadline_exceeded"
    cause = "timeout"


class FirstTokenTimeoutError(DeadlineError):
    code = "first_token_timeout"


class IdleTimeoutError(DeadlineError):
    code = "idle_timeout"
