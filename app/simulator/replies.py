"""Plausible replies, the same ones for the same seed and request."""

import base64
import hashlib
import random
import struct
from array import array
from collections.abc import Iterator
from typing import Any

MODELS = (
    "gpt-4o-mini",
    "gpt-4o",
    "gpt-3.5-turbo-instruct",
    "text-embedding-3-small",
    "text-embedding-3-large",
    "omni-moderation-latest",
    "gpt-image-1",
    "tts-1",
    "whisper-1",
)
CREATED = 1_731_000_000
_IMAGE_TOKENS = 272
_TEXT = (
    "water rises behind the gate until the keeper turns the wheel and lets a measured stream run down to the mill "
    "where it turns stones grinds grain and goes on its way quietly as if nothing had happened"
)
_WORDS = _TEXT.split()
_PNG = base64.b64encode(
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x06\x00\x00\x00\x1f\x15\xc4\x89"
    b"\x00\x00\x00\rIDATx\x9cc\xf8\xff\xff?\x00\x05\xfe\x02\xfe\xa75\x81\x84\x00\x00\x00\x00IEND\xaeB`\x82"
).decode()
Body = dict[str, Any]


def words(seed: int, request: bytes, count: int) -> list[str]:
    """Returns: `count` tokens, each but the first with its leading space."""
    draw = random.Random(f"{seed}:{hashlib.sha256(request).hexdigest()}")  # noqa: S311 - text, not secrets
    return [(" " if place else "") + draw.choice(_WORDS) for place in range(count)]


def token_id(seed: int, request: bytes) -> str:
    return hashlib.sha256(f"{seed}:".encode() + request).hexdigest()[:24]


def tokens_of(value: object) -> int:
    """Returns: A rough count of tokens in whatever a request holds: four characters each."""
    return max(1, len(str(value)) // 4)


def cost(path: str, request: Body, answered: int) -> int:
    """Returns: The tokens that a call is charged: what its reply's usage will say, where it says anything."""
    if path == "/embeddings":
        return sum(map(tokens_of, _inputs(request)))
    if path.startswith("/images"):
        return _IMAGE_TOKENS + tokens_of(request.get("prompt"))
    given = request.get({"/chat/completions": "messages", "/completions": "prompt"}.get(path, "input"))
    return tokens_of(given) + (0 if path == "/moderations" else answered)


def usage(prompt: int, completion: int) -> Body:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def chat(call_id: str, request: Body, answer: list[str]) -> Body:
    message: Body = {"role": "assistant", "content": "".join(answer), "refusal": None, "annotations": []}
    return {
        "id": f"chatcmpl-{call_id}",
        "object": "chat.completion",
        "created": CREATED,
        "model": request["model"],
        "choices": [
            {"index": place, "message": message, "logprobs": None, "finish_reason": "stop"}
            for place in range(request.get("n") or 1)
        ],
        "usage": usage(tokens_of(request.get("messages")), len(answer)),
        "service_tier": "default",
        "system_fingerprint": "fp_simulator",
    }


def chat_chunks(call_id: str, request: Body, answer: list[str]) -> Iterator[Body]:
    """Yields: The role, a chunk per token, the finish reason, and the usage where it was asked for."""
    head = {
        "id": f"chatcmpl-{call_id}",
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": request["model"],
        "service_tier": "default",
        "system_fingerprint": "fp_simulator",
    }

    def choice(delta: Body, finish: str | None = None) -> Body:
        return {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}

    yield choice({"role": "assistant", "content": ""})
    for token in answer:
        yield choice({"content": token})
    yield choice({}, "stop")
    if (request.get("stream_options") or {}).get("include_usage"):
        yield {**head, "choices": [], "usage": usage(tokens_of(request.get("messages")), len(answer))}


def completion(call_id: str, request: Body, answer: list[str]) -> Body:
    return {
        "id": f"cmpl-{call_id}",
        "object": "text_completion",
        "created": CREATED,
        "model": request["model"],
        "choices": [{"index": 0, "text": "".join(answer), "logprobs": None, "finish_reason": "stop"}],
        "usage": usage(tokens_of(request.get("prompt")), len(answer)),
    }


def completion_chunks(call_id: str, request: Body, answer: list[str]) -> Iterator[Body]:
    head = {
        "id": f"cmpl-{call_id}",
        "object": "text_completion",
        "created": CREATED,
        "model": request["model"],
    }
    for token in answer:
        yield {**head, "choices": [{"index": 0, "text": token, "logprobs": None, "finish_reason": None}]}
    yield {**head, "choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}]}


def embeddings(request: Body) -> Body:
    """Unit vectors that depend on the input alone, so that equal texts are equal."""
    inputs = _inputs(request)
    size = request.get("dimensions") or (3072 if "large" in request["model"] else 1536)
    as_text = request.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": place, "embedding": _vector(one, size, as_text=as_text)}
        for place, one in enumerate(inputs)
    ]
    prompt = sum(map(tokens_of, inputs))
    used = {"prompt_tokens": prompt, "total_tokens": prompt}
    return {"object": "list", "data": data, "model": request["model"], "usage": used}


def _inputs(request: Body) -> list[Any]:
    given = request.get("input")
    is_one = isinstance(given, str) or (isinstance(given, list) and bool(given) and isinstance(given[0], int))
    return [given] if is_one else list(given or [])


def _vector(value: object, size: int, *, as_text: bool) -> list[float] | str:
    whole = array("h", hashlib.shake_256(str(value).encode()).digest(2 * size))
    length = sum(number * number for number in whole) ** 0.5 or 1.0
    vector = [number / length for number in whole]
    return base64.b64encode(array("f", vector).tobytes()).decode() if as_text else vector


def moderation(call_id: str, request: Body) -> Body:
    given = request.get("input")
    names = ("harassment", "hate", "self-harm", "sexual", "violence")
    result = {
        "flagged": False,
        "categories": dict.fromkeys(names, False),
        "category_scores": dict.fromkeys(names, 0.0001),
        "category_applied_input_types": {name: ["text"] for name in names},
    }
    count = len(given) if isinstance(given, list) else 1
    model = request.get("model") or "omni-moderation-latest"
    return {"id": f"modr-{call_id}", "model": model, "results": [result] * count}


def images(request: Body) -> Body:
    count = int(request.get("n") or 1)
    used = {
        "input_tokens": tokens_of(request.get("prompt")),
        "output_tokens": _IMAGE_TOKENS,
        "total_tokens": _IMAGE_TOKENS + tokens_of(request.get("prompt")),
        "input_tokens_details": {"text_tokens": tokens_of(request.get("prompt")), "image_tokens": 0},
    }
    return {"created": CREATED, "data": [{"b64_json": _PNG}] * count, "usage": used}


def image_events(kind: str, request: Body) -> Iterator[Body]:
    head = {
        "b64_json": _PNG,
        "created_at": CREATED,
        "size": "1024x1024",
        "quality": "low",
        "background": "opaque",
    }
    head["output_format"] = "png"
    for place in range(int(request.get("partial_images") or 0)):
        yield {"type": f"{kind}.partial_image", "partial_image_index": place, **head}
    yield {"type": f"{kind}.completed", **head, "usage": images(request)["usage"]}


def speech() -> bytes:
    """Returns: A second of silence as WAV: 8 kHz, mono, 8 bits."""
    samples = b"\x80" * 8000
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(samples), b"WAVE", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8,
                       b"data", len(samples))  # fmt: skip
    return head + samples


def speech_events() -> Iterator[Body]:
    yield {"type": "speech.audio.delta", "audio": base64.b64encode(speech()).decode()}
    yield {"type": "speech.audio.done", "usage": {"input_tokens": 1, "output_tokens": 8, "total_tokens": 9}}


def transcript_events(answer: list[str]) -> Iterator[Body]:
    for token in answer:
        yield {"type": "transcript.text.delta", "delta": token}
    yield {"type": "transcript.text.done", "text": "".join(answer)}


def model_list() -> Body:
    return {"object": "list", "data": [model(name) for name in MODELS]}


def model(name: str) -> Body:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "simulator"}
