"""The fan-out's formats: what comes in as one JSON document or line by line, and the lines that go out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw

from app.errors import InvalidRequestError
from app.wire.endpoints import BY_PATH, FANOUT_PATHS, Endpoint
from app.wire.parsing import decode, within
from app.wire.request import Peek, peek

_CHECKED_IDS = 250_000  # of a stream without end, duplicates are looked for among this many

_PEEKED = ("model", "stream", "prompt")  # of a prompt only whether there is one

Fields = dict[str, Raw]


class Options(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The request beside its items. `concurrency` and `timeout` (seconds) can only lower the server's own."""

    url: str = "/v1/chat/completions"
    defaults: Fields = {}
    models: Annotated[list[str], Meta(min_length=1, max_length=64)] | None = None
    mode: Literal["all", "race"] = "all"
    order: Literal["input", "completed"] = "input"
    concurrency: Annotated[int, Meta(ge=1)] | None = None
    timeout: Annotated[float, Meta(gt=0, le=86_400)] | None = None


class _Item(msgspec.Struct, kw_only=True):
    body: Fields
    custom_id: str | None = None
    method: Literal["POST"] = "POST"
    url: str | None = None


class _Document(Options, kw_only=True):
    requests: Annotated[list[_Item], Meta(min_length=1)]


_DOCUMENT = msgspec.json.Decoder(_Document)
_ITEM = msgspec.json.Decoder(_Item)
_FIELDS = msgspec.json.Decoder(Fields)


@dataclass(frozen=True, slots=True)
class Unit:
    """One upstream call of an item.

    Attributes:
        fields: The body's, `defaults` included; put together only when the call is sent, for many share one text.
        model: As the result line shows it: only where the request named `models`.
    """

    endpoint: Endpoint
    fields: Fields
    peek: Peek
    model: str | None = None

    def body(self) -> bytes:
        """Returns: The request body as JSON."""
        return msgspec.json.encode(self.fields)


@dataclass(frozen=True, slots=True)
class Item:
    """One item, ready to run: one unit, or one per model.

    Attributes:
        size: Bytes of its own body.
        flaw: Why it cannot run.
    """

    index: int
    custom_id: str | None
    size: int = 0
    units: tuple[Unit, ...] = ()
    flaw: InvalidRequestError | None = None


class ItemReader:
    """Turns items into units; numbers them and looks for duplicate ids."""

    def __init__(self, options: Options, *, streams: bool) -> None:
        self._options = options
        self._streams = streams
        self._seen: set[int] = set()
        self._index = 0

    def line(self, text: bytes | None) -> Item:
        """Reads one line of NDJSON; a broken one becomes an item with a flaw."""
        index, custom_id = self._index, None
        try:
            parsed = _item_of(text)
            custom_id = str(index) if parsed.custom_id is None else parsed.custom_id
            return self.item(parsed, "")
        except InvalidRequestError as flaw:
            return Item(index, custom_id, flaw=flaw)
        finally:
            self._index = index + 1

    def item(self, parsed: _Item, where: str) -> Item:
        """Args: where: The item's place in the document, for errors: `requests[3]`.

        Raises: InvalidRequestError: The item is wrong; `param` says where.
        """
        index = self._index
        self._index += 1
        custom_id = str(index) if parsed.custom_id is None else parsed.custom_id
        if hash(custom_id) in self._seen:
            raise InvalidRequestError(f"duplicate custom_id {custom_id!r}", param=_at(where, "custom_id"))
        if len(self._seen) < _CHECKED_IDS:
            self._seen.add(hash(custom_id))
        endpoint = _endpoint(parsed.url or self._options.url, _at(where, "url"))
        fields = {**self._options.defaults, **parsed.body}
        models = self._options.models
        units = tuple(
            self._unit(endpoint, fields if model is None else {**fields, "model": _raw(model)}, model, where)
            for model in models or (None,)
        )
        return Item(index, custom_id, sum(map(_length, parsed.body.values())), units)

    def _unit(self, endpoint: Endpoint, fields: Fields, model: str | None, where: str) -> Unit:
        looked_at = {name: Raw(b"0") if name == "prompt" else fields[name] for name in _PEEKED if name in fields}
        with within(_at(where, "body")):
            seen = peek(endpoint, msgspec.json.encode(looked_at))
        if seen.stream and not self._streams:
            message = "stream: true needs the request header Accept: text/event-stream"
            raise InvalidRequestError(message, param=_at(where, "body", "stream"))
        return Unit(endpoint, fields, seen, model)


def _item_of(text: bytes | None) -> _Item:
    if text is None:
        raise InvalidRequestError("the line is too long (max_line_bytes)")
    return decode(_ITEM, text)


def read_document(body: bytes, *, streams: bool) -> tuple[Options, list[Item]]:
    """Args: streams: Whether items may ask for a stream.

    Raises: InvalidRequestError: Anything is wrong; `param` names the item and its field.
    """
    document = decode(_DOCUMENT, body)
    check(document)
    reader = ItemReader(document, streams=streams)
    return document, [reader.item(item, f"requests[{place}]") for place, item in enumerate(document.requests)]


def read_options(query: Mapping[str, str]) -> Options:
    """The options of an NDJSON request: query parameters, `models` comma-separated, `defaults` as JSON.

    Raises: InvalidRequestError: One of them is wrong or unknown.
    """
    given: dict[str, Any] = dict(query)
    if "models" in given:
        given["models"] = given["models"].split(",")
        if not all(given["models"]):
            raise InvalidRequestError("a model's name is empty", param="models")
    if "defaults" in given:
        given["defaults"] = decode(_FIELDS, given["defaults"].encode(), "defaults")
    try:
        options = msgspec.json.decode(msgspec.json.encode(given), type=Options, strict=False)
    except msgspec.MsgspecError as error:
        message = str(error)
        param = next((name for name in given if f"`$.{name}`" in message or f"`{name}`" in message), None)
        raise InvalidRequestError(message, param=param) from None
    check(options)
    return options


def check(options: Options) -> None:
    """Raises: InvalidRequestError: The options do not go together."""
    _endpoint(options.url, "url")
    if options.mode == "race" and not options.models:
        raise InvalidRequestError("mode race needs models", param="mode")


def _endpoint(url: str, where: str) -> Endpoint:
    path = url.removeprefix("/v1")
    if path not in FANOUT_PATHS:
        allowed = ", ".join(f"/v1{path}" for path in sorted(FANOUT_PATHS))
        raise InvalidRequestError(f"{url!r} is not one of {allowed}", param=where)
    return BY_PATH[path]


def _length(value: Raw) -> int:
    return len(memoryview(value))


def _at(*parts: str | None) -> str:
    return ".".join(part for part in parts if part)


def _raw(value: str) -> Raw:
    return Raw(msgspec.json.encode(value))
