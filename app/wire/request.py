"""What the gateway must know of a request's body, and the one thing it may change in it: the model's name."""

import re
from dataclasses import dataclass

import msgspec
from msgspec import UNSET, Raw, UnsetType

from app.errors import InvalidRequestError
from app.wire.endpoints import Endpoint
from app.wire.form import FormReader
from app.wire.parsing import decode


@dataclass(frozen=True, slots=True)
class Peek:
    """Attributes:
    model: As the client wrote it; None where it names none.
    stream: Whether the client asked for a stream.
    most_output: Tokens that the answer may have; None: not said.
    """

    model: str | None
    stream: bool
    most_output: int | None = None


class _Json(msgspec.Struct):
    model: str | UnsetType = UNSET
    stream: bool | None = None
    prompt: Raw | UnsetType = UNSET
    stream_format: str | None = None  # speech: its way of saying `stream`
    max_tokens: object = None
    max_completion_tokens: object = None
    max_output_tokens: object = None

    @property
    def most_output(self) -> int | None:
        """What these fields hold is the upstream's to judge: here, nonsense is as good as nothing."""
        for said in (self.max_completion_tokens, self.max_tokens, self.max_output_tokens):
            if isinstance(said, int) and said > 0:
                return said
        return None


_PEEK = msgspec.json.Decoder(_Json)
_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_READ = frozenset({"model", "stream"})
_MODEL_KEY = b'"model"'
_NOTHING = Peek(None, stream=False)


def peek(endpoint: Endpoint, body: bytes, content_type: str = "") -> Peek:
    """Reads what routing needs.

    Raises:
        InvalidRequestError: Not a body of this endpoint's kind, or no model where one is needed.
    """
    if endpoint.body == "none":
        return _NOTHING
    if endpoint.body == "multipart":
        form = _scan_form(body, content_type)
        found = Peek(_text(form, body, "model"), stream=_text(form, body, "stream") == "true")
    else:
        json = decode(_PEEK, body)
        streams = bool(json.stream) or json.stream_format == "sse"
        if json.model is UNSET and json.prompt is not UNSET and endpoint.path == "/responses":
            return Peek(None, stream=streams)  # a stored prompt brings its own model
        most = 0 if endpoint.path == "/embeddings" else json.most_output
        found = Peek(None if json.model is UNSET else json.model, streams, most)
    if found.model == "" or (found.model is None and endpoint.model == "required"):
        raise InvalidRequestError("you must provide a model", param="model")
    return found


def with_model(endpoint: Endpoint, body: bytes, content_type: str, old: str, new: str) -> bytes:
    """Returns: The body with `new` where it named the model `old`; every other byte as it was."""
    if old == new:
        return body
    if endpoint.body == "multipart":
        start, end = _scan_form(body, content_type)["model"]
        return body[:start] + new.encode() + body[end:]
    return _json_with_model(body, old, new)


def unambiguous(body: bytes) -> bytes:
    """A JSON body that names its model once, in plain letters: two readers cannot find two models in it.

    Returns: The body itself where that is so already, else a copy whose fields are unique; values keep their bytes.
    """
    if body.count(_MODEL_KEY) == 1 and b"\\u00" not in body:
        return body
    return msgspec.json.encode(_FIELDS.decode(body))


def _json_with_model(body: bytes, old: str, new: str) -> bytes:
    # A quote inside a JSON string is always escaped, so a `"model"` after one of `{`, `,` or white space is a key.
    key = re.compile(rb'[{,\s]"model"\s*:\s*(' + re.escape(msgspec.json.encode(old)) + rb")")
    found = key.search(body) if body.count(_MODEL_KEY) == 1 else None
    if found is not None:
        start, end = found.span(1)
        spliced = body[:start] + msgspec.json.encode(new) + body[end:]
        if _PEEK.decode(spliced).model == new:
            return spliced
    # Nested, doubled or oddly escaped: take the top level apart; every value keeps its own bytes.
    fields = _FIELDS.decode(body)
    fields["model"] = Raw(msgspec.json.encode(new))
    return msgspec.json.encode(fields)


def _text(form: dict[str, tuple[int, int]], body: bytes, name: str) -> str | None:
    if name not in form:
        return None
    start, end = form[name]
    try:
        text = body[start:end].decode()
    except UnicodeDecodeError:
        raise InvalidRequestError(f"the form field {name!r} is not UTF-8", param=name) from None
    if "\r" in text or "\n" in text:  # a boundary could be made of what follows
        raise InvalidRequestError(f"the form field {name!r} holds a line break", param=name)
    return text


def _scan_form(body: bytes, content_type: str) -> dict[str, tuple[int, int]]:
    """Returns: The span in `body` of each plain field of a multipart form (RFC 7578); files are passed over."""
    reader = _Spans(content_type)
    reader.write(body)
    reader.end()
    return reader.fields


class _Spans(FormReader):
    def __init__(self, content_type: str) -> None:
        super().__init__(content_type)
        self.fields: dict[str, tuple[int, int]] = {}
        self._name: str | None = None  # None: a file, or no name
        self._span: tuple[int, int] | None = None

    def begin(self, name: str, filename: bytes | None) -> None:
        self._name, self._span = name if filename is None else None, None

    def data(self, data: bytes, start: int, end: int) -> None:  # noqa: ARG002 - a reader's signature
        self._span = (self._span[0] if self._span else start, end)

    def finish(self) -> None:
        if self._name:
            if self._name in _READ and self._name in self.fields:
                raise InvalidRequestError(f"the form holds {self._name!r} twice", param=self._name)
            self.fields[self._name] = self._span or (0, 0)
