"""The table of what is relayed: one row per OpenAI endpoint, and everything that differs between them.

Source: https://platform.openai.com/docs/api-reference
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row.

    Attributes:
        path: Under the base URL, `{id}` for one path segment.
        body: How the request's body is encoded.
        model: Whether the body must name a model.
        reply: `json`: a reply of another kind is malformed; `any`: audio or text as it comes.
        terminals: `type`s of the events that end a stream which has no `[DONE]` of its own.
        streams_by_query: `?stream=true` asks for a stream.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    summary: str
    body: Literal["json", "multipart", "none"] = "json"
    model: Literal["required", "optional", "none"] = "required"
    reply: Literal["json", "any"] = "json"
    terminals: frozenset[str] = frozenset()
    streams_by_query: bool = False


_RESPONSE_ENDS = frozenset({"response.completed", "response.failed", "response.incomplete", "error"})
_IMAGE_ENDS = frozenset({"image_generation.completed", "image_edit.completed", "error"})

CHAT = Endpoint("POST", "/chat/completions", "Chat, whole or streamed")
COMPLETIONS = Endpoint("POST", "/completions", "Legacy completion, whole or streamed")
EMBEDDINGS = Endpoint("POST", "/embeddings", "Embeddings; long inputs are split and joined again")
RESPONSES = Endpoint("POST", "/responses", "Responses, whole or streamed", terminals=_RESPONSE_ENDS)

ENDPOINTS: tuple[Endpoint, ...] = (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    RESPONSES,
    Endpoint(
        "GET", "/responses/{id}", "A stored response", "none", "none", "json", _RESPONSE_ENDS, streams_by_query=True
    ),
    Endpoint("DELETE", "/responses/{id}", "Deletes a stored response", "none", "none"),
    Endpoint("POST", "/responses/{id}/cancel", "Cancels a background response", "none", "none"),
    Endpoint("GET", "/responses/{id}/input_items", "What a response was made from", "none", "none"),
    Endpoint("POST", "/moderations", "Moderation", model="optional"),
    Endpoint("POST", "/images/generations", "Images from text", model="optional", terminals=_IMAGE_ENDS),
    Endpoint("POST", "/images/edits", "Images from images and text", "multipart", "optional", terminals=_IMAGE_ENDS),
    Endpoint("POST", "/images/variations", "Variations of an image", "multipart", "optional"),
    Endpoint(
        "POST",
        "/audio/speech",
        "Speech from text",
        reply="any",
        terminals=frozenset({"speech.audio.done", "error"}),
    ),
    Endpoint(
        "POST",
        "/audio/transcriptions",
        "Text from speech",
        "multipart",
        reply="any",
        terminals=frozenset({"transcript.text.done", "error"}),
    ),
    Endpoint("POST", "/audio/translations", "English text from speech", "multipart", reply="any"),
)

BY_PATH: dict[str, Endpoint] = {e.path: e for e in ENDPOINTS if e.method == "POST" and "{" not in e.path}

# What a fan-out item or a batch line may name, as OpenAI's batches: one JSON body, one JSON reply.
FANOUT_PATHS: frozenset[str] = frozenset(
    path for path, endpoint in BY_PATH.items() if endpoint.body == "json" and endpoint.reply == "json"
)
