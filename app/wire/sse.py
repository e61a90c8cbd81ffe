"""Server-sent events, sans I/O: bytes cut anywhere go in, whole and valid events come out.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import json

import msgspec
from msgspec import UNSET, Raw, UnsetType

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
_BOM = b"\xef\xbb\xbf"
_MAX_EVENT_BYTES = 32 * 1024**2  # a partial image in base64 is the largest event there is
_NOT_FOR_SDKS = (b"id:", b"retry:")  # the official SDKs crash on these


class MalformedEventError(Exception):
    """What came is not a stream of JSON events."""


class EarlyEndError(MalformedEventError):
    """The stream ended before its end."""


class _Chunk(msgspec.Struct):
    error: Raw | UnsetType = UNSET  # `Raw | None` would refuse everything but null
    type: Raw | UnsetType = UNSET


_CHUNK = msgspec.json.Decoder(_Chunk)


class EventReader:
    """Checks one upstream stream and frames it with `\\n\\n`; events are otherwise relayed byte for byte.

    Args:
        terminals: `type`s of the events after which the stream may end without `[DONE]`.
    Attributes:
        started: A valid event has been read.
        done: `[DONE]` has been read; whatever follows it is dropped.
        error: The error object (JSON) of an upstream's own error event, which ends the stream.
        complete: An event of a terminal type has been read.
        flaw: Something that is no event has been read before all was said; what came before it has been handed out.
    """

    def __init__(self, terminals: frozenset[str] = frozenset()) -> None:
        self.started = False
        self.done = False
        self.error: bytes | None = None
        self.complete = False
        self.flaw: MalformedEventError | None = None
        self._terminals = {msgspec.json.encode(name) for name in terminals}
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._begun = False

    @property
    def ended(self) -> bool:
        """Whether nothing more is to be read: `[DONE]`, an error event or a flaw."""
        return self.done or self.error is not None or self.flaw is not None

    def feed(self, data: bytes) -> bytes:
        """Takes the next bytes as they came.

        Returns: The whole events that they complete, framed; maybe none. The first that is not JSON, or too long,
            becomes the `flaw`, and ends the stream.
        """
        if self._begun and not self._held and data.endswith(b"\n\n") and b"\r" not in data:
            return self._checked(data)  # whole events: what nearly every read brings
        if b"\n" not in data and b"\r" not in data:
            return self._hold(data)
        if self._held:
            self._held.append(data)
            data = b"".join(self._held)
            self._held, self._held_bytes = [], 0
        if not self._begun:
            self._begun = True
            data = data.removeprefix(_BOM)
        if b"\r" in data:
            held = b"\r" if data.endswith(b"\r") else b""  # its line feed may be in the next bytes
            data = data[: len(data) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + held
        cut = data.rfind(b"\n\n") + 2
        if cut == 1:
            return self._hold(data)
        self._hold(data[cut:])
        return self._checked(data[:cut])

    def _hold(self, data: bytes) -> bytes:
        """Keeps the beginning of an event, in pieces: a large one is not copied again for every piece of it."""
        if data:
            self._held.append(data)
            self._held_bytes += len(data)
            if self._held_bytes > _MAX_EVENT_BYTES:
                self.flaw = MalformedEventError("an event is too long")
        return b""

    def close(self) -> bytes:
        """The upstream closed its stream.

        Returns: What is still to be sent so that the client sees a whole stream, maybe nothing. If it closed too
            early, that is the `flaw`.
        """
        last = b""
        rest = b"".join(self._held).replace(b"\r\n", b"\n").replace(b"\r", b"\n").strip(b"\n")
        if not self.ended and rest.strip():  # a last event without its blank line
            last = self._checked(rest + b"\n\n")
        if self.ended:
            return last
        if not self.complete:
            self.flaw = EarlyEndError("the stream ended early")
            return last
        self.done = True
        return last + DONE

    def _checked(self, events: bytes) -> bytes:
        kept: list[bytes] = []
        changed = False
        for event in events[:-2].split(b"\n\n"):
            if self.ended:
                changed = True
                break
            try:
                clean = self._event(event)
            except MalformedEventError as flaw:
                changed = True
                if not self.complete:
                    self.flaw = flaw
                else:  # all has been said: what comes after it is left out
                    self.done = True
                    kept.append(DONE[:-2])
                break
            changed |= clean is not event
            if clean:
                kept.append(clean)
        return b"\n\n".join(kept) + b"\n\n" if changed and kept else (b"" if changed else events)

    def _event(self, event: bytes) -> bytes:
        """Returns: The event as it is to be relayed: itself, without what SDKs cannot read, or empty."""
        if event.startswith(b"data: ") and b"\n" not in event:
            self._payload(event[6:])
            return event
        lines = event.split(b"\n")
        kept = [line for line in lines if line and not line.startswith(_NOT_FOR_SDKS)]
        data = data_of(kept)
        if data is not None:
            self._payload(data)
        elif not all(line.startswith(b":") for line in kept):
            if not all(line.startswith((b":", b"event:")) for line in kept):
                raise MalformedEventError("not an event stream")
            return b""  # an event without data is never dispatched
        return event if kept == lines else b"\n".join(kept)

    def _payload(self, payload: bytes) -> None:
        if is_done(payload):
            self.done = self.started = True
            return
        chunk = _decoded(payload)
        if isinstance(chunk.error, Raw) and bytes(chunk.error) != b"null":
            self.error = bytes(chunk.error)
        elif self._terminals and isinstance(chunk.type, Raw) and bytes(chunk.type) in self._terminals:
            self.complete = True
            if bytes(chunk.type) == b'"error"':
                self.error = payload
        if self.error is None:
            self.started = True


def _decoded(payload: bytes) -> _Chunk:
    try:
        if not payload.isascii():
            payload.decode()
        return _CHUNK.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    try:  # msgspec refuses half an emoji ("\\ud83d"), which models do cut across two tokens; clients take it
        fields = dict(json.loads(payload.decode(), parse_constant=_refuse).items())
        return _CHUNK.decode(json.dumps({name: fields[name] for name in ("error", "type") if name in fields}))
    except (ValueError, AttributeError, RecursionError, msgspec.MsgspecError):
        raise MalformedEventError("an event is not a JSON object") from None


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def event(data: bytes, name: str | None = None) -> bytes:
    """Returns: One event, framed; `data` is JSON on one line."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + data + b"\n\n"


def payloads(events: bytes) -> list[bytes]:
    """Returns: The data of each JSON event in a block of framed events; `[DONE]` and comments are left out."""
    found = []
    for one in events.split(b"\n\n"):
        data = data_of(one.split(b"\n"))
        if data is not None and not is_done(data):
            found.append(data)
    return found


def data_of(lines: list[bytes]) -> bytes | None:
    """Returns: An event's data, its lines joined; None: it has none."""
    data = [line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")]
    return b"\n".join(data) if data else None


def is_done(data: bytes) -> bool:
    """Whether an event's data is the end marker."""
    return data.strip() == b"[DONE]"
