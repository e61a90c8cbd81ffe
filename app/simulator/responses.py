"""The Responses API, simulated: objects, events, and a small memory of what was answered."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from app.simulator.replies import CREATED, tokens_of

Body = dict[str, Any]
_REMEMBERED = 1000


class ResponseStore:
    """The last 1,000 responses, by id, with their input."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[Body, Any]] = OrderedDict()

    def keep(self, response: Body, given: Any) -> None:
        self._kept[response["id"]] = (response, given)
        while len(self._kept) > _REMEMBERED:
            self._kept.popitem(last=False)

    def answer(self, method: str, path: str) -> Body | None:
        """Returns: The reply to a call under `/responses/{id}`, or None: no such response."""
        name, _, rest = path.removeprefix("/responses/").partition("/")
        if name not in self._kept:
            return None
        response, given = self._kept[name]
        if rest == "input_items":
            item = {"id": "msg_in", "type": "message", "role": "user", "status": "completed"}
            content = [{"type": "input_text", "text": given if isinstance(given, str) else str(given)}]
            found = [{**item, "content": content}]
            return {
                "object": "list",
                "data": found,
                "first_id": "msg_in",
                "last_id": "msg_in",
                "has_more": False,
            }
        if rest == "cancel":
            return {**response, "status": "cancelled"}
        if method == "DELETE":
            del self._kept[name]
            return {"id": name, "object": "response", "deleted": True}
        return response


def response(call_id: str, request: Body, answer: list[str]) -> Body:
    """Returns: A completed response object."""
    prompt = tokens_of(request.get("input"))
    return {
        "id": f"resp_{call_id}",
        "object": "response",
        "created_at": CREATED,
        "status": "completed",
        "background": bool(request.get("background")),
        "error": None,
        "incomplete_details": None,
        "instructions": request.get("instructions"),
        "metadata": request.get("metadata") or {},
        "model": request.get("model") or "gpt-4o-mini",
        "output": [_message(call_id, "".join(answer), "completed")],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": len(answer),
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + len(answer),
        },
    }


def _message(call_id: str, text: str, status: str) -> Body:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    content = [part] if status == "completed" else []
    return {
        "id": f"msg_{call_id}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": content,
    }


def events(whole: Body, answer: list[str]) -> Iterator[Body]:
    """Yields: The events of a streamed response, in the API's order."""
    item = whole["output"][0]
    started = {**whole, "status": "in_progress", "output": [], "usage": None}
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    yield {"type": "response.created", "response": started}
    yield {"type": "response.in_progress", "response": started}
    opened = {**item, "status": "in_progress", "content": []}
    yield {"type": "response.output_item.added", "output_index": 0, "item": opened}
    yield {"type": "response.content_part.added", **place, "part": empty}
    for token in answer:
        yield {"type": "response.output_text.delta", **place, "delta": token, "logprobs": []}
    yield {"type": "response.output_text.done", **place, "text": "".join(answer), "logprobs": []}
    yield {"type": "response.content_part.done", **place, "part": item["content"][0]}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    yield {"type": "response.completed", "response": whole}
