"""A reader of server-sent events as a browser has it, written from the specification and not from our own reader.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from typing import NamedTuple


class Event(NamedTuple):
    """What a page is handed. Attributes: id: The last one that was sent, by this event or by one before."""

    id: str
    name: str
    data: str


def parsed(text: bytes) -> list[Event]:
    """Args: text: A reply's body so far. Returns: Its whole events; what is not ended by a blank line is none."""
    found: list[Event] = []
    last_id, name, data = "", "", list[str]()
    for line in text[: text.rfind(b"\n") + 1].decode().split("\n")[:-1]:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                found.append(Event(last_id, name or "message", "\n".join(data)))
            name, data = "", []
        elif field == "data":
            data.append(value)
        elif field == "event":
            name = value
        elif field == "id":
            last_id = value
        else:
            assert field in {"", "retry"}, line
    return found
